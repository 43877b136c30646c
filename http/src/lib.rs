//! What both of Shoal's HTTP servers share: the accept loop with its caps and its drain, bodies with limits, the OCI
//! error responses, ranges, and the **hand-off**: a large plain GET leaves hyper for the socket.
//!
//! hyper cannot `sendfile`. A [`Service`] therefore answers with either an ordinary response or a
//! [`Handoff`]: a head and a list of byte ranges of a file. The connection then takes the socket
//! back from hyper, writes the head, moves the file's pages straight to the socket, and gives the socket to hyper again
//! with whatever the client has sent meanwhile. The file may still be growing: a [`BodySource`](handoff::BodySource)
//! says how far it may be read.
//!
//! **Invariants.** A hand-off starts only when hyper has flushed every byte of earlier responses, and the connection is
//! kept alive after it only when the request's own body was read to its end: neither pipelined requests nor unread
//! bodies are ever taken for something else. A service never sees a connection beyond the cap.
//!
//! **TLS.** [`serve_tls`] answers the same services under a certificate from files ([`Tls`]), by HTTP/2 or HTTP/1.1. What is
//! encrypted cannot be left to the kernel: a hand-off becomes a body that is read in chunks as the client takes them.
//!
//! **Absent on purpose.** HTTP/2 without TLS (hyper could not give the socket up), routing, compression (it would break
//! `Content-Length`, `Range` and digests).

mod activity;
pub mod body;
pub mod client;
mod connection;
pub mod error;
pub mod handoff;
mod linger;
#[cfg(test)]
#[path = "../../proto/fuzz/mutate.rs"]
mod mutate;
pub mod reply;
mod rewind;
pub mod roots;
mod secure;
pub mod server;
mod stream;
#[cfg(test)]
mod tests;
pub mod tls;

pub use body::RequestBody;
pub use error::ApiError;
pub use handoff::{Handoff, Segment};
pub use reply::{Body, Reply};
pub use server::{Limits, Peer, Service, serve, serve_tls};
pub use tls::Tls;
