//! A small HTTP client, and images to push with it.

use std::net::SocketAddr;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::Frame;
use hyper_util::rt::TokioIo;
use shoal_proto::Digest;
use tokio::{net::TcpStream, task::JoinSet};

use crate::{Config, Running, Seeder};

pub(super) const OCI: &str = "application/vnd.oci.image.manifest.v1+json";
pub(super) const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// A response that was read whole.
#[derive(Debug)]
pub(super) struct Got {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

impl Got {
    pub(super) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    pub(super) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {:?}", self.body))
    }

    /// The OCI error code, or nothing.
    pub(super) fn code(&self) -> String {
        if self.body.is_empty() {
            String::new()
        } else {
            self.json()["errors"][0]["code"].as_str().unwrap_or("").to_owned()
        }
    }
}

type AnyBody = UnsyncBoxBody<Bytes, std::convert::Infallible>;

/// A request to be sent.
#[derive(Debug)]
pub(super) struct Ask {
    addr: SocketAddr,
    builder: http::request::Builder,
    body: AnyBody,
}

impl Ask {
    pub(super) fn header(mut self, name: &str, value: &str) -> Self {
        self.builder = self.builder.header(name, value);
        self
    }

    pub(super) fn body(mut self, body: impl Into<Bytes>) -> Self {
        self.body = Full::new(body.into()).boxed_unsync();
        self
    }

    /// A body in parts, sent without a `Content-Length`.
    pub(super) fn streamed(mut self, parts: Vec<Bytes>) -> Self {
        let frames = parts.into_iter().map(|part| Ok(Frame::data(part)));
        self.body = StreamBody::new(futures::stream::iter(frames)).boxed_unsync();
        self
    }

    pub(super) async fn send(self) -> Got {
        let stream = TcpStream::connect(self.addr).await.unwrap();
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        let mut tasks = JoinSet::new();
        tasks.spawn(connection);
        let request: Request<AnyBody> = self.builder.header("host", "seeder").body(self.body).unwrap();
        let (head, body) = sender.send_request(request).await.unwrap().into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        Got { status: head.status, headers: head.headers, body }
    }
}

/// A seeder in this process, on a directory of its own.
#[derive(Debug)]
pub(super) struct TestSeeder {
    pub(super) running: Running,
    pub(super) config: Config,
    dir: tempfile::TempDir,
}

impl TestSeeder {
    pub(super) async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    pub(super) async fn start_with(change: impl FnOnce(&mut Config)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut config = Config {
            listen: vec!["127.0.0.1:0".parse().unwrap()],
            status: "127.0.0.1:0".parse().unwrap(),
            data_dir: dir.path().join("data"),
            insecure_open: true,
            ..Config::default()
        };
        config.limits.drain_s = 1;
        change(&mut config);
        Self { running: Seeder::start(config.clone()).await.unwrap(), config, dir }
    }

    /// Stops the seeder and starts another on the same directory.
    pub(super) async fn restart(self) -> Self {
        self.running.shutdown().await;
        Self { running: Seeder::start(self.config.clone()).await.unwrap(), config: self.config, dir: self.dir }
    }

    pub(super) fn ask(&self, method: Method, path: &str) -> Ask {
        let builder = Request::builder().method(method).uri(path);
        Ask { addr: self.running.registry_addr, builder, body: Full::default().boxed_unsync() }
    }

    pub(super) async fn get(&self, path: &str) -> Got {
        self.ask(Method::GET, path).send().await
    }

    pub(super) async fn status_page(&self, path: &str) -> Got {
        let ask = self.ask(Method::GET, path);
        Ask { addr: self.running.status_addr, ..ask }.send().await
    }

    /// Pushes a blob in one request.
    pub(super) async fn push(&self, repository: &str, content: impl Into<Bytes>) -> Digest {
        let content = content.into();
        let digest = Digest::of(&content);
        let path = format!("/v2/{repository}/blobs/uploads/?digest={digest}");
        let got = self.ask(Method::POST, &path).body(content).send().await;
        assert_eq!(got.status, StatusCode::CREATED, "{:?}", got.body);
        digest
    }

    /// Opens an upload session; returns its path.
    pub(super) async fn session(&self, repository: &str) -> String {
        let got = self.ask(Method::POST, &format!("/v2/{repository}/blobs/uploads/")).send().await;
        assert_eq!(got.status, StatusCode::ACCEPTED);
        got.header("location").to_owned()
    }

    pub(super) async fn put_manifest(&self, path: &str, content_type: &str, manifest: &str) -> Got {
        self.ask(Method::PUT, path).header("content-type", content_type).body(manifest.to_owned()).send().await
    }

    /// Pushes an image of these layers under `tag`; returns its manifest.
    pub(super) async fn push_image(&self, repository: &str, tag: &str, layers: &[Bytes]) -> String {
        let config = Bytes::from_static(b"{\"config\":true}");
        self.push(repository, config.clone()).await;
        for layer in layers {
            self.push(repository, layer.clone()).await;
        }
        let manifest = image(&config, layers, "");
        let got = self.put_manifest(&format!("/v2/{repository}/manifests/{tag}"), OCI, &manifest).await;
        assert_eq!(got.status, StatusCode::CREATED, "{:?}", got.body);
        manifest
    }
}

/// An image's manifest; `more` is put in as it is.
pub(super) fn image(config: &Bytes, layers: &[Bytes], more: &str) -> String {
    let descriptor = |media_type: &str, content: &Bytes| {
        format!(r#"{{"mediaType":"{media_type}","digest":"{}","size":{}}}"#, Digest::of(content), content.len())
    };
    let layers: Vec<_> =
        layers.iter().map(|layer| descriptor("application/vnd.oci.image.layer.v1.tar+zstd", layer)).collect();
    format!(
        r#"{{"schemaVersion":2,{more}"config":{},"layers":[{}]}}"#,
        descriptor("application/vnd.oci.image.config.v1+json", config),
        layers.join(",")
    )
}

/// Bytes that look random and are the same each time.
pub(super) fn noise(len: usize, seed: u8) -> Bytes {
    let mut bytes = vec![0; len];
    blake3::Hasher::new_keyed(&[seed; 32]).finalize_xof().fill(&mut bytes);
    bytes.into()
}
