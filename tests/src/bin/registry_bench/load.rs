//! The clients: as little work as possible, since they share the machine with what they measure.

use std::{
    net::SocketAddr,
    sync::{
        LazyLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use aws_lc_rs::digest::{self, SHA256};
use bytes::Bytes;
use futures::future::try_join_all;
use http_body_util::BodyExt as _;
use hyper::{Method, StatusCode};
use shoal_tests::http::{self, Reply};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::servers::Server;

/// The media type of all manifests here.
pub(crate) const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
/// How long requests are repeated.
const SPAN: Duration = Duration::from_millis(1500);
/// The parts in which bodies are streamed.
const CHUNK_LEN: usize = 256 << 10;

/// What all layers begin with: nothing that compresses, made once.
static NOISE: LazyLock<Bytes> = LazyLock::new(|| {
    let mut state = 1_u64;
    let mut bytes = Vec::with_capacity(100 << 20);
    while bytes.len() < 100 << 20 {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        bytes.extend_from_slice(&state.to_be_bytes());
    }
    bytes.into()
});
static NEXT: AtomicU64 = AtomicU64::new(0);

/// Bytes that no layer before had, and their digest.
#[derive(Debug, Clone)]
pub(crate) struct Layer {
    parts: [Bytes; 2],
    pub(crate) digest: String,
    pub(crate) size: usize,
}

impl Layer {
    pub(crate) fn new(size: usize) -> Self {
        let tail = format!("{:016x}", NEXT.fetch_add(1, Ordering::Relaxed));
        let head = NOISE.slice(..size - tail.len());
        let mut context = digest::Context::new(&SHA256);
        context.update(&head);
        context.update(tail.as_bytes());
        let digest = format!("sha256:{}", hex::encode(context.finish().as_ref()));
        Self { parts: [head, tail.into()], digest, size }
    }

    /// All of it.
    pub(crate) fn bytes(&self) -> Bytes {
        self.parts.concat().into()
    }

    fn body(&self) -> http::Body {
        let chunks: Vec<_> = self
            .parts
            .iter()
            .flat_map(|part| {
                (0..part.len())
                    .step_by(CHUNK_LEN)
                    .map(|at| Ok(part.slice(at..part.len().min(at + CHUNK_LEN))))
                    .collect::<Vec<_>>()
            })
            .collect();
        http::streamed(futures::stream::iter(chunks))
    }
}

/// An image that was pushed.
#[derive(Debug, Clone)]
pub(crate) struct Image {
    pub(crate) repository: String,
    pub(crate) tag: String,
    config: String,
    layer: String,
    size: usize,
}

impl Image {
    /// Where its layer is.
    pub(crate) fn layer_target(&self) -> String {
        format!("/v2/{}/blobs/{}", self.repository, self.layer)
    }

    /// A manifest of the same blobs that is not there yet, and its digest.
    pub(crate) fn other_manifest(&self) -> (String, Bytes) {
        let body = manifest(&self.config, &self.layer, self.size, NEXT.fetch_add(1, Ordering::Relaxed));
        (format!("sha256:{}", hex::encode(digest::digest(&SHA256, body.as_bytes()).as_ref())), body.into())
    }
}

fn manifest(config: &str, layer: &str, size: usize, number: u64) -> String {
    serde_json::json!({
        "schemaVersion": 2, "mediaType": MANIFEST_TYPE, "annotations": { "number": number.to_string() },
        "config": { "mediaType": "application/vnd.oci.image.config.v1+json", "digest": config, "size": 2 },
        "layers": [{ "mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": layer, "size": size }],
    })
    .to_string()
}

pub(crate) async fn send(server: &Server, method: Method, target: &str, kind: &str, body: Bytes) -> Result<Reply> {
    http::collect(server.client.send(method, target, &[("content-type", kind)], http::full(body)).await?).await
}

async fn upload(server: &Server, repository: &str, layer: &Layer, chunked: bool) -> Result<()> {
    let begun = server.client.fetch(Method::POST, &format!("/v2/{repository}/blobs/uploads/"), &[]).await?;
    let mut location = http::location(&begun.headers)?;
    let length = layer.size.to_string();
    let octets = ("content-type", "application/octet-stream");
    if chunked {
        let reply = http::collect(server.client.send(Method::PATCH, &location, &[octets], layer.body()).await?).await?;
        ensure!(reply.status == StatusCode::ACCEPTED, "PATCH: {} {}", reply.status, reply.text());
        location = http::location(&reply.headers)?;
    }
    let join = if location.contains('?') { '&' } else { '?' };
    let target = format!("{location}{join}digest={}", layer.digest);
    let reply = if chunked {
        server.client.send(Method::PUT, &target, &[octets], http::full(Bytes::new())).await?
    } else {
        server.client.send(Method::PUT, &target, &[octets, ("content-length", &length)], layer.body()).await?
    };
    let reply = http::collect(reply).await?;
    ensure!(reply.status == StatusCode::CREATED, "PUT {target}: {} {}", reply.status, reply.text());
    Ok(())
}

/// Layer, config and manifest, as `zb` pushes them: each image in a repository of its own.
pub(crate) async fn push_image(server: &Server, layer: &Layer, chunked: bool) -> Result<Image> {
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let repository = format!("bench/r{number}");
    upload(server, &repository, layer, chunked).await?;
    let text = Bytes::from_static(b"{}");
    let config = Layer {
        digest: format!("sha256:{}", hex::encode(digest::digest(&SHA256, &text).as_ref())),
        size: text.len(),
        parts: [text, Bytes::new()],
    };
    upload(server, &repository, &config, false).await?;
    let body = manifest(&config.digest, &layer.digest, layer.size, number);
    let target = format!("/v2/{repository}/manifests/latest");
    let reply = send(server, Method::PUT, &target, MANIFEST_TYPE, body.into()).await?;
    ensure!(reply.status == StatusCode::CREATED, "PUT {target}: {} {}", reply.status, reply.text());
    let (layer, size) = (layer.digest.clone(), layer.size);
    Ok(Image { repository, tag: "latest".into(), config: config.digest, layer, size })
}

/// Manifest, config and layer, read to their ends.
pub(crate) async fn pull_image(server: &Server, image: &Image) -> Result<()> {
    let accept = [("accept", MANIFEST_TYPE)];
    let target = format!("/v2/{}/manifests/{}", image.repository, image.tag);
    let reply = server.client.fetch(Method::GET, &target, &accept).await?;
    ensure!(reply.status == StatusCode::OK, "GET {target}: {}", reply.status);
    for (digest, size) in [(&image.config, 2), (&image.layer, image.size)] {
        let target = format!("/v2/{}/blobs/{digest}", image.repository);
        let mut body = server.client.send(Method::GET, &target, &[], http::full(Bytes::new())).await?.into_body();
        let mut len = 0;
        while let Some(frame) = body.frame().await {
            len += frame?.data_ref().map_or(0, Bytes::len);
        }
        ensure!(len == size, "GET {target}: {len} bytes of {size}");
    }
    Ok(())
}

/// Requests a second of `clients` that ask the same again and again, each on one connection.
#[expect(clippy::cast_precision_loss, reason = "a rate")]
pub(crate) async fn repeated(
    address: SocketAddr,
    method: &str,
    target: &str,
    headers: &str,
    clients: usize,
) -> Result<f64> {
    let request = format!("{method} {target} HTTP/1.1\r\nHost: {address}\r\n{headers}\r\n");
    let until = Instant::now() + SPAN;
    let started = Instant::now();
    let done = try_join_all((0..clients).map(|_| ask_until(address, &request, method == "HEAD", until))).await?;
    Ok(done.iter().sum::<u64>() as f64 / started.elapsed().as_secs_f64())
}

async fn ask_until(address: SocketAddr, request: &str, head: bool, until: Instant) -> Result<u64> {
    let mut stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let (mut buffer, mut count) = (vec![0; 256 << 10], 0);
    while Instant::now() < until {
        stream.write_all(request.as_bytes()).await?;
        let (mut len, mut whole) = (0, None);
        while whole.is_none_or(|whole| len < whole) {
            let read = stream.read(&mut buffer[len..]).await?;
            ensure!(read > 0, "the server closed the connection");
            len += read;
            if whole.is_none() {
                whole = answer_len(&buffer[..len], head)?;
            }
        }
        count += 1;
    }
    Ok(count)
}

/// How long an answer is of which the beginning is here; none before its head is whole.
fn answer_len(answer: &[u8], head: bool) -> Result<Option<usize>> {
    let Some(end) = answer.windows(4).position(|four| four == b"\r\n\r\n") else { return Ok(None) };
    let text = std::str::from_utf8(&answer[..end])?;
    ensure!(text.starts_with("HTTP/1.1 200"), "{text}");
    if head {
        return Ok(Some(end + 4));
    }
    let length = text.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok()).flatten()
    });
    Ok(Some(end + 4 + length.context("the answer has a Content-Length")?))
}

/// Reads `target` to its end on a fresh connection; bytes a second.
#[expect(clippy::cast_precision_loss, reason = "a rate")]
pub(crate) async fn read_all(address: SocketAddr, target: &str) -> Result<f64> {
    let mut stream = TcpStream::connect(address).await?;
    let started = Instant::now();
    let request = format!("GET {target} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let (mut buffer, mut len) = (vec![0; 1 << 20], 0_usize);
    loop {
        match stream.read(&mut buffer).await? {
            0 => break,
            read => len += read,
        }
    }
    Ok(len as f64 / started.elapsed().as_secs_f64())
}
