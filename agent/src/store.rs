//! What this node holds: blob bytes in files, all else in RocksDB.
//!
//! ```text
//! <dir>/lock                 held while a process uses the folder
//! <dir>/blobs/<2 hex>/<hex>  one preallocated file per blob, written in place
//! <dir>/trash/               files about to be unlinked
//! <dir>/meta/                RocksDB: statements, piece hashes, have-sets, images, tags (`tables`)
//! ```
//!
//! **The have-bit is the only truth.** A file's bytes are garbage until [`PieceWriter::finish`] has compared the piece's
//! hash and set its bit in memory; readers ask [`Blob::has`] first. A piece has at most one writer.
//!
//! **What is lost.** Bits go to RocksDB behind the back of the writers: the recorder thread writes them without fsync as
//! soon as it runs, and at most [`UNRECORDED_PIECES_MAX`] pieces of a blob are ever verified and unrecorded.
//!
//! | event | lost |
//! |---|---|
//! | drop, panic, kill -9 | unrecorded pieces, at most [`UNRECORDED_PIECES_MAX`] a blob; pieces half written |
//! | power loss, kernel crash | the same, and nothing more: pieces recorded since the last fdatasync ([`DURABLE_INTERVAL`]) are hashed again before they count, since their bytes may not have reached the disk |
//! | [`Store::close`] | nothing |
//!
//! The two are told apart by the kernel's boot id. A record may be behind the bytes, never ahead of them: "durable" is
//! recorded after the fdatasync, a deletion is synced before its file goes, so a file made anew never inherits bits.
//!
//! **Threads.** `Store` is sync and cheap to clone. Per-piece calls ([`Blob::writer`], `write`, `finish`, `has`) touch
//! memory and the page cache; [`Store::begin`], [`Store::verify`], the image calls and [`Store::close`] do IO and belong
//! on a blocking thread. Threads of its own: *recorder*, *syncer*, and after a
//! crash of the machine *settler* (`recorder`).
//!
//! **Room.** A blob counts with its full size from `begin` on. What is over the quota goes least recently used first,
//! never what is pinned, in use ([`Blob::guard`]) or being written; the file is unlinked, never truncated, so that a
//! `sendfile` under way ends well.

mod blob;
mod evict;
mod files;
mod images;
mod load;
mod recorder;
mod tables;
#[cfg(test)]
mod tests;
mod verify;

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::{Duration, SystemTime},
};

use rustix::fs::FlockOperation;
use shoal_proto::{
    Digest,
    envelope::Envelope,
    signed::{Misfit, Statement, UnixSeconds},
    tree::PieceHashes,
};
use tokio::sync::Notify;

pub use blob::{Blob, Failure, FinishError, InUse, PieceWriter, Progress, Verified, WriteError};
pub use images::{ImageInfo, ImageRecord, Removed, TagError, TagRow};
pub use tables::{Note, StoreError};
pub use verify::Checked;

use self::tables::Tables;

/// Most pieces of one blob that are verified but not yet recorded. A finishing writer that finds this many records them
/// itself: then the recorder thread is stalled, and a bounded loss is worth more than speed. 8 pieces are 3 % of the
/// smallest image that swarms with profit (256 pieces).
pub const UNRECORDED_PIECES_MAX: u32 = 8;

/// How often fdatasync turns recorded pieces into durable ones, while there are any. What came within this time, and
/// while the disk was at it, is hashed again after a power loss: at 1 GiB/s a CPU second's work. Shorter would keep the
/// disk from gathering writes.
pub const DURABLE_INTERVAL: Duration = Duration::from_secs(5);

/// How the store is opened.
#[derive(Debug, Clone)]
pub struct StoreConfig {
    /// The data folder; made if missing.
    pub dir: PathBuf,
    /// Most bytes of blobs; pinned ones count too.
    pub quota_bytes: u64,
    /// The kernel's `/proc/sys/kernel/random/boot_id`: another one means that the page cache is gone.
    pub boot_id: String,
}

/// Why the store does not open.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The folder cannot be made, read or written.
    #[error("the data folder {} cannot be used: {error}", path.display())]
    Dir {
        /// The path that fails.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// Another process has it.
    #[error("the data folder {} is in use by another process; give this one its own (--data-dir)", .0.display())]
    Locked(PathBuf),
    /// Written by a later version.
    #[error("the data folder {} has format {found}, this program reads {expected}; update shoal or use a new folder",
            path.display())]
    Format {
        /// The folder.
        path: PathBuf,
        /// What it says.
        found: u32,
        /// What this program knows.
        expected: u32,
    },
    /// RocksDB fails.
    #[error(transparent)]
    Meta(#[from] StoreError),
}

/// Why a blob cannot be begun.
#[derive(Debug, thiserror::Error)]
pub enum BeginError {
    /// The statement does not fit the piece hashes, or is too large.
    #[error(transparent)]
    Misfit(#[from] Misfit),
    /// The piece hashes are of another size or root than the statement.
    #[error("the piece hashes of {0} do not belong to its statement")]
    Hashes(Digest),
    /// Held already with another root: one of the two statements is false.
    #[error("{0} is held with another BLAKE3 root; remove it (`shoal image rm`) and pull again")]
    Conflict(Digest),
    /// Larger than the quota leaves after evicting all that may go.
    #[error("{digest} needs {needed} bytes and the quota leaves {room}; raise `store.quota` or unpin images")]
    OverQuota {
        /// The blob.
        digest: Digest,
        /// Its size.
        needed: u64,
        /// What could be made free.
        room: u64,
    },
    /// No space left on the device, even after evicting what may go.
    #[error("no space left for {digest} ({needed} bytes); free some, or lower `store.quota`")]
    DiskFull {
        /// The blob.
        digest: Digest,
        /// Its size.
        needed: u64,
    },
    /// The file fails.
    #[error("the file of {digest} cannot be made: {error}")]
    File {
        /// The blob.
        digest: Digest,
        /// Why.
        error: std::io::Error,
    },
    /// RocksDB fails.
    #[error(transparent)]
    Meta(#[from] StoreError),
}

impl BeginError {
    /// Whether room is what lacks.
    #[must_use]
    pub const fn is_full(&self) -> bool {
        matches!(self, Self::OverQuota { .. } | Self::DiskFull { .. })
    }
}

/// A statement whose signature was checked, with the envelope that peers will be shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenedStatement {
    /// As signed.
    pub envelope: Envelope,
    /// What it says.
    pub statement: Statement,
}

/// A blob in the store, as listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlobInfo {
    /// Its digest.
    pub digest: Digest,
    /// Its bytes.
    pub size: u64,
    /// Verified pieces.
    pub stored: u32,
    /// All pieces.
    pub pieces: u32,
    /// Whether all are verified.
    pub complete: bool,
    /// Whether an image that needs it is pinned.
    pub pinned: bool,
    /// When it was last asked for.
    pub last_access: UnixSeconds,
}

/// How full the store is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Bytes that blobs count for.
    pub bytes: u64,
    /// The limit.
    pub quota_bytes: u64,
    /// Blobs held, whole or in part.
    pub blobs: usize,
    /// Blobs evicted since the start.
    pub evicted: u64,
}

/// The store. Clones share it; the last one dropped stops the threads, without the syncs of [`Store::close`].
#[derive(Debug, Clone)]
pub struct Store {
    shared: Arc<Shared>,
    /// Joined when the last clone goes.
    _threads: Arc<recorder::Threads>,
}

/// What the store's threads share with it.
#[derive(Debug)]
struct Shared {
    config: StoreConfig,
    tables: Tables,
    index: Mutex<Index>,
    /// Creating, evicting and removing files take turns: rare, and then the quota's arithmetic has no race.
    making: Mutex<()>,
    recorder: recorder::Queue,
    evicted: Notify,
    _lock: std::fs::File,
}

/// What is known of every blob without opening its file.
#[derive(Debug, Default)]
struct Index {
    entries: HashMap<Digest, Entry>,
    /// Bytes of all entries.
    bytes: u64,
    /// How many pinned images need a blob.
    pins: HashMap<Digest, u32>,
    /// Evicted and not yet told ([`Store::take_evicted`]); at most as many as blobs were held.
    gone: Vec<Digest>,
    evicted: u64,
    /// The last [`Entry::order`] given.
    order: u64,
}

#[derive(Debug)]
struct Entry {
    size: u64,
    pieces: u32,
    stored: u32,
    last_access: UnixSeconds,
    /// Orders by last access finer than seconds do.
    order: u64,
    /// The open blob, while anybody has it.
    live: Weak<Blob>,
}

impl Entry {
    /// Bytes that are still to be written, to within a piece.
    fn missing(&self) -> u64 {
        self.size / u64::from(self.pieces.max(1)) * u64::from(self.pieces - self.stored.min(self.pieces))
    }
}

impl Store {
    /// Opens the store in `config.dir`, drops files and records that lost their partner, and starts to verify pieces
    /// that a crash of the machine left in doubt.
    ///
    /// # Errors
    /// The folder is unusable, locked by another process, or of a later format.
    pub fn open(config: StoreConfig) -> Result<Self, OpenError> {
        let dir_error = |path: &std::path::Path, error| OpenError::Dir { path: path.to_owned(), error };
        files::make_dir(&config.dir).map_err(|e| dir_error(&config.dir, e))?;
        let lock = files::lock_file(&config.dir).map_err(|e| dir_error(&config.dir.join(files::LOCK), e))?;
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(OpenError::Locked(config.dir)),
            Err(error) => return Err(dir_error(&config.dir.join(files::LOCK), error.into())),
        }
        let blobs = config.dir.join(files::BLOBS);
        files::make_dir(&blobs).map_err(|e| dir_error(&blobs, e))?;
        let tables = Tables::open(&config.dir.join("meta"))?;
        let found = tables.format()?;
        if found != tables::FORMAT {
            return Err(OpenError::Format { path: config.dir, found, expected: tables::FORMAT });
        }
        let (index, doubtful) = load::load(&config, &tables)?;
        let shared = Arc::new(Shared {
            config,
            tables,
            index: Mutex::new(index),
            making: Mutex::new(()),
            recorder: recorder::Queue::default(),
            evicted: Notify::new(),
            _lock: lock,
        });
        let threads = recorder::Threads::start(&shared, doubtful);
        Ok(Self { shared, _threads: Arc::new(threads) })
    }

    /// The blob of `statement`, made and preallocated if it is not there, with room made for it; else as it is held.
    /// Pieces that a crash left in doubt are verified before this returns.
    ///
    /// # Errors
    /// The statement does not fit the hashes, there is no room, or the disk fails.
    pub fn begin(&self, signed: &OpenedStatement, hashes: PieceHashes) -> Result<Arc<Blob>, BeginError> {
        let OpenedStatement { statement, .. } = signed;
        statement.check(&statement.digest, None)?;
        let fits = shoal_proto::tree::root(hashes.layout(), hashes.as_slice()) == Some(statement.root);
        if hashes.layout().size() != statement.size || !fits {
            return Err(BeginError::Hashes(statement.digest));
        }
        let blob = match self.blob(&statement.digest) {
            Some(blob) => blob,
            None => self.shared.create(signed, hashes)?,
        };
        if blob.statement() != statement {
            return Err(BeginError::Conflict(statement.digest));
        }
        verify::settle(&blob);
        Ok(blob)
    }

    /// The blob, whole or in part, and marks it as used now. `None` where it is not held, or its file fails.
    #[must_use]
    pub fn blob(&self, digest: &Digest) -> Option<Arc<Blob>> {
        let blob = self.shared.open_blob(digest)?;
        self.shared.touch(digest);
        Some(blob)
    }

    /// All blobs, by digest.
    #[must_use]
    pub fn blobs(&self) -> Vec<BlobInfo> {
        let index = self.shared.index();
        let mut list: Vec<_> = index.entries.iter().map(|(digest, entry)| index.info(digest, entry)).collect();
        list.sort_by_key(|info| info.digest);
        list
    }

    /// What is known of a blob, without opening it or marking it as used.
    #[must_use]
    pub fn info(&self, digest: &Digest) -> Option<BlobInfo> {
        let index = self.shared.index();
        index.entries.get(digest).map(|entry| index.info(digest, entry))
    }

    /// How full the store is.
    #[must_use]
    pub fn usage(&self) -> Usage {
        let index = self.shared.index();
        Usage {
            bytes: index.bytes,
            quota_bytes: self.shared.config.quota_bytes,
            blobs: index.entries.len(),
            evicted: index.evicted,
        }
    }

    /// Waits until something was evicted or removed, then [`Store::take_evicted`] says what. One waiter; cancel-safe.
    pub async fn evicted(&self) {
        self.shared.evicted.notified().await;
    }

    /// Blobs that were evicted or removed since the last call.
    #[must_use]
    pub fn take_evicted(&self) -> Vec<Digest> {
        std::mem::take(&mut self.shared.index().gone)
    }

    /// A small named value, such as the pinned root key.
    ///
    /// # Errors
    /// RocksDB fails.
    pub fn note(&self, note: Note) -> Result<Option<Vec<u8>>, StoreError> {
        self.shared.tables.note(note)
    }

    /// Keeps a small named value, synced before this returns.
    ///
    /// # Errors
    /// RocksDB fails.
    pub fn put_note(&self, note: Note, value: &[u8]) -> Result<(), StoreError> {
        self.shared.tables.put_note(note, value)
    }

    /// Records and syncs all that is verified.
    ///
    /// # Errors
    /// A file or RocksDB fails to sync.
    pub fn flush(&self) -> Result<(), StoreError> {
        self.shared.sync_all()
    }

    /// Flushes, and marks the shutdown as clean. Clones keep working, but what they do later is not covered.
    ///
    /// # Errors
    /// As [`Store::flush`].
    pub fn close(self) -> Result<(), StoreError> {
        self.flush()
    }
}

impl Shared {
    fn index(&self) -> MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn touch(&self, digest: &Digest) {
        let now = now();
        let mut index = self.index();
        index.order += 1;
        let order = index.order;
        if let Some(entry) = index.entries.get_mut(digest) {
            entry.last_access = entry.last_access.max(now);
            entry.order = order;
        }
        drop(index);
        self.recorder.touched(*digest);
    }
}

impl Index {
    fn info(&self, digest: &Digest, entry: &Entry) -> BlobInfo {
        BlobInfo {
            digest: *digest,
            size: entry.size,
            stored: entry.stored,
            pieces: entry.pieces,
            complete: entry.stored == entry.pieces,
            pinned: self.pins.contains_key(digest),
            last_access: entry.last_access,
        }
    }
}

fn now() -> UnixSeconds {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
