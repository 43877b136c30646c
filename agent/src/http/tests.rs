//! The registry on localhost, over real sockets.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, atomic::Ordering},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use shoal_proto::Digest;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};

use super::*;
use crate::{
    config,
    handle::Handle,
    metrics::Metrics,
    rate::Rate,
    testing::{MANIFEST_TYPE, Stage, content, lock},
};

mod attacks;
mod bundles;
mod manners;

/// Pieces for all.
const PLENTY: usize = 10_000;

/// A registry over a stage.
pub(crate) struct Bench {
    pub(crate) stage: Stage,
    pub(crate) address: SocketAddr,
    pace: Arc<Semaphore>,
    heard: Arc<Mutex<Vec<String>>>,
    handle: Handle,
    metrics: Metrics,
    client: Client<HttpConnector, Full<Bytes>>,
}

impl Bench {
    pub(crate) async fn start(pieces: usize) -> Self {
        Self::over(Stage::set().await, pieces, config::Registry::default()).await
    }

    async fn over(stage: Stage, pieces: usize, config: config::Registry) -> Self {
        Self::capped(stage, pieces, config, None).await
    }

    async fn capped(
        mut stage: Stage,
        pieces: usize,
        config: config::Registry,
        client_bytes_per_s: Option<u64>,
    ) -> Self {
        let pace = Arc::new(Semaphore::new(pieces));
        let (handle, heard) = stage.start_loop(pace.clone());
        let metrics = Metrics::new();
        let parts = ImagesParts {
            store: stage.store.clone(),
            upstream: stage.upstream.clone(),
            handle: handle.clone(),
            metrics: metrics.clone(),
            config: config.clone(),
            client_rate: Arc::new(Rate::new(client_bytes_per_s)),
            shutdown: stage.stop.clone(),
        };
        let registry = Arc::new(Registry::new(parts, config.hosts));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = stage.stop.clone().cancelled_owned();
        stage.tasks.spawn(shoal_http::serve(vec![listener], registry, shoal_http::Limits::default(), stop));
        let client = Client::builder(TokioExecutor::new()).build_http();
        Self { stage, address, pace, heard, handle, metrics, client }
    }

    async fn send(&self, method: &str, path: &str, headers: &[(&str, &str)]) -> Response<Incoming> {
        let mut request = Request::builder().method(method).uri(format!("http://{}{path}", self.address));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        self.client.request(request.body(Full::default()).unwrap()).await.unwrap()
    }

    async fn get(&self, path: &str) -> (StatusCode, HeaderMap, Bytes) {
        self.get_with(path, &[]).await
    }

    async fn get_with(&self, path: &str, headers: &[(&str, &str)]) -> (StatusCode, HeaderMap, Bytes) {
        whole(self.send("GET", path, headers).await).await
    }

    async fn heard_until(&self, what: &str) {
        for _ in 0..500 {
            if lock(&self.heard).iter().any(|said| said.starts_with(what)) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("the loop never heard {what}; it heard {:?}", lock(&self.heard));
    }
}

async fn whole(response: Response<Incoming>) -> (StatusCode, HeaderMap, Bytes) {
    let (parts, body) = response.into_parts();
    (parts.status, parts.headers, body.collect().await.unwrap().to_bytes())
}

fn code(body: &Bytes) -> String {
    let value: serde_json::Value = serde_json::from_slice(body).unwrap();
    value["errors"][0]["code"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn an_image_is_pulled_by_tag_then_by_digest() {
    let bench = Bench::start(PLENTY).await;
    let layers = [content(1, 3 << 20), content(2, 100), Bytes::new()];
    let image = bench.stage.seeder.push("org/app", "v1", &layers);

    let (status, headers, manifest) = bench.get("/v2/org/app/manifests/v1").await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(Digest::of(&manifest), image);
    assert_eq!(headers["docker-content-digest"], image.to_string());
    assert_eq!(headers["content-type"], MANIFEST_TYPE);
    assert_eq!(headers["docker-distribution-api-version"], "registry/2.0");
    assert!(!headers.contains_key("warning"));
    for layer in &layers {
        let digest = Digest::of(layer);
        let (status, headers, body) = bench.get(&format!("/v2/org/app/blobs/{digest}")).await;
        assert!(status == StatusCode::OK && body == *layer, "{status}, {} bytes", body.len());
        assert_eq!(headers["docker-content-digest"], digest.to_string());
        assert_eq!(headers["content-length"], layer.len().to_string());
    }
    let (_, _, again) = bench.get(&format!("/v2/org/app/manifests/{image}")).await;
    assert_eq!(again, manifest);

    let head = bench.send("HEAD", "/v2/org/app/manifests/v1", &[]).await;
    assert_eq!(head.headers()["content-length"], manifest.len().to_string());
    assert_eq!(head.headers()["docker-content-digest"], image.to_string());
    let etag = format!("\"{image}\"");
    let (status, _, body) = bench.get_with("/v2/org/app/manifests/v1", &[("if-none-match", &etag)]).await;
    assert_eq!((status, body.len()), (StatusCode::NOT_MODIFIED, 0));
}

#[tokio::test]
async fn a_manifest_starts_its_layers_and_a_head_does_not() {
    let bench = Bench::start(PLENTY).await;
    let layer = content(1, 2 << 20);
    let image = bench.stage.seeder.push("app", "v1", std::slice::from_ref(&layer));
    bench.send("HEAD", "/v2/app/manifests/v1", &[]).await;
    bench.heard_until(&format!("image {image}")).await;
    bench.get("/v2/app/manifests/v1").await;
    bench.heard_until(&format!("want {}", Digest::of(&layer))).await;
    let heard = lock(&bench.heard).clone();
    let position = |what: &str| heard.iter().position(|said| said.starts_with(what)).unwrap();
    assert!(position("image") < position("want"), "the loop knows an image before its blobs: {heard:?}");
}

#[tokio::test]
async fn a_blob_streams_while_its_pieces_arrive() {
    let bench = Bench::start(0).await;
    let layer = content(1, 4 << 18);
    bench.stage.seeder.push("app", "v1", std::slice::from_ref(&layer));
    bench.pace.add_permits(1); // the config, one piece
    bench.get("/v2/app/manifests/v1").await;
    bench.heard_until(&format!("want {}", Digest::of(&layer))).await;

    let path = format!("/v2/app/blobs/{}", Digest::of(&layer));
    let response = bench.send("GET", &path, &[]).await;
    assert_eq!(response.headers()["content-length"], layer.len().to_string(), "the head comes before any piece");
    // The config and the layer's first piece have run for the one permit; the reader is where the winner lets it be.
    bench.heard_until("opened").await;
    let mut body = response.into_body();
    let mut got = Vec::new();
    for piece in 1..=4usize {
        bench.pace.add_permits(3);
        while got.len() < piece << 18 {
            got.extend_from_slice(&body.frame().await.unwrap().unwrap().into_data().unwrap());
        }
    }
    assert!(got == layer);
    bench.heard_until("closed").await;
}

#[tokio::test]
async fn a_reader_is_closed_when_its_client_goes_away() {
    let bench = Bench::start(1).await;
    let layer = content(1, 4 << 20);
    bench.stage.seeder.push("app", "v1", std::slice::from_ref(&layer));
    bench.get("/v2/app/manifests/v1").await;
    let mut socket = TcpStream::connect(bench.address).await.unwrap();
    let request = format!("GET /v2/app/blobs/{} HTTP/1.1\r\nhost: localhost\r\n\r\n", Digest::of(&layer));
    socket.write_all(request.as_bytes()).await.unwrap();
    let mut head = [0; 12];
    socket.read_exact(&mut head).await.unwrap();
    assert_eq!(&head, b"HTTP/1.1 200");
    bench.heard_until("opened").await;
    assert_eq!(bench.handle.readers(), 1);
    drop(socket);
    bench.heard_until("closed").await;
    assert_eq!(bench.handle.readers(), 0);
}

#[tokio::test]
async fn a_failed_fetch_cuts_the_body_short() {
    let bench = Bench::start(0).await;
    let layer = content(1, 2 << 20);
    bench.stage.seeder.push("app", "v1", std::slice::from_ref(&layer));
    bench.stage.seeder.lying.store(true, Ordering::Relaxed);
    bench.get("/v2/app/manifests/v1").await;
    let response = bench.send("GET", &format!("/v2/app/blobs/{}", Digest::of(&layer)), &[]).await;
    assert_eq!(response.status(), StatusCode::OK);
    bench.pace.add_permits(PLENTY);
    assert!(response.into_body().collect().await.is_err(), "never a wrong byte");
}

#[tokio::test]
async fn ranges_are_served_also_several_and_also_while_arriving() {
    let bench = Bench::start(PLENTY).await;
    let layer = content(1, 3 << 20);
    bench.stage.seeder.push("app", "v1", std::slice::from_ref(&layer));
    bench.get("/v2/app/manifests/v1").await;
    let path = format!("/v2/app/blobs/{}", Digest::of(&layer));
    for _ in 0..2 {
        let (status, headers, body) = bench.get_with(&path, &[("range", "bytes=1048570-1048590")]).await;
        assert_eq!(status, StatusCode::PARTIAL_CONTENT);
        assert_eq!(headers["content-range"], "bytes 1048570-1048590/3145728");
        assert_eq!(body, layer.slice(1_048_570..=1_048_590));
        let (status, headers, body) = bench.get_with(&path, &[("range", "bytes=0-3,-4")]).await;
        assert_eq!(status, StatusCode::PARTIAL_CONTENT);
        assert!(headers["content-type"].to_str().unwrap().starts_with("multipart/byteranges"));
        assert!(body.windows(4).any(|w| w == &layer[..4]) && body.windows(4).any(|w| w == &layer[(3 << 20) - 4..]));
        let (status, headers, _) = bench.get_with(&path, &[("range", "bytes=9999999-")]).await;
        assert_eq!(
            (status, &headers["content-range"]),
            (StatusCode::RANGE_NOT_SATISFIABLE, &"bytes */3145728".parse().unwrap())
        );
        assert!(bench.get(&path).await.2 == layer);
    }
}

#[tokio::test]
async fn a_head_for_a_blob_that_is_not_here_fetches_nothing() {
    let bench = Bench::start(0).await;
    let layer = content(1, 2 << 20);
    bench.stage.seeder.push("app", "v1", std::slice::from_ref(&layer));
    bench.send("HEAD", "/v2/app/manifests/v1", &[]).await;
    let head = bench.send("HEAD", &format!("/v2/app/blobs/{}", Digest::of(&layer)), &[]).await;
    assert_eq!((head.status(), &head.headers()["content-length"]), (StatusCode::OK, &"2097152".parse().unwrap()));
    assert!(!lock(&bench.heard).iter().any(|said| said.starts_with("want")));
}

#[tokio::test]
async fn a_tag_survives_the_seeder_and_says_so() {
    let bench = Bench::start(PLENTY).await;
    let layer = content(1, 2 << 20);
    let image = bench.stage.seeder.push("app", "v1", std::slice::from_ref(&layer));
    let (_, _, manifest) = bench.get("/v2/app/manifests/v1").await;
    bench.get(&format!("/v2/app/blobs/{}", Digest::of(&layer))).await;
    bench.stage.seeder.down.store(true, Ordering::Relaxed);

    let (status, headers, stale) = bench.get("/v2/app/manifests/v1").await;
    assert_eq!((status, &stale), (StatusCode::OK, &manifest));
    assert!(headers["warning"].to_str().unwrap().starts_with("110"));
    let (status, headers, _) = bench.get(&format!("/v2/app/manifests/{image}")).await;
    assert!(status == StatusCode::OK && !headers.contains_key("warning"), "a digest cannot be stale");
    assert!(bench.get(&format!("/v2/app/blobs/{}", Digest::of(&layer))).await.2 == layer);
    let (status, _, body) = bench.get("/v2/app/manifests/v2").await;
    assert_eq!((status, code(&body)), (StatusCode::SERVICE_UNAVAILABLE, "UNKNOWN".into()));
    assert!(lock(&bench.heard).contains(&"bundle".to_owned()), "peers are asked for what was never here");
    let page = bench.metrics.page(&bench.stage.store.usage(), 0);
    assert!(page.contains("shoal_agent_stale_answers_total 1"), "{page}");
}

#[tokio::test]
async fn a_tag_that_is_too_old_is_not_answered_without_the_seeder() {
    let config = config::Registry { stale_max: Duration::ZERO, ..config::Registry::default() };
    let bench = Bench::over(Stage::set().await, PLENTY, config).await;
    bench.stage.seeder.push("app", "v1", &[]);
    bench.get("/v2/app/manifests/v1").await;
    let tag = bench.stage.store.tag(&"app".parse().unwrap(), &"v1".parse().unwrap()).unwrap().unwrap();
    bench.stage.store.put_tag(&crate::store::TagRow { checked_at: 5, ..tag }).unwrap();
    bench.stage.seeder.down.store(true, Ordering::Relaxed);
    assert_eq!(bench.get("/v2/app/manifests/v1").await.0, StatusCode::SERVICE_UNAVAILABLE);
}

#[tokio::test]
async fn concurrent_requests_for_a_tag_ask_the_seeder_once() {
    let bench = Bench::start(PLENTY).await;
    bench.stage.seeder.push("app", "v1", &[content(1, 10)]);
    let all = futures::future::join_all((0..20).map(|_| bench.get("/v2/app/manifests/v1"))).await;
    assert!(all.iter().all(|(status, ..)| *status == StatusCode::OK));
    let requests = bench.stage.seeder.requests();
    let heads = requests.iter().filter(|request| request.starts_with("HEAD")).count();
    let pulls = requests.iter().filter(|request| request.contains("_shoal/pull")).count();
    assert!(heads < 20 && pulls <= heads, "{heads} heads and {pulls} pulls for 20 requests");
}

#[tokio::test]
async fn an_unchanged_image_costs_one_head_and_a_moved_tag_is_followed() {
    let bench = Bench::start(PLENTY).await;
    let layer = content(1, 2 << 20);
    bench.stage.seeder.push("app", "v1", std::slice::from_ref(&layer));
    bench.get("/v2/app/manifests/v1").await;
    bench.get(&format!("/v2/app/blobs/{}", Digest::of(&layer))).await;
    let config = Digest::of(b"{}");
    bench.get(&format!("/v2/app/blobs/{config}")).await;
    bench.stage.seeder.requests();
    bench.get("/v2/app/manifests/v1").await;
    assert_eq!(
        bench.stage.seeder.requests(),
        ["HEAD /v2/app/manifests/v1"].map(|line| {
            let (method, path) = line.split_once(' ').unwrap();
            format!("{method} {path}")
        })
    );
    let moved = bench.stage.seeder.push("app", "v1", &[content(9, 10)]);
    assert_eq!(bench.get("/v2/app/manifests/v1").await.1["docker-content-digest"], moved.to_string());
}

#[tokio::test]
async fn ns_and_path_select_the_registry() {
    let bench = Bench::start(PLENTY).await;
    let mirrored = bench.stage.seeder.push("ghcr.io/org/app", "v1", &[content(1, 10)]);
    let own = bench.stage.seeder.push("org/app", "v1", &[content(2, 10)]);
    let digest = async |path: &str| {
        let (status, headers, _) = bench.get(path).await;
        (
            status,
            headers.get("docker-content-digest").map(|v| v.to_str().unwrap().to_owned()),
            headers.get("oci-namespace").cloned(),
        )
    };
    let ns = Some("ghcr.io".parse().unwrap());
    assert_eq!(digest("/v2/org/app/manifests/v1?ns=ghcr.io").await, (StatusCode::OK, Some(mirrored.to_string()), ns));
    assert_eq!(digest("/v2/ghcr.io/org/app/manifests/v1").await.1, Some(mirrored.to_string()));
    assert_eq!(digest("/v2/org/app/manifests/v1").await, (StatusCode::OK, Some(own.to_string()), None));
    assert_eq!(digest("/v2/org/app/manifests/v1?ns=other.example").await.1, Some(own.to_string()));
    let layer = Digest::of(&content(1, 10));
    let (status, _, body) = bench.get(&format!("/v2/org/app/blobs/{layer}?ns=ghcr.io")).await;
    assert_eq!((status, body), (StatusCode::OK, content(1, 10)));
    assert_eq!(bench.get("/v2/org/app/tags/list?ns=ghcr.io").await.0, StatusCode::OK);
}

#[tokio::test]
async fn what_is_unknown_is_a_404_with_the_right_code() {
    let bench = Bench::start(PLENTY).await;
    bench.stage.seeder.push("app", "v1", &[]);
    let absent = Digest::of(b"absent");
    for (path, expected) in [
        ("/v2/app/manifests/v9".to_owned(), "MANIFEST_UNKNOWN"),
        (format!("/v2/app/manifests/{absent}"), "MANIFEST_UNKNOWN"),
        (format!("/v2/app/blobs/{absent}"), "BLOB_UNKNOWN"),
        ("/v2/none/tags/list".to_owned(), "NAME_UNKNOWN"),
    ] {
        let (status, _, body) = bench.get(&path).await;
        assert_eq!((status, code(&body).as_str()), (StatusCode::NOT_FOUND, expected), "{path}");
    }
    assert_eq!(bench.get("/v2/app/blobs/sha256:zz").await.0, StatusCode::BAD_REQUEST);
    assert_eq!(bench.get("/v2/_shoal/info").await.0, StatusCode::NOT_FOUND);
    assert_eq!(bench.get("/v2/").await.0, StatusCode::OK);
}

#[tokio::test]
async fn a_blob_of_no_known_image_comes_straight_from_the_seeder() {
    let bench = Bench::start(0).await;
    let data = content(5, 100_000);
    let digest = bench.stage.seeder.put_blob(&data);
    assert!(bench.get(&format!("/v2/app/blobs/{digest}")).await.2 == data);
    let (status, _, body) = bench.get_with(&format!("/v2/app/blobs/{digest}"), &[("range", "bytes=5-9")]).await;
    assert_eq!((status, body), (StatusCode::PARTIAL_CONTENT, data.slice(5..10)));
    assert!(bench.stage.store.blobs().is_empty());
}

#[tokio::test]
async fn writes_are_sent_to_the_seeder_in_words() {
    let bench = Bench::start(0).await;
    for (method, path) in
        [("POST", "/v2/app/blobs/uploads/"), ("PUT", "/v2/app/manifests/v1"), ("DELETE", "/v2/app/manifests/v1")]
    {
        let (status, headers, body) = whole(bench.send(method, path, &[]).await).await;
        assert_eq!((status, code(&body).as_str()), (StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED"), "{method}");
        assert!(String::from_utf8_lossy(&body).contains(&format!("http://{}", bench.stage.address)));
        assert_eq!(headers["allow"], "GET, HEAD");
    }
}

#[tokio::test]
async fn web_pages_and_foreign_host_names_are_refused() {
    let config = config::Registry { hosts: vec!["mirror.local".into()], ..config::Registry::default() };
    let bench = Bench::over(Stage::set().await, 0, config).await;
    for (name, value, expected) in [
        ("origin", "http://evil.example", StatusCode::FORBIDDEN),
        ("host", "evil.example", StatusCode::FORBIDDEN),
        ("host", "mirror.local:5050", StatusCode::OK),
        ("host", "localhost:5050", StatusCode::OK),
        ("host", "[::1]:5050", StatusCode::OK),
    ] {
        assert_eq!(bench.get_with("/v2/", &[(name, value)]).await.0, expected, "{name}: {value}");
    }
}

#[tokio::test]
async fn a_private_image_is_the_seeders_to_allow_each_time() {
    let bench = Bench::start(PLENTY).await;
    let layer = content(1, 2 << 20);
    bench.stage.seeder.push("app", "v1", std::slice::from_ref(&layer));
    *lock(&bench.stage.seeder.password) = Some("Basic eDp5".into());
    let (status, headers, _) = bench.get("/v2/app/manifests/v1").await;
    assert_eq!(
        (status, &headers["www-authenticate"]),
        (StatusCode::UNAUTHORIZED, &"Basic realm=\"seeder\"".parse().unwrap())
    );
    let me = [("authorization", "Basic eDp5")];
    assert_eq!(bench.get_with("/v2/app/manifests/v1", &me).await.0, StatusCode::OK);
    let path = format!("/v2/app/blobs/{}", Digest::of(&layer));
    assert!(bench.get_with(&path, &me).await.2 == layer);
    assert_eq!(bench.get(&path).await.0, StatusCode::UNAUTHORIZED, "stored, and still not for everybody");
    assert_eq!(bench.get("/v2/app/manifests/v1").await.0, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn a_full_quota_is_a_507_and_no_wrong_byte() {
    let bench = Bench::start(PLENTY).await;
    let layer = content(1, 65 << 20);
    bench.stage.seeder.push("app", "v1", std::slice::from_ref(&layer));
    assert_eq!(bench.get("/v2/app/manifests/v1").await.0, StatusCode::OK);
    let (status, _, body) = bench.get(&format!("/v2/app/blobs/{}", Digest::of(&layer))).await;
    assert_eq!(status, StatusCode::INSUFFICIENT_STORAGE);
    assert!(String::from_utf8_lossy(&body).contains("store.quota"));
}

#[tokio::test]
async fn a_restarted_agent_knows_its_images() {
    let bench = Bench::start(2).await;
    let layer = content(1, 4 << 20);
    bench.stage.seeder.push("app", "v1", std::slice::from_ref(&layer));
    bench.get("/v2/app/manifests/v1").await;
    bench.heard_until(&format!("want {}", Digest::of(&layer))).await;
    // A second registry over the same store: what a new process finds.
    let Bench { stage, .. } = bench;
    let bench = Bench::over(stage, PLENTY, config::Registry::default()).await;
    let (status, _, body) = bench.get(&format!("/v2/app/blobs/{}", Digest::of(&layer))).await;
    assert!(status == StatusCode::OK && body == layer, "{status}, {} bytes", body.len());
    assert!(lock(&bench.heard).iter().any(|said| said.starts_with("image")), "the loop hears of the image again");
}

#[tokio::test]
async fn an_index_starts_the_platform_that_was_configured() {
    let config = config::Registry { platform: Some("linux/arm64".parse().unwrap()), ..config::Registry::default() };
    let bench = Bench::over(Stage::set().await, PLENTY, config).await;
    let (amd, arm) = (content(1, 10), content(2, 10));
    let manifests = [("amd64", &amd), ("arm64", &arm)].map(|(architecture, layer)| {
        let digest = bench.stage.seeder.push("app", architecture, std::slice::from_ref(layer));
        serde_json::json!({ "digest": digest, "size": 1, "platform": { "os": "linux", "architecture": architecture } })
    });
    let index = serde_json::json!({ "schemaVersion": 2, "manifests": manifests });
    bench.stage.seeder.push_manifest("app", "v1", &Bytes::from(index.to_string()));
    assert_eq!(bench.get("/v2/app/manifests/v1").await.0, StatusCode::OK);
    bench.heard_until(&format!("want {}", Digest::of(&arm))).await;
    assert!(!lock(&bench.heard).contains(&format!("want {}", Digest::of(&amd))));
}
