//! An agent as a whole: start, stop, restart.

use std::{net::SocketAddr, sync::atomic::Ordering};

use bytes::Bytes;
use http::StatusCode;
use http_body_util::{BodyExt, Empty};
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use shoal_proto::Digest;

use super::*;
use crate::testing::{FakeSeeder, content};

struct Fleet {
    seeder: Arc<FakeSeeder>,
    address: SocketAddr,
    dir: tempfile::TempDir,
    tasks: JoinSet<()>,
    stop: CancellationToken,
}

impl Fleet {
    async fn start() -> Self {
        let (seeder, mut tasks, stop) = (FakeSeeder::new(), JoinSet::new(), CancellationToken::new());
        let address = seeder.serve(&mut tasks, &stop).await;
        Self { seeder, address, dir: tempfile::tempdir().unwrap(), tasks, stop }
    }

    fn config(&self, name: &str) -> Config {
        let seeder = format!("http://{}", self.address).parse().unwrap();
        Config::loopback(seeder, self.dir.path().join(name), "boot")
    }

    /// Everything that was started must end.
    async fn end(mut self) {
        self.stop.cancel();
        while let Some(ended) = self.tasks.join_next().await {
            ended.unwrap();
        }
    }
}

async fn get(address: SocketAddr, path: &str) -> (StatusCode, Bytes) {
    let client = Client::builder(TokioExecutor::new()).build_http::<Empty<Bytes>>();
    let response = client.get(format!("http://{address}{path}").parse().unwrap()).await.unwrap();
    let status = response.status();
    (status, response.into_body().collect().await.unwrap().to_bytes())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_pulls_stops_and_knows_all_at_the_next_start() {
    let fleet = Fleet::start().await;
    let layer = content(1, (3 << 20) + 5);
    fleet.seeder.push("app", "v1", std::slice::from_ref(&layer));
    let path = format!("/v2/app/blobs/{}", Digest::of(&layer));

    let running = Agent::start(fleet.config("a")).await.unwrap();
    let (node, addresses) = (running.node(), running.addresses().clone());
    let told = fs::read(fleet.dir.path().join("a").join(ADDRESSES_FILE)).unwrap();
    assert_eq!(serde_json::from_slice::<Addresses>(&told).unwrap(), addresses);
    assert_eq!(get(addresses.registry, "/v2/app/manifests/v1").await.0, StatusCode::OK);
    let (status, body) = get(addresses.registry, &path).await;
    assert_eq!((status, Digest::of(&body)), (StatusCode::OK, Digest::of(&layer)));
    for path in ["/healthz", "/readyz", "/metrics", "/status"] {
        assert_eq!(get(addresses.status, path).await.0, StatusCode::OK, "{path}");
    }
    running.shutdown().await.unwrap();

    fleet.seeder.down.store(true, Ordering::Relaxed);
    let running = Agent::start(fleet.config("a")).await.unwrap();
    assert_eq!(running.node(), node);
    assert_eq!(get(running.addresses().registry, "/v2/app/manifests/v1").await.0, StatusCode::OK);
    let (status, body) = get(running.addresses().registry, &path).await;
    assert_eq!((status, Digest::of(&body)), (StatusCode::OK, Digest::of(&layer)));
    running.shutdown().await.unwrap();
    fleet.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_agents_do_not_share_a_folder_or_a_port() {
    let fleet = Fleet::start().await;
    let running = Agent::start(fleet.config("a")).await.unwrap();
    let error = Agent::start(fleet.config("a")).await.unwrap_err();
    assert!(format!("{error:#}").contains("in use by another process"), "{error:#}");
    let mut config = fleet.config("b");
    config.listen.registry = vec![running.addresses().registry];
    let error = format!("{:#}", Agent::start(config).await.unwrap_err());
    assert!(error.starts_with("cannot bind the registry port") && error.contains("--listen"), "{error}");
    running.shutdown().await.unwrap();
    fleet.end().await;
}
