//! Whole loops on loopback around a seeder in memory.

mod attacks;
mod faults;
mod trust;

use std::{
    io::BufRead,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::atomic::Ordering,
};

use bytes::Bytes;
use shoal_proto::{
    message::{Bundle, PeerInfo},
    name::Repository,
    signed::Labels,
};
use shoal_transfer::event::Action;
use tokio::time::timeout;

use super::*;
use crate::{
    Parts,
    config::PeerMode,
    handle::{self, Handle, ImageContext, WantError},
    identity::Identity,
    store::{Blob, StoreConfig},
    testing::{FakeSeeder, content, lock, upstream_config},
    upstream::Credentials,
};

const MIB: usize = 1 << 20;
const SOON: Duration = Duration::from_secs(30);
const REPOSITORY: &str = "library/app";

struct Rig {
    seeder: Arc<FakeSeeder>,
    address: SocketAddr,
    _tasks: JoinSet<()>,
    stop: CancellationToken,
}

impl Rig {
    async fn new() -> Self {
        let (seeder, mut tasks, stop) = (FakeSeeder::new(), JoinSet::new(), CancellationToken::new());
        let address = seeder.serve(&mut tasks, &stop).await;
        Self { seeder, address, _tasks: tasks, stop }
    }

    async fn agent(&self, n: u8) -> Agent {
        Agent::start(self.address, n, tempfile::tempdir().unwrap(), |_| {}).await
    }

    /// The seeder names these to whoever pulls.
    fn introduce(&self, agents: &[&Agent]) {
        *lock(&self.seeder.introductions) = agents.iter().map(|agent| agent.info()).collect();
    }

    /// How often pieces were asked of the seeder since the last call.
    fn piece_requests(&self) -> usize {
        self.seeder.requests().iter().filter(|line| line.contains("/pieces/")).count()
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

struct Agent {
    n: u8,
    handle: Handle,
    store: Store,
    upstream: Upstream,
    metrics: Metrics,
    running: Loop,
    stop: CancellationToken,
    dir: tempfile::TempDir,
}

impl Agent {
    async fn start(seeder: SocketAddr, n: u8, dir: tempfile::TempDir, adapt: impl FnOnce(&mut Config)) -> Self {
        let mut config = Config::loopback(format!("http://{seeder}").parse().unwrap(), dir.path().to_owned(), "boot");
        adapt(&mut config);
        let store = StoreConfig { dir: dir.path().to_owned(), quota_bytes: config.quota_bytes, boot_id: "boot".into() };
        let store = Store::open(store).unwrap();
        let upstream = Upstream::connect(&upstream_config(seeder), &store).await.unwrap();
        let identity = Identity::from_secret(&[n; 32]);
        match upstream.join(&identity, &Labels::default()).await {
            Ok(member) => {
                store.put_note(crate::store::Note::Membership, &shoal_proto::codec::encode(&member.envelope)).unwrap();
            }
            Err(_) => {
                let kept = store.note(crate::store::Note::Membership).unwrap().unwrap();
                assert!(upstream.resume(&identity, shoal_proto::codec::decode::<_, 65_536>(&kept).unwrap()).await);
            }
        }
        let (handle, commands) = handle::channel();
        let (metrics, stop) = (Metrics::new(), CancellationToken::new());
        let parts = Parts {
            config: Arc::new(config),
            identity,
            store: store.clone(),
            upstream: upstream.clone(),
            commands,
            metrics: metrics.clone(),
            shutdown: stop.clone(),
        };
        let running = start(parts).await.unwrap();
        Self { n, handle, store, upstream, metrics, running, stop, dir }
    }

    fn info(&self) -> PeerInfo {
        let node = Identity::from_secret(&[self.n; 32]).node();
        let (peer, libp2p) = (self.running.peer.clone(), self.running.libp2p.clone());
        PeerInfo { node, peer, libp2p, labels: Labels::default() }
    }

    /// Learns all about an image, as the registry does before it wants the blobs.
    async fn resolve(&self, tag: &str) -> ImageContext {
        let repository: Repository = REPOSITORY.parse().unwrap();
        let reference = tag.parse().unwrap();
        let pulled = self.upstream.pull(&repository, &reference, &Credentials::none()).await.unwrap();
        let bundle = Bundle {
            digest: pulled.digest,
            media_type: pulled.media_type.clone(),
            tag_record: pulled.tag_record.as_ref().map(|(envelope, _)| envelope.clone()),
            capability: pulled.capability.clone(),
            statements: pulled.statements.iter().map(|signed| signed.envelope.clone()).collect(),
        };
        ImageContext {
            image: pulled.digest,
            repository,
            capability: pulled.capability,
            covers: pulled.covers,
            digests: pulled.discovery.iter().map(|found| found.digest).collect(),
            discovery: pulled.discovery,
            bundle_keys: pulled.bundle.into_iter().collect(),
            bundle: Some(Arc::new(bundle)),
            candidates: pulled.candidates,
            introductions: pulled.introductions,
            credentials: Credentials::none(),
        }
    }

    async fn want(&self, context: &ImageContext) -> Vec<Result<Arc<Blob>, WantError>> {
        self.want_at(context, false).await
    }

    async fn want_at(&self, context: &ImageContext, background: bool) -> Vec<Result<Arc<Blob>, WantError>> {
        self.handle.image(context.clone()).await;
        let mut blobs = Vec::new();
        for envelope in &context.bundle.as_ref().unwrap().statements {
            let statement = self.upstream.open(envelope).await.unwrap();
            let signed = crate::store::OpenedStatement { envelope: envelope.clone(), statement };
            let want =
                self.handle.want(context.image, context.repository.clone(), signed, background, Credentials::none());
            blobs.push(timeout(SOON, want).await.expect("an answer comes"));
        }
        blobs
    }

    async fn pull(&self, tag: &str) -> Vec<Arc<Blob>> {
        let context = self.resolve(tag).await;
        self.finish(&context).await
    }

    async fn finish(&self, context: &ImageContext) -> Vec<Arc<Blob>> {
        let blobs: Vec<_> = self.want(context).await.into_iter().map(Result::unwrap).collect();
        for blob in &blobs {
            complete(blob).await;
        }
        blobs
    }

    fn received(&self, from: &str) -> u64 {
        let page = self.metrics.page(&self.store.usage(), 0);
        let name = format!("shoal_agent_received_bytes_total{{from=\"{from}\"}} ");
        page.lines().find_map(|line| line.strip_prefix(&name)).unwrap().parse().unwrap()
    }

    /// Waits for the loop to have counted that many bytes: readers see a piece the moment it is stored, the loop is told
    /// of it afterwards.
    async fn counted(&self, from: &str, least: u64) -> u64 {
        let counted = async {
            let mut looks = tokio::time::interval(Duration::from_millis(5));
            while self.received(from) < least {
                looks.tick().await;
            }
        };
        let in_time = timeout(SOON, counted).await;
        in_time.unwrap_or_else(|_| panic!("{} of {least} bytes are counted from {from}", self.received(from)));
        self.received(from)
    }

    /// Stops the loop and says whether it left nothing behind.
    async fn stop(mut self) -> tempfile::TempDir {
        self.stop.cancel();
        timeout(SOON, self.running.wait()).await.expect("the loop ends").expect("no task is left");
        drop(self.handle);
        self.store.close().unwrap();
        self.dir
    }
}

async fn complete(blob: &Arc<Blob>) {
    let mut changed = blob.changed();
    let whole = timeout(SOON, changed.wait_for(|progress| progress.complete)).await;
    whole.unwrap_or_else(|_| panic!("{blob:?} is whole in time")).unwrap();
}

fn check(blobs: &[Arc<Blob>], layers: &[Bytes]) {
    for layer in layers {
        let digest = shoal_proto::Digest::of(layer);
        let blob = blobs.iter().find(|blob| *blob.digest() == digest).unwrap();
        let mut bytes = vec![0; layer.len()];
        blob.file().read_exact_at(&mut bytes, 0).unwrap();
        assert!(bytes == *layer, "the bytes are the layer's");
    }
}

fn layers() -> Vec<Bytes> {
    vec![content(1, 6 * MIB + 77), content(2, 100), content(3, 3 * MIB)]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_second_agent_gets_all_from_the_first() {
    let (rig, layers) = (Rig::new().await, layers());
    rig.seeder.push(REPOSITORY, "v1", &layers);
    let (a, b) = (rig.agent(11).await, rig.agent(12).await);
    check(&a.pull("v1").await, &layers);
    let total = a.counted("seeder", layers.iter().map(|layer| layer.len() as u64).sum()).await;
    assert_eq!(a.received("peer"), 0);
    rig.piece_requests();
    rig.introduce(&[&a]);
    check(&b.pull("v1").await, &layers);
    assert_eq!((b.counted("peer", total).await, b.received("seeder")), (total, 0));
    assert_eq!(rig.piece_requests(), 0);
    b.stop().await;
    a.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn agents_that_pull_at_once_in_plain_mode_share_what_each_brings() {
    let (rig, layers) = (Rig::new().await, layers());
    rig.seeder.push(REPOSITORY, "v1", &layers);
    let mut agents = Vec::new();
    for n in 21..25 {
        let dir = tempfile::tempdir().unwrap();
        agents.push(Agent::start(rig.address, n, dir, |config| config.mode = PeerMode::Plain).await);
    }
    rig.introduce(&agents.iter().collect::<Vec<_>>());
    let pulls = futures::future::join_all(agents.iter().map(|agent| agent.pull("v1"))).await;
    pulls.iter().for_each(|blobs| check(blobs, &layers));
    assert!(agents.iter().map(|agent| agent.received("peer")).sum::<u64>() > 0, "bytes flow between peers");
    for agent in agents {
        agent.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn without_the_seeder_hashes_pieces_and_bundles_come_from_peers() {
    let (rig, layers) = (Rig::new().await, layers());
    rig.seeder.push(REPOSITORY, "v1", &layers);
    let (a, b) = (rig.agent(31).await, rig.agent(32).await);
    a.pull("v1").await;
    rig.introduce(&[&a]);
    let context = b.resolve("v1").await;
    rig.seeder.down.store(true, Ordering::Relaxed);
    check(&b.finish(&context).await, &layers);
    assert_eq!(b.received("seeder"), 0);

    let bundle = timeout(SOON, b.handle.bundle([6; 32])).await.unwrap().expect("it has the bundle itself");
    assert_eq!(bundle.digest, context.image);
    let dir = b.stop().await;
    // A new start finds the fleet by what the last one remembered, and asks it.
    std::fs::remove_dir_all(dir.path().join("blobs")).unwrap();
    let b = Agent::start(rig.address, 32, dir, |_| {}).await;
    let bundle = timeout(SOON, b.handle.bundle([6; 32])).await.unwrap().expect("a peer has the bundle");
    assert_eq!(bundle.digest, context.image);
    assert!(timeout(SOON, b.handle.bundle([99; 32])).await.unwrap().is_none(), "nobody has another");
    b.stop().await;
    a.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_peer_that_sends_flipped_bits_is_banned_and_the_bytes_are_right() {
    let (rig, layers) = (Rig::new().await, vec![content(5, 4 * MIB)]);
    rig.seeder.push(REPOSITORY, "v1", &layers);
    let (a, b) = (rig.agent(41).await, rig.agent(42).await);
    for blob in a.pull("v1").await {
        if blob.layout().pieces() > 1 {
            for piece in blob.layout().iter() {
                let at = blob.layout().offset(piece) + 5;
                let mut byte = [0];
                blob.file().read_exact_at(&mut byte, at).unwrap();
                blob.file().write_all_at(&[byte[0] ^ 1], at).unwrap();
            }
        }
    }
    rig.introduce(&[&a]);
    check(&b.pull("v1").await, &layers);
    let status = b.handle.status().await.unwrap();
    assert_eq!(status.banned, [a.info().node.to_string()]);
    assert!(status.bad_pieces > 0);
    b.counted("seeder", 4 * MIB as u64).await;
    b.stop().await;
    a.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_blob_that_nobody_has_is_an_error() {
    let rig = Rig::new().await;
    rig.seeder.push(REPOSITORY, "v1", &[content(1, 2 * MIB)]);
    let a = rig.agent(51).await;
    let context = a.resolve("v1").await;
    lock(&rig.seeder.blobs).clear();
    let results = a.want(&context).await;
    assert!(results.iter().any(|result| matches!(result, Err(WantError::Upstream { .. }))));
    a.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_recorded_trace_replays_action_for_action() {
    let (rig, layers) = (Rig::new().await, layers());
    rig.seeder.push(REPOSITORY, "v1", &layers);
    let dir = tempfile::tempdir().unwrap();
    let trace: PathBuf = dir.path().join("trace.jsonl");
    let path = trace.clone();
    let a = rig.agent(61).await;
    let b = Agent::start(rig.address, 62, tempfile::tempdir().unwrap(), |config| config.trace = Some(path)).await;
    a.pull("v1").await;
    rig.introduce(&[&a]);
    b.pull("v1").await;
    b.stop().await;
    a.stop().await;
    let actions = replay(&trace);
    assert!(actions > 10, "{actions} actions");
}

/// Feeds a recorded run to a fresh core; how many actions were the same.
fn replay(path: &Path) -> usize {
    let mut lines = std::io::BufReader::new(std::fs::File::open(path).unwrap())
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(&line.unwrap()).unwrap());
    let head = lines.next().unwrap();
    let config = serde_json::from_value(head["config"].clone()).unwrap();
    let mut core = Node::new(config, head["seed"].as_u64().unwrap(), Time::ZERO);
    let mut actions = 0;
    for line in lines {
        if let Some(at) = line["at"].as_u64() {
            assert_eq!(core.poll_action(), None, "an action that was not recorded");
            core.handle(serde_json::from_value(line["input"].clone()).unwrap(), Time::from_nanos(at));
        } else {
            let recorded: Action = serde_json::from_value(line["action"].clone()).unwrap();
            assert_eq!(core.poll_action(), Some(recorded));
            actions += 1;
        }
    }
    actions
}
