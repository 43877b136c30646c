//! Health, status and metrics, for probes and people: read-only, loopback unless configured otherwise.
//!
//! `/healthz` says that the process answers; `/readyz` that the loop does too and the node is a member; `/metrics` is
//! Prometheus text; `/status` is [`Status`] as JSON.

use std::{net::SocketAddr, sync::Arc};

use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use serde::{Deserialize, Serialize};
use shoal_http::{Peer, Reply, RequestBody, Service, reply::full};

use crate::{
    handle::{Handle, LoopStatus},
    metrics::Metrics,
    store::Store,
    upstream::Upstream,
};

/// What an agent has bound.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Addresses {
    /// The registry.
    pub registry: SocketAddr,
    /// Status and metrics.
    pub status: SocketAddr,
    /// libp2p.
    pub libp2p: SocketAddr,
    /// The peer protocol.
    pub peer: SocketAddr,
}

/// What `/status` and `shoal status` show.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Status {
    /// The version of the program.
    pub version: String,
    /// The seeder's URL.
    pub seeder: String,
    /// Bound addresses.
    pub addresses: Addresses,
    /// How full the store is.
    pub store: StoreStatus,
    /// How the loop stands.
    pub swarm: LoopStatus,
}

/// How full the store is.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct StoreStatus {
    /// Bytes that blobs count for.
    pub bytes: u64,
    /// The limit.
    pub quota_bytes: u64,
    /// Blobs, whole or in part.
    pub blobs: usize,
    /// Those that are whole.
    pub complete: usize,
    /// Blobs evicted since the start.
    pub evicted: u64,
}

/// What status is drawn from. Clones show the same.
#[derive(Debug, Clone)]
pub struct Sources {
    /// Blobs.
    pub store: Store,
    /// The seeder.
    pub upstream: Upstream,
    /// The loop.
    pub handle: Handle,
    /// Counters.
    pub metrics: Metrics,
    /// Bound addresses.
    pub addresses: Addresses,
}

impl Sources {
    /// How things stand; `None` while the loop does not answer.
    pub async fn status(&self) -> Option<Status> {
        let swarm = self.handle.status().await?;
        let (usage, blobs) = (self.store.usage(), self.store.blobs());
        Some(Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            seeder: self.upstream.url(),
            addresses: self.addresses.clone(),
            store: StoreStatus {
                bytes: usage.bytes,
                quota_bytes: usage.quota_bytes,
                blobs: usage.blobs,
                complete: blobs.iter().filter(|info| info.complete).count(),
                evicted: usage.evicted,
            },
            swarm,
        })
    }

    async fn not_ready(&self) -> Option<&'static str> {
        if self.handle.status().await.is_none() {
            return Some("the loop does not answer\n");
        }
        let member = self.upstream.member().borrow().is_some();
        (!member).then_some("not a member of the fleet yet: the seeder has not answered\n")
    }
}

/// The service behind the status port.
#[derive(Debug)]
pub struct StatusPage {
    sources: Sources,
}

impl StatusPage {
    /// A page drawn from `sources`.
    #[must_use]
    pub const fn new(sources: Sources) -> Self {
        Self { sources }
    }
}

impl Service for StatusPage {
    async fn call(self: Arc<Self>, request: Request<RequestBody>, _peer: Peer) -> Reply {
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            return text(StatusCode::METHOD_NOT_ALLOWED, "text/plain", "this port is read-only\n").into();
        }
        let sources = &self.sources;
        let response = match request.uri().path() {
            "/healthz" => text(StatusCode::OK, "text/plain", "ok\n"),
            "/readyz" => match sources.not_ready().await {
                None => text(StatusCode::OK, "text/plain", "ok\n"),
                Some(why) => text(StatusCode::SERVICE_UNAVAILABLE, "text/plain", why),
            },
            "/metrics" => {
                let page = sources.metrics.page(&sources.store.usage(), sources.handle.readers());
                text(StatusCode::OK, "text/plain; version=0.0.4", page)
            }
            "/status" => match sources.status().await {
                Some(status) => json(&status),
                None => text(StatusCode::SERVICE_UNAVAILABLE, "text/plain", "the loop does not answer\n"),
            },
            _ => text(StatusCode::NOT_FOUND, "text/plain", "there is /healthz, /readyz, /metrics and /status\n"),
        };
        response.into()
    }
}

/// A value as a JSON response.
pub(crate) fn json<T: Serialize>(value: &T) -> Response<shoal_http::Body> {
    match serde_json::to_string(value) {
        Ok(body) => text(StatusCode::OK, "application/json", body),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, "text/plain", error.to_string()),
    }
}

pub(crate) fn text(
    status: StatusCode,
    content_type: &'static str,
    body: impl Into<bytes::Bytes>,
) -> Response<shoal_http::Body> {
    let mut response = Response::new(full(body));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}
