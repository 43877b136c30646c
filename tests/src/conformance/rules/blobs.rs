//! Pulling blobs.

use anyhow::{Result, ensure};
use shoal_proto::digest::Algorithm;

use super::ALGORITHMS;
use crate::conformance::{
    Probe, Table,
    data::Content,
    pairs,
    push::{self, Way},
};

pub(super) fn table() -> Table {
    let mut table = Table::new("pull/blob");
    table.each("get/exact", pairs(SIZES, &ALGORITHMS), get);
    table.each("head/exact", pairs(SIZES, &ALGORITHMS), head);
    table.each("get/404-unknown", ALGORITHMS, unknown);
    table.each("head/404-unknown", ALGORITHMS, unknown_head);
    table.each("get/404-in-another-repository", ALGORITHMS, elsewhere);
    table.each("get/digest-header", ALGORITHMS, digest_header);
    table.each("get/content-type", ALGORITHMS, content_type);
    table.each("get/is-not-compressed", ALGORITHMS, not_compressed);
    table.each("get/etag-is-the-digest", ALGORITHMS, etag);
    table.each("get/304-if-none-match", pairs(ALGORITHMS, &["exact", "list", "weak", "any"]), if_none_match);
    table.each("get/200-if-none-match-differs", ALGORITHMS, if_none_match_differs);
    table.each("get/may-be-cached", ALGORITHMS, cached);
    table.each("get/accept-is-ignored", ACCEPTS, accept);
    table.each("get/query-is-ignored", QUERIES, query);
    table.each("get/colon-may-be-encoded", ["%3A", "%3a"], encoded);
    table.each("get/again-and-again", ALGORITHMS, again);
    table
}

/// Around the buffers that servers like.
const SIZES: [usize; 9] = [0, 1, 2, 4095, 65_535, 65_536, 65_537, 1_048_576, 1_048_577];
const ACCEPTS: [&str; 3] = ["*/*", "application/json", "application/vnd.oci.image.layer.v1.tar+gzip"];
const QUERIES: [&str; 3] = ["?ns=docker.io", "?x=1&y", "?digest=sha256:abc"];

async fn pushed(p: &Probe, algorithm: Algorithm, len: usize) -> Result<Content> {
    let content = p.noise_by(algorithm, "blob", len);
    push::blob(p, p.repository(), &content).await?;
    Ok(content)
}

fn path(p: &Probe, content: &Content) -> String {
    p.at(format!("blobs/{}", content.digest))
}

async fn get(p: Probe, (len, algorithm): (usize, Algorithm)) -> Result<()> {
    let content = pushed(&p, algorithm, len).await?;
    p.get(path(&p, &content)).await?.is(200)?.says("content-length", len)?.holds(&content.bytes).map(drop)
}

async fn head(p: Probe, (len, algorithm): (usize, Algorithm)) -> Result<()> {
    let content = pushed(&p, algorithm, len).await?;
    p.head(path(&p, &content)).await?.is(200)?.says("content-length", len)?.holds(b"").map(drop)
}

async fn unknown(p: Probe, algorithm: Algorithm) -> Result<()> {
    push::blob(&p, p.repository(), &p.noise("some", 10)).await?;
    p.get(path(&p, &p.noise_by(algorithm, "none", 10))).await?.fails(404, &["BLOB_UNKNOWN"])
}

async fn unknown_head(p: Probe, algorithm: Algorithm) -> Result<()> {
    p.head(path(&p, &p.noise_by(algorithm, "none", 10))).await?.is(404)?.holds(b"").map(drop)
}

async fn elsewhere(p: Probe, algorithm: Algorithm) -> Result<()> {
    let content = pushed(&p, algorithm, 100).await?;
    let other = p.another();
    push::blob(&p, &other, &p.noise("other", 10)).await?;
    p.get(format!("/v2/{other}/blobs/{}", content.digest)).await?.fails(404, &["BLOB_UNKNOWN"])
}

async fn digest_header(p: Probe, algorithm: Algorithm) -> Result<()> {
    let content = pushed(&p, algorithm, 100).await?;
    p.get(path(&p, &content)).await?.says("docker-content-digest", content.digest)?;
    p.head(path(&p, &content)).await?.says("docker-content-digest", content.digest).map(drop)
}

async fn content_type(p: Probe, algorithm: Algorithm) -> Result<()> {
    let content = pushed(&p, algorithm, 100).await?;
    p.get(path(&p, &content)).await?.says("content-type", "application/octet-stream").map(drop)
}

async fn not_compressed(p: Probe, algorithm: Algorithm) -> Result<()> {
    let content = Content::new(algorithm, "compressible ".repeat(1000) + p.repository());
    push::blob(&p, p.repository(), &content).await?;
    let answer = p.get(path(&p, &content)).header("accept-encoding", "gzip, deflate, br, zstd").await?;
    answer.is(200)?.lacks("content-encoding")?.says("content-length", content.bytes.len())?;
    answer.holds(&content.bytes).map(drop)
}

async fn etag(p: Probe, algorithm: Algorithm) -> Result<()> {
    let content = pushed(&p, algorithm, 100).await?;
    p.get(path(&p, &content)).await?.says("etag", format!("\"{}\"", content.digest)).map(drop)
}

async fn if_none_match(p: Probe, (algorithm, how): (Algorithm, &'static str)) -> Result<()> {
    let content = pushed(&p, algorithm, 100).await?;
    let tag = format!("\"{}\"", content.digest);
    let tags = match how {
        "exact" => tag,
        "list" => format!("\"other\", {tag}"),
        "weak" => format!("W/{tag}"),
        _ => "*".to_owned(),
    };
    p.get(path(&p, &content)).header("if-none-match", &tags).await?.is(304)?.holds(b"")?;
    p.head(path(&p, &content)).header("if-none-match", &tags).await?.is(304).map(drop)
}

async fn if_none_match_differs(p: Probe, algorithm: Algorithm) -> Result<()> {
    let content = pushed(&p, algorithm, 100).await?;
    let answer = p.get(path(&p, &content)).header("if-none-match", "\"sha256:other\"").await?;
    answer.is(200)?.holds(&content.bytes).map(drop)
}

async fn cached(p: Probe, algorithm: Algorithm) -> Result<()> {
    let content = pushed(&p, algorithm, 100).await?;
    let answer = p.get(path(&p, &content)).await?;
    let says = answer.header("cache-control");
    ensure!(says.contains("max-age=") && !says.contains("no-store"), "Cache-Control: {says}");
    Ok(())
}

async fn accept(p: Probe, accept: &'static str) -> Result<()> {
    let content = pushed(&p, Algorithm::Sha256, 100).await?;
    p.get(path(&p, &content)).header("accept", accept).await?.is(200)?.holds(&content.bytes).map(drop)
}

async fn query(p: Probe, query: &'static str) -> Result<()> {
    let content = pushed(&p, Algorithm::Sha256, 100).await?;
    p.get(path(&p, &content) + query).await?.is(200)?.holds(&content.bytes).map(drop)
}

async fn encoded(p: Probe, colon: &'static str) -> Result<()> {
    let content = pushed(&p, Algorithm::Sha256, 100).await?;
    p.get(path(&p, &content).replace(':', colon)).await?.is(200)?.holds(&content.bytes).map(drop)
}

async fn again(p: Probe, algorithm: Algorithm) -> Result<()> {
    let content = p.noise_by(algorithm, "blob", 70_000);
    for way in [Way::Put, Way::Chunks] {
        push::by(&p, p.repository(), &content, way).await?.is(201)?;
        for _ in 0..5 {
            p.get(path(&p, &content)).await?.is(200)?.holds(&content.bytes)?;
        }
    }
    Ok(())
}
