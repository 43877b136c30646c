//! The Shoal agent: a read-only OCI registry on localhost, fed by peers and, at the last, by the seeder.
//!
//! ```text
//! main → Agent → { http, agent (the loop: shoal_transfer::Node), peer, net, upstream, store }
//! ```
//!
//! `store` knows none of the others; `http` and the loop in `agent` meet only through [`handle`]; decisions about peers
//! and pieces are taken in `shoal-transfer`, nowhere here.

pub mod handle;
pub mod identity;
pub mod store;
pub mod upstream;
