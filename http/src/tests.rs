//! The server against raw sockets: what a client may do around a hand-off, and what it gets.

use std::{
    fs::File,
    io::Write as _,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use crate::{
    Handoff, Limits, Peer, Reply, RequestBody, Segment, Service,
    body::collect,
    handoff::{Abort, BodySource},
    reply::{Content, full},
    serve, serve_tls,
    tls::Tls,
};
use futures::future::BoxFuture;
use http::{HeaderValue, Request, Response};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::{mpsc, oneshot, watch},
    task::JoinSet,
};

mod fuzz;
mod secure;
mod secure_client;

const BIG: usize = 3 << 20;

fn content() -> Vec<u8> {
    (0..BIG).map(|i| u8::try_from(i * 7 % 251).unwrap()).collect()
}

struct TestService {
    file: Arc<File>,
    written: Arc<AtomicU64>,
    grown: watch::Receiver<Result<u64, ()>>,
    source_dropped: mpsc::Sender<()>,
}

struct Growing {
    grown: watch::Receiver<Result<u64, ()>>,
    dropped: mpsc::Sender<()>,
}

impl BodySource for Growing {
    fn wait(&mut self, at: u64) -> BoxFuture<'_, Result<u64, Abort>> {
        Box::pin(async move {
            let far = self.grown.wait_for(|grown| grown.is_err_and(|()| true) || grown.is_ok_and(|to| to > at)).await;
            far.map_err(|_| Abort("no writer".into()))?.map_err(|()| Abort("the writer failed".into()))
        })
    }
}

impl Drop for Growing {
    fn drop(&mut self) {
        let _full = self.dropped.try_send(());
    }
}

impl Service for TestService {
    async fn call(self: Arc<Self>, request: Request<RequestBody>, _: Peer) -> Reply {
        let octets = HeaderValue::from_static("application/octet-stream");
        let file = Arc::clone(&self.file);
        match request.uri().path() {
            "/big" => Content::new(request.headers(), BIG as u64, &octets, None)
                .from_file(file)
                .metered(Arc::clone(&self.written))
                .into(),
            "/small" => Handoff::new(Response::new(()), file, vec![Segment::File(0..100)]).into(),
            "/growing" => Handoff::new(Response::new(()), file, vec![Segment::File(0..BIG as u64)])
                .growing(Growing { grown: self.grown.clone(), dropped: self.source_dropped.clone() })
                .into(),
            "/echo" => match collect(request.into_body(), 1000).await {
                Ok(body) => Response::new(full(body)).into(),
                Err(error) => crate::ApiError::from(error).into(),
            },
            _ => Response::new(full("hello")).into(),
        }
    }
}

struct Server {
    addr: SocketAddr,
    written: Arc<AtomicU64>,
    grow: watch::Sender<Result<u64, ()>>,
    source_dropped: mpsc::Receiver<()>,
    stop: oneshot::Sender<()>,
    task: JoinSet<()>,
    _file: tempfile::NamedTempFile,
}

async fn start() -> Server {
    start_with(Limits { drain: Duration::from_secs(2), ..Limits::default() }).await
}

async fn start_with(limits: Limits) -> Server {
    start_on(limits, None).await
}

async fn start_on(limits: Limits, tls: Option<Arc<Tls>>) -> Server {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(&content()).unwrap();
    let (grow, grown) = watch::channel(Ok(0));
    let (dropped_tx, source_dropped) = mpsc::channel(8);
    let written = Arc::new(AtomicU64::new(0));
    let service = Arc::new(TestService {
        file: Arc::new(file.reopen().unwrap()),
        written: Arc::clone(&written),
        grown,
        source_dropped: dropped_tx,
    });
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let mut task = JoinSet::new();
    let stopped = async {
        let _stopped = stopped.await;
    };
    match tls {
        None => task.spawn(serve(vec![listener], service, limits, stopped)),
        Some(tls) => task.spawn(serve_tls(vec![listener], tls, service, limits, stopped)),
    };
    Server { addr, written, grow, source_dropped, stop, task, _file: file }
}

/// Reads one response: head as text, then as many bytes of body as `Content-Length` says (none for a HEAD).
async fn response(stream: &mut TcpStream, head_only: bool) -> (String, Vec<u8>) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.expect("the head is complete"));
    }
    let head = String::from_utf8(head).unwrap().to_ascii_lowercase();
    let len = head.lines().find_map(|line| line.strip_prefix("content-length: ")).map_or(0, |len| len.parse().unwrap());
    let mut body = vec![0; if head_only { 0 } else { len }];
    stream.read_exact(&mut body).await.expect("the body is complete");
    (head, body)
}

fn get(path: &str, more: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: x\r\n{more}\r\n")
}

#[tokio::test]
async fn pipelined_requests_around_hand_offs_are_answered_in_order() {
    let server = start().await;
    let mut stream = TcpStream::connect(server.addr).await.unwrap();
    let requests =
        [get("/x", ""), get("/big", ""), get("/small", ""), get("/big", "range: bytes=1-100000\r\n"), get("/x", "")];
    stream.write_all(requests.concat().as_bytes()).await.unwrap();
    assert_eq!(response(&mut stream, false).await.1, b"hello");
    let (head, body) = response(&mut stream, false).await;
    assert!(
        head.starts_with("http/1.1 200 ok") && head.contains("\r\ndate: ") && !head.contains("connection: close"),
        "{head}"
    );
    assert!(body == content());
    assert!(response(&mut stream, false).await.1 == content()[..100]);
    let (head, body) = response(&mut stream, false).await;
    assert!(head.contains("206") && head.contains(&format!("content-range: bytes 1-100000/{BIG}")), "{head}");
    assert!(body == content()[1..=100_000]);
    assert_eq!(response(&mut stream, false).await.1, b"hello");
    assert_eq!(server.written.load(Ordering::Relaxed), BIG as u64 + 100_000);
}

#[tokio::test]
async fn a_head_gets_the_length_and_no_body() {
    let server = start().await;
    let mut stream = TcpStream::connect(server.addr).await.unwrap();
    stream.write_all(b"HEAD /big HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let (head, _) = response(&mut stream, true).await;
    assert!(head.contains(&format!("content-length: {BIG}")), "{head}");
    stream.write_all(get("/x", "").as_bytes()).await.unwrap();
    assert_eq!(response(&mut stream, false).await.1, b"hello");
    assert_eq!(server.written.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn several_ranges_come_as_multipart() {
    let server = start().await;
    let mut stream = TcpStream::connect(server.addr).await.unwrap();
    stream.write_all(get("/big", "range: bytes=0-99999, 200000-299999\r\n").as_bytes()).await.unwrap();
    let (head, body) = response(&mut stream, false).await;
    let boundary = head.split("boundary=").nth(1).unwrap().lines().next().unwrap().to_owned();
    let mut expected = Vec::new();
    for (lead, range) in [("", 0..100_000), ("\r\n", 200_000..300_000)] {
        let (first, last) = (range.start, range.end - 1);
        let text = format!(
            "{lead}--{boundary}\r\nContent-Type: application/octet-stream\r\nContent-Range: bytes {first}-{last}/{BIG}\r\n\r\n"
        );
        expected.extend_from_slice(text.as_bytes());
        expected.extend_from_slice(&content()[range]);
    }
    expected.extend_from_slice(format!("\r\n--{boundary}--\r\n").as_bytes());
    assert!(body == expected);
}

#[tokio::test]
async fn connection_close_is_honoured_after_a_hand_off() {
    let server = start().await;
    for request in [get("/big", "connection: close\r\n"), "GET /big HTTP/1.0\r\nhost: x\r\n\r\n".to_owned()] {
        let mut stream = TcpStream::connect(server.addr).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let (head, body) = response(&mut stream, false).await;
        assert!(head.contains("connection: close"), "{head}");
        assert!(body == content());
        assert_eq!(stream.read(&mut [0; 1]).await.unwrap(), 0, "the connection is closed");
    }
}

#[tokio::test]
async fn an_unread_request_body_is_never_taken_for_the_next_request() {
    let server = start().await;
    let mut stream = TcpStream::connect(server.addr).await.unwrap();
    let smuggled = get("/x", "");
    let request = format!("POST /big HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{smuggled}", smuggled.len());
    stream.write_all(request.as_bytes()).await.unwrap();
    let (head, body) = response(&mut stream, false).await;
    assert!(head.contains("connection: close"), "{head}");
    assert!(body == content());
    let mut rest = Vec::new();
    let _reset = stream.read_to_end(&mut rest).await;
    assert_eq!(rest, b"");
}

#[tokio::test]
async fn a_growing_body_is_sent_as_far_as_it_has_grown() {
    let server = start().await;
    let mut stream = TcpStream::connect(server.addr).await.unwrap();
    stream.write_all(get("/growing", "").as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    let mut body = vec![0; BIG];
    server.grow.send(Ok(1 << 20)).unwrap();
    stream.read_exact(&mut body[..1 << 20]).await.unwrap();
    let nothing = tokio::time::timeout(Duration::from_millis(50), stream.read_u8()).await;
    assert!(nothing.is_err(), "no byte comes before it may be read");
    stream.write_all(get("/x", "").as_bytes()).await.unwrap();
    server.grow.send(Ok(BIG as u64)).unwrap();
    stream.read_exact(&mut body[1 << 20..]).await.unwrap();
    assert!(body == content());
    assert_eq!(response(&mut stream, false).await.1, b"hello", "a request sent meanwhile is answered");
}

#[tokio::test]
async fn a_client_that_leaves_while_bytes_are_awaited_is_noticed_at_once() {
    let mut server = start().await;
    let mut stream = TcpStream::connect(server.addr).await.unwrap();
    stream.write_all(get("/growing", "").as_bytes()).await.unwrap();
    server.grow.send(Ok(1000)).unwrap();
    let mut some = vec![0; 500];
    stream.read_exact(&mut some).await.unwrap();
    drop(stream);
    let dropped = tokio::time::timeout(Duration::from_secs(2), server.source_dropped.recv()).await;
    assert_eq!(dropped, Ok(Some(())));
}

#[tokio::test]
async fn a_body_that_cannot_be_completed_is_cut_short() {
    let server = start().await;
    let mut stream = TcpStream::connect(server.addr).await.unwrap();
    stream.write_all(get("/growing", "").as_bytes()).await.unwrap();
    server.grow.send(Ok(1000)).unwrap();
    let mut some = vec![0; 700];
    stream.read_exact(&mut some).await.unwrap();
    server.grow.send(Err(())).unwrap();
    let mut rest = Vec::new();
    let _reset = stream.read_to_end(&mut rest).await;
    assert!(rest.len() < 1000);
}

#[tokio::test]
async fn a_body_over_the_limit_is_refused_in_words() {
    let server = start().await;
    for framing in ["content-length: 100000\r\n\r\n".to_owned() + &"a".repeat(100_000), {
        "transfer-encoding: chunked\r\n\r\n".to_owned()
            + &format!("7d0\r\n{}\r\n", "a".repeat(2000)).repeat(50)
            + "0\r\n\r\n"
    }] {
        let mut stream = TcpStream::connect(server.addr).await.unwrap();
        stream.write_all(format!("POST /echo HTTP/1.1\r\nhost: x\r\n{framing}").as_bytes()).await.unwrap();
        let (head, body) = response(&mut stream, false).await;
        assert!(head.starts_with("http/1.1 413"), "{head}");
        let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(body["errors"][0]["code"], "SIZE_INVALID");
    }
}

#[tokio::test]
async fn a_head_over_the_limit_is_refused() {
    let server = start().await;
    let mut stream = TcpStream::connect(server.addr).await.unwrap();
    let long = format!("x-long: {}\r\n", "a".repeat(70 << 10));
    let _cut = stream.write_all(get("/x", &long).as_bytes()).await;
    let (head, _) = response(&mut stream, false).await;
    assert!(head.starts_with("http/1.1 431"), "{head}");
}

#[tokio::test]
async fn shutdown_finishes_the_work_at_hand_and_takes_no_more() {
    let mut server = start().await;
    let mut busy = TcpStream::connect(server.addr).await.unwrap();
    busy.write_all(get("/growing", "").as_bytes()).await.unwrap();
    server.grow.send(Ok(1 << 20)).unwrap();
    let mut first = vec![0; 4096];
    busy.read_exact(&mut first).await.unwrap();
    server.stop.send(()).unwrap();
    server.grow.send(Ok(BIG as u64)).unwrap();
    let mut rest = Vec::new();
    busy.read_to_end(&mut rest).await.unwrap();
    assert!(rest.ends_with(&content()[BIG - 1000..]));
    server.task.join_next().await.unwrap().unwrap();
    assert!(TcpStream::connect(server.addr).await.is_err(), "nobody listens");
}

#[tokio::test]
async fn a_client_that_takes_nothing_is_cut_off() {
    let server = start_with(Limits { stall: Duration::from_millis(100), ..Limits::default() }).await;
    let mut stream = TcpStream::connect(server.addr).await.unwrap();
    // More than the sockets of both sides buffer.
    stream.write_all(get("/big", "").repeat(20).as_bytes()).await.unwrap();
    let mut before = u64::MAX;
    while before != server.written.load(Ordering::Relaxed) || before == 0 {
        before = server.written.load(Ordering::Relaxed);
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let mut all = Vec::new();
    let _reset = stream.read_to_end(&mut all).await;
    assert!(all.len() < 20 * BIG, "the connection was closed before its end");
}

#[tokio::test]
async fn a_client_that_stops_sending_is_told_so() {
    let server = start_with(Limits { body_stall: Duration::from_millis(100), ..Limits::default() }).await;
    for framing in ["content-length: 1000\r\n\r\nten bytes.", "transfer-encoding: chunked\r\n\r\na\r\nten bytes.\r\n"] {
        let mut stream = TcpStream::connect(server.addr).await.unwrap();
        stream.write_all(format!("POST /echo HTTP/1.1\r\nhost: x\r\n{framing}").as_bytes()).await.unwrap();
        let (head, body) = response(&mut stream, false).await;
        assert!(head.starts_with("http/1.1 408"), "{head}");
        assert!(String::from_utf8_lossy(&body).contains("stopped coming for 100ms"), "{body:?}");
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).await.unwrap();
        assert!(rest.is_empty(), "the rest of its body would be taken for a request");
    }
}

#[tokio::test]
async fn connections_over_the_cap_wait_for_one_to_close() {
    let server = start_with(Limits { connections_max: 1, ..Limits::default() }).await;
    let mut first = TcpStream::connect(server.addr).await.unwrap();
    first.write_all(get("/x", "").as_bytes()).await.unwrap();
    response(&mut first, false).await;
    let mut second = TcpStream::connect(server.addr).await.unwrap();
    second.write_all(get("/x", "").as_bytes()).await.unwrap();
    let waiting = tokio::time::timeout(Duration::from_millis(50), second.read_u8()).await;
    assert!(waiting.is_err(), "the second is not served yet");
    drop(first);
    assert_eq!(response(&mut second, false).await.1, b"hello");
}
