//! The accept loop: caps, drain and deadline.

use std::{
    future::{Future, poll_fn},
    io,
    net::SocketAddr,
    sync::Arc,
    task::Poll,
    time::Duration,
};

use http::Request;
use tokio::{
    net::{TcpListener, TcpStream},
    task::{JoinError, JoinSet},
};
use tokio_util::sync::CancellationToken;

use crate::{body::RequestBody, connection, reply::Reply, secure, tls::Tls};

/// Bodies up to this length in bytes stay in hyper: taking a connection apart costs about as much as copying so many.
pub const SMALL_BODY_MAX: u64 = 64 << 10;
/// Bytes that the kernel takes ahead of what the network takes, if an answer does not ask for less: as many as its send
/// buffers grow to by default, so that a thread which feeds several connections is not called for each few packets.
pub(crate) const UNSENT_MAX: u32 = 4 << 20;
/// Wait after the system refused a connection (out of file descriptors), so that the loop does not spin meanwhile.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Who is on the other end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// The client's address.
    pub remote: SocketAddr,
    /// The address that it reached.
    pub local: SocketAddr,
}

/// Answers requests.
pub trait Service: Send + Sync + 'static {
    /// Answers one request. The future is dropped when the client goes away: what must not stop half-way runs in a task
    /// or on a blocking thread.
    fn call(self: Arc<Self>, request: Request<RequestBody>, peer: Peer) -> impl Future<Output = Reply> + Send;
}

/// What a server grants its clients.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Open connections; further ones wait in the kernel's queue.
    pub connections_max: usize,
    /// Bytes of a request's head.
    pub head_len_max: usize,
    /// Header lines of a request.
    pub headers_max: usize,
    /// Longest wait for a request's head, on a new connection as on an idle one. Longer than clients keep idle connections
    /// (90 s is common), so that it is the client who closes.
    pub idle: Duration,
    /// Longest time that a TLS handshake may take. A connection counts from its first packet on.
    pub handshake: Duration,
    /// Longest time in which a client takes no byte of a body. Generous: a container runtime stops reading while it
    /// unpacks.
    pub stall: Duration,
    /// Longest wait for the next bytes of a request's body. A client that stops for longer has gone.
    pub body_stall: Duration,
    /// On shutdown: how long requests in work may take before they are cut off.
    pub drain: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections_max: 4096,
            head_len_max: 64 << 10,
            headers_max: 128,
            idle: Duration::from_secs(120),
            handshake: Duration::from_secs(10),
            stall: Duration::from_secs(300),
            body_stall: Duration::from_secs(120),
            drain: Duration::from_secs(10),
        }
    }
}

/// Serves all of `listeners` until `shutdown` resolves; then stops accepting, lets the requests in work finish for
/// [`Limits::drain`], and cuts off the rest. Returns when every connection is closed.
///
/// # Panics
/// Passes on a panic of a connection's task: an invariant is broken then, and with it whatever the tasks share.
pub async fn serve<S: Service>(
    listeners: Vec<TcpListener>,
    service: Arc<S>,
    limits: Limits,
    shutdown: impl Future<Output = ()>,
) {
    run(listeners, None, service, limits, shutdown).await;
}

/// As [`serve`], under TLS: HTTP/2 or HTTP/1.1, as the client can.
///
/// # Panics
/// As [`serve`].
pub async fn serve_tls<S: Service>(
    listeners: Vec<TcpListener>,
    tls: Arc<Tls>,
    service: Arc<S>,
    limits: Limits,
    shutdown: impl Future<Output = ()>,
) {
    run(listeners, Some(tls), service, limits, shutdown).await;
}

async fn run<S: Service>(
    listeners: Vec<TcpListener>,
    tls: Option<Arc<Tls>>,
    service: Arc<S>,
    limits: Limits,
    shutdown: impl Future<Output = ()>,
) {
    let limits = Arc::new(limits);
    let stop = CancellationToken::new();
    let mut connections = JoinSet::new();
    let mut shutdown = std::pin::pin!(shutdown);
    loop {
        let room = connections.len() < limits.connections_max;
        tokio::select! {
            () = &mut shutdown => break,
            Some(ended) = connections.join_next() => pass_on(ended),
            accepted = accept(&listeners), if room => match accepted {
                Ok((stream, peer)) => {
                    prepare(&stream);
                    let (service, limits, stop) = (Arc::clone(&service), Arc::clone(&limits), stop.clone());
                    match tls.clone() {
                        None => connections.spawn(connection::drive(stream, peer, service, limits, stop)),
                        Some(tls) => connections.spawn(secure::drive(stream, peer, service, limits, tls, stop)),
                    };
                }
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
        }
    }
    drop(listeners);
    stop.cancel();
    let drained = tokio::time::timeout(limits.drain, async {
        while let Some(ended) = connections.join_next().await {
            pass_on(ended);
        }
    });
    if drained.await.is_err() {
        tracing::info!(left = connections.len(), "connections are cut off: their requests outlasted the drain");
        connections.shutdown().await;
    }
}

fn pass_on(ended: Result<(), JoinError>) {
    if let Err(error) = ended
        && let Ok(panic) = error.try_into_panic()
    {
        std::panic::resume_unwind(panic);
    }
}

async fn accept(listeners: &[TcpListener]) -> io::Result<(TcpStream, Peer)> {
    let (stream, remote) = poll_fn(|cx| {
        for listener in listeners {
            if let Poll::Ready(accepted) = listener.poll_accept(cx) {
                return Poll::Ready(accepted);
            }
        }
        Poll::Pending
    })
    .await?;
    let local = stream.local_addr()?;
    Ok((stream, Peer { remote, local }))
}

/// Best effort: a socket without these options works, only less well.
fn prepare(stream: &TcpStream) {
    let nodelay = stream.set_nodelay(true);
    let keepalive = rustix::net::sockopt::set_socket_keepalive(stream, true);
    for error in [nodelay, keepalive.map_err(io::Error::from)].into_iter().filter_map(Result::err) {
        tracing::debug!(%error, "socket options could not be set");
    }
    limit_unsent(stream, UNSENT_MAX);
}

/// Limits the bytes that the kernel takes ahead of what the network takes. Best effort.
pub(crate) fn limit_unsent(stream: &TcpStream, max: u32) {
    if let Err(error) = socket2::SockRef::from(stream).set_tcp_notsent_lowat(max) {
        tracing::debug!(%error, "the bytes unsent in the kernel could not be limited");
    }
}
