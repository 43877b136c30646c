//! What a test of the agent's parts stands on, and a loop that fetches from the seeder alone.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, atomic::Ordering},
};

use shoal_proto::{
    api::PiecesWanted, have::HaveSet, layout::PieceIndex, message::PeerInfo, name::Repository, signed::Labels,
};
use tokio::{sync::Semaphore, task::JoinSet};
use tokio_util::sync::CancellationToken;

use super::{FakeSeeder, lock};
use crate::{
    config::JoinBy,
    handle::{self, Command, Commands, Handle, Want},
    identity::Identity,
    store::{Blob, Store, StoreConfig},
    upstream::{Credentials, Upstream, UpstreamConfig},
};

/// What a test of the agent's parts stands on.
#[derive(Debug)]
pub(crate) struct Stage {
    pub(crate) seeder: Arc<FakeSeeder>,
    pub(crate) address: SocketAddr,
    pub(crate) store: Store,
    pub(crate) upstream: Upstream,
    pub(crate) identity: Identity,
    pub(crate) tasks: JoinSet<()>,
    pub(crate) stop: CancellationToken,
    _dir: tempfile::TempDir,
}

impl Stage {
    pub(crate) async fn set() -> Self {
        Self::over(FakeSeeder::new()).await
    }

    /// One more node of a seeder.
    pub(crate) async fn over(seeder: Arc<FakeSeeder>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (mut tasks, stop) = (JoinSet::new(), CancellationToken::new());
        let address = seeder.serve(&mut tasks, &stop).await;
        let config = StoreConfig { dir: dir.path().to_owned(), quota_bytes: 64 << 20, boot_id: "boot".into() };
        let store = Store::open(config).unwrap();
        let upstream = Upstream::connect(&upstream_config(address), &store).await.unwrap();
        let identity = Identity::from_secret(&[8; 32]);
        upstream.set_self(PeerInfo { node: identity.node(), peer: vec![], libp2p: vec![], labels: Labels::default() });
        upstream.join(&identity, &Labels::default()).await.unwrap();
        seeder.requests();
        Self { seeder, address, store, upstream, identity, tasks, stop, _dir: dir }
    }

    /// A loop that fetches every wanted blob from the seeder, a piece for each permit of `pace`.
    pub(crate) fn start_loop(&mut self, pace: Arc<Semaphore>) -> (Handle, Arc<Mutex<Vec<String>>>) {
        let (handle, commands) = handle::channel();
        let heard = Arc::new(Mutex::new(Vec::new()));
        let (seeder, store, upstream) = (self.seeder.clone(), self.store.clone(), self.upstream.clone());
        let fake = FakeLoop { seeder, store, upstream, pace, heard: heard.clone() };
        self.tasks.spawn(fake.run(commands, self.stop.clone()));
        (handle, heard)
    }
}

pub(crate) fn upstream_config(address: SocketAddr) -> UpstreamConfig {
    UpstreamConfig {
        seeder: format!("http://{address}").parse().unwrap(),
        insecure_open: true,
        join_by: JoinBy::Nothing,
        fleet_key: None,
        tls: None,
    }
}

#[derive(Debug, Clone)]
struct FakeLoop {
    /// Once it is down, its memory stands for the peers'.
    seeder: Arc<FakeSeeder>,
    store: Store,
    upstream: Upstream,
    pace: Arc<Semaphore>,
    heard: Arc<Mutex<Vec<String>>>,
}

impl FakeLoop {
    async fn run(self, mut commands: Commands, stop: CancellationToken) {
        let mut fetches = JoinSet::new();
        loop {
            let command = tokio::select! {
                () = stop.cancelled() => return,
                command = commands.recv() => command,
            };
            let said = match command {
                None => return,
                Some(Command::Want(want)) => {
                    let said = format!(
                        "want {}{}",
                        want.statement.statement.digest,
                        if want.background { " low" } else { "" }
                    );
                    fetches.spawn(self.clone().fetch(*want));
                    said
                }
                Some(Command::Image(context)) => {
                    let bundle = context.bundle.clone().into_iter();
                    let known = context.bundle_keys.iter().copied().zip(bundle.cycle());
                    lock(&self.seeder.bundles).extend(known);
                    format!("image {}", context.image)
                }
                Some(Command::ReaderOpened { range, .. }) => format!("opened {range:?}"),
                Some(Command::ReaderMoved { position, .. }) => format!("moved {position}"),
                Some(Command::ReaderClosed { .. }) => "closed".into(),
                Some(Command::Bundle { key, reply }) => {
                    let bundle = lock(&self.seeder.bundles).get(&key).map(|bundle| Box::new((**bundle).clone()));
                    drop(reply.send(bundle));
                    "bundle".into()
                }
                Some(Command::Pulls { .. }) => "pulls".into(),
                Some(Command::Status { reply }) => {
                    format!("status {:?}", reply.send(handle::LoopStatus::default()).is_ok())
                }
                Some(Command::Forget { digest }) => format!("forget {digest}"),
            };
            lock(&self.heard).push(said);
        }
    }

    async fn fetch(self, want: Want) {
        let (statement, signed, store) = (want.statement.statement, want.statement.clone(), self.store.clone());
        let hashes = self.seeder.describe(&statement.digest).unwrap().1;
        let blob = match tokio::task::spawn_blocking(move || store.begin(&signed, hashes)).await.unwrap() {
            Ok(blob) => blob,
            Err(error) => {
                let full = error.is_full();
                let failed = handle::WantError::Store { digest: statement.digest, error: error.to_string(), full };
                return drop(want.reply.send(Err(failed)));
            }
        };
        let _guard = blob.guard();
        drop(want.reply.send(Ok(blob.clone())));
        for piece in blob.layout().iter() {
            self.pace.acquire().await.unwrap().forget();
            if self.seeder.down.load(Ordering::Relaxed) {
                self.copy_from_memory(&blob, piece);
            } else {
                let mut one = HaveSet::empty(blob.layout());
                one.insert(piece);
                fetch_piece(&self.upstream, &want.repository, &blob, &one, &want.credentials).await;
            }
        }
    }

    fn copy_from_memory(&self, blob: &Arc<Blob>, piece: PieceIndex) {
        let data = lock(&self.seeder.blobs)[blob.digest()].clone();
        let range = blob.layout().range(piece);
        let Some(mut writer) = blob.writer(piece) else { return };
        writer.write(&data[usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap()]).unwrap();
        writer.finish().unwrap();
    }
}

async fn fetch_piece(
    upstream: &Upstream,
    repository: &Repository,
    blob: &Arc<Blob>,
    want: &HaveSet,
    credentials: &Credentials,
) {
    let wanted = PiecesWanted { want: want.to_bytes(), max: 1, stalled: false, urgent: None };
    let mut stream = upstream.pieces(repository, blob.digest(), blob.layout(), &wanted, credentials).await.unwrap();
    let mut writer = None;
    while let Some(chunk) = stream.next().await.unwrap() {
        let Some(open) = (if chunk.offset == 0 { blob.writer(chunk.piece) } else { writer.take() }) else { return };
        let mut open = open;
        open.write(&chunk.data).unwrap();
        if chunk.last {
            if let Err(error) = open.finish() {
                blob.fail(&error.to_string());
            }
        } else {
            writer = Some(open);
        }
    }
}
