//! The Shoal agent: a read-only OCI registry on localhost, fed by peers and, at the last, by the seeder.
//!
//! ```text
//! main → Agent → { http, agent (the loop: shoal_transfer::Node), peer, shoal_dht, upstream, store }
//! ```
//!
//! `store` knows none of the others; `http` and the loop in `agent` meet only through [`handle`]; decisions about peers
//! and pieces are taken in `shoal-transfer`, nowhere here.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

pub mod admin;
pub mod agent;
pub mod cli;
pub mod config;
pub mod handle;
pub mod history;
pub mod http;
pub mod identity;
pub mod metrics;
#[cfg(test)]
#[path = "../../proto/fuzz/mutate.rs"]
mod mutate;
pub mod peer;
pub mod rate;
pub mod running;
pub mod sockets;
pub mod status;
pub mod store;
#[cfg(test)]
mod testing;
pub mod upstream;

pub use config::Config;
pub use running::{Agent, Running};
pub use status::Addresses;

/// What the loop ([`agent::start`]) is given. When it starts, the membership is in
/// [`Upstream::member`](upstream::Upstream::member) already, if it could be had.
#[derive(Debug)]
pub struct Parts {
    /// The configuration.
    pub config: Arc<Config>,
    /// Who this node is.
    pub identity: identity::Identity,
    /// Where blobs are.
    pub store: store::Store,
    /// The seeder.
    pub upstream: upstream::Upstream,
    /// What the registry asks for.
    pub commands: handle::Commands,
    /// Where to count: `received` for every verified piece, `sent` for every piece sent to a peer.
    pub metrics: metrics::Metrics,
    /// Ends the loop: say goodbye to peers, stop.
    pub shutdown: CancellationToken,
}
