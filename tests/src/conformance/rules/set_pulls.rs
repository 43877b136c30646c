//! Every data set, pushed once and pulled in every way.

use std::sync::Arc;

use anyhow::{Result, ensure};
use serde_json::Value;
use shoal_proto::Digest;

use crate::{
    conformance::{
        Answer, Probe, Stock, Table,
        data::{self, Content, DataSet, Manifest},
        pairs,
    },
    image::{ACCEPT, media},
};

pub(super) fn table() -> Table {
    let mut table = Table::new("pull/set");
    let sets = data::all();
    table.each("manifest-get-by-digest", sets.clone(), get_by_digest);
    table.each("manifest-get-by-tag", sets.clone(), get_by_tag);
    table.each("manifest-head-by-digest", sets.clone(), head_by_digest);
    table.each("manifest-head-by-tag", sets.clone(), head_by_tag);
    table.each("manifest-digest-header", sets.clone(), digest_header);
    table.each("manifest-304-if-none-match", sets.clone(), if_none_match);
    table.each("manifest-404-in-another-repository", sets.clone(), elsewhere);
    table.each("blob-get", sets.clone(), blob_get);
    table.each("blob-head", sets.clone(), blob_head);
    table.each("tags-are-listed", sets.clone(), tags_listed);
    table.each("client-walks-from-tag-to-bytes", sets, walk);
    table.each("accept", pairs(ACCEPTS, &data::oci()[..3]), accept);
    table
}

/// What clients say that they want, `|` between header lines. Whatever it is, a registry has but the bytes that were
/// pushed, and every client of today says so when it cannot use them.
const ACCEPTS: [&str; 6] = [
    "",
    "*/*",
    "application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json",
    "application/vnd.oci.image.manifest.v1+json|application/vnd.oci.image.index.v1+json|*/*",
    "application/vnd.oci.image.manifest.v1+json;q=0.9,application/json;q=0.1",
    "application/vnd.docker.distribution.manifest.v2+json",
];

type Set = Arc<DataSet>;

fn is_whole(answer: &Answer, manifest: &Manifest) -> Result<()> {
    let Manifest { content, media_type, .. } = manifest;
    answer.is(200)?.holds(&content.bytes)?;
    answer.says("content-type", media_type)?.says("content-length", content.bytes.len()).map(drop)
}

fn is_head(answer: &Answer, manifest: &Manifest) -> Result<()> {
    let Manifest { content, media_type, .. } = manifest;
    answer.is(200)?.holds(b"")?;
    answer.says("content-type", media_type)?.says("content-length", content.bytes.len()).map(drop)
}

async fn get_by_digest(p: Probe, set: Set) -> Result<()> {
    let stock = p.stock(&set).await?;
    for manifest in &set.manifests {
        let target = stock.at(format!("manifests/{}", manifest.content.digest));
        is_whole(&p.get(target).header("accept", ACCEPT).await?, manifest)?;
    }
    Ok(())
}

async fn get_by_tag(p: Probe, set: Set) -> Result<()> {
    let stock = p.stock(&set).await?;
    for (tag, manifest) in set.tagged() {
        is_whole(&p.get(stock.at(format!("manifests/{tag}"))).header("accept", ACCEPT).await?, manifest)?;
    }
    Ok(())
}

async fn head_by_digest(p: Probe, set: Set) -> Result<()> {
    let stock = p.stock(&set).await?;
    for manifest in &set.manifests {
        let target = stock.at(format!("manifests/{}", manifest.content.digest));
        is_head(&p.head(target).header("accept", ACCEPT).await?, manifest)?;
    }
    Ok(())
}

async fn head_by_tag(p: Probe, set: Set) -> Result<()> {
    let stock = p.stock(&set).await?;
    for (tag, manifest) in set.tagged() {
        is_head(&p.head(stock.at(format!("manifests/{tag}"))).header("accept", ACCEPT).await?, manifest)?;
    }
    Ok(())
}

/// The digest under which it was pushed, by digest and by tag.
async fn digest_header(p: Probe, set: Set) -> Result<()> {
    let stock = p.stock(&set).await?;
    let by_digest = set.manifests.iter().map(|manifest| (manifest.reference(), manifest));
    let by_tag = set.tagged().map(|(tag, manifest)| (tag.to_owned(), manifest));
    for (reference, manifest) in by_digest.chain(by_tag) {
        let target = stock.at(format!("manifests/{reference}"));
        let digest = manifest.content.digest;
        p.get(&target).header("accept", ACCEPT).await?.says("docker-content-digest", digest)?;
        p.head(&target).header("accept", ACCEPT).await?.says("docker-content-digest", digest)?;
    }
    Ok(())
}

async fn if_none_match(p: Probe, set: Set) -> Result<()> {
    let stock = p.stock(&set).await?;
    for (tag, manifest) in set.tagged() {
        for reference in [tag.to_owned(), manifest.reference()] {
            let target = stock.at(format!("manifests/{reference}"));
            let known = format!("\"{}\"", manifest.content.digest);
            let answer = p.get(&target).header("accept", ACCEPT).header("if-none-match", &known).await?;
            answer.is(304)?.holds(b"")?;
            let answer = p.get(&target).header("accept", ACCEPT).header("if-none-match", "\"other\"").await?;
            is_whole(&answer, manifest)?;
        }
    }
    Ok(())
}

async fn elsewhere(p: Probe, set: Set) -> Result<()> {
    p.stock(&set).await?;
    for reference in [set.top().reference(), set.tags[0].0.clone()] {
        let answer = p.get(p.at(format!("manifests/{reference}"))).header("accept", ACCEPT).await?;
        answer.fails(404, &["MANIFEST_UNKNOWN", "NAME_UNKNOWN"])?;
    }
    Ok(())
}

async fn blob_get(p: Probe, set: Set) -> Result<()> {
    let stock = p.stock(&set).await?;
    for content in &set.blobs {
        let answer = p.get(stock.at(format!("blobs/{}", content.digest))).await?;
        answer.is(200)?.says("content-length", content.bytes.len())?.holds(&content.bytes)?;
    }
    Ok(())
}

async fn blob_head(p: Probe, set: Set) -> Result<()> {
    let stock = p.stock(&set).await?;
    for content in &set.blobs {
        let answer = p.head(stock.at(format!("blobs/{}", content.digest))).await?;
        answer.is(200)?.says("content-length", content.bytes.len())?.holds(b"")?;
    }
    Ok(())
}

async fn tags_listed(p: Probe, set: Set) -> Result<()> {
    let stock = p.stock(&set).await?;
    let listed = p.get(stock.at("tags/list")).await?.is(200)?.json()?;
    let mut tags: Vec<_> = set.tags.iter().map(|(tag, _)| tag.as_str()).collect();
    tags.sort_unstable();
    ensure!(listed["name"] == *stock.repository && listed["tags"] == serde_json::json!(tags), "{listed}");
    Ok(())
}

/// As a client pulls that knows a tag and nothing else: every descriptor on the way must lead to bytes of its size and
/// digest.
async fn walk(p: Probe, set: Set) -> Result<()> {
    let stock = p.stock(&set).await?;
    for (tag, _) in set.tagged() {
        let top = p.get(stock.at(format!("manifests/{tag}"))).header("accept", ACCEPT).await?.is(200)?.json()?;
        let mut left = children(&top);
        while let Some((descriptor, kind)) = left.pop() {
            let bytes = fetch(&p, &stock, &descriptor, kind).await?;
            if kind == "manifests" {
                left.extend(children(&serde_json::from_slice(&bytes)?));
            }
        }
    }
    Ok(())
}

fn children(manifest: &Value) -> Vec<(Value, &'static str)> {
    let list = |key: &str| manifest[key].as_array().cloned().unwrap_or_default();
    let config = manifest.get("config").cloned();
    let own = |layer: &Value| layer["mediaType"] != media::LAYER_FOREIGN;
    let blobs = config.into_iter().chain(list("layers").into_iter().filter(own)).map(|blob| (blob, "blobs"));
    blobs.chain(list("manifests").into_iter().map(|manifest| (manifest, "manifests"))).collect()
}

async fn fetch(p: &Probe, stock: &Stock, descriptor: &Value, kind: &str) -> Result<bytes::Bytes> {
    let digest: Digest = descriptor["digest"].as_str().unwrap_or_default().parse()?;
    let answer = p.get(stock.at(format!("{kind}/{digest}"))).header("accept", ACCEPT).await?;
    let bytes = answer.is(200)?.body().clone();
    let found = Content::new(digest.algorithm(), bytes.clone());
    ensure!(found.digest == digest, "{digest} leads to bytes of {}", found.digest);
    ensure!(descriptor["size"] == bytes.len(), "{digest} has {} bytes, not {}", bytes.len(), descriptor["size"]);
    Ok(bytes)
}

async fn accept(p: Probe, (accept, set): (&'static str, Set)) -> Result<()> {
    let stock = p.stock(&set).await?;
    for (tag, manifest) in set.tagged() {
        let mut ask = p.get(stock.at(format!("manifests/{tag}")));
        for line in accept.split('|').filter(|line| !line.is_empty()) {
            ask = ask.header("accept", line);
        }
        is_whole(&ask.await?, manifest)?;
    }
    Ok(())
}
