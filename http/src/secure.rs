//! One connection under TLS: HTTP/2 or HTTP/1.1, as the handshake settles, with bodies that hyper streams.

use std::{
    convert::Infallible,
    future::{Future, poll_fn},
    io,
    pin::Pin,
    sync::{Arc, Mutex},
    task::Poll,
    time::Duration,
};

use futures::{StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use http::{Method, Request, Response};
use hyper::{
    body::Incoming,
    server::conn::{http1, http2},
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_util::sync::CancellationToken;

use crate::{
    activity::{Activity, Tracked, Verdict},
    body::RequestBody,
    connection::{READ_BUFFER_MAX, in_memory},
    linger::Linger,
    reply::{Reply, empty},
    server::{Limits, Peer, Service, limit_unsent},
    stream::streamed,
    tls::{HTTP_2, Tls},
};

/// The first byte of whoever speaks TLS: a record of the handshake.
const HANDSHAKE_RECORD: u8 = 22;
/// What who speaks HTTP without TLS is told.
const NO_TLS: &[u8] =
    b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nContent-Length: 57\r\nConnection: close\r\n\r\n\
    this port speaks TLS alone: ask it with https://, please\n";
/// Bytes of a request without TLS that are read, so that its sender gets to read the answer.
const NO_TLS_READ_MAX: u64 = 64 << 10;
/// Bytes that the kernel takes ahead of what the network takes: what is encrypted costs a thread's turn in any case, and a
/// meter does not run far ahead of the wire.
const UNSENT_MAX: u32 = 256 << 10;
/// Requests at once on an HTTP/2 connection: the least that its specification recommends.
const STREAMS_MAX: u32 = 100;
/// What an HTTP/2 connection may buffer of request bodies, in bytes: what is on its way at 400 Mbit/s and 20 ms.
const WINDOW: u32 = 1 << 20;
/// What an HTTP/2 stream may buffer of what it sends, in bytes: a chunk of a file.
const SEND_BUFFER_MAX: usize = 128 << 10;
/// How long a client may take to hear that its idle connection ends.
const GOODBYE: Duration = Duration::from_secs(5);

/// Serves what comes in over `stream` until it ends, or until `stop` and the requests in work are answered.
pub(crate) async fn drive<S: Service>(
    stream: TcpStream,
    peer: Peer,
    service: Arc<S>,
    limits: Arc<Limits>,
    tls: Arc<Tls>,
    stop: CancellationToken,
) {
    limit_unsent(&stream, UNSENT_MAX);
    let greeting = timeout(limits.handshake, greet(stream, peer, &tls));
    let stream = tokio::select! {
        greeted = greeting => match greeted {
            Ok(Ok(Some(stream))) => stream,
            Ok(Ok(None)) => return,
            Ok(Err(error)) => {
                tracing::debug!(peer = %peer.remote, %error, "no TLS handshake");
                return;
            }
            Err(_) => {
                tracing::debug!(peer = %peer.remote, "no TLS handshake in time");
                return;
            }
        },
        () = stop.cancelled() => return,
    };
    let activity = Activity::new();
    let http2 = stream.get_ref().1.alpn_protocol() == Some(HTTP_2);
    let adapter = Adapter { service, peer, activity: Arc::clone(&activity), body_stall: limits.body_stall };
    let watch = Watch { activity: &activity, limits: &limits, stop: &stop };
    let ended =
        if http2 { serve_http2(stream, adapter, watch).await } else { serve_http1(stream, adapter, watch).await };
    if let Err(error) = ended {
        tracing::debug!(peer = %peer.remote, %error, "a connection ended early");
    }
}

/// The handshake; none where the client does not speak TLS, or says nothing.
async fn greet(stream: TcpStream, peer: Peer, tls: &Tls) -> io::Result<Option<TlsStream<TcpStream>>> {
    let mut first = [0];
    if stream.peek(&mut first).await? == 0 {
        return Ok(None);
    }
    if first[0] == HANDSHAKE_RECORD {
        return TlsAcceptor::from(tls.config()).accept(stream).await.map(Some);
    }
    tracing::debug!(peer = %peer.remote, "a client speaks without TLS to a port that takes https:// alone");
    if first[0].is_ascii_uppercase() {
        turn_away(stream).await?;
    }
    Ok(None)
}

/// Answers an HTTP request that came without TLS.
async fn turn_away(mut stream: TcpStream) -> io::Result<()> {
    stream.write_all(NO_TLS).await?;
    stream.shutdown().await?;
    // A connection that is closed with bytes unread is reset, and the answer with it.
    tokio::io::copy(&mut stream.take(NO_TLS_READ_MAX), &mut tokio::io::sink()).await.map(|_| ())
}

/// The service of one connection as hyper calls it.
#[derive(Debug)]
struct Adapter<S> {
    service: Arc<S>,
    peer: Peer,
    activity: Arc<Activity>,
    body_stall: Duration,
}

impl<S: Service> hyper::service::Service<Request<Incoming>> for Adapter<S> {
    type Response = Response<Tracked>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Tracked>, Infallible>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let (service, peer, work) = (Arc::clone(&self.service), self.peer, self.activity.begin());
        let body_stall = self.body_stall;
        Box::pin(async move {
            let head = request.method() == Method::HEAD;
            let request = request.map(|body| RequestBody::new(body, body_stall).0);
            let response = match service.call(request, peer).await {
                Reply::Response(response) => response,
                Reply::Handoff(handoff) if head => handoff.head.map(|()| empty()),
                Reply::Handoff(handoff) if handoff.is_small() => in_memory(*handoff).await,
                Reply::Handoff(handoff) => streamed(*handoff),
            };
            Ok(response.map(|body| work.track(body)))
        })
    }
}

/// What a connection is held against.
#[derive(Debug, Clone, Copy)]
struct Watch<'a> {
    activity: &'a Activity,
    limits: &'a Limits,
    stop: &'a CancellationToken,
}

async fn serve_http1<S: Service>(stream: TlsStream<TcpStream>, adapter: Adapter<S>, watch: Watch<'_>) -> Ended {
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(watch.limits.idle)
        .max_headers(watch.limits.headers_max)
        .max_header_size(watch.limits.head_len_max)
        .max_buf_size(READ_BUFFER_MAX)
        .serve_connection(TokioIo::new(Linger::new(stream)), adapter);
    let connection = std::pin::pin!(connection);
    supervise(connection, |connection| connection.graceful_shutdown(), &Streams::default(), watch).await
}

async fn serve_http2<S: Service>(stream: TlsStream<TcpStream>, adapter: Adapter<S>, watch: Watch<'_>) -> Ended {
    let streams = Streams::default();
    let connection = http2::Builder::new(streams.clone())
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        .max_send_buf_size(SEND_BUFFER_MAX)
        .max_header_list_size(u32::try_from(watch.limits.head_len_max).unwrap_or(u32::MAX))
        .serve_connection(TokioIo::new(Linger::new(stream)), adapter);
    let connection = std::pin::pin!(connection);
    supervise(connection, |connection| connection.graceful_shutdown(), &streams, watch).await
}

/// The requests of an HTTP/2 connection that hyper would have spawned. They run within the connection's task, so that
/// nothing of a connection outlives it; at most [`STREAMS_MAX`] and those that are just being answered.
#[derive(Clone, Default)]
struct Streams(Arc<Mutex<Vec<BoxFuture<'static, ()>>>>);

impl Streams {
    fn take(&self) -> Vec<BoxFuture<'static, ()>> {
        std::mem::take(&mut *self.0.lock().expect("nobody panics while pushing"))
    }
}

impl<F: Future<Output = ()> + Send + 'static> hyper::rt::Executor<F> for Streams {
    fn execute(&self, stream: F) {
        self.0.lock().expect("nobody panics while pushing").push(Box::pin(stream));
    }
}

/// Why a connection ended early.
#[derive(Debug, thiserror::Error)]
enum EndedEarly {
    #[error(transparent)]
    Hyper(#[from] hyper::Error),
    #[error("the client took nothing for {} seconds", .0.as_secs())]
    Stalled(Duration),
}

type Ended = Result<(), EndedEarly>;

/// Serves a connection: to its end, until it is stopped, or until nothing happens on it for too long.
async fn supervise<C: Future<Output = hyper::Result<()>>>(
    mut connection: Pin<&mut C>,
    wind_up: impl Fn(Pin<&mut C>),
    streams: &Streams,
    watch: Watch<'_>,
) -> Ended {
    let Limits { idle, stall, .. } = *watch.limits;
    let mut running = FuturesUnordered::new();
    // A quarter late at most; never zero, which an interval does not take.
    let mut look = tokio::time::interval((idle.min(stall) / 4).max(Duration::from_millis(1)));
    let (mut told, mut goodbye) = (false, None);
    loop {
        let served = poll_fn(|cx| {
            let ended = connection.as_mut().poll(cx);
            running.extend(streams.take());
            while let Poll::Ready(Some(())) = running.poll_next_unpin(cx) {}
            ended
        });
        let leave = async {
            match goodbye {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            ended = served => return Ok(ended?),
            () = leave => return Ok(()),
            () = watch.stop.cancelled(), if !told => {
                told = true;
                wind_up(connection.as_mut());
            }
            _ = look.tick() => match watch.activity.verdict(idle, stall) {
                Verdict::Alive => {}
                Verdict::Stalled => return Err(EndedEarly::Stalled(stall)),
                Verdict::Idle if goodbye.is_none() => {
                    told = true;
                    goodbye = Some(tokio::time::Instant::now() + GOODBYE);
                    wind_up(connection.as_mut());
                }
                Verdict::Idle => {}
            },
        }
    }
}
