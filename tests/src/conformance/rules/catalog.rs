//! Listing repositories: not in the specification, but clients and tools of Docker's registry ask for it.

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use shoal_proto::digest::Algorithm;

use crate::{
    conformance::{Answer, Probe, Table, data::Manifest, push},
    image::media,
};

pub(super) fn table() -> Table {
    let mut table = Table::new("catalog");
    table.rule("content-type", content_type);
    table.rule("lists-what-was-pushed", listed);
    table.rule("last-is-exclusive", last);
    table.each("pages-in-order", [1usize, 2, 3], pages);
    table.rule("link-leads-on", link);
    table.each("n-malformed-400", ["-1", "x", "1x"], malformed);
    table.each("n-enormous", ["1000000000", "9223372036854775807", "18446744073709551616"], enormous);
    table.rule("n-0", zero);
    table.rule("last-behind-all", behind);
    table
}

/// Five repositories below the rule's own, in order.
async fn pushed(p: &Probe) -> Result<Vec<String>> {
    let json = json!({ "schemaVersion": 2, "mediaType": media::INDEX, "manifests": [] });
    let manifest = Manifest::new(Algorithm::Sha256, &json);
    let names: Vec<_> = (0..5).map(|n| format!("{}/c{n}", p.repository())).collect();
    for at in [3, 0, 4, 1, 2] {
        push::manifest(p, &names[at], "1", &manifest).await?.is(201)?;
    }
    Ok(names)
}

fn names(answer: &Answer) -> Result<Vec<String>> {
    let body = answer.is(200)?.json()?;
    let list = body["repositories"].as_array().map(Vec::as_slice).unwrap_or_default();
    Ok(list.iter().filter_map(Value::as_str).map(str::to_owned).collect())
}

async fn content_type(p: Probe) -> Result<()> {
    let answer = p.get("/v2/_catalog?n=1").await?;
    let media_type = answer.is(200)?.header("content-type").split(';').next().unwrap_or_default();
    ensure!(media_type == "application/json", "Content-Type: {media_type}");
    ensure!(answer.json()?["repositories"].is_array(), "{}", answer.told());
    Ok(())
}

async fn listed(p: Probe) -> Result<()> {
    let right = pushed(&p).await?;
    let found = names(&p.get(format!("/v2/_catalog?n=5&last={}", p.repository())).await?)?;
    ensure!(found == right, "{found:?}");
    Ok(())
}

async fn last(p: Probe) -> Result<()> {
    let right = pushed(&p).await?;
    let found = names(&p.get(format!("/v2/_catalog?n=2&last={}", right[1])).await?)?;
    ensure!(found == right[2..4], "{found:?}");
    Ok(())
}

async fn pages(p: Probe, n: usize) -> Result<()> {
    let right = pushed(&p).await?;
    let mut found = Vec::new();
    let mut target = format!("/v2/_catalog?n={n}&last={}", p.repository());
    while found.len() < right.len() {
        let answer = p.get(&target).await?;
        let page = names(&answer)?;
        ensure!(page.len() <= n && !page.is_empty(), "a page of {}", page.len());
        found.extend(page);
        match answer.next_page()? {
            Some(next) => target = next,
            None => break,
        }
    }
    found.truncate(right.len());
    ensure!(found == right, "{found:?}");
    Ok(())
}

async fn link(p: Probe) -> Result<()> {
    let right = pushed(&p).await?;
    let answer = p.get(format!("/v2/_catalog?n=2&last={}", p.repository())).await?;
    let next = answer.next_page()?.unwrap_or_default();
    let found = names(&p.get(next).await?)?;
    ensure!(found == right[2..4], "{found:?}");
    Ok(())
}

async fn malformed(p: Probe, n: &'static str) -> Result<()> {
    let answer = p.get(format!("/v2/_catalog?n={n}")).await?;
    answer.is(400)?;
    ensure!(!answer.reply.error_code().is_empty(), "{}", answer.told());
    Ok(())
}

async fn enormous(p: Probe, n: &'static str) -> Result<()> {
    p.get(format!("/v2/_catalog?n={n}")).await?.is_one_of(&[200, 400]).map(drop)
}

async fn zero(p: Probe) -> Result<()> {
    let answer = p.get("/v2/_catalog?n=0").await?;
    if answer.is_one_of(&[200, 400])?.status() == 200 {
        ensure!(names(&answer)?.is_empty(), "{}", answer.told());
        answer.lacks("link")?;
    }
    Ok(())
}

async fn behind(p: Probe) -> Result<()> {
    let answer = p.get("/v2/_catalog?n=5&last=zzzzzzzz").await?;
    ensure!(names(&answer)?.iter().all(|name| name.as_str() > "zzzzzzzz"), "{}", answer.told());
    Ok(())
}
