//! What Prometheus sees. Built once, handed down; names and labels are an interface.
//!
//! | metric | labels | counts |
//! |---|---|---|
//! | `shoal_agent_received_bytes_total` | `from` = `peer`, `seeder` | verified payload bytes received |
//! | `shoal_bytes_total` | `source` = `peer`, `seeder`; `scope` = `site`, `zone`, `region`, `fleet`: the narrowest that this node shares with the peer | the same, by how far they came |
//! | `shoal_origin_bytes_saved_total` | | those that the seeder did not have to send |
//! | `shoal_agent_sent_bytes_total` | `to` = `peer`, `client` | payload bytes sent |
//! | `shoal_agent_requests_total` | `route`, `status` | requests of local clients |
//! | `shoal_agent_stale_answers_total` | | tags answered without the seeder |
//! | `shoal_agent_first_byte_stored_ratio` (histogram) | | how much of a blob was stored when its first byte went to a client that had asked before anything of it came; blobs of [`EARLY_PIECES_MIN`] pieces and more |
//! | `shoal_agent_readers` | | clients reading a blob that is not complete |
//! | `shoal_agent_store_bytes`, `…_quota_bytes`, `…_blobs` | | how full the store is |
//! | `shoal_agent_evicted_blobs_total` | | blobs evicted |
//!
//! The loop adds its own under the same prefix ([`Metrics::with_registry`]).

use std::{
    fmt::Write,
    sync::{Arc, Mutex, PoisonError},
};

use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};

use crate::{history::Source, store::Usage};

/// Pieces of a blob whose first byte is measured: of a few pieces the first is a large share anyhow.
pub const EARLY_PIECES_MIN: u32 = 16;

/// Where bytes came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum From {
    /// Another agent.
    Peer,
    /// The seeder.
    Seeder,
}

/// Where bytes went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum To {
    /// Another agent.
    Peer,
    /// A local client.
    Client,
}

impl EncodeLabelValue for From {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> std::fmt::Result {
        encoder.write_str(match self {
            Self::Peer => "peer",
            Self::Seeder => "seeder",
        })
    }
}

impl EncodeLabelValue for To {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> std::fmt::Result {
        encoder.write_str(match self {
            Self::Peer => "peer",
            Self::Client => "client",
        })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelSet)]
struct FromLabel {
    from: From,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SourceLabels {
    source: &'static str,
    scope: &'static str,
}

impl std::convert::From<Source> for SourceLabels {
    fn from(source: Source) -> Self {
        let (source, scope) = match source {
            Source::Site => ("peer", "site"),
            Source::Zone => ("peer", "zone"),
            Source::Region => ("peer", "region"),
            Source::Fleet => ("peer", "fleet"),
            Source::Seeder => ("seeder", "fleet"),
        };
        Self { source, scope }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ToLabel {
    to: To,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabel {
    route: &'static str,
    status: u16,
}

/// All counters of one agent. Clones count into the same.
#[derive(Debug, Clone)]
pub struct Metrics {
    registry: Arc<Mutex<Registry>>,
    received: Family<FromLabel, Counter>,
    came: Family<SourceLabels, Counter>,
    saved: Counter,
    sent: Family<ToLabel, Counter>,
    requests: Family<RequestLabel, Counter>,
    stale: Counter,
    first_byte: Histogram,
    readers: Gauge,
    store_bytes: Gauge,
    store_quota: Gauge,
    store_blobs: Gauge,
    evicted: Counter,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// Nothing counted.
    #[must_use]
    pub fn new() -> Self {
        let metrics = Self {
            registry: Arc::new(Mutex::new(Registry::with_prefix("shoal"))),
            received: Family::default(),
            came: Family::default(),
            saved: Counter::default(),
            sent: Family::default(),
            requests: Family::default(),
            stale: Counter::default(),
            first_byte: Histogram::new([0.02, 0.05, 0.1, 0.25, 0.5, 1.0]),
            readers: Gauge::default(),
            store_bytes: Gauge::default(),
            store_quota: Gauge::default(),
            store_blobs: Gauge::default(),
            evicted: Counter::default(),
        };
        // Present from the start: a sum over them is 0, not missing.
        for from in [From::Peer, From::Seeder] {
            drop(metrics.received.get_or_create(&FromLabel { from }));
        }
        for to in [To::Peer, To::Client] {
            drop(metrics.sent.get_or_create(&ToLabel { to }));
        }
        for source in [Source::Site, Source::Zone, Source::Region, Source::Fleet, Source::Seeder] {
            drop(metrics.came.get_or_create(&source.into()));
        }
        {
            let mut registry = metrics.registry.lock().unwrap_or_else(PoisonError::into_inner);
            registry.register("bytes", "Verified payload bytes received, by how far they came", metrics.came.clone());
            registry.register("origin_bytes_saved", "Payload bytes that came from peers", metrics.saved.clone());
        }
        metrics.with_registry(|registry| {
            registry.register("received_bytes", "Verified payload bytes received", metrics.received.clone());
            registry.register("sent_bytes", "Payload bytes sent", metrics.sent.clone());
            registry.register("requests", "Requests of local clients", metrics.requests.clone());
            registry.register("stale_answers", "Tags answered without the seeder", metrics.stale.clone());
            let help = "Share of a blob that was stored when its first byte went to a client";
            registry.register("first_byte_stored_ratio", help, metrics.first_byte.clone());
            registry.register("readers", "Clients reading a blob that is not complete", metrics.readers.clone());
            registry.register("store_bytes", "Bytes that stored blobs count for", metrics.store_bytes.clone());
            registry.register("store_quota_bytes", "Most bytes of blobs", metrics.store_quota.clone());
            registry.register("store_blobs", "Blobs stored, whole or in part", metrics.store_blobs.clone());
            registry.register("evicted_blobs", "Blobs evicted", metrics.evicted.clone());
        });
        metrics
    }

    /// Registers more metrics under the same prefix.
    pub fn with_registry(&self, register: impl FnOnce(&mut Registry)) {
        let mut registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        register(registry.sub_registry_with_prefix("agent"));
    }

    /// Verified payload bytes came.
    pub fn received(&self, from: From, bytes: u64) {
        self.received.get_or_create(&FromLabel { from }).inc_by(bytes);
    }

    /// The same bytes, by how far they came.
    pub fn came(&self, source: Source, bytes: u64) {
        self.came.get_or_create(&source.into()).inc_by(bytes);
        if source != Source::Seeder {
            self.saved.inc_by(bytes);
        }
    }

    /// Payload bytes went.
    pub fn sent(&self, to: To, bytes: u64) {
        self.sent.get_or_create(&ToLabel { to }).inc_by(bytes);
    }

    /// The counter of payload bytes to local clients, for those who count often.
    #[must_use]
    pub fn sent_to_clients(&self) -> Counter {
        self.sent.get_or_create_owned(&ToLabel { to: To::Client })
    }

    /// The first byte of a blob went to a client when `stored` of its `pieces` were stored.
    pub fn first_byte(&self, stored: u32, pieces: u32) {
        self.first_byte.observe(f64::from(stored) / f64::from(pieces));
    }

    /// A local client's request was answered.
    pub fn request(&self, route: &'static str, status: u16) {
        self.requests.get_or_create(&RequestLabel { route, status }).inc();
    }

    /// A tag was answered without the seeder.
    pub fn stale_answer(&self) {
        self.stale.inc();
    }

    /// The page, with the gauges set to what they are now.
    #[must_use]
    pub fn page(&self, usage: &Usage, readers: usize) -> String {
        let number = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        self.readers.set(i64::try_from(readers).unwrap_or(i64::MAX));
        self.store_bytes.set(number(usage.bytes));
        self.store_quota.set(number(usage.quota_bytes));
        self.store_blobs.set(i64::try_from(usage.blobs).unwrap_or(i64::MAX));
        self.evicted.inc_by(usage.evicted.saturating_sub(self.evicted.get()));
        let mut page = String::new();
        let registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        encode(&mut page, &registry).expect("writing to a String does not fail");
        page
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_names_on_the_page_are_those_of_the_table() {
        let metrics = Metrics::new();
        metrics.received(From::Peer, 5);
        metrics.came(Source::Zone, 5);
        metrics.came(Source::Seeder, 7);
        metrics.request("blob", 200);
        metrics.first_byte(4, 16);
        let usage = Usage { bytes: 1, quota_bytes: 2, blobs: 3, evicted: 4 };
        drop(metrics.page(&usage, 0));
        let page = metrics.page(&usage, 7);
        for line in [
            "shoal_agent_received_bytes_total{from=\"peer\"} 5",
            "shoal_agent_received_bytes_total{from=\"seeder\"} 0",
            "shoal_bytes_total{source=\"peer\",scope=\"zone\"} 5",
            "shoal_bytes_total{source=\"seeder\",scope=\"fleet\"} 7",
            "shoal_origin_bytes_saved_total 5",
            "shoal_agent_sent_bytes_total{to=\"client\"} 0",
            "shoal_agent_requests_total{route=\"blob\",status=\"200\"} 1",
            "shoal_agent_first_byte_stored_ratio_count 1",
            "shoal_agent_first_byte_stored_ratio_bucket{le=\"0.25\"} 1",
            "shoal_agent_readers 7",
            "shoal_agent_store_bytes 1",
            "shoal_agent_store_quota_bytes 2",
            "shoal_agent_store_blobs 3",
            "shoal_agent_evicted_blobs_total 4",
        ] {
            assert!(page.lines().any(|found| found == line), "{line} is missing in\n{page}");
        }
    }
}
