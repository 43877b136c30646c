//! Listing tags.

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use crate::{
    conformance::{Answer, Probe, Table, data::Manifest, pairs, push},
    image::media,
};

pub(super) fn table() -> Table {
    let mut table = Table::new("discovery/tags");
    table.rule("never-used-repository", never_used);
    table.rule("repository-without-tags", without_tags);
    table.rule("content-type", content_type);
    table.rule("sorted", sorted);
    table.each("pages-together-hold-all", PAGES, all_pages);
    table.each("page-holds-n-and-links-on", PAGES, page);
    table.each("whole-list-has-no-link", [9usize, 10, 100, 999], whole);
    table.rule("n-0-is-empty-without-link", none);
    table.each("n-malformed-400", ["-1", "x", "1x", "1.5"], malformed);
    table.each("n-enormous", ["1000000000", "9223372036854775807", "18446744073709551616"], enormous);
    table.each("last-is-exclusive", pairs([0usize, 3, 7], &[0usize, 2]), last);
    table.rule("last-need-not-exist", last_absent);
    table.rule("last-behind-all", last_behind);
    table.rule("last-may-be-encoded", last_encoded);
    table.rule("deleted-tag-is-gone", deleted);
    table.rule("deleted-last-still-pages", deleted_last);
    table.rule("moved-tag-is-listed-once", moved);
    table.rule("name-is-a-prefix-of-another", prefix);
    table.rule("link-stays-on-this-host", link_target);
    table.each("hundreds", [1usize, 2], hundreds);
    table
}

/// In the order of their bytes, as lists give them.
const TAGS: [&str; 9] = ["0", "10", "9", "A", "Z", "_", "a", "a.1", "a_1"];
const PAGES: [usize; 5] = [1, 2, 3, 4, 8];

fn index(p: &Probe, note: &str) -> Manifest {
    let json = json!({
        "schemaVersion": 2, "mediaType": media::INDEX, "manifests": [],
        "annotations": { "note": note, "repository": p.repository() },
    });
    Manifest::new(shoal_proto::digest::Algorithm::Sha256, &json)
}

/// The rule's repository with [`TAGS`], pushed in another order.
async fn tagged(p: &Probe) -> Result<()> {
    let manifest = index(p, "tagged");
    for at in [4, 8, 2, 0, 6, 1, 7, 3, 5] {
        push::manifest(p, p.repository(), TAGS[at], &manifest).await?.is(201)?;
    }
    Ok(())
}

fn names(answer: &Answer) -> Result<Vec<String>> {
    let body = answer.is(200)?.json()?;
    let tags = body["tags"].as_array().map(Vec::as_slice).unwrap_or_default();
    Ok(tags.iter().filter_map(Value::as_str).map(str::to_owned).collect())
}

async fn list(p: &Probe, query: &str) -> Result<Answer> {
    p.get(p.at(format!("tags/list{query}"))).await
}

async fn never_used(p: Probe) -> Result<()> {
    let answer = list(&p, "").await?;
    if answer.is_one_of(&[200, 404])?.status() == 404 {
        return answer.fails(404, &["NAME_UNKNOWN"]);
    }
    ensure!(names(&answer)?.is_empty(), "{}", answer.told());
    Ok(())
}

async fn without_tags(p: Probe) -> Result<()> {
    push::manifest_by_digest(&p, p.repository(), &index(&p, "untagged")).await?;
    let answer = list(&p, "").await?;
    if answer.is_one_of(&[200, 404])?.status() == 404 {
        return answer.fails(404, &["NAME_UNKNOWN"]);
    }
    ensure!(answer.json()?["tags"].as_array().is_none_or(Vec::is_empty), "{}", answer.told());
    Ok(())
}

async fn content_type(p: Probe) -> Result<()> {
    tagged(&p).await?;
    let answer = list(&p, "").await?;
    let media_type = answer.header("content-type").split(';').next().unwrap_or_default();
    ensure!(media_type == "application/json", "Content-Type: {media_type}");
    ensure!(answer.json()?["name"] == p.repository(), "{}", answer.told());
    Ok(())
}

async fn sorted(p: Probe) -> Result<()> {
    tagged(&p).await?;
    let found = names(&list(&p, "").await?)?;
    ensure!(found == TAGS, "{found:?}");
    Ok(())
}

async fn all_pages(p: Probe, n: usize) -> Result<()> {
    tagged(&p).await?;
    let found = walk(&p, &p.at(format!("tags/list?n={n}"))).await?;
    ensure!(found == TAGS, "{found:?}");
    Ok(())
}

/// All pages from `target` on.
async fn walk(p: &Probe, target: &str) -> Result<Vec<String>> {
    let mut found = Vec::new();
    let mut next = Some(target.to_owned());
    let mut pages = 0;
    while let Some(target) = next {
        let answer = p.get(target).await?;
        found.extend(names(&answer)?);
        next = answer.next_page()?;
        pages += 1;
        ensure!(pages <= 1000, "the pages do not end");
    }
    Ok(found)
}

async fn page(p: Probe, n: usize) -> Result<()> {
    tagged(&p).await?;
    let answer = list(&p, &format!("?n={n}")).await?;
    let found = names(&answer)?;
    ensure!(found == TAGS[..n], "{found:?}");
    ensure!(answer.next_page()?.is_some(), "more follow, but there is no Link");
    Ok(())
}

async fn whole(p: Probe, n: usize) -> Result<()> {
    tagged(&p).await?;
    let answer = list(&p, &format!("?n={n}")).await?;
    let found = names(&answer)?;
    ensure!(found == TAGS, "{found:?}");
    answer.lacks("link").map(drop)
}

async fn none(p: Probe) -> Result<()> {
    tagged(&p).await?;
    let answer = list(&p, "?n=0").await?;
    ensure!(names(&answer)?.is_empty(), "{}", answer.told());
    answer.lacks("link").map(drop)
}

async fn malformed(p: Probe, n: &'static str) -> Result<()> {
    tagged(&p).await?;
    let answer = list(&p, &format!("?n={n}")).await?;
    answer.is(400)?;
    ensure!(!answer.reply.error_code().is_empty(), "{}", answer.told());
    Ok(())
}

async fn enormous(p: Probe, n: &'static str) -> Result<()> {
    tagged(&p).await?;
    let answer = list(&p, &format!("?n={n}")).await?;
    if answer.is_one_of(&[200, 400])?.status() == 200 {
        ensure!(names(&answer)? == TAGS, "{}", answer.told());
    }
    Ok(())
}

async fn last(p: Probe, (at, n): (usize, usize)) -> Result<()> {
    tagged(&p).await?;
    let limit = if n == 0 { String::new() } else { format!("&n={n}") };
    let found = names(&list(&p, &format!("?last={}{limit}", TAGS[at])).await?)?;
    let end = if n == 0 { TAGS.len() } else { (at + 1 + n).min(TAGS.len()) };
    ensure!(found == TAGS[at + 1..end], "{found:?}");
    Ok(())
}

async fn last_absent(p: Probe) -> Result<()> {
    tagged(&p).await?;
    let found = names(&list(&p, "?last=B").await?)?;
    ensure!(found == TAGS[4..], "{found:?}");
    Ok(())
}

async fn last_behind(p: Probe) -> Result<()> {
    tagged(&p).await?;
    for last in ["a_1", "zzz"] {
        let answer = list(&p, &format!("?last={last}")).await?;
        ensure!(names(&answer)?.is_empty(), "{}", answer.told());
        answer.lacks("link")?;
    }
    Ok(())
}

async fn last_encoded(p: Probe) -> Result<()> {
    tagged(&p).await?;
    let found = names(&list(&p, "?last=a%2E1").await?)?;
    ensure!(found == TAGS[8..], "{found:?}");
    Ok(())
}

async fn deleted(p: Probe) -> Result<()> {
    tagged(&p).await?;
    p.delete(p.at("manifests/Z")).await?.is(202)?;
    let found = names(&list(&p, "").await?)?;
    ensure!(found.len() == 8 && !found.contains(&"Z".to_owned()), "{found:?}");
    Ok(())
}

/// A page begins behind a tag that has been deleted since.
async fn deleted_last(p: Probe) -> Result<()> {
    tagged(&p).await?;
    let next = list(&p, "?n=4").await?.next_page()?;
    p.delete(p.at(format!("manifests/{}", TAGS[3]))).await?.is(202)?;
    let found = walk(&p, &next.unwrap_or_else(|| p.at("tags/list?n=4&last=A"))).await?;
    ensure!(found == TAGS[4..], "{found:?}");
    Ok(())
}

async fn moved(p: Probe) -> Result<()> {
    for note in ["one", "two", "three"] {
        push::manifest(&p, p.repository(), "moving", &index(&p, note)).await?.is(201)?;
    }
    let found = names(&list(&p, "").await?)?;
    ensure!(found == ["moving"], "{found:?}");
    Ok(())
}

async fn prefix(p: Probe) -> Result<()> {
    let manifest = index(&p, "prefix");
    let below = format!("{}/below", p.repository());
    let beside = format!("{}0", p.another());
    for repository in [p.repository(), &below, &beside] {
        let tag = if repository == p.repository() { "own" } else { "other" };
        push::manifest(&p, repository, tag, &manifest).await?.is(201)?;
    }
    let found = names(&list(&p, "").await?)?;
    ensure!(found == ["own"], "{found:?}");
    Ok(())
}

async fn link_target(p: Probe) -> Result<()> {
    tagged(&p).await?;
    let answer = list(&p, "?n=2").await?;
    let next = answer.next_page()?.unwrap_or_default();
    let path = p.at("tags/list?");
    ensure!(next.contains(&path) && next.contains("n=2") && next.contains("last=10"), "Link: {next}");
    Ok(())
}

/// More tags than a page of many registries holds: the list is whole, or its Links lead to the rest.
async fn hundreds(p: Probe, hundreds: usize) -> Result<()> {
    let manifest = index(&p, "hundreds");
    let mut tags: Vec<_> = (0..hundreds * 100 + 1).map(|n| format!("t{n}")).collect();
    for tag in &tags {
        push::manifest(&p, p.repository(), tag, &manifest).await?.is(201)?;
    }
    tags.sort_unstable();
    for query in ["", "?n=70"] {
        let found = walk(&p, &p.at(format!("tags/list{query}"))).await?;
        ensure!(found == tags, "{} of {} tags", found.len(), tags.len());
    }
    Ok(())
}
