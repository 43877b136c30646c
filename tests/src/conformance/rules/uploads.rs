//! Pushing blobs: every way, right and wrong, and the sessions that it takes.

use anyhow::Result;
use futures::future::try_join_all;
use shoal_proto::digest::Algorithm;

use super::ALGORITHMS;
use crate::conformance::{
    Probe, Table,
    data::Content,
    pairs,
    push::{self, WAYS, Way, begin, with},
};

pub(super) fn table() -> Table {
    let mut table = Table::new("push/blob");
    let ways = pairs(WAYS, &ALGORITHMS);
    table.each("taken", pairs(SIZES, &ways), taken);
    table.each("location-leads-to-it", ways.clone(), location);
    table.each("digest-header", ways.clone(), digest_header);
    table.each("400-wrong-digest", ways.clone(), wrong_digest);
    table.each("again", ways, again);
    table.each("post-is-enough", ALGORITHMS, post_is_enough);
    table.each("digest-may-be-encoded", ALGORITHMS, encoded);
    table.each("other-algorithm-than-hinted", ALGORITHMS, other_algorithm);
    table.each("under-both-algorithms", [Way::Put, Way::Chunks], both_algorithms);
    table.each("eight-at-once", ALGORITHMS, at_once);
    table.rule("400-put-without-digest", no_digest);
    table.each("400-put-malformed-digest", MALFORMED, malformed);
    table.each("400-post-malformed-digest", MALFORMED, malformed_post);
    table.rule("400-unknown-algorithm-hint", unknown_hint);
    table.rule("hint-of-a-known-algorithm", known_hint);
    table
}

const SIZES: [usize; 3] = [1, 512, 100_000];
const MALFORMED: [&str; 4] = ["sha256:", "sha256:abc", "abc", "md5:d41d8cd98f00b204e9800998ecf8427e"];

type Pushed = (Way, Algorithm);

fn path(p: &Probe, content: &Content) -> String {
    p.at(format!("blobs/{}", content.digest))
}

async fn taken(p: Probe, (len, (way, algorithm)): (usize, Pushed)) -> Result<()> {
    let content = p.noise_by(algorithm, "blob", len);
    push::by(&p, p.repository(), &content, way).await?.is(201)?.holds(b"")?;
    p.head(path(&p, &content)).await?.is(200)?.says("content-length", len)?;
    p.get(path(&p, &content)).await?.is(200)?.holds(&content.bytes).map(drop)
}

async fn location(p: Probe, (way, algorithm): Pushed) -> Result<()> {
    let content = p.noise_by(algorithm, "blob", 600);
    let location = push::by(&p, p.repository(), &content, way).await?.is(201)?.location()?;
    p.get(location).await?.is(200)?.holds(&content.bytes).map(drop)
}

async fn digest_header(p: Probe, (way, algorithm): Pushed) -> Result<()> {
    let content = p.noise_by(algorithm, "blob", 600);
    push::by(&p, p.repository(), &content, way).await?.is(201)?.says("docker-content-digest", content.digest).map(drop)
}

async fn wrong_digest(p: Probe, (way, algorithm): Pushed) -> Result<()> {
    let right = p.noise_by(algorithm, "blob", 600);
    let wrong = Content { bytes: p.noise("other", 600).bytes, digest: right.digest };
    push::by(&p, p.repository(), &wrong, way).await?.fails(400, &["DIGEST_INVALID"])?;
    p.get(path(&p, &right)).await?.fails(404, &["BLOB_UNKNOWN"])?;
    let sent = Content::new(algorithm, wrong.bytes);
    p.head(path(&p, &sent)).await?.is(404).map(drop)
}

async fn again(p: Probe, (way, algorithm): Pushed) -> Result<()> {
    let content = p.noise_by(algorithm, "blob", 600);
    for _ in 0..2 {
        push::by(&p, p.repository(), &content, way).await?.is(201)?;
    }
    p.get(path(&p, &content)).await?.is(200)?.holds(&content.bytes).map(drop)
}

/// A POST with the whole body is done at once.
async fn post_is_enough(p: Probe, algorithm: Algorithm) -> Result<()> {
    let content = p.noise_by(algorithm, "blob", 600);
    let target = p.at(format!("blobs/uploads/?digest={}", content.digest));
    p.post(target).octets(content.bytes.clone()).await?.is(201)?;
    p.get(path(&p, &content)).await?.is(200)?.holds(&content.bytes).map(drop)
}

async fn encoded(p: Probe, algorithm: Algorithm) -> Result<()> {
    let content = p.noise_by(algorithm, "blob", 600);
    let session = begin(&p, p.repository(), "").await?;
    let digest = content.digest.to_string().replace(':', "%3A");
    p.put(with(&session, &format!("digest={digest}"))).octets(content.bytes).await?.is(201).map(drop)
}

/// The hint is one.
async fn other_algorithm(p: Probe, algorithm: Algorithm) -> Result<()> {
    let hint = if algorithm == Algorithm::Sha256 { Algorithm::Sha512 } else { Algorithm::Sha256 };
    let content = p.noise_by(algorithm, "blob", 70_000);
    let session = begin(&p, p.repository(), &format!("?digest-algorithm={}", hint.as_str())).await?;
    let session = push::chunk(&p, &session, 0, content.bytes.slice(..30_000)).await?.is(202)?.location()?;
    let session = push::chunk(&p, &session, 30_000, content.bytes.slice(30_000..)).await?.is(202)?.location()?;
    push::finish(&p, &session, &content).await?.is(201)?;
    p.get(path(&p, &content)).await?.is(200)?.holds(&content.bytes).map(drop)
}

async fn both_algorithms(p: Probe, way: Way) -> Result<()> {
    let bytes = p.noise("blob", 5000).bytes;
    let both = ALGORITHMS.map(|algorithm| Content::new(algorithm, bytes.clone()));
    for content in &both {
        push::by(&p, p.repository(), content, way).await?.is(201)?;
    }
    for content in &both {
        p.get(path(&p, content)).await?.is(200)?.holds(&bytes)?;
    }
    p.delete(path(&p, &both[0])).await?.is(202)?;
    p.get(path(&p, &both[1])).await?.is(200)?.holds(&bytes).map(drop)
}

async fn at_once(p: Probe, algorithm: Algorithm) -> Result<()> {
    let content = p.noise_by(algorithm, "blob", 50_000);
    let pushes = (0..8).map(|_| async { push::by(&p, p.repository(), &content, Way::Put).await?.is(201).map(drop) });
    try_join_all(pushes).await?;
    p.get(path(&p, &content)).await?.is(200)?.holds(&content.bytes).map(drop)
}

async fn no_digest(p: Probe) -> Result<()> {
    let session = begin(&p, p.repository(), "").await?;
    p.put(session).octets("abc").await?.fails(400, &["DIGEST_INVALID"])
}

async fn malformed(p: Probe, digest: &'static str) -> Result<()> {
    let session = begin(&p, p.repository(), "").await?;
    p.put(with(&session, &format!("digest={digest}"))).octets("abc").await?.fails(400, &["DIGEST_INVALID"])
}

async fn malformed_post(p: Probe, digest: &'static str) -> Result<()> {
    let answer = p.post(p.at(format!("blobs/uploads/?digest={digest}"))).octets("abc").await?;
    // One that does not do the single POST finds out at the PUT.
    if answer.status() == 202 {
        let target = with(&answer.location()?, &format!("digest={digest}"));
        return p.put(target).octets("abc").await?.fails(400, &["DIGEST_INVALID"]);
    }
    answer.fails(400, &["DIGEST_INVALID"])
}

async fn unknown_hint(p: Probe) -> Result<()> {
    let answer = p.post(p.at("blobs/uploads/?digest-algorithm=md5")).await?;
    answer.fails(400, &["DIGEST_INVALID", "UNSUPPORTED", "BLOB_UPLOAD_INVALID"])
}

async fn known_hint(p: Probe) -> Result<()> {
    for algorithm in ALGORITHMS {
        begin(&p, p.repository(), &format!("?digest-algorithm={}", algorithm.as_str())).await?;
    }
    Ok(())
}
