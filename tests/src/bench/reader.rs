//! Clients of an agent: one that reads as a runtime does and holds every byte against the original, and one that only
//! sets the agent to work and waits until it has everything.
//!
//! The reading client compares instead of hashing: SHA-256 would take more of a small machine's time than the whole
//! transfer, and tell no more.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use http_body_util::BodyExt;
use hyper::{Method, StatusCode};

use super::{
    content::{Content, REPOSITORY, TAG},
    fleet::Node,
};
use crate::{
    http::{self, Client},
    image::Blob,
    metrics::{Metrics, names},
    pull,
};

/// Blobs at once: the default of Docker and containerd.
const BLOBS_AT_ONCE: usize = 3;
/// Between two looks at an agent's counters: often enough for the end to be seen within a percent, seldom enough not to
/// be measured itself.
const LOOK_MIN: Duration = Duration::from_millis(3);
const LOOK_MAX: Duration = Duration::from_millis(40);

/// Pulls the content from an agent as a container runtime does, and gives the moment when the last byte had come.
///
/// # Errors
/// A request fails, or bytes are wrong; nothing is tried twice.
pub async fn read(node: &Node, content: &Content, query: &str) -> Result<Instant> {
    let work = read_by(node.client(), content.clone(), query.to_owned());
    node.host().run(work).await.with_context(|| format!("pull through {}", node.name()))
}

/// The same by a client of an agent, from the caller's own host.
///
/// # Errors
/// A request fails, or bytes are wrong; nothing is tried twice.
pub async fn read_by(client: Client, content: Content, query: String) -> Result<Instant> {
    let (digest, _) = pull::manifest(&client, REPOSITORY, TAG, &query).await?;
    ensure!(digest == content.image.manifest.digest, "the tag leads to {digest}");
    let blobs = [(&content.image.config, None), (content.layer(), Some(content.bytes.clone()))];
    stream::iter(blobs)
        .map(Ok)
        .try_for_each_concurrent(BLOBS_AT_ONCE, async |(blob, expected)| {
            let expected = match expected {
                Some(bytes) => bytes,
                None => Bytes::from(blob.bytes()?),
            };
            read_blob(&client, blob, &query, &expected).await
        })
        .await?;
    Ok(Instant::now())
}

async fn read_blob(client: &Client, blob: &Blob, query: &str, expected: &[u8]) -> Result<()> {
    let target = format!("/v2/{REPOSITORY}/blobs/{}{query}", blob.digest);
    let response = client.send(Method::GET, &target, &[], http::full(Bytes::new())).await?;
    ensure!(response.status() == StatusCode::OK, "GET {target}: {}", response.status());
    let (mut body, mut at) = (response.into_body(), 0);
    while let Some(frame) = body.frame().await {
        let frame = frame.with_context(|| format!("{target} broke off after {at} bytes"))?;
        let Ok(data) = frame.into_data() else { continue };
        ensure!(expected.get(at..at + data.len()) == Some(&data[..]), "{target}: wrong bytes from {at} on");
        at += data.len();
    }
    ensure!(at == expected.len(), "{target}: {at} bytes of {}", expected.len());
    Ok(())
}

/// Bytes that an agent has verified and stored once it has all of `content`.
#[must_use]
pub fn stored_len(content: &Content) -> u64 {
    content.image.blobs().map(|blob| blob.size).sum()
}

/// Asks an agent for the manifest, which sets it to work on the layers, and waits until it has them all. Gives the
/// moment when that was seen.
///
/// # Errors
/// The agent does not answer, or takes longer than `limit`.
pub async fn prefetch(node: &Node, content: &Content, limit: Duration) -> Result<Instant> {
    let (client, addresses) = (node.client(), *node.addresses());
    let needed = stored_len(content);
    let work = async move {
        let begun = Instant::now();
        pull::manifest(&client, REPOSITORY, TAG, "").await?;
        let status = Client::new(addresses.status.to_string());
        loop {
            let stored = Metrics::scrape(&status).await?.count(names::AGENT_RECEIVED, &[]);
            let now = Instant::now();
            if stored >= needed {
                return Ok(now);
            }
            ensure!(now - begun < limit, "{stored} bytes of {needed} after {limit:?}");
            // Half of what is left at the pace so far.
            let left = (now - begun).as_secs_f64() * (needed - stored) as f64 / stored.max(1) as f64;
            let pause = Duration::from_secs_f64((left / 2.0).min(LOOK_MAX.as_secs_f64())).max(LOOK_MIN);
            tokio::time::sleep(pause).await;
        }
    };
    node.host().run(work).await.with_context(|| format!("prefetch by {}", node.name()))
}
