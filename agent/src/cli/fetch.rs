//! A small client of the localhost registry: manifests whole, blobs as streams that go on where they broke off.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use aws_lc_rs::digest;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Incoming;
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use shoal_proto::{
    Digest,
    digest::Algorithm,
    name::{Reference, Repository},
};
use tokio::time::timeout;

use crate::{
    http::{PRIORITY, PRIORITY_LOW},
    upstream::MANIFEST_LEN_MAX,
};

/// Every kind of manifest there is.
const ACCEPT: &str = "application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json, \
                      application/vnd.docker.distribution.manifest.v2+json, \
                      application/vnd.docker.distribution.manifest.list.v2+json";
/// How often a blob that breaks off is taken up again, without a byte of progress in between.
const ATTEMPTS: u32 = 3;
/// Longest silence: the agent may wait for the seeder to pull through.
const SILENCE_MAX: Duration = Duration::from_secs(120);

/// The registry of an agent.
#[derive(Debug, Clone)]
pub(super) struct Source {
    client: Client<HttpConnector, Empty<Bytes>>,
    agent: SocketAddr,
    /// What is asked for yields to all else.
    low: bool,
}

/// A manifest as the agent gave it.
#[derive(Debug, Clone)]
pub(super) struct Manifest {
    pub(super) digest: Digest,
    pub(super) media_type: String,
    pub(super) bytes: Bytes,
    /// Answered without the seeder.
    pub(super) stale: bool,
}

impl Source {
    pub(super) fn new(agent: SocketAddr, low: bool) -> Self {
        Self { client: Client::builder(TokioExecutor::new()).build_http(), agent, low }
    }

    pub(super) async fn manifest(&self, repository: &Repository, reference: &Reference) -> Result<Manifest> {
        let path = format!("/v2/{repository}/manifests/{reference}");
        let response = self.get(&path, header::ACCEPT, HeaderValue::from_static(ACCEPT)).await?;
        let headers = response.headers().clone();
        let body = timeout(SILENCE_MAX, Limited::new(response.into_body(), MANIFEST_LEN_MAX).collect()).await;
        let body = body.with_context(|| format!("the agent at {} fell silent", self.agent))?;
        let bytes = body.map_err(|error| anyhow::anyhow!("the manifest broke off: {error}"))?.to_bytes();
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let said: Option<Digest> = text("docker-content-digest").and_then(|text| text.parse().ok());
        let asked = match reference {
            Reference::Digest(digest) => Some(*digest),
            Reference::Tag(_) => said,
        };
        let algorithm = asked.map_or(Algorithm::Sha256, |digest| digest.algorithm());
        let digest = Digest::of_with(algorithm, &bytes);
        ensure!(asked.is_none_or(|asked| asked == digest), "the manifest's bytes do not have its digest");
        let media_type = text("content-type").unwrap_or_default().to_owned();
        Ok(Manifest { digest, media_type, bytes, stale: headers.contains_key(header::WARNING) })
    }

    /// Starts or goes on with a blob at byte `from`.
    pub(super) async fn blob(&self, repository: &Repository, digest: &Digest, size: u64) -> Result<BlobStream> {
        let path = format!("/v2/{repository}/blobs/{digest}");
        let mut stream = BlobStream {
            source: self.clone(),
            path,
            digest: *digest,
            size,
            at: 0,
            body: None,
            attempts: 0,
            hash: None,
        };
        if size > 0 {
            stream.open().await?;
        }
        Ok(stream)
    }

    async fn get(&self, path: &str, name: header::HeaderName, value: HeaderValue) -> Result<Response<Incoming>> {
        let uri = format!("http://{}{path}", self.agent);
        let mut request = Request::get(uri).header(name, value);
        if self.low {
            request = request.header(PRIORITY, PRIORITY_LOW);
        }
        let request = request.body(Empty::new())?;
        let sent = timeout(SILENCE_MAX, self.client.request(request)).await;
        let sent = sent.with_context(|| format!("the agent at {} does not answer", self.agent))?;
        let response = sent.with_context(|| {
            format!("no agent at {}; start one (`shoal agent`), or give --agent ADDR or --seeder URL", self.agent)
        })?;
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status();
        let body = Limited::new(response.into_body(), 64 << 10).collect().await;
        let text = body.map(|body| body.to_bytes()).unwrap_or_default();
        bail!("{}", explain(status, &text))
    }
}

/// The message of an OCI error.
fn explain(status: StatusCode, body: &Bytes) -> String {
    let value: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
    let error = &value["errors"][0];
    match (error["code"].as_str(), error["message"].as_str()) {
        (Some(code), Some(message)) => format!("{message} ({code})"),
        _ => format!("the agent answers {status}"),
    }
}

/// A blob's bytes in order.
#[derive(Debug)]
pub(super) struct BlobStream {
    source: Source,
    path: String,
    digest: Digest,
    size: u64,
    at: u64,
    body: Option<Incoming>,
    attempts: u32,
    hash: Option<Hash>,
}

struct Hash(digest::Context);

impl std::fmt::Debug for Hash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Hash")
    }
}

impl BlobStream {
    /// Hashes what comes, and compares at the end.
    pub(super) fn checked(mut self) -> Self {
        let algorithm = match self.digest.algorithm() {
            Algorithm::Sha256 => &digest::SHA256,
            Algorithm::Sha512 => &digest::SHA512,
        };
        self.hash = Some(Hash(digest::Context::new(algorithm)));
        self
    }

    /// Bytes that have come.
    pub(super) const fn at(&self) -> u64 {
        self.at
    }

    /// The next bytes; `None` at the end, with the digest compared if asked for.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>> {
        while self.at < self.size {
            match self.step().await {
                Ok(data) => {
                    self.attempts = 0;
                    self.at += data.len() as u64;
                    if let Some(Hash(hash)) = &mut self.hash {
                        hash.update(&data);
                    }
                    return Ok(Some(data));
                }
                Err(error) => {
                    self.attempts += 1;
                    self.body = None;
                    if self.attempts >= ATTEMPTS {
                        return Err(error.context(format!("{} broke off at byte {}", self.digest, self.at)));
                    }
                }
            }
        }
        if let Some(Hash(hash)) = self.hash.take() {
            let found = hash.finish();
            ensure!(found.as_ref() == self.digest.as_bytes(), "the bytes of {} do not have that digest", self.digest);
        }
        Ok(None)
    }

    async fn open(&mut self) -> Result<()> {
        // From the start there is nothing to say but that anything will do.
        let (name, value) = match self.at {
            0 => (header::ACCEPT, HeaderValue::from_static("*/*")),
            at => (header::RANGE, HeaderValue::from_str(&format!("bytes={at}-"))?),
        };
        let response = self.source.get(&self.path, name, value).await?;
        let part = response.status() == StatusCode::PARTIAL_CONTENT;
        ensure!(part || self.at == 0, "the agent does not serve ranges");
        ensure!(length(response.headers()) == Some(self.size - self.at), "{} has another size here", self.digest);
        self.body = Some(response.into_body());
        Ok(())
    }

    async fn step(&mut self) -> Result<Bytes> {
        loop {
            if self.body.is_none() {
                self.open().await?;
            }
            let body = self.body.as_mut().context("the body was opened above")?;
            let frame = timeout(SILENCE_MAX, body.frame()).await.context("no bytes for long")?;
            let frame = frame.context("it ended early")??;
            if let Ok(data) = frame.into_data()
                && !data.is_empty()
            {
                ensure!(data.len() as u64 <= self.size - self.at, "more bytes than it has");
                return Ok(data);
            }
        }
    }
}

fn length(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}
