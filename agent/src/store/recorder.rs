//! The threads that bring bits to the disk, behind the writers' backs.
//!
//! *recorder*: dirty blob → its have-row, no sync. *syncer*: once a [`DURABLE_INTERVAL`], fdatasync of every file with
//! recorded pieces that are not durable, then the rows that say so, then one sync of the log. *settler*: hashes again
//! what a crash of the machine left in doubt, then ends.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
};

use shoal_proto::Digest;

use super::{Blob, DURABLE_INTERVAL, Shared, files, tables::StoreError, verify};

/// What waits for the threads. Bounded by the blobs held: each appears at most once in a list.
#[derive(Debug, Default)]
pub(super) struct Queue {
    state: Mutex<Waiting>,
    recorder: Condvar,
    syncer: Condvar,
    pub(super) stopped: AtomicBool,
}

#[derive(Debug, Default)]
struct Waiting {
    /// With pieces that RocksDB does not know of.
    dirty: BTreeMap<Digest, Arc<Blob>>,
    /// With recorded pieces that no fdatasync has covered.
    volatile: BTreeMap<Digest, Arc<Blob>>,
    /// Used since their last access was written.
    touched: BTreeSet<Digest>,
}

impl Queue {
    fn state(&self) -> MutexGuard<'_, Waiting> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stopped(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }

    /// The blob has pieces, or lost some, that RocksDB should know of.
    pub(super) fn dirty(&self, blob: &Arc<Blob>) {
        // Without threads nobody would take it out, and blob and store would keep each other alive.
        if !self.stopped() {
            self.state().dirty.insert(*blob.digest(), blob.clone());
            self.recorder.notify_one();
        }
    }

    fn volatile(&self, blob: &Arc<Blob>) {
        if !self.stopped() {
            self.state().volatile.insert(*blob.digest(), blob.clone());
        }
    }

    pub(super) fn touched(&self, digest: Digest) {
        self.state().touched.insert(digest);
    }

    fn next_dirty(&self) -> Option<Vec<Arc<Blob>>> {
        let mut state = self.state();
        while state.dirty.is_empty() && !self.stopped() {
            state = self.recorder.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        (!self.stopped()).then(|| std::mem::take(&mut state.dirty).into_values().collect())
    }

    /// Waits one interval; false when the store stops.
    fn interval(&self) -> bool {
        let waited = self.syncer.wait_timeout_while(self.state(), DURABLE_INTERVAL, |_| !self.stopped());
        drop(waited.unwrap_or_else(PoisonError::into_inner));
        !self.stopped()
    }
}

/// The store's threads; dropping stops them at once, with nothing recorded or synced besides.
#[derive(Debug)]
pub(super) struct Threads {
    shared: Arc<Shared>,
    handles: Vec<JoinHandle<()>>,
}

impl Threads {
    pub(super) fn start(shared: &Arc<Shared>, doubtful: Vec<Digest>) -> Self {
        let mut handles = vec![
            spawn("shoal-recorder", shared, |shared| {
                while let Some(dirty) = shared.recorder.next_dirty() {
                    dirty.iter().for_each(|blob| shared.record_now(blob));
                }
            }),
            spawn("shoal-syncer", shared, |shared| {
                while shared.recorder.interval() {
                    if let Err(error) = shared.sync_volatile() {
                        tracing::error!(%error, "the store cannot make its state durable");
                    }
                }
            }),
        ];
        if !doubtful.is_empty() {
            tracing::info!(
                blobs = doubtful.len(),
                "the machine went down: verifying what may not have reached the disk"
            );
            handles.push(spawn("shoal-settler", shared, move |shared| {
                for digest in &doubtful {
                    if shared.recorder.stopped() {
                        return;
                    }
                    if let Some(blob) = shared.open_blob(digest) {
                        verify::settle(&blob);
                    }
                }
            }));
        }
        Self { shared: shared.clone(), handles }
    }
}

fn spawn(name: &str, shared: &Arc<Shared>, run: impl FnOnce(&Arc<Shared>) + Send + 'static) -> JoinHandle<()> {
    let shared = shared.clone();
    let thread = thread::Builder::new().name(name.to_owned()).spawn(move || run(&shared));
    thread.expect("a process that cannot start a thread cannot serve either")
}

impl Drop for Threads {
    fn drop(&mut self) {
        let queue = &self.shared.recorder;
        let state = queue.state();
        queue.stopped.store(true, Ordering::Release);
        drop(state);
        queue.recorder.notify_all();
        queue.syncer.notify_all();
        for handle in self.handles.drain(..) {
            if handle.join().is_err() {
                tracing::error!("a thread of the store has panicked");
            }
        }
        let mut state = queue.state();
        let left = (std::mem::take(&mut state.dirty), std::mem::take(&mut state.volatile));
        drop(state);
        drop(left);
    }
}

impl Shared {
    /// Writes the blob's bits to RocksDB, without a sync.
    pub(super) fn record_now(&self, blob: &Arc<Blob>) {
        if let Err(error) = self.record(blob) {
            tracing::error!(digest = %blob.digest(), %error, "verified pieces cannot be recorded");
        }
    }

    pub(super) fn record(&self, blob: &Arc<Blob>) -> Result<(), StoreError> {
        let _recording = blob.recording.lock().unwrap_or_else(PoisonError::into_inner);
        let (row, unrecorded, volatile) = {
            let bits = blob.bits();
            if bits.gone {
                return Ok(());
            }
            (bits.row(&self.config.boot_id), bits.unrecorded, bits.have.len() > bits.durable.len())
        };
        self.tables.put_have(blob.digest(), &row)?;
        blob.bits().unrecorded -= unrecorded;
        if volatile {
            self.recorder.volatile(blob);
        }
        Ok(())
    }

    /// Makes recorded pieces durable, writes last accesses, and syncs the log; nothing if there is nothing.
    fn sync_volatile(&self) -> Result<(), StoreError> {
        let (volatile, touched) = {
            let mut state = self.recorder.state();
            (std::mem::take(&mut state.volatile), std::mem::take(&mut state.touched))
        };
        if volatile.is_empty() && touched.is_empty() {
            return Ok(());
        }
        for blob in volatile.values() {
            self.make_durable(blob)?;
        }
        let access: Vec<_> = {
            let index = self.index();
            touched.iter().filter_map(|d| index.entries.get(d).map(|entry| (*d, entry.last_access))).collect()
        };
        self.tables.put_access(&access)?;
        if volatile.is_empty() { Ok(()) } else { self.tables.sync() }
    }

    /// After a failed fdatasync the kernel forgets which pages were dirty: the pieces stay volatile for good, and are
    /// hashed again after the next start of the machine.
    fn make_durable(&self, blob: &Arc<Blob>) -> Result<(), StoreError> {
        let failed = |error| StoreError::Sync { digest: *blob.digest(), error };
        let have = blob.have();
        blob.file().sync_data().map_err(failed)?;
        if !blob.name_synced.swap(true, Ordering::AcqRel) {
            files::sync_name(&self.config.dir, blob.digest()).map_err(failed)?;
        }
        {
            let mut bits = blob.bits();
            for piece in have.iter() {
                if bits.have.contains(piece) {
                    bits.durable.insert(piece);
                }
            }
        }
        self.record(blob)
    }

    /// Records and syncs everything.
    pub(super) fn sync_all(&self) -> Result<(), StoreError> {
        let dirty = std::mem::take(&mut self.recorder.state().dirty);
        for blob in dirty.values() {
            self.record(blob)?;
        }
        self.sync_volatile()?;
        self.tables.sync()
    }

    pub(super) fn update_stored(&self, blob: &Blob) {
        let mut index = self.index();
        let stored = blob.bits().have.len();
        if let Some(entry) = index.entries.get_mut(blob.digest()) {
            entry.stored = stored;
        }
    }
}
