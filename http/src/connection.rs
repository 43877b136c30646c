//! One connection: hyper and hand-offs by turns, until the client or the server ends it.

use std::{
    convert::Infallible,
    future::{Future, poll_fn},
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    task::Poll,
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Method, Request, Response, Version, header};
use hyper::{body::Incoming, server::conn::http1};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use crate::{
    body::RequestBody,
    handoff::{Handoff, Segment, Transfer},
    reply::{Body, Reply, empty, full},
    rewind::Rewind,
    server::{Limits, Peer, Service},
};

/// What one connection may buffer of what it reads, in bytes: with hundreds of uploads at once it is what memory goes to.
pub(crate) const READ_BUFFER_MAX: usize = 64 << 10;

/// A hand-off that waits for its connection, and whether the connection must close after it.
#[derive(Debug)]
struct Pending {
    handoff: Handoff,
    close: bool,
}

/// What a connection's service and its driver share.
#[derive(Debug, Default)]
struct Shared {
    pending: Mutex<Option<Pending>>,
    /// Since the hand-off was put here, hyper has flushed all it had to write.
    flushed: Arc<AtomicBool>,
}

impl Shared {
    fn put(&self, pending: Pending) {
        self.flushed.store(false, Ordering::Relaxed);
        *self.slot() = Some(pending);
    }

    fn slot(&self) -> std::sync::MutexGuard<'_, Option<Pending>> {
        self.pending.lock().expect("nobody panics while holding the slot")
    }
}

/// The service of one connection as hyper calls it.
#[derive(Debug)]
struct Adapter<S> {
    service: Arc<S>,
    shared: Arc<Shared>,
    peer: Peer,
    body_stall: Duration,
}

impl<S: Service> hyper::service::Service<Request<Incoming>> for Adapter<S> {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let (service, shared, peer) = (Arc::clone(&self.service), Arc::clone(&self.shared), self.peer);
        let body_stall = self.body_stall;
        Box::pin(async move {
            let head = request.method() == Method::HEAD;
            let wants_close = request.version() < Version::HTTP_11 || says_close(request.headers());
            let (parts, body) = request.into_parts();
            let (body, ended) = RequestBody::new(body, body_stall);
            let handoff = match service.call(Request::from_parts(parts, body), peer).await {
                Reply::Response(response) => return Ok(response),
                Reply::Handoff(handoff) => *handoff,
            };
            if head {
                return Ok(handoff.head.map(|()| empty()));
            }
            if handoff.is_small() {
                return Ok(in_memory(handoff).await);
            }
            shared.put(Pending { handoff, close: wants_close || !ended.load(Ordering::Relaxed) });
            // The driver takes the connection apart, and this future with it.
            std::future::pending().await
        })
    }
}

fn says_close(headers: &HeaderMap) -> bool {
    headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|token| token.trim().eq_ignore_ascii_case("close"))
}

/// A small body is read into memory: taking the connection apart would cost more than the copy.
pub(crate) async fn in_memory(handoff: Handoff) -> Response<Body> {
    let Handoff { head, file, segments, mut meter, .. } = handoff;
    let payload: u64 = segments.iter().map(Segment::payload_len).sum();
    let read = tokio::task::spawn_blocking(move || read_segments(&file, &segments)).await;
    match read.map_err(std::io::Error::other).and_then(|read| read) {
        Ok(body) => {
            if let Some(meter) = &mut meter {
                meter.written(payload);
                meter.finished();
            }
            head.map(|()| full(body))
        }
        Err(error) => {
            tracing::error!(%error, "a file could not be read");
            crate::ApiError::internal("the content could not be read").into_response()
        }
    }
}

fn read_segments(file: &std::fs::File, segments: &[Segment]) -> std::io::Result<Bytes> {
    use std::os::unix::fs::FileExt as _;
    let mut body = BytesMut::new();
    for segment in segments {
        match segment {
            Segment::Bytes(bytes) => body.extend_from_slice(bytes),
            Segment::File(range) => {
                let start = body.len();
                let len = usize::try_from(range.end - range.start).map_err(std::io::Error::other)?;
                body.resize(start + len, 0);
                file.read_exact_at(&mut body[start..], range.start)?;
            }
        }
    }
    Ok(body.freeze())
}

/// What hyper leaves behind when it gives the socket up for a hand-off: the transfer, the socket, bytes read too far.
type GivenUp = (Pending, TcpStream, Bytes);

/// Serves `stream` until it ends, or until `stop` and the request in work is answered.
pub(crate) async fn drive<S: Service>(
    mut stream: TcpStream,
    peer: Peer,
    service: Arc<S>,
    limits: Arc<Limits>,
    stop: CancellationToken,
) {
    let mut prefix = Bytes::new();
    while let Some((pending, taken, unread)) = hyper_turn(stream, prefix, peer, &service, &limits, &stop).await {
        let mut read_ahead = BytesMut::from(unread);
        let close = pending.close || stop.is_cancelled();
        let mut transfer = Transfer { stream: &taken, read_ahead: &mut read_ahead, stall: limits.stall };
        if let Err(error) = transfer.run(pending.handoff, close).await {
            tracing::debug!(peer = %peer.remote, %error, "a transfer ended early");
            return;
        }
        if close {
            return;
        }
        stream = taken;
        prefix = read_ahead.freeze();
    }
}

/// Lets hyper serve until the connection is over (none) or a request is to be answered by hand-off.
async fn hyper_turn<S: Service>(
    stream: TcpStream,
    prefix: Bytes,
    peer: Peer,
    service: &Arc<S>,
    limits: &Limits,
    stop: &CancellationToken,
) -> Option<GivenUp> {
    let shared = Arc::new(Shared::default());
    let io = Rewind::new(stream, prefix, Arc::clone(&shared.flushed));
    let adapter =
        Adapter { service: Arc::clone(service), shared: Arc::clone(&shared), peer, body_stall: limits.body_stall };
    let mut connection = http1::Builder::new()
        .timer(hyper_util::rt::TokioTimer::new())
        .header_read_timeout(limits.idle)
        .max_headers(limits.headers_max)
        .max_header_size(limits.head_len_max)
        .max_buf_size(READ_BUFFER_MAX)
        .serve_connection(io, adapter);
    let mut stopping = std::pin::pin!(stop.cancelled());
    let mut told = false;
    let ended = poll_fn(|cx| {
        if !told && stopping.as_mut().poll(cx).is_ready() {
            told = true;
            Pin::new(&mut connection).graceful_shutdown();
        }
        // Twice: the hand-off may be put down after hyper's last flush of the first poll.
        for _ in 0..2 {
            if let Poll::Ready(ended) = Pin::new(&mut connection).poll(cx) {
                return Poll::Ready(Some(ended));
            }
            if shared.slot().is_none() {
                return Poll::Pending;
            }
            if shared.flushed.load(Ordering::Relaxed) {
                return Poll::Ready(None);
            }
        }
        Poll::Pending
    })
    .await;
    match ended {
        Some(Err(error)) => {
            tracing::debug!(peer = %peer.remote, %error, "a connection ended early");
            None
        }
        Some(Ok(())) => None,
        None => {
            let parts = connection.into_parts();
            let (stream, rest) = parts.io.into_parts();
            let unread = if rest.is_empty() { parts.read_buf } else { [parts.read_buf, rest].concat().into() };
            let pending = shared.slot().take().expect("the slot was full");
            Some((pending, stream, unread))
        }
    }
}
