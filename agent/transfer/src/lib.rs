//! Shoal's transfer policy: which peer, which piece, when to cross a boundary, retries, bans, uploads, announcing.
//!
//! The core is sans-IO: no sockets, no clock, no threads, no randomness but from its seed. Agent and simulator are two
//! shells around the same loop:
//!
//! ```text
//! node.handle(input, now);
//! while let Some(action) = node.poll_action() { perform(action) }
//! sleep until node.poll_timeout() or the next event; then handle(Input::Timeout, now)
//! ```
//!
//! **Contract.** Four kinds of method: [`Node::new`]; [`Node::handle`] takes what has happened, never blocks, never
//! fails, and wants `now` not to go back; [`Node::poll_action`] and [`Node::poll_timeout`] are drained after every
//! `handle`, actions first; the rest only look ([`Node::stats`]). Ids of blobs, peers, readers and uploads are the
//! shell's, ids of requests the core's; an id that is over is ignored wherever it still comes in, so a shell may race.
//!
//! **Invariants**, asserted where the state lives: a piece is in exactly one of stored, in flight (under one request)
//! and missing; a request belongs to one peer or to the seeder; a peer's count of open requests is the number of them
//! that name it; what is told to a peer is stored.
//!
//! **Absent on purpose.** Bytes, addresses, digests, signatures, and any branch for the simulator.
#![no_std]

extern crate alloc;

pub mod config;
pub mod event;
pub mod ids;
pub mod time;
mod trace;

use alloc::collections::VecDeque;

use crate::{
    config::Config,
    event::{Action, Input},
    time::Time,
};

/// One node's policy.
#[derive(Debug)]
pub struct Node {
    config: Config,
    actions: VecDeque<Action>,
}

impl Node {
    /// A node that knows nothing yet. All its randomness comes from `seed`.
    #[must_use]
    pub fn new(config: Config, seed: u64, now: Time) -> Self {
        let _ = (seed, now);
        Self { config, actions: VecDeque::new() }
    }

    /// Takes what has happened at `now`.
    pub fn handle(&mut self, input: Input<'_>, now: Time) {
        let _ = (input, now, &self.config);
    }

    /// The next thing to do; to be drained after every [`Node::handle`].
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// When [`Input::Timeout`] is due; to be asked for after the actions are drained.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Time> {
        None
    }
}
