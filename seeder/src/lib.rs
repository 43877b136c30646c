//! The Shoal seeder: a private OCI registry, and the authority of a fleet of agents.
//!
//! To any OCI client it is a registry. To agents it also signs: as a blob is pushed it computes its digest and its BLAKE3
//! root in one pass, and states both under the fleet's key, so that nodes can verify every piece that they get from one
//! another. A pull brings a node the statements, a capability, and the names of others that pull the same image; what no
//! peer has, it asks for by pieces, and the seeder sees to it that each goes out about once.
//!
//! **Layers.** The HTTP handlers know routes and words; [`store::Store`] knows what a registry keeps and nothing of
//! HTTP; [`pieces`] and [`swarm`] decide, without a clock or a socket. [`access::Access`] is asked before every handler,
//! [`events::Events`] told after every change.
//!
//! **After a crash.** What was acknowledged is there. Uploads go on where their files end. Who was interested in what,
//! and what was sent to whom, is forgotten: the next pulls tell it again.
//!
//! **Absent on purpose.** Schema 1 manifests, anonymous mounts (they tell who holds what), following `urls` of foreign
//! layers.

pub mod access;
pub mod admin;
pub mod config;
pub mod events;
mod hash;
mod http;
pub mod keys;
pub mod kubernetes;
pub mod manifest;
pub mod members;
pub mod metrics;
#[cfg(test)]
#[path = "../../proto/fuzz/mutate.rs"]
mod mutate;
pub mod pieces;
pub mod quota;
mod seeder;
mod slots;
mod status;
pub mod store;
pub mod swarm;
#[cfg(test)]
mod tests;
mod time;
pub mod users;

pub use config::Config;
pub use seeder::{Running, Seeder, StartError, load_tls};
