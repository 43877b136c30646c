//! The server under TLS.

use http::Method;
use http_body_util::BodyExt as _;
use rustls::pki_types::{CertificateDer, pem::PemObject as _};

use super::{
    secure_client::{Authority, Client},
    *,
};
use crate::tls::{Files, Tls};

struct Secure {
    server: Server,
    authority: Authority,
    certificate: CertificateDer<'static>,
    _dir: tempfile::TempDir,
}

impl Secure {
    async fn start(limits: Limits) -> Self {
        let (authority, dir) = (Authority::new(), tempfile::tempdir().unwrap());
        let (certificate, key) = (dir.path().join("cert.pem"), dir.path().join("key.pem"));
        let identity = authority.certify("127.0.0.1");
        let shown = CertificateDer::from_pem_slice(identity.0.as_bytes()).unwrap();
        std::fs::write(&certificate, identity.0).unwrap();
        std::fs::write(&key, identity.1).unwrap();
        let tls = Tls::load(Files { certificate, key, client_ca: None }).unwrap();
        let server = start_on(limits, Some(Arc::new(tls))).await;
        Self { server, authority, certificate: shown, _dir: dir }
    }

    async fn client(&self, http2: bool) -> Client {
        Client::connect(self.server.addr, http2, &self.authority, None).await.unwrap()
    }
}

fn short() -> Limits {
    let moment = Duration::from_millis(200);
    Limits { drain: Duration::from_secs(2), stall: moment, handshake: moment, ..Limits::default() }
}

#[tokio::test]
async fn what_the_kernel_sends_without_tls_comes_whole_under_it_by_both_versions() {
    let secure = Secure::start(Limits::default()).await;
    secure.server.grow.send(Ok(BIG as u64)).unwrap();
    for http2 in [false, true] {
        let mut client = secure.client(http2).await;
        assert_eq!(client.shown, secure.certificate);
        secure.server.written.store(0, Ordering::Relaxed);
        let big = client.send(Method::GET, "/big", "").await.unwrap();
        assert_eq!(big.headers()["content-length"], BIG.to_string());
        assert!(big.body() == &content(), "http2: {http2}");
        assert_eq!(secure.server.written.load(Ordering::Relaxed), BIG as u64);
        assert!(client.send(Method::GET, "/growing", "").await.unwrap().body() == &content());
        assert_eq!(client.send(Method::GET, "/small", "").await.unwrap().body().as_ref(), &content()[..100]);
        let head = client.send(Method::HEAD, "/big", "").await.unwrap();
        assert_eq!((head.headers()["content-length"].to_str().unwrap(), head.body().len()), (&*BIG.to_string(), 0));
        assert_eq!(client.send(Method::POST, "/echo", "said").await.unwrap().body(), "said");
        let refused = client.send(Method::POST, "/echo", vec![0; 2000]).await.unwrap();
        assert_eq!(refused.status(), http::StatusCode::PAYLOAD_TOO_LARGE);
    }
}

#[tokio::test]
async fn a_body_that_cannot_be_completed_is_cut_short_under_tls() {
    for http2 in [false, true] {
        let mut secure = Secure::start(Limits::default()).await;
        let mut client = secure.client(http2).await;
        secure.server.grow.send(Ok(1000)).unwrap();
        let mut body = client.begin(Method::GET, "/growing", "").await.unwrap().into_body();
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), content()[..1000]);
        secure.server.grow.send(Err(())).unwrap();
        assert!(body.collect().await.is_err(), "http2: {http2}");
        secure.server.source_dropped.recv().await.unwrap();
    }
}

#[tokio::test]
async fn a_client_that_takes_nothing_of_a_stream_is_cut_off() {
    let secure = Secure::start(short()).await;
    let mut client = secure.client(true).await;
    let body = client.begin(Method::GET, "/big", "").await.unwrap();
    // The window of a stream is less than the body.
    let _ended = client.tasks.join_next().await;
    assert!(body.into_body().collect().await.is_err());
}

#[tokio::test]
async fn an_idle_connection_is_ended_and_one_at_work_is_not() {
    let secure = Secure::start(Limits { idle: Duration::from_millis(300), ..Limits::default() }).await;
    for http2 in [false, true] {
        let mut client = secure.client(http2).await;
        let at_work = client.begin(Method::GET, "/growing", "").await;
        let mut idle = secure.client(http2).await;
        assert_eq!(idle.send(Method::GET, "/x", "").await.unwrap().body(), "hello");
        let _ended = idle.tasks.join_next().await;
        secure.server.grow.send(Ok(BIG as u64)).unwrap();
        let body = at_work.unwrap().into_body().collect().await.unwrap().to_bytes();
        assert!(body == content(), "http2: {http2}");
        secure.server.grow.send(Ok(0)).unwrap();
    }
}

#[tokio::test]
async fn who_does_not_shake_hands_in_time_makes_room() {
    let secure = Secure::start(Limits { connections_max: 1, ..short() }).await;
    let mut silent = TcpStream::connect(secure.server.addr).await.unwrap();
    let mut halting = TcpStream::connect(secure.server.addr).await.unwrap();
    halting.write_all(&[22, 3, 1]).await.unwrap();
    assert_eq!(secure.client(true).await.send(Method::GET, "/x", "").await.unwrap().body(), "hello");
    for stream in [&mut silent, &mut halting] {
        assert!(matches!(stream.read(&mut [0; 16]).await, Ok(0) | Err(_)));
    }
}

#[tokio::test]
async fn http_without_tls_is_told_so_and_anything_else_is_closed() {
    let secure = Secure::start(Limits::default()).await;
    let mut plain = TcpStream::connect(secure.server.addr).await.unwrap();
    let (head, body) = {
        plain.write_all(get("/v2/", "").as_bytes()).await.unwrap();
        response(&mut plain, false).await
    };
    assert!(head.starts_with("http/1.1 400") && String::from_utf8(body).unwrap().contains("https://"), "{head}");
    let mut rest = Vec::new();
    plain.read_to_end(&mut rest).await.unwrap();
    assert!(rest.is_empty(), "the answer is as long as it says");
    let mut other = TcpStream::connect(secure.server.addr).await.unwrap();
    other.write_all(&[0; 64]).await.unwrap();
    assert!(matches!(other.read(&mut [0; 16]).await, Ok(0) | Err(_)));
}

#[tokio::test]
async fn when_it_stops_requests_in_work_finish_under_tls() {
    for http2 in [false, true] {
        let Secure { mut server, authority, _dir, .. } = Secure::start(short()).await;
        let mut client = Client::connect(server.addr, http2, &authority, None).await.unwrap();
        server.grow.send(Ok(1000)).unwrap();
        let body = client.begin(Method::GET, "/growing", "").await.unwrap().into_body();
        server.stop.send(()).unwrap();
        server.grow.send(Ok(BIG as u64)).unwrap();
        assert!(body.collect().await.unwrap().to_bytes() == content(), "http2: {http2}");
        server.task.join_next().await.unwrap().unwrap();
    }
}
