//! A client that pulls as a container runtime does: the manifest, then config and layers, a few at a time, each byte
//! hashed.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use http_body_util::BodyExt;
use hyper::{Method, StatusCode};
use serde::Deserialize;
use shoal_proto::Digest;

use crate::{
    http::{self, Client},
    image::{ACCEPT, Hasher},
};

/// Layers at once: the default of Docker (`max-concurrent-downloads`) and containerd.
const LAYERS_AT_ONCE: usize = 3;

/// How to pull.
#[derive(Debug, Clone)]
pub struct Options {
    /// Blobs at once.
    pub at_once: usize,
    /// Bytes a second at most, over all blobs.
    pub rate: Option<u64>,
    /// Each blob is asked for in ranges of so many bytes, several at once.
    pub range_len: Option<u64>,
    /// The client goes away after so many bytes of blobs.
    pub stop_after: Option<u64>,
    /// Put behind each path (`?ns=docker.io`).
    pub query: String,
    /// Counts the bytes of blobs as they come.
    pub received: Arc<AtomicU64>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            at_once: LAYERS_AT_ONCE,
            rate: None,
            range_len: None,
            stop_after: None,
            query: String::new(),
            received: Arc::default(),
        }
    }
}

/// What came of a pull.
#[derive(Debug, Clone)]
pub struct Report {
    /// The manifest's digest.
    pub manifest: Digest,
    /// Bytes of config and layers.
    pub bytes: u64,
    /// From the first request to the last byte.
    pub elapsed: Duration,
    /// Until the first byte of each blob, in the manifest's order.
    pub first_bytes: Vec<Duration>,
    /// Whether [`Options::stop_after`] ended it.
    pub stopped: bool,
}

/// A descriptor of a manifest.
#[derive(Debug, Clone, Deserialize)]
struct Descriptor {
    digest: String,
    size: u64,
    #[serde(default)]
    urls: Vec<String>,
}

/// What of a manifest a client needs.
#[derive(Debug, Deserialize)]
struct Manifest {
    config: Descriptor,
    layers: Vec<Descriptor>,
}

/// One pull in work.
struct Pull<'a> {
    client: &'a Client,
    repository: &'a str,
    options: &'a Options,
    started: Instant,
}

/// Why a blob did not come to its end.
enum Stop {
    Error(anyhow::Error),
    Enough,
}

impl From<anyhow::Error> for Stop {
    fn from(error: anyhow::Error) -> Self {
        Self::Error(error)
    }
}

/// Pulls an image and checks every byte of it.
///
/// # Errors
/// A request fails or bytes are wrong; nothing is tried twice.
pub async fn image(client: &Client, repository: &str, reference: &str, options: &Options) -> Result<Report> {
    let started = Instant::now();
    let (digest, body) = manifest(client, repository, reference, &options.query).await?;
    let manifest: Manifest = serde_json::from_slice(&body).context("the manifest is no image manifest")?;
    let mut seen = std::collections::BTreeSet::new();
    let mut wanted: Vec<Descriptor> = std::iter::once(manifest.config).chain(manifest.layers).collect();
    wanted.retain(|descriptor| descriptor.urls.is_empty() && seen.insert(descriptor.digest.clone()));
    let pull = Pull { client, repository, options, started };
    let blobs = stream::iter(wanted).map(|descriptor| pull.blob(descriptor)).buffered(options.at_once);
    let result: Result<Vec<(u64, Duration)>, Stop> = blobs.try_collect().await;
    let (blobs, stopped) = match result {
        Ok(blobs) => (blobs, false),
        Err(Stop::Enough) => (Vec::new(), true),
        Err(Stop::Error(error)) => return Err(error.context(format!("pull {repository}:{reference}"))),
    };
    Ok(Report {
        manifest: digest,
        bytes: blobs.iter().map(|(size, _)| size).sum(),
        elapsed: started.elapsed(),
        first_bytes: blobs.iter().map(|&(_, first)| first).collect(),
        stopped,
    })
}

/// Gets a manifest and checks it against the digest that the registry names.
///
/// # Errors
/// It is not there, or not what its digest says.
pub async fn manifest(client: &Client, repository: &str, reference: &str, query: &str) -> Result<(Digest, Bytes)> {
    let target = format!("/v2/{repository}/manifests/{reference}{query}");
    let reply = client.fetch(Method::GET, &target, &[("accept", ACCEPT)]).await?;
    ensure!(reply.status == StatusCode::OK, "GET {target}: {} {}", reply.status, reply.text());
    let mut hasher = Hasher::new();
    hasher.update(&reply.body);
    let digest = hasher.finish();
    let named = reply.header("docker-content-digest");
    ensure!(named == digest.to_string(), "the manifest hashes to {digest}, the registry says {named:?}");
    Ok((digest, reply.body))
}

/// Gets one blob and checks it. Gives its size.
///
/// # Errors
/// It is not there, or not what its digest says.
pub async fn blob(client: &Client, repository: &str, digest: &Digest, size: u64, options: &Options) -> Result<u64> {
    let pull = Pull { client, repository, options, started: Instant::now() };
    match pull.blob(Descriptor { digest: digest.to_string(), size, urls: Vec::new() }).await {
        Ok((size, _)) => Ok(size),
        Err(Stop::Error(error)) => Err(error),
        Err(Stop::Enough) => bail!("stopped"),
    }
}

impl Pull<'_> {
    async fn blob(&self, descriptor: Descriptor) -> Result<(u64, Duration), Stop> {
        let mut check = Check { pull: self, hasher: Hasher::new(), size: 0, first: None };
        match self.options.range_len.filter(|_| descriptor.size > 0) {
            Some(len) => self.in_ranges(&descriptor, len, &mut check).await?,
            None => self.whole(&descriptor, &mut check).await?,
        }
        let (digest, size) = (check.hasher.finish(), check.size);
        if size != descriptor.size || digest.to_string() != descriptor.digest {
            let wanted = &descriptor.digest;
            return Err(anyhow::anyhow!("{wanted} of {} bytes came as {digest} of {size}", descriptor.size).into());
        }
        Ok((size, check.first.unwrap_or_else(|| self.started.elapsed())))
    }

    async fn whole(&self, descriptor: &Descriptor, check: &mut Check<'_, '_>) -> Result<(), Stop> {
        let target = format!("/v2/{}/blobs/{}{}", self.repository, descriptor.digest, self.options.query);
        let response = self.client.send(Method::GET, &target, &[], http::full(Bytes::new())).await?;
        if response.status() != StatusCode::OK {
            let reply = http::collect(response).await?;
            return Err(anyhow::anyhow!("GET {target}: {} {}", reply.status, reply.text()).into());
        }
        let mut body = response.into_body();
        while let Some(frame) = body.frame().await {
            let frame = frame.with_context(|| format!("{target} broke off after {} bytes", check.size))?;
            if let Ok(data) = frame.into_data() {
                check.take(&data).await?;
            }
        }
        Ok(())
    }

    async fn in_ranges(&self, descriptor: &Descriptor, len: u64, check: &mut Check<'_, '_>) -> Result<(), Stop> {
        let starts = stream::iter((0..descriptor.size).step_by(usize::try_from(len).context("range length")?));
        let mut parts = starts
            .map(|start| self.range(descriptor, start, (start + len).min(descriptor.size) - 1))
            .buffered(LAYERS_AT_ONCE);
        while let Some(part) = parts.next().await {
            check.take(&part?).await?;
        }
        Ok(())
    }

    async fn range(&self, descriptor: &Descriptor, first: u64, last: u64) -> Result<Bytes> {
        let target = format!("/v2/{}/blobs/{}{}", self.repository, descriptor.digest, self.options.query);
        let reply = self.client.fetch(Method::GET, &target, &[("range", &format!("bytes={first}-{last}"))]).await?;
        ensure!(reply.status == StatusCode::PARTIAL_CONTENT, "GET {target} {first}-{last}: {}", reply.status);
        let range = format!("bytes {first}-{last}/{}", descriptor.size);
        ensure!(reply.header("content-range") == range, "asked for {range}, got {}", reply.header("content-range"));
        Ok(reply.body)
    }
}

/// What has come of one blob.
struct Check<'a, 'b> {
    pull: &'a Pull<'b>,
    hasher: Hasher,
    size: u64,
    first: Option<Duration>,
}

impl Check<'_, '_> {
    /// Takes bytes in order; returns late where the pull has a rate.
    async fn take(&mut self, data: &[u8]) -> Result<(), Stop> {
        self.first.get_or_insert_with(|| self.pull.started.elapsed());
        self.hasher.update(data);
        self.size += data.len() as u64;
        let options = self.pull.options;
        let total = options.received.fetch_add(data.len() as u64, Ordering::Relaxed) + data.len() as u64;
        if options.stop_after.is_some_and(|most| total >= most) {
            return Err(Stop::Enough);
        }
        if let Some(rate) = options.rate {
            let due = Duration::from_millis(total.saturating_mul(1000) / rate.max(1));
            tokio::time::sleep_until((self.pull.started + due).into()).await;
        }
        Ok(())
    }
}
