//! How much is taken, and what becomes of more.

use anyhow::{Result, ensure};
use serde_json::json;
use shoal_proto::digest::Algorithm;

use crate::{
    conformance::{
        Probe, Table,
        data::{Content, EMPTY_JSON, Manifest},
        push,
    },
    image::{ACCEPT, media},
};

pub(super) fn table() -> Table {
    let mut table = Table::new("limits");
    table.each("manifest/taken-up-to-4-mib", [4_000_000usize, 4 << 20], manifest_of_size);
    table.each("manifest/413-above-any-limit", [16usize, 32], manifest_too_large);
    table.rule("manifest/thousands-of-layers", many_layers);
    table.rule("manifest/thousands-of-missing-children", many_children);
    table.each("manifest/nested-json-is-refused", ["arrays", "objects"], nested);
    table.rule("session/three-hundred", sessions);
    table.each("ranges/many-do-not-multiply", ["overlapping", "tiny"], ranges);
    table.each("tags/last-of-any-length", [128usize, 4000], long_last);
    table.rule("referrers/artifact-type-of-any-length", long_type);
    table
}

/// An image of this rule alone, whose config is pushed, as JSON text of exactly `len` bytes.
async fn of_size(p: &Probe, len: usize) -> Result<Manifest> {
    let config = Content::text("{}");
    push::blob(p, p.repository(), &config).await?;
    let json = |note: &str| {
        json!({
            "schemaVersion": 2, "mediaType": media::MANIFEST, "config": config.descriptor(EMPTY_JSON), "layers": [],
            "annotations": { "note": note },
        })
    };
    let bare = json("").to_string().len();
    Ok(Manifest::new(Algorithm::Sha256, &json(&"n".repeat(len.saturating_sub(bare)))))
}

async fn manifest_of_size(p: Probe, len: usize) -> Result<()> {
    let manifest = of_size(&p, len).await?;
    ensure!(manifest.content.bytes.len() == len, "the rule's own manifest");
    push::manifest(&p, p.repository(), "large", &manifest).await?.is(201)?;
    let got = p.get(p.at("manifests/large")).header("accept", ACCEPT).await?;
    got.is(200)?.holds(&manifest.content.bytes).map(drop)
}

/// No registry needs manifests of that length, and none should read them to their end.
async fn manifest_too_large(p: Probe, mib: usize) -> Result<()> {
    let manifest = of_size(&p, mib << 20).await?;
    let answer = push::manifest(&p, p.repository(), "large", &manifest).await;
    // A server may close the connection while the client still sends.
    if let Ok(answer) = answer {
        answer.is(413)?;
        ensure!(!answer.reply.error_code().is_empty(), "{}", answer.told());
    }
    p.get(p.at("manifests/large")).header("accept", ACCEPT).await?.is(404).map(drop)
}

async fn many_layers(p: Probe) -> Result<()> {
    let (config, layer) = (Content::text("{}"), p.noise("layer", 100));
    for content in [&config, &layer] {
        push::blob(&p, p.repository(), content).await?;
    }
    let layers = vec![layer.descriptor(media::LAYER); 3000];
    let json = json!({
        "schemaVersion": 2, "mediaType": media::MANIFEST, "config": config.descriptor(EMPTY_JSON), "layers": layers,
    });
    let manifest = Manifest::new(Algorithm::Sha256, &json);
    push::manifest(&p, p.repository(), "layers", &manifest).await?.is(201)?;
    let got = p.get(p.at("manifests/layers")).header("accept", ACCEPT).await?;
    got.is(200)?.holds(&manifest.content.bytes).map(drop)
}

/// The refusal may name what is missing, but not all of it.
async fn many_children(p: Probe) -> Result<()> {
    let children: Vec<_> =
        (0..5000).map(|n| Content::text(format!("{} {n}", p.repository())).descriptor(media::MANIFEST)).collect();
    let json = json!({ "schemaVersion": 2, "mediaType": media::INDEX, "manifests": children });
    let manifest = Manifest::new(Algorithm::Sha256, &json);
    let answer = push::manifest(&p, p.repository(), "children", &manifest).await?;
    answer.is_one_of(&[201, 400, 404])?;
    ensure!(answer.body().len() <= 1 << 20, "a refusal of {} bytes", answer.body().len());
    Ok(())
}

async fn nested(p: Probe, how: &'static str) -> Result<()> {
    let (open, close) = if how == "arrays" { ("[", "]") } else { ("{\"a\":", "}") };
    let depth = 100_000;
    let body = format!(
        "{{\"schemaVersion\":2,\"mediaType\":\"{}\",\"manifests\":[],\"x\":{}1{}}}",
        media::INDEX,
        open.repeat(depth),
        close.repeat(depth)
    );
    let answer = p.put(p.at("manifests/nested")).of_type(media::INDEX).body(body).await?;
    // A parser that does not recurse may well take it.
    answer.is_one_of(&[201, 400, 413])?;
    p.get("/v2/").await?.is(200).map(drop)
}

async fn sessions(p: Probe) -> Result<()> {
    let mut open = Vec::new();
    for _ in 0..300 {
        let answer = p.post(p.at("blobs/uploads/")).await?;
        if answer.is_one_of(&[202, 429])?.status() == 429 {
            ensure!(!answer.header("retry-after").is_empty(), "429 says when to come again: {}", answer.told());
            break;
        }
        open.push(answer.location()?);
    }
    ensure!(!open.is_empty(), "not one session is opened");
    for session in open {
        p.delete(session).await?.is(204)?;
    }
    Ok(())
}

/// A request of a few bytes must not cost many times the blob.
async fn ranges(p: Probe, how: &'static str) -> Result<()> {
    let blob = p.noise("blob", 1_000_000);
    push::blob(&p, p.repository(), &blob).await?;
    let range = if how == "overlapping" {
        ["0-"; 12].join(",")
    } else {
        (0..1000).map(|n| format!("{n}-{n}")).collect::<Vec<_>>().join(",")
    };
    let answer = p.get(p.at(format!("blobs/{}", blob.digest))).header("range", format!("bytes={range}")).await?;
    answer.is_one_of(&[200, 206, 416])?;
    let (len, most) = (answer.body().len(), 2 * blob.bytes.len());
    ensure!(len <= most, "{len} bytes for a blob of {}", blob.bytes.len());
    Ok(())
}

async fn long_last(p: Probe, len: usize) -> Result<()> {
    let manifest = of_size(&p, 300).await?;
    push::manifest(&p, p.repository(), "one", &manifest).await?.is(201)?;
    let answer = p.get(p.at(format!("tags/list?last={}", "o".repeat(len)))).await?;
    if answer.is_one_of(&[200, 400, 414])?.status() == 200 {
        // "one" comes before "oo".
        ensure!(answer.json()?["tags"].as_array().is_none_or(Vec::is_empty), "{}", answer.told());
    }
    Ok(())
}

async fn long_type(p: Probe) -> Result<()> {
    let none = p.noise("none", 10);
    let target = p.at(format!("referrers/{}?artifactType={}", none.digest, "x".repeat(4000)));
    p.get(target).await?.is_one_of(&[200, 400, 414]).map(drop)
}
