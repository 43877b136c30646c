//! What HTTP libraries do not let a client do: requests byte by byte, broken off, or against the grammar.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use crate::{
    conformance::{
        Case, Probe, Table,
        data::{Content, EMPTY_JSON, Manifest},
        push::{self, begin, finish, with},
    },
    image::{ACCEPT, media},
    wait,
};

pub(super) fn table() -> Table {
    let mut table = Table::new("wire");
    table.rule("expect-100-continue", expect_continue);
    table.rule("pipelined-requests-are-answered-in-order", pipelined);
    table.each("connection-is-of-use-after-an-error", ERRORS, after_error);
    table.each("head-has-no-body-on-the-wire", ["blob", "manifest", "error", "tags"], bare_head);
    table.each("no-body-goes-with", ["204", "304"], no_body);
    table.each("broken-off/chunk-is-resumed", ["with-length", "streamed", "with-range"], broken_chunk);
    table.each("broken-off/blob-is-not-there", ["put", "post"], broken_blob);
    table.rule("broken-off/manifest-is-not-there", broken_manifest);
    table.rule("broken-off/get-is-not-the-end", broken_get);
    table.each("malformed-request", MALFORMED, malformed);
    table.each("form", FORMS, form);
    table
}

/// How long a server may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Most bytes of an answer that are looked at.
const ANSWER_LEN_MAX: usize = 1 << 20;

/// A request with a body that meets an error.
const ERRORS: [&str; 4] = [
    "PUT /v2/REPO/manifests/bad",
    "PUT /v2/REPO/manifests/sha256:abc",
    "PATCH /v2/REPO/blobs/uploads/none",
    "PUT /v2/REPO/blobs/uploads/none?digest=sha256:abc",
];

/// A request that is none, and the statuses that it may get; 0 is a connection that is closed without a word.
#[derive(Debug, Clone, Copy)]
struct Malformed(&'static str, &'static str, &'static [u16]);

impl Case for Malformed {
    fn label(&self) -> String {
        self.0.to_owned()
    }
}

const MALFORMED: [Malformed; 9] = [
    Malformed("no-http", "hello\r\n\r\n", &[0, 400]),
    Malformed("version-9", "GET /v2/ HTTP/9.9\r\nHost: x\r\n\r\n", &[0, 400, 505]),
    Malformed("no-host", "GET /v2/ HTTP/1.1\r\n\r\n", &[0, 200, 400]),
    Malformed("header-without-colon", "GET /v2/ HTTP/1.1\r\nHost: x\r\nnonsense\r\n\r\n", &[0, 400]),
    Malformed(
        "two-lengths",
        "POST /v2/a/blobs/uploads/ HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        &[0, 400],
    ),
    Malformed(
        "length-of-letters",
        "POST /v2/a/blobs/uploads/ HTTP/1.1\r\nHost: x\r\nContent-Length: abc\r\n\r\nab",
        &[0, 400],
    ),
    Malformed(
        "unknown-transfer-encoding",
        "POST /v2/a/blobs/uploads/ HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        &[0, 400, 501],
    ),
    Malformed("long-target", "GET /v2/LONG HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", &[0, 400, 404, 414, 431]),
    Malformed(
        "long-header",
        "GET /v2/ HTTP/1.1\r\nHost: x\r\nX-Long: LONG\r\nConnection: close\r\n\r\n",
        &[0, 200, 400, 413, 431],
    ),
];

/// A request in another form than usual that must get 200.
const FORMS: [Malformed; 5] = [
    Malformed("http-1.0", "GET /v2/ HTTP/1.0\r\n\r\n", &[200]),
    Malformed("absolute", "GET http://x/v2/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", &[200]),
    Malformed("small-letters", "GET /v2/ HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n", &[200]),
    Malformed("empty-lines-first", "\r\n\r\nGET /v2/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", &[200]),
    Malformed(
        "body-of-a-get",
        "GET /v2/ HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nConnection: close\r\n\r\nab",
        &[200],
    ),
];

/// A connection of one's own.
struct Wire {
    stream: TcpStream,
    read: Vec<u8>,
}

impl Wire {
    async fn connect(p: &Probe) -> Result<Self> {
        Ok(Self { stream: TcpStream::connect(p.address().await?).await?, read: Vec::new() })
    }

    async fn send(&mut self, bytes: impl AsRef<[u8]>) -> Result<()> {
        self.stream.write_all(bytes.as_ref()).await.context("the server closes while it is sent to")
    }

    /// Reads until `enough` is content; false if the server closed before.
    async fn read_until(&mut self, enough: impl Fn(&[u8]) -> bool) -> Result<bool> {
        while !enough(&self.read) {
            ensure!(self.read.len() < ANSWER_LEN_MAX, "an answer without end");
            // A reset is a close as well.
            let read = timeout(PATIENCE, self.stream.read_buf(&mut self.read)).await.context("no answer")?;
            if read.unwrap_or(0) == 0 {
                return Ok(false);
            }
        }
        Ok(true)
    }

    async fn read_to_end(&mut self) -> Result<&str> {
        self.read_until(|_| false).await?;
        Ok(self.text())
    }

    fn text(&self) -> &str {
        str::from_utf8(&self.read).unwrap_or("(no text)")
    }
}

/// The status of the first answer in `text`; 0 where there is none.
fn status(text: &str) -> u16 {
    text.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0)
}

/// A location without scheme and host.
fn path_of(location: &str) -> &str {
    location.find("/v2/").map_or(location, |at| &location[at..])
}

async fn expect_continue(p: Probe) -> Result<()> {
    let blob = p.noise("blob", 1000);
    let session = begin(&p, p.repository(), "").await?;
    let target = with(path_of(&session), &format!("digest={}", blob.digest));
    let mut wire = Wire::connect(&p).await?;
    let head = format!(
        "PUT {target} HTTP/1.1\r\nHost: {}\r\nContent-Length: 1000\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n",
        p.address().await?
    );
    wire.send(head).await?;
    wire.read_until(|read| read.ends_with(b"\r\n\r\n")).await?;
    ensure!(status(wire.text()) == 100, "{}", wire.text());
    wire.read.clear();
    wire.send(&blob.bytes).await?;
    let text = wire.read_to_end().await?;
    ensure!(status(text) == 201, "{text}");
    p.get(p.at(format!("blobs/{}", blob.digest))).await?.is(200)?.holds(&blob.bytes).map(drop)
}

async fn pipelined(p: Probe) -> Result<()> {
    let blobs = ["first", "second", "third"].map(|name| Content::text(format!("{name} of {}\n", p.repository())));
    let mut requests = String::new();
    for (at, blob) in blobs.iter().enumerate() {
        push::blob(&p, p.repository(), blob).await?;
        let close = if at == 2 { "Connection: close\r\n" } else { "" };
        let target = p.at(format!("blobs/{}", blob.digest));
        requests += &format!("GET {target} HTTP/1.1\r\nHost: x\r\n{close}\r\n");
    }
    let mut wire = Wire::connect(&p).await?;
    wire.send(requests).await?;
    let text = wire.read_to_end().await?;
    let found: Vec<_> = blobs.iter().map(|blob| text.find(str::from_utf8(&blob.bytes).unwrap_or_default())).collect();
    ensure!(found.iter().all(Option::is_some) && found.is_sorted(), "the bodies are at {found:?} of {text}");
    ensure!(text.matches("HTTP/1.1 200").count() == 3, "{text}");
    Ok(())
}

/// The rest of a refused body is not taken for the next request.
async fn after_error(p: Probe, request: &'static str) -> Result<()> {
    let request = request.replace("REPO", p.repository());
    let body = "GET /v2/nothing/here/ HTTP/1.1\r\nHost: x\r\n\r\n".repeat(50);
    let mut wire = Wire::connect(&p).await?;
    let first = format!("{request} HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    wire.send(format!("{first}GET /v2/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")).await?;
    let text = wire.read_to_end().await?;
    ensure!((400..500).contains(&status(text)), "{text}");
    let answers = text.matches("HTTP/1.1 ").count();
    let closed = text.to_lowercase().contains("connection: close");
    let next = answers == 2 && text.contains("HTTP/1.1 200");
    ensure!(next || (answers == 1 && closed), "{answers} answers to two requests: {text}");
    Ok(())
}

/// An image that the repository holds.
async fn image(p: &Probe) -> Result<(Manifest, Content)> {
    let config = Content::text(format!("{{\"for\":\"{}\"}}", p.repository()));
    push::blob(p, p.repository(), &config).await?;
    let json = serde_json::json!({
        "schemaVersion": 2, "mediaType": media::MANIFEST, "config": config.descriptor(EMPTY_JSON), "layers": [],
    });
    let manifest = Manifest::new(config.digest.algorithm(), &json);
    push::manifest(p, p.repository(), "1", &manifest).await?.is(201)?;
    Ok((manifest, config))
}

/// Sends one request and gives head and body of the answer as they are on the wire.
async fn raw(p: &Probe, method: &str, target: &str, headers: &str) -> Result<(String, String)> {
    let mut wire = Wire::connect(p).await?;
    wire.send(format!("{method} {target} HTTP/1.1\r\nHost: x\r\n{headers}Connection: close\r\n\r\n")).await?;
    let text = wire.read_to_end().await?;
    let (head, body) = text.split_once("\r\n\r\n").with_context(|| format!("no answer: {text}"))?;
    Ok((head.to_owned(), body.to_owned()))
}

async fn bare_head(p: Probe, what: &'static str) -> Result<()> {
    let (manifest, config) = image(&p).await?;
    let rest = match what {
        "blob" => format!("blobs/{}", config.digest),
        "manifest" => format!("manifests/{}", manifest.content.digest),
        "tags" => "tags/list".to_owned(),
        _ => "manifests/none".to_owned(),
    };
    let (head, body) = raw(&p, "HEAD", &p.at(rest), &format!("Accept: {ACCEPT}\r\n")).await?;
    ensure!(body.is_empty(), "after {head} came {body}");
    Ok(())
}

async fn no_body(p: Probe, wanted: &'static str) -> Result<()> {
    let (_, config) = image(&p).await?;
    let (head, body) = if wanted == "304" {
        let known = format!("If-None-Match: \"{}\"\r\n", config.digest);
        raw(&p, "GET", &p.at(format!("blobs/{}", config.digest)), &known).await?
    } else {
        let session = begin(&p, p.repository(), "").await?;
        raw(&p, "GET", path_of(&session), "").await?
    };
    ensure!(status(&head).to_string() == wanted && body.is_empty(), "{head}, then {body:?}");
    Ok(())
}

/// The client goes away in the middle of a chunk. What the session says that it holds is held, and the rest follows.
async fn broken_chunk(p: Probe, how: &'static str) -> Result<()> {
    let blob = p.noise("blob", 200_000);
    let session = begin(&p, p.repository(), "").await?;
    let framing = match how {
        "streamed" => "Transfer-Encoding: chunked",
        "with-range" => "Content-Range: 0-199999\r\nContent-Length: 200000",
        _ => "Content-Length: 200000",
    };
    let mut wire = Wire::connect(&p).await?;
    wire.send(format!("PATCH {} HTTP/1.1\r\nHost: x\r\n{framing}\r\n\r\n", path_of(&session))).await?;
    if how == "streamed" {
        wire.send(format!("{:x}\r\n", 150_000)).await?;
    }
    wire.send(&blob.bytes[..120_000]).await?;
    drop(wire);
    // The server may still be busy with what came, and take some of it after it was asked: 416 then, and again.
    let (session, blob_) = (&session, &blob);
    let resumed = wait::until("the session after a broken chunk", PATIENCE, || async {
        let answer = p.get(session).await?;
        if answer.status() != 204 {
            return Ok(None);
        }
        let told = answer.header("range").strip_prefix("0-").and_then(|last| last.parse::<usize>().ok());
        let last = told.with_context(|| answer.told())?;
        ensure!(last < 120_000, "it holds more than was sent: {}", answer.told());
        let first = if last == 0 { 0 } else { last + 1 };
        let rest = push::chunk(&p, &answer.location()?, first, blob_.bytes.slice(first..)).await?;
        Ok((rest.status() != 416).then_some(rest))
    });
    let rest = resumed.await?;
    finish(&p, &rest.is(202)?.location()?, &blob).await?.is(201)?;
    p.get(p.at(format!("blobs/{}", blob.digest))).await?.is(200)?.holds(&blob.bytes).map(drop)
}

async fn broken_blob(p: Probe, how: &'static str) -> Result<()> {
    let blob = p.noise("blob", 200_000);
    let request = if how == "put" {
        let session = begin(&p, p.repository(), "").await?;
        format!("PUT {}", with(path_of(&session), &format!("digest={}", blob.digest)))
    } else {
        format!("POST {}", p.at(format!("blobs/uploads/?digest={}", blob.digest)))
    };
    let mut wire = Wire::connect(&p).await?;
    wire.send(format!("{request} HTTP/1.1\r\nHost: x\r\nContent-Length: 200000\r\n\r\n")).await?;
    wire.send(&blob.bytes[..199_999]).await?;
    drop(wire);
    p.get(p.at(format!("blobs/{}", blob.digest))).await?.fails(404, &["BLOB_UNKNOWN", "NAME_UNKNOWN"])?;
    push::blob(&p, p.repository(), &blob).await?;
    p.get(p.at(format!("blobs/{}", blob.digest))).await?.is(200)?.holds(&blob.bytes).map(drop)
}

async fn broken_manifest(p: Probe) -> Result<()> {
    let (manifest, _) = image(&p).await?;
    let bytes = &manifest.content.bytes;
    let mut wire = Wire::connect(&p).await?;
    let target = p.at("manifests/broken");
    let (media_type, len) = (&manifest.media_type, bytes.len() + 1);
    let head =
        format!("PUT {target} HTTP/1.1\r\nHost: x\r\nContent-Type: {media_type}\r\nContent-Length: {len}\r\n\r\n");
    wire.send(head).await?;
    wire.send(bytes).await?;
    drop(wire);
    p.get(target).header("accept", ACCEPT).await?.is(404).map(drop)
}

/// A client that leaves in the middle of a blob does no harm to others.
async fn broken_get(p: Probe) -> Result<()> {
    let blob = p.noise("blob", 3_000_000);
    push::blob(&p, p.repository(), &blob).await?;
    let target = p.at(format!("blobs/{}", blob.digest));
    for _ in 0..5 {
        let mut wire = Wire::connect(&p).await?;
        wire.send(format!("GET {target} HTTP/1.1\r\nHost: x\r\n\r\n")).await?;
        ensure!(wire.read_until(|read| read.len() > 1000).await?, "the server closed after {}", wire.read.len());
    }
    p.get(target).await?.is(200)?.holds(&blob.bytes).map(drop)
}

async fn malformed(p: Probe, Malformed(_, request, statuses): Malformed) -> Result<()> {
    let request = request.replace("LONG", &"x".repeat(200_000));
    let mut wire = Wire::connect(&p).await?;
    // The server may have seen enough before all is sent.
    let _closed_early = wire.send(request).await;
    wire.read_until(|read| read.windows(4).any(|window| window == b"\r\n\r\n")).await?;
    let text = wire.text();
    ensure!(statuses.contains(&status(text)), "{}, not {statuses:?}: {text}", status(text));
    p.get("/v2/").await?.is(200).map(drop)
}

async fn form(p: Probe, Malformed(_, request, statuses): Malformed) -> Result<()> {
    let mut wire = Wire::connect(&p).await?;
    wire.send(request).await?;
    let text = wire.read_to_end().await?;
    ensure!(statuses.contains(&status(text)), "{text}");
    Ok(())
}
