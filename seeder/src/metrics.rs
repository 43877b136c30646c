//! What the seeder counts. Built once and handed down.

use http::StatusCode;
use prometheus_client::{
    encoding::{EncodeLabelSet, text},
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};
use shoal_http::handoff::Meter;
use tokio::sync::OwnedSemaphorePermit;

use crate::quota::Usage;

/// What payload bytes were sent as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Payload {
    /// Answers to blob requests.
    Blob,
    /// Answers to a node that asked for pieces.
    Pieces,
    /// Manifests.
    Manifest,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Kind {
    kind: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Of {
    repositories: String,
    measure: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Request {
    route: &'static str,
    method: &'static str,
    status: u16,
}

/// The seeder's counters.
#[derive(Debug, Default)]
pub struct Metrics {
    registry: Registry,
    requests: Family<Request, Counter>,
    payload: Family<Kind, Counter>,
    events: Family<Kind, Counter>,
    introductions: Counter,
    pieces_given: Counter,
    pieces_waits: Counter,
    transfers: Gauge,
    quota_used: Family<Of, Gauge>,
    quota_limit: Family<Of, Gauge>,
}

impl Metrics {
    /// All at zero.
    #[must_use]
    pub fn new() -> Self {
        let mut metrics = Self::default();
        let m = &mut metrics;
        let r = &mut m.registry;
        r.register("shoal_seeder_requests", "Requests answered", m.requests.clone());
        r.register("shoal_seeder_payload_bytes", "Payload bytes written to sockets", m.payload.clone());
        r.register("shoal_seeder_events", "Things that happened: pushes, deletes, joins", m.events.clone());
        r.register("shoal_seeder_introductions", "Members named to other members", m.introductions.clone());
        r.register("shoal_seeder_pieces_given", "Pieces given to nodes that asked for pieces", m.pieces_given.clone());
        r.register("shoal_seeder_pieces_waits", "Nodes told to wait for their peers", m.pieces_waits.clone());
        r.register("shoal_seeder_transfers", "Bodies being sent", m.transfers.clone());
        r.register("shoal_seeder_quota_used", "What the repositories of a quota hold", m.quota_used.clone());
        r.register("shoal_seeder_quota_limit", "What they may hold", m.quota_limit.clone());
        for kind in [Payload::Blob, Payload::Pieces, Payload::Manifest] {
            let _at_zero = metrics.payload_counter(kind);
        }
        metrics
    }

    /// All counters as OpenMetrics text.
    ///
    /// # Panics
    /// Never: writing to a string does not fail.
    #[must_use]
    pub fn text(&self) -> String {
        let mut out = String::new();
        text::encode(&mut out, &self.registry).expect("a string takes all text");
        out
    }

    /// Shows what quotas hold.
    pub(crate) fn quotas(&self, usage: &[Usage]) {
        for Usage { quota, used_bytes, used_tags } in usage {
            for (measure, limit, used) in [("bytes", quota.bytes, used_bytes), ("tags", quota.tags, used_tags)] {
                let Some(limit) = limit else { continue };
                let of = Of { repositories: quota.repositories.to_string(), measure };
                let number = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
                self.quota_used.get_or_create(&of).set(number(*used));
                self.quota_limit.get_or_create(&of).set(number(limit));
            }
        }
    }

    pub(crate) fn request(&self, route: &'static str, method: &'static str, status: StatusCode) {
        self.requests.get_or_create(&Request { route, method, status: status.as_u16() }).inc();
    }

    pub(crate) fn event(&self, kind: &'static str) {
        self.events.get_or_create(&Kind { kind }).inc();
    }

    pub(crate) fn introduced(&self, members: usize) {
        self.introductions.inc_by(members as u64);
    }

    pub(crate) fn pieces_given(&self, pieces: usize) {
        self.pieces_given.inc_by(pieces as u64);
    }

    pub(crate) fn pieces_wait(&self) {
        self.pieces_waits.inc();
    }

    fn payload_counter(&self, kind: Payload) -> Counter {
        let kind = match kind {
            Payload::Blob => "blob",
            Payload::Pieces => "pieces",
            Payload::Manifest => "manifest",
        };
        self.payload.get_or_create(&Kind { kind }).clone()
    }

    /// Payload bytes written so far.
    #[must_use]
    pub fn payload_bytes(&self, kind: Payload) -> u64 {
        self.payload_counter(kind).get()
    }

    /// Counts a body while it is sent, and holds `permit` for as long.
    pub(crate) fn meter(&self, kind: Payload, permit: Option<OwnedSemaphorePermit>) -> BodyMeter {
        self.transfers.inc();
        BodyMeter { bytes: self.payload_counter(kind), transfers: self.transfers.clone(), _permit: permit }
    }
}

/// Counts one body.
#[derive(Debug)]
pub(crate) struct BodyMeter {
    bytes: Counter,
    transfers: Gauge,
    _permit: Option<OwnedSemaphorePermit>,
}

impl Meter for BodyMeter {
    fn written(&mut self, bytes: u64) {
        self.bytes.inc_by(bytes);
    }
}

impl Drop for BodyMeter {
    fn drop(&mut self) {
        self.transfers.dec();
    }
}
