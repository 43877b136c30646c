//! Taking a blob from another repository without sending it.

use anyhow::Result;
use shoal_proto::digest::Algorithm;

use super::ALGORITHMS;
use crate::conformance::{Answer, Probe, Table, data::Content, push, skip};

pub(super) fn table() -> Table {
    let mut table = Table::new("push/mount");
    table.each("201-from", ALGORITHMS, from);
    table.each("location-leads-to-it", ALGORITHMS, location);
    table.each("digest-header", ALGORITHMS, digest_header);
    table.each("again", ALGORITHMS, again);
    table.each("both-repositories-keep-it", ALGORITHMS, kept);
    table.each("202-source-lacks-it", ALGORITHMS, missing_blob);
    table.each("202-no-such-source", ALGORITHMS, missing_source);
    table.each("202-deleted-at-the-source", ALGORITHMS, deleted);
    table.each("invalid-source", ["UPPER", "a//b", "..", "%00"], invalid_source);
    table.each("malformed-digest", ["sha256:abc", "abc"], malformed);
    table.each("without-from-opens-a-session", ALGORITHMS, anonymous);
    table.each("anonymous-finds-it", ALGORITHMS, anonymous_finds);
    table.rule("session-after-a-failed-mount-is-cancelled", cancelled);
    table.rule("from-itself", from_itself);
    table.rule("two-queries-in-any-order", order);
    table
}

/// A blob of another repository, and the name of that.
async fn source(p: &Probe, algorithm: Algorithm) -> Result<(Content, String)> {
    let (content, other) = (p.noise_by(algorithm, "mounted", 700), p.another());
    push::blob(p, &other, &content).await?;
    Ok((content, other))
}

async fn mount(p: &Probe, content: &Content, from: &str) -> Result<Answer> {
    p.post(p.at(format!("blobs/uploads/?mount={}&from={from}", content.digest))).await
}

fn path(p: &Probe, content: &Content) -> String {
    p.at(format!("blobs/{}", content.digest))
}

/// Nothing was mounted: a session was opened instead, which takes the bytes.
async fn falls_back(p: &Probe, answer: &Answer, content: &Content) -> Result<()> {
    let session = answer.is(202)?.location()?;
    p.get(path(p, content)).await?.fails(404, &["BLOB_UNKNOWN", "NAME_UNKNOWN"])?;
    let target = push::with(&session, &format!("digest={}", content.digest));
    p.put(target).octets(content.bytes.clone()).await?.is(201)?;
    p.get(path(p, content)).await?.is(200)?.holds(&content.bytes).map(drop)
}

async fn from(p: Probe, algorithm: Algorithm) -> Result<()> {
    let (content, other) = source(&p, algorithm).await?;
    mount(&p, &content, &other).await?.is(201)?.holds(b"")?;
    p.head(path(&p, &content)).await?.is(200)?.says("content-length", content.bytes.len())?;
    p.get(path(&p, &content)).await?.is(200)?.holds(&content.bytes).map(drop)
}

async fn location(p: Probe, algorithm: Algorithm) -> Result<()> {
    let (content, other) = source(&p, algorithm).await?;
    let location = mount(&p, &content, &other).await?.is(201)?.location()?;
    p.get(location).await?.is(200)?.holds(&content.bytes).map(drop)
}

async fn digest_header(p: Probe, algorithm: Algorithm) -> Result<()> {
    let (content, other) = source(&p, algorithm).await?;
    mount(&p, &content, &other).await?.is(201)?.says("docker-content-digest", content.digest).map(drop)
}

async fn again(p: Probe, algorithm: Algorithm) -> Result<()> {
    let (content, other) = source(&p, algorithm).await?;
    for _ in 0..3 {
        mount(&p, &content, &other).await?.is(201)?;
    }
    Ok(())
}

async fn kept(p: Probe, algorithm: Algorithm) -> Result<()> {
    let (content, other) = source(&p, algorithm).await?;
    mount(&p, &content, &other).await?.is(201)?;
    let there = format!("/v2/{other}/blobs/{}", content.digest);
    p.delete(&there).await?.is(202)?;
    p.get(&there).await?.is(404)?;
    p.get(path(&p, &content)).await?.is(200)?.holds(&content.bytes).map(drop)
}

async fn missing_blob(p: Probe, algorithm: Algorithm) -> Result<()> {
    let (_, other) = source(&p, algorithm).await?;
    let content = p.noise_by(algorithm, "absent", 700);
    falls_back(&p, &mount(&p, &content, &other).await?, &content).await
}

async fn missing_source(p: Probe, algorithm: Algorithm) -> Result<()> {
    let content = p.noise_by(algorithm, "absent", 700);
    falls_back(&p, &mount(&p, &content, &p.another()).await?, &content).await
}

async fn deleted(p: Probe, algorithm: Algorithm) -> Result<()> {
    let (content, other) = source(&p, algorithm).await?;
    p.delete(format!("/v2/{other}/blobs/{}", content.digest)).await?.is(202)?;
    falls_back(&p, &mount(&p, &content, &other).await?, &content).await
}

async fn invalid_source(p: Probe, from: &'static str) -> Result<()> {
    let content = p.noise("absent", 700);
    let answer = mount(&p, &content, from).await?;
    if answer.is_one_of(&[202, 400, 404])?.status() == 202 {
        falls_back(&p, &answer, &content).await?;
    }
    Ok(())
}

async fn malformed(p: Probe, digest: &'static str) -> Result<()> {
    let (_, other) = source(&p, Algorithm::Sha256).await?;
    let answer = p.post(p.at(format!("blobs/uploads/?mount={digest}&from={other}"))).await?;
    answer.is_one_of(&[202, 400]).map(drop)
}

/// Who knows a digest alone must not learn that the registry holds it.
async fn anonymous(p: Probe, algorithm: Algorithm) -> Result<()> {
    let (content, _) = source(&p, algorithm).await?;
    let answer = p.post(p.at(format!("blobs/uploads/?mount={}", content.digest))).await?;
    falls_back(&p, &answer, &content).await
}

/// What the specification allows, and a registry does better without.
async fn anonymous_finds(p: Probe, algorithm: Algorithm) -> Result<()> {
    let (content, _) = source(&p, algorithm).await?;
    let answer = p.post(p.at(format!("blobs/uploads/?mount={}", content.digest))).await?;
    if answer.is_one_of(&[201, 202])?.status() == 202 {
        return Err(skip("it mounts from a named repository only"));
    }
    p.get(path(&p, &content)).await?.is(200)?.holds(&content.bytes).map(drop)
}

async fn cancelled(p: Probe) -> Result<()> {
    let content = p.noise("absent", 10);
    let session = mount(&p, &content, &p.another()).await?.is(202)?.location()?;
    p.delete(&session).await?.is(204)?;
    p.get(&session).await?.is(404).map(drop)
}

async fn from_itself(p: Probe) -> Result<()> {
    let content = p.noise("own", 10);
    push::blob(&p, p.repository(), &content).await?;
    mount(&p, &content, p.repository()).await?.is(201)?;
    p.get(path(&p, &content)).await?.is(200)?.holds(&content.bytes).map(drop)
}

async fn order(p: Probe) -> Result<()> {
    let (content, other) = source(&p, Algorithm::Sha256).await?;
    let digest = content.digest.to_string().replace(':', "%3A");
    let from = other.replace('/', "%2F");
    p.post(p.at(format!("blobs/uploads/?from={from}&mount={digest}"))).await?.is(201).map(drop)
}
