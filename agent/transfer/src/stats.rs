//! Plain counters: the agent exports them, the simulator reports them.

use serde::{Deserialize, Serialize};

/// What a node has done since it was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Stats {
    /// Pieces stored that came from peers.
    pub pieces_from_peers: u64,
    /// Pieces stored that came from the seeder.
    pub pieces_from_seeder: u64,
    /// Pieces asked of peers.
    pub fetches: u64,
    /// Requests to the seeder.
    pub seeder_asks: u64,
    /// Requests to the seeder that it deferred.
    pub seeder_deferrals: u64,
    /// Requests taken back because nothing came.
    pub timeouts: u64,
    /// Requests taken back from a slow peer because another could serve them.
    pub steals: u64,
    /// Requests that peers refused.
    pub refusals: u64,
    /// Pieces that did not match their hash.
    pub corrupt: u64,
    /// Peers banned.
    pub bans: u64,
    /// Pieces asked for across a boundary that others should have crossed.
    pub crossings: u64,
    /// Uploads served.
    pub served: u64,
    /// Uploads refused.
    pub refused: u64,
    /// Bytes served.
    pub served_bytes: u64,
    /// Dials that failed.
    pub dials_failed: u64,
}
