//! The harness of Shoal's end-to-end tests, its demo and its benches.
//!
//! Everything here looks at the product from outside: seeder and agents are real processes of the shipped binaries
//! ([`cluster`]), images are made of real files ([`image`]), a client pulls as a container runtime does and checks
//! every byte with a SHA-256 of its own ([`pull`]), and what the processes did is read from their status pages
//! ([`metrics`]) and from `/proc` ([`process`]).
//!
//! **Leaves nothing behind.** Each test has a private directory; every process is killed when its guard is dropped,
//! on a panic too; ports are chosen by the kernel and read from the `addresses.json` that each process writes once it
//! has bound them.

pub mod bench;
pub mod certificates;
pub mod clone;
pub mod cluster;
pub mod conformance;
pub mod daemons;
pub mod flip;
pub mod http;
pub mod image;
pub mod metrics;
pub mod power_loss;
pub mod process;
pub mod pull;
pub mod push;
pub mod raw;
pub mod report;
pub mod tmpfs;
pub mod wait;
