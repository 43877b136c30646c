//! What is counted of connections: plain numbers that the metrics export.

use std::sync::atomic::{AtomicU64, Ordering};

use shoal_proto::message::CloseReason;

use super::{Down, GreetError};

/// Why a connection was not made, or did not last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// Not the peer protocol at all: garbage on the port, no TLS, a wrong certificate.
    Garbage,
    /// The greeting took too long, or broke off.
    Timeout,
    /// Too many connections or handshakes.
    Limit,
    /// Another protocol version.
    Version,
    /// No membership, or not one of this fleet and this node.
    NotAMember,
    /// A membership that has ended.
    Expired,
    /// A membership that was revoked.
    Revoked,
    /// Another node than the one dialled.
    WrongNode,
    /// A frame that broke the protocol after the greeting.
    Violation,
}

impl Refused {
    /// All, in the order of their numbers.
    pub const ALL: [Self; 9] = [
        Self::Garbage,
        Self::Timeout,
        Self::Limit,
        Self::Version,
        Self::NotAMember,
        Self::Expired,
        Self::Revoked,
        Self::WrongNode,
        Self::Violation,
    ];

    /// A word for labels.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Garbage => "garbage",
            Self::Timeout => "timeout",
            Self::Limit => "limit",
            Self::Version => "version",
            Self::NotAMember => "not-a-member",
            Self::Expired => "expired",
            Self::Revoked => "revoked",
            Self::WrongNode => "wrong-node",
            Self::Violation => "violation",
        }
    }
}

/// Counts since the start. `Relaxed` throughout: each number stands alone.
#[derive(Debug, Default)]
pub struct Counters {
    refused: [AtomicU64; Refused::ALL.len()],
    connected: AtomicU64,
    disconnected: AtomicU64,
    sent: AtomicU64,
    received: AtomicU64,
}

impl Counters {
    /// How often that happened.
    #[must_use]
    pub fn refused(&self, why: Refused) -> u64 {
        self.refused[why as usize].load(Ordering::Relaxed)
    }

    /// Connections that came up.
    #[must_use]
    pub fn connections(&self) -> u64 {
        self.connected.load(Ordering::Relaxed)
    }

    /// Connections that are up now.
    #[must_use]
    pub fn connections_now(&self) -> u64 {
        self.connections().saturating_sub(self.disconnected.load(Ordering::Relaxed))
    }

    /// Blob bytes sent to peers.
    #[must_use]
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Blob bytes received from peers, good or not.
    #[must_use]
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    pub(super) fn count(&self, why: Refused) {
        self.refused[why as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn failed(&self, error: &GreetError) {
        if let Some(why) = error.refused() {
            self.count(why);
        }
    }

    pub(super) fn connected(&self) {
        self.connected.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn disconnected(&self, down: &Down) {
        self.disconnected.fetch_add(1, Ordering::Relaxed);
        if let Down::Protocol(_) | Down::Here(CloseReason::Protocol) = down {
            self.count(Refused::Violation);
        }
    }

    pub(super) fn add_sent(&self, bytes: u64) {
        self.sent.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn add_received(&self, bytes: u64) {
        self.received.fetch_add(bytes, Ordering::Relaxed);
    }
}
