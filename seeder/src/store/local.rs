//! The store of one process on one machine: blobs are files, all else is in RocksDB.
//!
//! ```text
//! <data>/lock               held while the process runs
//! <data>/format             the version of this layout (`format.rs`)
//! <data>/root.key, admin.sock, addresses.json   see `keys.rs`, `admin.rs`, `seeder.rs`
//! <data>/db/                RocksDB (`tables.rs`)
//! <data>/blobs/<algorithm>/<first two hex digits>/<hex>
//! <data>/uploads/<session>  bytes of uploads that are not blobs yet
//! <data>/quarantine/        content that was found damaged
//! ```
//!
//! **Crashes.** A blob's bytes and its file's name are synced before the records are written, and the records are synced
//! before the client hears of success. What a crash leaves half done is an upload (resumed or expired), or a blob's file
//! without records, whose bytes mean nothing: it is replaced by the next push of the same content, or collected. Records
//! never name bytes that are not on disk.
//!
//! **Who may change what.** Uploads are claimed by one request at a time. Whoever adds to a repository shares one of a few
//! locks, whoever deletes from it holds that lock alone, and a tag is moved by one at a time, so that a check and the change
//! that it guards are one, and pushes to the same repository share their syncs. No lock is held across an await: everything
//! here runs on blocking threads.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    hash::{DefaultHasher, Hash, Hasher as _},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard, atomic::AtomicU64},
};

use bytes::Bytes;
use futures::future::BoxFuture;
use shoal_proto::{
    Digest,
    digest::Algorithm,
    name::{Repository, Tag},
    oci::UploadId,
};
use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;

use crate::store::{
    Append, AppendError, BeginError, Blob, BlobInfo, Collected, CommitError, Counts, Expected, FleetRecord, Holder,
    Manifest, MoveTagError, NewManifest, Op, Page, PutManifestError, Scrubbed, Sign, Store, StoreError, Swap, TagEntry,
    Uploader,
};
use crate::{
    quota::{Quota, Usage},
    time::monotonic_ms,
};
use append::UNWRITTEN_MAX;
use backup::Backup;
use gc::GUARDS;
use layout::{lock, make_dir, make_layout};
use ledger::{Ledger, Times};
use quotas::Quotas;
use session::Session;
use tables::{META_SECRETS, META_TAG_COUNTER, Table, Tables};

mod append;
pub mod backup;
mod fleet;
mod format;
mod gc;
mod layout;
pub mod ledger;
#[cfg(test)]
mod model;
mod quotas;
#[cfg(test)]
mod race;
mod records;
mod scrub;
mod session;
mod tables;
#[cfg(test)]
mod tests;
mod uploads;

/// Locks over repositories, and as many over tags. Two that share one only wait for each other's sync.
const STRIPES: usize = 64;
/// Added to the tag counter when the store opens: of moves at the same time the one with the lower counter may be written
/// last. A request moves some tens of tags, and no more than some hundreds of requests are in work.
const TAG_COUNTER_GAP: u64 = 1 << 16;
/// Bytes that are left free by default: room for records, so that what is stored stays readable and deletable.
pub const FREE_BYTES_MIN: u64 = 64 << 20;

/// Why the store does not open.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A directory or file cannot be made or opened.
    #[error("cannot use the data directory {}: {error}", path.display())]
    Dir {
        /// Which.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// Another process holds it.
    #[error("another process uses the data directory {}; stop it first, or use another directory", .0.display())]
    Locked(PathBuf),
    /// A backup was being put back, and that did not come to its end.
    #[error("a restore into {} was not finished; empty the directory and restore again", .0.display())]
    Unfinished(PathBuf),
    /// A later version of this program has written it.
    #[error("the data directory {} has format {found}, and this version knows up to {known}: a later version wrote it; run that one", path.display())]
    Newer {
        /// The directory.
        path: PathBuf,
        /// Its version.
        found: u32,
        /// The latest that is understood here.
        known: u32,
    },
    /// The database does not open.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The store of one data directory.
#[derive(Debug, Clone)]
pub struct Local(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    dir: PathBuf,
    tables: Tables,
    sessions: Mutex<BTreeMap<UploadId, Arc<Session>>>,
    /// Bytes of uploads that may still be gathered.
    unwritten: Arc<Semaphore>,
    /// Locks over repositories: shared by those who add, held alone by those who delete.
    stripes: [RwLock<()>; STRIPES],
    tag_locks: [Mutex<()>; STRIPES],
    /// The highest tag counter in use.
    tag_counter: AtomicU64,
    free_bytes_min: u64,
    /// What runs on blocking threads: it may outlive the request that asked for it, but not the store.
    jobs: TaskTracker,
    /// Locks over digests, see `gc.rs`.
    guards: [RwLock<()>; GUARDS],
    ledger: Mutex<Ledger>,
    /// What the keys of the ledger are made with.
    hashing: std::hash::RandomState,
    /// Held by whoever deletes content, or must not have it deleted.
    collecting: Mutex<()>,
    quotas: Quotas,
    /// Held while records of the fleet are compared and changed.
    fleet: Mutex<()>,
    /// Held while the store is open.
    _lock: File,
}

/// How a store is kept.
#[derive(Debug, Clone)]
pub struct Options {
    /// Bytes of the disk that are left free.
    pub free_bytes_min: u64,
    /// When the collector takes what.
    pub times: Times,
    /// How much repositories may hold, at most [`crate::quota::QUOTAS_MAX`].
    pub quotas: Vec<Quota>,
}

impl Default for Options {
    fn default() -> Self {
        Self { free_bytes_min: FREE_BYTES_MIN, times: Times::default(), quotas: Vec::new() }
    }
}

impl Local {
    /// Opens the store in `dir`, which is made if it is not there; `free_bytes_min` bytes of the disk are left free.
    /// Blocks.
    ///
    /// # Errors
    /// The directory cannot be used, another process uses it, or the database does not open.
    pub fn open(dir: &Path, free_bytes_min: u64) -> Result<Self, OpenError> {
        Self::open_with(dir, Options { free_bytes_min, ..Options::default() })
    }

    /// The same, with all that can be chosen.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_with(dir: &Path, options: Options) -> Result<Self, OpenError> {
        if backup::is_unfinished(dir) {
            return Err(OpenError::Unfinished(dir.to_owned()));
        }
        Self::open_any(dir, options)
    }

    /// The same for a store that is being restored, too.
    pub(crate) fn open_any(dir: &Path, options: Options) -> Result<Self, OpenError> {
        make_dir(dir)?;
        let lock = lock(dir)?;
        format::check(dir)?;
        make_layout(dir)?;
        let tables = Tables::open(&dir.join("db"))?;
        let counter = tables.get(Table::Meta, META_TAG_COUNTER)?;
        let counter = counter.and_then(|bytes| Some(u64::from_le_bytes(bytes.try_into().ok()?))).unwrap_or(0);
        let counter = counter + TAG_COUNTER_GAP;
        let inner = Inner {
            dir: dir.to_owned(),
            tables,
            sessions: Mutex::default(),
            unwritten: Arc::new(Semaphore::new(UNWRITTEN_MAX)),
            stripes: [const { RwLock::new(()) }; STRIPES],
            tag_locks: [const { Mutex::new(()) }; STRIPES],
            tag_counter: AtomicU64::new(counter),
            free_bytes_min: options.free_bytes_min,
            jobs: TaskTracker::new(),
            guards: [const { RwLock::new(()) }; GUARDS],
            ledger: Mutex::new(Ledger::new(options.times, monotonic_ms())),
            hashing: std::hash::RandomState::new(),
            collecting: Mutex::default(),
            quotas: Quotas::new(options.quotas),
            fleet: Mutex::default(),
            _lock: lock,
        };
        inner.index()?;
        inner.move_old_uploads()?;
        format::record(dir)?;
        inner.count_quotas()?;
        let strays = inner.remove_stray_uploads()?;
        if strays > 0 {
            tracing::info!(strays, "removed files of uploads that no session knows");
        }
        Ok(Self(Arc::new(inner)))
    }
}

fn stripe(of: &impl Hash) -> usize {
    let mut hasher = DefaultHasher::new();
    of.hash(&mut hasher);
    usize::try_from(hasher.finish() % STRIPES as u64).expect("fewer stripes than usize")
}

impl Inner {
    fn sessions(&self) -> MutexGuard<'_, BTreeMap<UploadId, Arc<Session>>> {
        self.sessions.lock().expect("nobody panics while holding the sessions")
    }

    /// Nobody deletes from the repository meanwhile; others may add to it.
    fn change(&self, repository: &Repository) -> RwLockReadGuard<'_, ()> {
        self.stripes[stripe(repository)].read().expect("nobody panics while changing a repository")
    }

    /// Nobody else changes the repository meanwhile.
    fn change_alone(&self, repository: &Repository) -> RwLockWriteGuard<'_, ()> {
        self.stripes[stripe(repository)].write().expect("nobody panics while changing a repository")
    }

    /// Nobody else moves these tags meanwhile. Each lock is taken once, and in order.
    fn hold_tags(&self, repository: &Repository, tags: &[Tag]) -> Vec<MutexGuard<'_, ()>> {
        let locks: BTreeSet<usize> = tags.iter().map(|tag| stripe(&(repository, tag))).collect();
        let lock = |at: usize| self.tag_locks[at].lock().expect("nobody panics while moving a tag");
        locks.into_iter().map(lock).collect()
    }

    fn blob_path(&self, digest: &Digest) -> PathBuf {
        let hex = digest.hex();
        self.dir.join("blobs").join(digest.algorithm().as_str()).join(&hex[..2]).join(&hex)
    }

    fn check_room(&self) -> Result<(), StoreError> {
        let stat = rustix::fs::statvfs(&self.dir).map_err(std::io::Error::from);
        let stat = stat.map_err(StoreError::io("ask for free space"))?;
        if stat.f_bavail.saturating_mul(stat.f_frsize) < self.free_bytes_min { Err(StoreError::Full) } else { Ok(()) }
    }
}

/// Runs `work` on a blocking thread. It runs to its end also when the caller goes away.
async fn blocking<T, E>(jobs: &TaskTracker, work: impl FnOnce() -> Result<T, E> + Send + 'static) -> Result<T, E>
where
    T: Send + 'static,
    E: From<StoreError> + Send + 'static,
{
    match jobs.spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(error) => Err(StoreError::failed("run to its end")(error).into()),
    }
}

/// Runs an expression on a blocking thread, with owned copies of what it borrows.
macro_rules! on_blocking {
    ($self:ident, [$($owned:ident),*], $inner:ident => $body:expr) => {{
        let $inner = Arc::clone(&$self.0);
        $(let $owned = $owned.clone();)*
        Box::pin(async move {
            let jobs = $inner.jobs.clone();
            blocking(&jobs, move || $body).await
        })
    }};
}

impl Store for Local {
    fn begin_upload<'a>(
        &'a self,
        by: &'a Uploader,
        holder: Holder,
        algorithm: Algorithm,
    ) -> Op<'a, UploadId, BeginError> {
        Box::pin(self.0.begin(by, holder, algorithm))
    }

    fn append<'a>(
        &'a self,
        by: &'a Uploader,
        upload: &'a UploadId,
        at: Option<u64>,
    ) -> Op<'a, Box<dyn Append>, AppendError> {
        let started = on_blocking!(self, [by, upload], inner => {
            let appender = inner.start_append(&by, &upload, at)?;
            Ok::<Box<dyn Append>, AppendError>(Box::new(appender))
        });
        Box::pin(async move {
            self.0.settled(upload).await;
            if self.0.is_in_memory(upload) {
                return Ok(Box::new(self.0.start_append(by, upload, at)?) as Box<dyn Append>);
            }
            started.await
        })
    }

    fn upload_len<'a>(&'a self, by: &'a Uploader, upload: &'a UploadId) -> Op<'a, u64, AppendError> {
        let len = on_blocking!(self, [by, upload], inner => inner.len_of_upload(&by, &upload));
        Box::pin(async move {
            self.0.settled(upload).await;
            len.await
        })
    }

    fn cancel_upload<'a>(&'a self, by: &'a Uploader, upload: &'a UploadId) -> Op<'a, (), AppendError> {
        on_blocking!(self, [by, upload], inner => inner.cancel(&by, &upload))
    }

    fn commit_upload<'a>(
        &'a self,
        by: &'a Uploader,
        upload: &'a UploadId,
        digest: Digest,
        sign: Sign,
    ) -> Op<'a, BlobInfo, CommitError> {
        let committed = on_blocking!(self, [by, upload], inner => inner.commit(&by, &upload, digest, &sign));
        Box::pin(async move {
            self.0.settled(upload).await;
            committed.await
        })
    }

    fn expire_uploads(&self, age_s: u64) -> Op<'_, usize> {
        on_blocking!(self, [], inner => inner.expire(age_s))
    }

    fn blob_info<'a>(&'a self, repository: &'a Repository, digest: Digest) -> Op<'a, Option<BlobInfo>> {
        on_blocking!(self, [repository], inner => inner.linked_info(&repository, &digest))
    }

    fn blob<'a>(&'a self, repository: &'a Repository, digest: Digest) -> Op<'a, Option<Blob>> {
        on_blocking!(self, [repository], inner => inner.read_blob(&repository, &digest))
    }

    fn link_blob<'a>(&'a self, from: &'a Repository, to: &'a Repository, digest: Digest) -> Op<'a, bool> {
        on_blocking!(self, [from, to], inner => inner.link(&from, &to, &digest))
    }

    fn unlink_blob<'a>(&'a self, repository: &'a Repository, digest: Digest) -> Op<'a, bool> {
        on_blocking!(self, [repository], inner => inner.unlink(&repository, &digest))
    }

    fn piece_hashes<'a>(&'a self, repository: &'a Repository, digest: Digest) -> Op<'a, Option<Bytes>> {
        on_blocking!(self, [repository], inner => inner.hashes(&repository, &digest))
    }

    fn infos<'a>(&'a self, repository: &'a Repository, digests: Vec<Digest>) -> Op<'a, Vec<BlobInfo>> {
        on_blocking!(self, [repository], inner => inner.infos_of(&repository, &digests))
    }

    fn put_manifest<'a>(
        &'a self,
        repository: &'a Repository,
        manifest: NewManifest,
        sign: Sign,
    ) -> Op<'a, (), PutManifestError> {
        on_blocking!(self, [repository], inner => inner.store_manifest(&repository, &manifest, &sign))
    }

    fn manifest<'a>(&'a self, repository: &'a Repository, digest: Digest) -> Op<'a, Option<Manifest>> {
        on_blocking!(self, [repository], inner => inner.read_manifest(&repository, &digest))
    }

    fn delete_manifest<'a>(&'a self, repository: &'a Repository, digest: Digest) -> Op<'a, Option<Vec<Tag>>> {
        on_blocking!(self, [repository], inner => inner.remove_manifest(&repository, &digest))
    }

    fn referrers<'a>(
        &'a self,
        repository: &'a Repository,
        digest: Digest,
        n: usize,
        last: Option<Digest>,
    ) -> Op<'a, Page<(Digest, Bytes)>> {
        on_blocking!(self, [repository], inner => inner.referrers_of(&repository, &digest, n, last))
    }

    fn tag<'a>(&'a self, repository: &'a Repository, tag: &'a Tag) -> Op<'a, Option<TagEntry>> {
        on_blocking!(self, [repository, tag], inner => inner.read_tag(&repository, &tag))
    }

    fn move_tag<'a>(
        &'a self,
        repository: &'a Repository,
        tag: &'a Tag,
        expected: Expected,
        to: Option<Digest>,
    ) -> Op<'a, Option<TagEntry>, MoveTagError> {
        on_blocking!(self, [repository, tag], inner => inner.swap_tag(&repository, &tag, expected, to))
    }

    fn tags<'a>(&'a self, repository: &'a Repository, n: usize, last: Option<&'a str>) -> Op<'a, Option<Page<String>>> {
        let last = last.map(str::to_owned);
        on_blocking!(self, [repository], inner => inner.list_tags(&repository, n, last.as_deref()))
    }

    fn repositories<'a>(&'a self, n: usize, last: Option<&'a str>) -> Op<'a, Page<String>> {
        let last = last.map(str::to_owned);
        on_blocking!(self, [], inner => inner.list_repositories(n, last.as_deref()))
    }

    fn secrets(&self) -> Op<'_, Option<Vec<u8>>> {
        on_blocking!(self, [], inner => inner.tables.get(Table::Meta, META_SECRETS))
    }

    fn put_secrets(&self, secrets: Vec<u8>) -> Op<'_, ()> {
        on_blocking!(self, [], inner => {
            let mut batch = inner.tables.batch();
            batch.put(Table::Meta, META_SECRETS, &secrets);
            batch.commit()
        })
    }

    fn fleet_record(&self, key: Vec<u8>) -> Op<'_, Option<Vec<u8>>> {
        on_blocking!(self, [], inner => inner.tables.get(Table::Fleet, &key))
    }

    fn swap_fleet_records(&self, swaps: Vec<Swap>) -> Op<'_, bool> {
        on_blocking!(self, [], inner => inner.swap_fleet(&swaps))
    }

    fn fleet_records(&self, prefix: Vec<u8>, after: Option<Vec<u8>>, n: usize) -> Op<'_, Page<FleetRecord>> {
        on_blocking!(self, [], inner => inner.list_fleet(&prefix, after.as_deref(), n))
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            let inner = Arc::clone(&self.0);
            let put_down = blocking(&self.0.jobs, move || inner.put_down_sessions()).await;
            if let Err(error) = put_down {
                tracing::warn!(%error, "uploads in work will have to be begun again");
            }
            self.0.jobs.close();
            self.0.jobs.wait().await;
        })
    }

    fn backup<'a>(&'a self, to: &'a Path) -> Op<'a, Backup> {
        let to = to.to_owned();
        on_blocking!(self, [], inner => inner.backup(&to))
    }

    fn collect(&self) -> Op<'_, Collected> {
        on_blocking!(self, [], inner => inner.collect())
    }

    fn scrub(&self, after: Option<Digest>) -> Op<'_, Scrubbed> {
        on_blocking!(self, [], inner => inner.scrub_after(after))
    }

    fn usage(&self) -> Vec<Usage> {
        self.0.quotas.usage()
    }

    fn counts(&self) -> Op<'_, Counts> {
        on_blocking!(self, [], inner => {
            Ok::<_, StoreError>(Counts {
                repositories: inner.tables.estimate(Table::Repository)?,
                blobs: inner.tables.estimate(Table::Blob)?,
                uploads: inner.tables.estimate(Table::Upload)?.max(inner.sessions().len() as u64),
            })
        })
    }
}
