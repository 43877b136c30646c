//! The registry's port where it was bound before this program starts: by systemd, which passes it as standard input
//! (`StandardInput=socket`). While the agent is not there, or not yet, no other process of the machine can take the port and
//! pose as the registry.

use std::{io, net::TcpListener, os::fd::AsFd as _};

use rustix::net::sockopt::socket_acceptconn;

/// The listening TCP socket on standard input. None where there is something else: a terminal, a pipe, nothing.
#[must_use]
pub fn inherited() -> Option<TcpListener> {
    let input = io::stdin();
    if !socket_acceptconn(&input).unwrap_or(false) {
        return None;
    }
    let listener = TcpListener::from(input.as_fd().try_clone_to_owned().ok()?);
    // Another kind of socket has no such address.
    listener.local_addr().ok()?;
    listener.set_nonblocking(true).ok()?;
    Some(listener)
}
