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
#[cfg(test)]
extern crate std;

mod announce;
mod blob;
mod boundary;
pub mod config;
pub mod event;
mod fetch;
mod fill;
mod holders;
pub mod ids;
mod node;
mod peers;
mod rarity;
mod rng;
mod seeder;
pub mod stats;
#[cfg(test)]
mod tests;
pub mod time;
mod trace;
mod uploads;

pub use config::Config;
pub use node::Node;
