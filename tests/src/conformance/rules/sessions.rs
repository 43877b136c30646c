//! The sessions that a push takes.

use anyhow::{Result, ensure};
use futures::future::try_join_all;
use hyper::Method;

use crate::conformance::{
    Answer, Case, Probe, Table,
    push::{self, begin, with},
};

pub(super) fn table() -> Table {
    let mut table = Table::new("push/session");
    table.rule("opened", opened);
    table.rule("each-is-new", each_is_new);
    table.rule("status", status);
    table.rule("cancelled", cancelled);
    table.rule("any-content-type", any_content_type);
    table.each("404-unknown", METHODS, unknown);
    table.each("refused-in-another-repository", METHODS, elsewhere);
    table.each("404-after-cancel", METHODS, after_cancel);
    table.each("404-after-commit", METHODS, after_commit);
    table
}

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

    async fn ask(self, p: &Probe, session: &str) -> Result<Answer> {
        let content = p.noise("late", 10);
        let ask = match self {
            Self::Get | Self::Delete => p.ask(self.method(), session),
            Self::Patch => p.patch(session).octets(content.bytes),
            Self::Put => p.put(with(session, &format!("digest={}", content.digest))).octets(content.bytes),
        };
        ask.await
    }

    /// Must find no session.
    async fn finds_nothing(self, p: &Probe, session: &str) -> Result<()> {
        self.ask(p, session).await?.fails(404, &["BLOB_UPLOAD_UNKNOWN"])
    }
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
    how.ask(&p, &moved)
        .await?
        .fails_with(&[400, 403, 404], &["BLOB_UPLOAD_UNKNOWN", "BLOB_UPLOAD_INVALID", "DENIED"])?;
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
