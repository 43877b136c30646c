//! One upload session: its bytes, and their hashes so far.

use std::{
    fs::{File, OpenOptions},
    io::Read as _,
    os::unix::fs::FileExt as _,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use bytes::{Bytes, BytesMut};
use shoal_proto::{Digest, digest::Algorithm, tree::BlobHasher};
use tokio::sync::Semaphore;

use super::uploads::INLINE_MAX;
use crate::{
    hash::Sha,
    store::{Holder, StoreError, Uploader},
    time::unix_seconds,
};

/// Buffer for reading a session's file again.
const REREAD_LEN: usize = 256 << 10;

/// One upload session.
#[derive(Debug)]
pub(super) struct Session {
    /// Who may find it.
    pub(super) by: Uploader,
    /// In whose share it counts; none if an earlier process began it.
    holder: Option<Holder>,
    pub(super) algorithm: Algorithm,
    writer: Mutex<Writer>,
    /// One permit: the right to add bytes or to end the session.
    pub(super) claim: Arc<Semaphore>,
    /// When it was last used, in seconds since 1970.
    touched: AtomicU64,
    /// Whether it has a record, by which a later process finds it.
    recorded: AtomicBool,
    /// Bytes of it may not have reached the disk, and the system tells of that only once.
    broken: AtomicBool,
}

/// The bytes of a session and their hashes so far.
#[derive(Debug)]
struct Writer {
    path: PathBuf,
    /// None until a session of an earlier process was read again.
    state: Option<State>,
}

#[derive(Debug, Clone)]
pub(super) struct State {
    pub(super) sha: Sha,
    pub(super) tree: BlobHasher,
    /// The bytes, until they are too many.
    pub(super) small: Option<BytesMut>,
}

impl State {
    fn new(algorithm: Algorithm) -> Self {
        Self { sha: Sha::new(algorithm), tree: BlobHasher::new(), small: Some(BytesMut::new()) }
    }

    fn hash(&mut self, data: &[u8]) {
        self.sha.update(data);
        self.tree.update(data);
    }
}

impl Writer {
    fn state(&mut self, algorithm: Algorithm) -> Result<&mut State, StoreError> {
        if self.state.is_none() {
            self.state = Some(self.reread(algorithm)?);
        }
        Ok(self.state.as_mut().expect("just made"))
    }

    /// The state of a session that an earlier process left: whatever its file holds.
    fn reread(&self, algorithm: Algorithm) -> Result<State, StoreError> {
        let mut state = State::new(algorithm);
        let mut file = match File::open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(state),
            Err(error) => return Err(StoreError::io("open an upload")(error)),
        };
        let mut buffer = vec![0; REREAD_LEN];
        loop {
            match file.read(&mut buffer).map_err(StoreError::io("read an upload"))? {
                0 => break,
                len => state.hash(&buffer[..len]),
            }
        }
        state.small = None;
        Ok(state)
    }

    /// Writes `parts` after what is there. On an error nothing of them counts, and the next write goes over them.
    fn write(&mut self, algorithm: Algorithm, parts: &[Bytes]) -> Result<(), StoreError> {
        let path = self.path.clone();
        let state = self.state(algorithm)?;
        let len: usize = parts.iter().map(Bytes::len).sum();
        if let Some(small) = &mut state.small {
            if small.len() + len <= INLINE_MAX {
                parts.iter().for_each(|part| small.extend_from_slice(part));
                parts.iter().for_each(|part| state.hash(part));
                return Ok(());
            }
            let file = open_for_write(&path)?;
            file.write_all_at(small, 0).map_err(StoreError::io("write an upload"))?;
        }
        let file = open_for_write(&path)?;
        let mut at = state.tree.len();
        for part in parts {
            file.write_all_at(part, at).map_err(StoreError::io("write an upload"))?;
            at += part.len() as u64;
        }
        parts.iter().for_each(|part| state.hash(part));
        state.small = None;
        Ok(())
    }
}

fn open_for_write(path: &PathBuf) -> Result<File, StoreError> {
    OpenOptions::new().create(true).truncate(false).write(true).open(path).map_err(StoreError::io("open an upload"))
}

impl Session {
    /// Of `holder`, and nothing was written to `path` yet. Without one an earlier process began it, and may have written.
    pub(super) fn new(by: Uploader, holder: Option<Holder>, algorithm: Algorithm, path: PathBuf) -> Self {
        let fresh = holder.is_some();
        Self {
            by,
            holder,
            algorithm,
            writer: Mutex::new(Writer { path, state: fresh.then(|| State::new(algorithm)) }),
            claim: Arc::new(Semaphore::new(1)),
            touched: AtomicU64::new(unix_seconds()),
            recorded: AtomicBool::new(!fresh),
            broken: AtomicBool::new(false),
        }
    }

    pub(super) fn is_of(&self, holder: &Holder) -> bool {
        self.holder.as_ref() == Some(holder)
    }

    fn writer(&self) -> MutexGuard<'_, Writer> {
        self.writer.lock().expect("nobody panics while writing an upload")
    }

    /// Bytes that the session holds.
    pub(super) fn len(&self) -> Result<u64, StoreError> {
        Ok(self.writer().state(self.algorithm)?.tree.len())
    }

    /// Adds bytes. The caller holds the claim.
    pub(super) fn write(&self, parts: &[Bytes]) -> Result<(), StoreError> {
        self.touch();
        self.writer().write(self.algorithm, parts)
    }

    /// Has what was written reach the disk while more comes in: less is left to wait for at the end.
    pub(super) fn sync_early(&self) -> Result<(), StoreError> {
        let path = self.writer().path.clone();
        let synced = File::open(path).and_then(|file| file.sync_data());
        self.broken.fetch_or(synced.is_err(), Ordering::Relaxed);
        synced.map_err(StoreError::io("sync an upload"))
    }

    /// All that was computed so far, and the file. The caller holds the claim.
    pub(super) fn state(&self) -> Result<(State, PathBuf), StoreError> {
        if self.broken.load(Ordering::Relaxed) {
            return Err(StoreError::failed("keep an upload")("bytes of it could not be synced; upload it again"));
        }
        let mut writer = self.writer();
        Ok((writer.state(self.algorithm)?.clone(), writer.path.clone()))
    }

    /// Whether adding `more` bytes touches no disk.
    pub(super) fn stays_in_memory(&self, more: usize) -> bool {
        let small = |state: &State| state.small.as_ref().is_some_and(|small| small.len() + more <= INLINE_MAX);
        self.writer.try_lock().is_ok_and(|writer| writer.state.as_ref().is_some_and(small))
    }

    /// Whether it has a record.
    pub(super) fn is_recorded(&self) -> bool {
        self.recorded.load(Ordering::Relaxed)
    }

    /// It has one now.
    pub(super) fn set_recorded(&self) {
        self.recorded.store(true, Ordering::Relaxed);
    }

    /// Puts what is in memory into its file, for the process that comes after.
    pub(super) fn put_down(&self) -> Result<(), StoreError> {
        let mut writer = self.writer();
        let path = writer.path.clone();
        if let Some(small) = writer.state(self.algorithm)?.small.as_ref().filter(|small| !small.is_empty()) {
            open_for_write(&path)?.write_all_at(small, 0).map_err(StoreError::io("write an upload"))?;
        }
        Ok(())
    }

    pub(super) fn touch(&self) {
        self.touched.store(unix_seconds(), Ordering::Relaxed);
    }

    /// When it was last used, in seconds since 1970.
    pub(super) fn touched(&self) -> u64 {
        self.touched.load(Ordering::Relaxed)
    }
}

/// The digest that was asked for is of another algorithm than the one that ran along: one more pass.
pub(super) fn rehash(state: &State, path: &PathBuf, algorithm: Algorithm) -> Result<Digest, StoreError> {
    if let Some(small) = &state.small {
        return Ok(Sha::of(algorithm, small));
    }
    let mut file = File::open(path).map_err(StoreError::io("open an upload"))?.take(state.tree.len());
    let mut sha = Sha::new(algorithm);
    let mut buffer = vec![0; REREAD_LEN];
    loop {
        match file.read(&mut buffer).map_err(StoreError::io("read an upload"))? {
            0 => return Ok(sha.finish()),
            len => sha.update(&buffer[..len]),
        }
    }
}
