//! Pushing blobs: every way, right and wrong, and the sessions that it takes.

use anyhow::{Result, ensure};
use futures::future::try_join_all;
use hyper::Method;
use shoal_proto::digest::Algorithm;

use super::ALGORITHMS;
use crate::conformance::{
    Case, Probe, Table,
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
    let mut session = Table::new("push/session");
    std::mem::swap(&mut table.rules, &mut session.rules);
    sessions(&mut table);
    table.rules.splice(..0, session.rules);
    table
}

fn sessions(table: &mut Table) {
    table.rule("session/opened", opened);
    table.rule("session/each-is-new", each_is_new);
    table.rule("session/status", status);
    table.rule("session/cancelled", cancelled);
    table.rule("session/ended-by-commit", committed);
    table.rule("session/any-content-type", any_content_type);
    table.each("session/404-unknown", METHODS, unknown);
    table.each("session/404-in-another-repository", METHODS, elsewhere);
    table.each("session/404-after-cancel", METHODS, after_cancel);
    table.each("session/404-after-commit", METHODS, after_commit);
}

const SIZES: [usize; 3] = [1, 512, 100_000];
const MALFORMED: [&str; 4] = ["sha256:", "sha256:abc", "abc", "md5:d41d8cd98f00b204e9800998ecf8427e"];

/// What can be done with a session.
#[derive(Debug, Clone, Copy)]
enum Use {
    Get,
    Patch,
    Put,
    Delete,
}

const METHODS: [Use; 4] = [Use::Get, Use::Patch, Use::Put, Use::Delete];

impl Case for Use {
    fn label(&self) -> String {
        self.method().as_str().to_lowercase()
    }
}

impl Use {
    const fn method(self) -> Method {
        match self {
            Self::Get => Method::GET,
            Self::Patch => Method::PATCH,
            Self::Put => Method::PUT,
            Self::Delete => Method::DELETE,
        }
    }

    /// Must find no session.
    async fn finds_nothing(self, p: &Probe, session: &str) -> Result<()> {
        let content = p.noise("late", 10);
        let ask = match self {
            Self::Get | Self::Delete => p.ask(self.method(), session),
            Self::Patch => p.patch(session).octets(content.bytes),
            Self::Put => p.put(with(session, &format!("digest={}", content.digest))).octets(content.bytes),
        };
        ask.await?.fails(404, &["BLOB_UPLOAD_UNKNOWN"])
    }
}

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

async fn opened(p: Probe) -> Result<()> {
    let answer = p.post(p.at("blobs/uploads/")).await?;
    answer.is(202)?.says("content-length", 0)?.holds(b"")?;
    let held = answer.header("range");
    ensure!(held.is_empty() || held == "0-0", "an empty session holds {held}");
    let least = answer.header("oci-chunk-min-length");
    ensure!(least.is_empty() || least.parse::<u64>().is_ok(), "OCI-Chunk-Min-Length: {least}");
    p.get(answer.location()?).await?.is(204).map(drop)
}

async fn each_is_new(p: Probe) -> Result<()> {
    let mut sessions = try_join_all((0..8).map(|_| begin(&p, p.repository(), ""))).await?;
    sessions.sort_unstable();
    sessions.dedup();
    ensure!(sessions.len() == 8, "8 sessions have {} locations", sessions.len());
    Ok(())
}

async fn status(p: Probe) -> Result<()> {
    let content = p.noise("blob", 1000);
    let session = begin(&p, p.repository(), "").await?;
    let session = push::chunk(&p, &session, 0, content.bytes.slice(..400)).await?.is(202)?.location()?;
    let answer = p.get(session).await?;
    answer.is(204)?.says("range", "0-399")?.holds(b"")?;
    let session = push::chunk(&p, &answer.location()?, 400, content.bytes.slice(400..)).await?.is(202)?.location()?;
    p.get(&session).await?.is(204)?.says("range", "0-999")?;
    push::finish(&p, &session, &content).await?.is(201).map(drop)
}

async fn cancelled(p: Probe) -> Result<()> {
    let session = begin(&p, p.repository(), "").await?;
    let session = push::chunk(&p, &session, 0, p.noise("blob", 400).bytes).await?.is(202)?.location()?;
    p.delete(session).await?.is(204)?.holds(b"").map(drop)
}

async fn committed(p: Probe) -> Result<()> {
    let content = p.noise("blob", 400);
    let session = begin(&p, p.repository(), "").await?;
    let target = with(&session, &format!("digest={}", content.digest));
    p.put(target).octets(content.bytes).await?.is(201)?;
    p.get(session).await?.fails(404, &["BLOB_UPLOAD_UNKNOWN"])
}

async fn any_content_type(p: Probe) -> Result<()> {
    for (name, media_type) in [("none", None), ("text", Some("text/plain; charset=utf-8"))] {
        let content = p.noise(name, 100);
        let session = begin(&p, p.repository(), "").await?;
        let patch = p.patch(session).body(content.bytes.clone());
        let patch = if let Some(media_type) = media_type { patch.of_type(media_type) } else { patch };
        let session = patch.await?.is(202)?.location()?;
        push::finish(&p, &session, &content).await?.is(201)?;
    }
    Ok(())
}

async fn unknown(p: Probe, how: Use) -> Result<()> {
    // One of this registry's own shape that it never gave out.
    let session = begin(&p, p.repository(), "").await?;
    p.delete(&session).await?.is(204)?;
    how.finds_nothing(&p, &p.at("blobs/uploads/00000000-0000-0000-0000-000000000000")).await?;
    how.finds_nothing(&p, &session).await
}

async fn elsewhere(p: Probe, how: Use) -> Result<()> {
    let session = begin(&p, p.repository(), "").await?;
    let other = p.another();
    push::blob(&p, &other, &p.noise("other", 10)).await?;
    let moved = session.replace(&format!("/v2/{}/", p.repository()), &format!("/v2/{other}/"));
    ensure!(moved != session, "the location {session} does not name the repository");
    how.finds_nothing(&p, &moved).await?;
    p.get(session).await?.is(204).map(drop)
}

async fn after_cancel(p: Probe, how: Use) -> Result<()> {
    let session = begin(&p, p.repository(), "").await?;
    p.delete(&session).await?.is(204)?;
    how.finds_nothing(&p, &session).await
}

async fn after_commit(p: Probe, how: Use) -> Result<()> {
    let session = begin(&p, p.repository(), "").await?;
    let content = p.noise("blob", 100);
    p.put(with(&session, &format!("digest={}", content.digest))).octets(content.bytes).await?.is(201)?;
    how.finds_nothing(&p, &session).await
}
