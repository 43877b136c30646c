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
//! **Absent on purpose.** HTTP/2 (its framing costs more than it gives between a registry and its clients), routing,
//! compression (it would break `Content-Length`, `Range` and digests).

pub mod body;
mod connection;
pub mod error;
pub mod handoff;
#[cfg(test)]
#[path = "../../proto/fuzz/mutate.rs"]
mod mutate;
pub mod reply;
mod rewind;
pub mod server;
#[cfg(test)]
mod tests;

pub use body::RequestBody;
pub use error::ApiError;
pub use handoff::{Handoff, Segment};
pub use reply::{Body, Reply};
pub use server::{Limits, Peer, Service, serve};
