//! The seam between the localhost registry and the loop that moves pieces.
//!
//! [`channel`] makes both ends: HTTP, CLI and status hold a [`Handle`], the loop in [`crate::agent`] owns the one
//! [`Commands`]. Everything that crosses is a [`Command`]; nothing else is shared but the [`Store`](crate::store::Store)
//! (bytes and bits) and the [`Upstream`](crate::upstream::Upstream) (the seeder's client), which both sides clone.
//!
//! **Order.** For one image HTTP sends [`Command::Image`] before the first [`Command::Want`] of its blobs; a second
//! `Image` for the same digest adds to the first (newer capability, more introductions). A `Want` for a blob that is
//! already wanted, or complete, is answered at once with the same blob. The reply comes as soon as the blob can be
//! read (`Store::begin` has returned), not when it is complete: readers then wait on
//! [`Blob::changed`](crate::store::Blob::changed).
//!
//! **Readers** are not messages but a small table: positions coalesce, and a close needs no room in a queue, so it can
//! neither block nor get lost when a client goes away. [`Commands::recv`] turns the table's changes into
//! [`Command::ReaderOpened`], [`Command::ReaderMoved`] and [`Command::ReaderClosed`]. For one reader they come in that
//! order; a reader that opened and closed between two calls is not reported at all.
//!
//! **Shutdown.** When all handles are gone `recv` returns `None`. When the loop is gone every call fails with
//! [`WantError::Stopped`] or `None`.

use std::{
    collections::BTreeMap,
    ops::Range,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use serde::{Deserialize, Serialize};
use shoal_proto::{
    Digest,
    api::Discovery,
    envelope::Envelope,
    message::{Bundle, PeerInfo},
    name::Repository,
    signed::{Candidates, Capability, DiscoveryKey},
};
use tokio::sync::{Notify, mpsc, oneshot};

use crate::{
    history::PullReport,
    store::{Blob, OpenedStatement},
    upstream::{Credentials, UpstreamError},
};

/// Commands that may wait for the loop. A manifest sends one per layer at once, so this holds the largest ordinary
/// image twice; a full queue holds up the HTTP request that would add to it, nothing else.
pub const COMMANDS_MAX: usize = 256;

/// All that the loop must know of an image before it fetches its blobs. Envelopes were opened against the pinned keys.
#[derive(Debug, Clone)]
pub struct ImageContext {
    /// The manifest.
    pub image: Digest,
    /// The repository, as the seeder knows it: what piece requests to the seeder name.
    pub repository: Repository,
    /// The capability, to be shown to peers.
    pub capability: Envelope,
    /// What it says.
    pub covers: Capability,
    /// All that the image is made of, as the seeder covers it.
    pub digests: Vec<Digest>,
    /// Where each digest's holders are found in the DHT.
    pub discovery: Vec<Discovery>,
    /// Keys under which peers may ask this node for the image's bundle ([`Command::Bundle`] on their side). Empty for
    /// what is not public.
    pub bundle_keys: Vec<DiscoveryKey>,
    /// What to answer to those keys.
    pub bundle: Option<Arc<Bundle>>,
    /// Candidate lists, as signed and opened.
    pub candidates: Vec<(Envelope, Candidates)>,
    /// Members recently interested.
    pub introductions: Vec<PeerInfo>,
    /// The client's credentials, for what must be asked at the seeder.
    pub credentials: Credentials,
}

/// A blob is wanted.
#[derive(Debug)]
pub struct Want {
    /// The image that it belongs to; its context came before.
    pub image: Digest,
    /// The repository, as the seeder knows it.
    pub repository: Repository,
    /// The blob's signed statement, opened.
    pub statement: OpenedStatement,
    /// Warming or prefetch that no client waits for: yields to all else.
    pub background: bool,
    /// The client's credentials, for what must be asked at the seeder.
    pub credentials: Credentials,
    /// Where the answer goes: the blob, as soon as it can be read.
    pub reply: oneshot::Sender<Result<Arc<Blob>, WantError>>,
}

/// Names one reading client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReaderId(pub u64);

/// What the loop is told.
#[derive(Debug)]
pub enum Command {
    /// An image is about to be pulled.
    Image(Box<ImageContext>),
    /// A blob is wanted.
    Want(Box<Want>),
    /// A client reads `range` of a blob.
    ReaderOpened {
        /// The blob.
        digest: Digest,
        /// The client.
        reader: ReaderId,
        /// What it reads, in bytes.
        range: Range<u64>,
    },
    /// The client has come this far.
    ReaderMoved {
        /// The blob.
        digest: Digest,
        /// The client.
        reader: ReaderId,
        /// The next byte that it needs.
        position: u64,
    },
    /// The client has all, or went away.
    ReaderClosed {
        /// The blob.
        digest: Digest,
        /// The client.
        reader: ReaderId,
    },
    /// Ask peers for the bundle under `key`; `None` where nobody has it within the loop's own time limit.
    Bundle {
        /// Keyed hash of repository and reference.
        key: DiscoveryKey,
        /// The bundle, not yet checked: the asker opens its envelopes.
        reply: oneshot::Sender<Option<Box<Bundle>>>,
    },
    /// How things stand.
    Status {
        /// Where the answer goes.
        reply: oneshot::Sender<LoopStatus>,
    },
    /// What the last pulls were made of.
    Pulls {
        /// Where the answer goes, the newest first.
        reply: oneshot::Sender<Vec<PullReport>>,
    },
    /// The blob was removed from the store by hand: stop offering it.
    Forget {
        /// The blob.
        digest: Digest,
    },
}

/// Why a wanted blob cannot be had.
#[derive(Debug, Clone, thiserror::Error)]
pub enum WantError {
    /// The agent stops.
    #[error("the agent is shutting down")]
    Stopped,
    /// Neither peers nor the seeder gave the piece hashes, or the pieces.
    #[error("{digest} cannot be fetched: {error}")]
    Upstream {
        /// The blob.
        digest: Digest,
        /// What the seeder said last.
        error: Arc<UpstreamError>,
    },
    /// The disk or the quota is full, or the data folder fails.
    #[error("{digest} cannot be stored: {error}")]
    Store {
        /// The blob.
        digest: Digest,
        /// What failed.
        error: String,
        /// Whether room is what lacks.
        full: bool,
    },
}

/// How the loop stands: part of `/status`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct LoopStatus {
    /// This node's id in hex.
    pub node: String,
    /// Its labels as `region/zone/site`, empty ones left out.
    pub labels: String,
    /// Until when its membership holds, in Unix seconds.
    pub member_until: u64,
    /// Connected peers.
    pub peers: Vec<PeerStatus>,
    /// Nodes that are remembered, connected or not.
    #[serde(default)]
    pub known: usize,
    /// Blobs being fetched.
    pub downloads: Vec<DownloadStatus>,
    /// Nodes in the DHT's routing table.
    pub dht_nodes: usize,
    /// Open reading clients.
    pub readers: usize,
    /// Payload bytes received from peers since the start.
    pub bytes_from_peers: u64,
    /// Payload bytes received from the seeder since the start.
    pub bytes_from_seeder: u64,
    /// Payload bytes sent to peers since the start.
    pub bytes_to_peers: u64,
    /// Pieces refused for their hash since the start.
    pub bad_pieces: u64,
    /// Nodes banned now.
    pub banned: Vec<String>,
    /// Memberships that are revoked, as far as this node has heard.
    pub revoked: usize,
}

/// One connected peer.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct PeerStatus {
    /// Its id in hex.
    pub node: String,
    /// Where it is.
    pub address: String,
    /// Payload bytes received from it.
    pub bytes_in: u64,
    /// Payload bytes sent to it.
    pub bytes_out: u64,
}

/// One blob being fetched.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct DownloadStatus {
    /// The blob.
    pub digest: String,
    /// Its bytes.
    pub size: u64,
    /// Its pieces.
    pub pieces: u32,
    /// Pieces stored.
    pub stored: u32,
    /// Peers known to hold some of it.
    pub peers: usize,
}

/// The asking end. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Handle {
    commands: mpsc::Sender<Command>,
    readers: Arc<Readers>,
}

/// The loop's end.
#[derive(Debug)]
pub struct Commands {
    commands: mpsc::Receiver<Command>,
    readers: Arc<Readers>,
}

/// Makes the two ends.
#[must_use]
pub fn channel() -> (Handle, Commands) {
    let (tx, rx) = mpsc::channel(COMMANDS_MAX);
    let readers = Arc::new(Readers::default());
    (Handle { commands: tx, readers: readers.clone() }, Commands { commands: rx, readers })
}

impl Handle {
    /// Tells the loop of an image. Waits for room in the queue.
    pub async fn image(&self, context: ImageContext) {
        // A loop that is gone is found out by the `want` that follows.
        let _ = self.commands.send(Command::Image(Box::new(context))).await;
    }

    /// Asks for a blob and waits until it can be read.
    ///
    /// # Errors
    /// It can neither be found nor stored, or the agent stops.
    pub async fn want(
        &self,
        image: Digest,
        repository: Repository,
        statement: OpenedStatement,
        background: bool,
        credentials: Credentials,
    ) -> Result<Arc<Blob>, WantError> {
        let (reply, answer) = oneshot::channel();
        let want = Want { image, repository, statement, background, credentials, reply };
        self.commands.send(Command::Want(Box::new(want))).await.map_err(|_| WantError::Stopped)?;
        answer.await.unwrap_or(Err(WantError::Stopped))
    }

    /// Asks peers for a bundle.
    pub async fn bundle(&self, key: DiscoveryKey) -> Option<Box<Bundle>> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(Command::Bundle { key, reply }).await.ok()?;
        answer.await.ok().flatten()
    }

    /// How the loop stands; `None` when it is gone.
    pub async fn status(&self) -> Option<LoopStatus> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(Command::Status { reply }).await.ok()?;
        answer.await.ok()
    }

    /// What the last pulls were made of, the newest first; `None` when the loop is gone.
    pub async fn pulls(&self) -> Option<Vec<PullReport>> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(Command::Pulls { reply }).await.ok()?;
        answer.await.ok()
    }

    /// Tells the loop that a blob was removed.
    pub async fn forget(&self, digest: Digest) {
        let _ = self.commands.send(Command::Forget { digest }).await;
    }

    /// A client reads `range` of a blob, until the returned value is dropped.
    #[must_use]
    pub fn reader(&self, digest: Digest, range: Range<u64>) -> Reader {
        let id = ReaderId(self.readers.next.fetch_add(1, Ordering::Relaxed));
        self.readers.lock().insert(id, Reading { digest, range, state: ReaderState::New });
        self.readers.changed.notify_one();
        Reader { id, readers: self.readers.clone() }
    }

    /// Clients that read now.
    #[must_use]
    pub fn readers(&self) -> usize {
        self.readers.lock().values().filter(|r| r.state != ReaderState::Gone).count()
    }
}

impl Commands {
    /// The next command; `None` when no handle is left and all was delivered. Cancel-safe.
    pub async fn recv(&mut self) -> Option<Command> {
        loop {
            if let Some(command) = self.readers.next_event() {
                return Some(command);
            }
            tokio::select! {
                biased;
                () = self.readers.changed.notified() => {}
                command = self.commands.recv() => return match command {
                    Some(command) => Some(command),
                    None => self.readers.next_event(),
                },
            }
        }
    }
}

/// A reading client; dropped when it has all, or goes away.
#[derive(Debug)]
pub struct Reader {
    id: ReaderId,
    readers: Arc<Readers>,
}

impl Reader {
    /// The client has come this far: the next byte that it needs.
    pub fn moved(&self, position: u64) {
        if let Some(reading) = self.readers.lock().get_mut(&self.id) {
            reading.range.start = position;
            if reading.state == ReaderState::Known {
                reading.state = ReaderState::Moved;
            }
        }
        self.readers.changed.notify_one();
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let mut table = self.readers.lock();
        match table.get_mut(&self.id) {
            Some(reading) if reading.state == ReaderState::New => drop(table.remove(&self.id)),
            Some(reading) => reading.state = ReaderState::Gone,
            None => {}
        }
        drop(table);
        self.readers.changed.notify_one();
    }
}

/// Open readers, and those whose end the loop has not heard of. Bounded by the connections of the HTTP server: one entry
/// each, and the loop takes the gone ones out at its next turn.
#[derive(Debug, Default)]
struct Readers {
    table: Mutex<BTreeMap<ReaderId, Reading>>,
    changed: Notify,
    next: AtomicU64,
}

#[derive(Debug)]
struct Reading {
    digest: Digest,
    range: Range<u64>,
    state: ReaderState,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ReaderState {
    New,
    Known,
    Moved,
    Gone,
}

impl Readers {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<ReaderId, Reading>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn next_event(&self) -> Option<Command> {
        let mut table = self.lock();
        let (&reader, reading) = table.iter_mut().find(|(_, r)| r.state != ReaderState::Known)?;
        let digest = reading.digest;
        match std::mem::replace(&mut reading.state, ReaderState::Known) {
            ReaderState::New => Some(Command::ReaderOpened { digest, reader, range: reading.range.clone() }),
            ReaderState::Moved => Some(Command::ReaderMoved { digest, reader, position: reading.range.start }),
            ReaderState::Gone => {
                table.remove(&reader);
                Some(Command::ReaderClosed { digest, reader })
            }
            ReaderState::Known => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn next(commands: &mut Commands) -> String {
        match commands.recv().await {
            Some(Command::ReaderOpened { range, .. }) => format!("opened {range:?}"),
            Some(Command::ReaderMoved { position, .. }) => format!("moved {position}"),
            Some(Command::ReaderClosed { .. }) => "closed".into(),
            other => format!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn a_readers_positions_coalesce_and_its_end_is_heard() {
        let (handle, mut commands) = channel();
        let reader = handle.reader(Digest::of(b"x"), 0..100);
        assert_eq!(next(&mut commands).await, "opened 0..100");
        reader.moved(10);
        reader.moved(20);
        assert_eq!(next(&mut commands).await, "moved 20");
        reader.moved(30);
        drop(reader);
        assert_eq!(next(&mut commands).await, "closed");
        assert_eq!(handle.readers(), 0);
    }

    #[tokio::test]
    async fn a_reader_gone_before_the_loop_looked_is_never_reported() {
        let (handle, mut commands) = channel();
        drop(handle.reader(Digest::of(b"x"), 0..1));
        drop(handle);
        assert_eq!(next(&mut commands).await, "None");
    }
}
