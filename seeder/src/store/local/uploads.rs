//! Upload sessions, and how they become blobs.
//!
//! A session's bytes are hashed as they are written, SHA-2 and BLAKE3 in one pass, on blocking threads. The first
//! [`INLINE_MAX`] bytes stay in memory, so that a small blob costs one write in all, when it is whole; beyond, they are in
//! `uploads/<session>`, and the session has a record. After a crash it is found by that, and its hashers are rebuilt from its
//! file; one that was still small is begun again by its client. A process that stops in order puts all of them down.

use std::{
    fs::{self, File, OpenOptions},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use shoal_proto::{
    Digest,
    digest::Algorithm,
    layout::TooLarge,
    name::Repository,
    oci::UploadId,
    signed::{Blake3, Statement},
    tree::{BlobHasher, PieceHashes},
};
use tokio::sync::OwnedSemaphorePermit;

use super::{
    Inner, blocking,
    session::{Session, State, rehash},
    tables::{BlobRecord, OldUploadRecord, Place, Table, UploadRecord, digest_key, holder_key, repository_key},
};
use crate::{
    store::{AppendError, BeginError, BlobInfo, CommitError, Holder, Sign, StoreError, Uploader},
    time::unix_seconds,
};

/// Blobs up to this length in bytes are stored in the database: a file each would cost more than it holds.
pub(crate) const INLINE_MAX: usize = 64 << 10;
/// Open upload sessions. Each costs a few KiB, and 64 KiB while it is small.
pub(crate) const UPLOADS_MAX: usize = 1024;
/// Those of one holder: a client pushes a handful of layers at a time, and who leaves its sessions open keeps nobody else
/// from pushing.
pub(crate) const UPLOADS_OF_ONE_MAX: usize = UPLOADS_MAX / 4;
/// A session that was idle for so many seconds makes room for a new one when there are too many.
const EVICT_IDLE_S: u64 = 600;
/// How long a request waits for another that adds bytes to the same upload: writing a batch takes no longer.
const CLAIM_PATIENCE: Duration = Duration::from_secs(2);

impl Inner {
    fn upload_path(&self, upload: &UploadId) -> PathBuf {
        self.dir.join("uploads").join(upload.as_str())
    }

    /// The session of an earlier process.
    fn old_session(&self, upload: &UploadId, record: &UploadRecord) -> Arc<Session> {
        let algorithm = if record.sha512 { Algorithm::Sha512 } else { Algorithm::Sha256 };
        let by = Uploader { repository: record.repository.clone(), user: record.user.clone() };
        Arc::new(Session::new(by, None, algorithm, self.upload_path(upload)))
    }

    /// Begins a session. Only where there are too many is the disk touched, to make room.
    pub(super) async fn begin(
        self: &Arc<Self>,
        by: &Uploader,
        holder: Holder,
        algorithm: Algorithm,
    ) -> Result<UploadId, BeginError> {
        loop {
            let full = match self.try_begin(by, &holder, algorithm) {
                Err(full @ (BeginError::TooMany | BeginError::TooManyOfOne(_))) => full,
                done => return done,
            };
            let (inner, whose) = (Arc::clone(self), holder.clone());
            let its_own = matches!(full, BeginError::TooManyOfOne(_));
            let make_room = move || inner.make_room(its_own.then_some(&whose));
            if !blocking(&self.jobs, make_room).await? {
                return Err(full);
            }
        }
    }

    /// The same where there is room: a session is a thing of memory.
    pub(super) fn try_begin(
        &self,
        by: &Uploader,
        holder: &Holder,
        algorithm: Algorithm,
    ) -> Result<UploadId, BeginError> {
        self.check_room()?;
        let mut name = [0; 16];
        getrandom::fill(&mut name).map_err(|error| StoreError::failed("draw a random name")(error.to_string()))?;
        let upload: UploadId = hex::encode(name).parse().expect("hex digits are a valid name");
        let session = Session::new(by.clone(), Some(holder.clone()), algorithm, self.upload_path(&upload));
        let mut sessions = self.sessions();
        if sessions.values().filter(|session| session.is_of(holder)).count() >= UPLOADS_OF_ONE_MAX {
            return Err(BeginError::TooManyOfOne(UPLOADS_OF_ONE_MAX));
        }
        if sessions.len() >= UPLOADS_MAX {
            return Err(BeginError::TooMany);
        }
        sessions.insert(upload.clone(), Arc::new(session));
        Ok(upload)
    }

    /// Sees to it that a later process finds the session.
    fn record(&self, upload: &UploadId, session: &Session) -> Result<(), StoreError> {
        if session.is_recorded() {
            return Ok(());
        }
        let Uploader { repository, user } = session.by.clone();
        let sha512 = session.algorithm == Algorithm::Sha512;
        let mut batch = self.tables.batch();
        let record = UploadRecord { repository, user, sha512, began: unix_seconds() };
        batch.put_record(Table::Upload, upload.as_str().as_bytes(), &record);
        batch.commit_later()?;
        session.set_recorded();
        Ok(())
    }

    /// Adds bytes to a session. The caller holds its claim.
    pub(super) fn write(&self, upload: &UploadId, session: &Session, parts: &[Bytes]) -> Result<(), StoreError> {
        self.check_room()?;
        let len: usize = parts.iter().map(Bytes::len).sum();
        self.check_length(session, len as u64)?;
        if !session.stays_in_memory(len) {
            self.record(upload, session)?;
        }
        session.write(parts)
    }

    /// Puts down what is in memory alone, so that the process that comes after goes on with it.
    pub(super) fn put_down_sessions(&self) -> Result<(), StoreError> {
        for (upload, session) in &*self.sessions() {
            self.record(upload, session)?;
            session.put_down()?;
        }
        Ok(())
    }

    /// Cancels the session that was idle for longest, of those of `holder` if one is given, if it was idle for long enough.
    fn make_room(&self, holder: Option<&Holder>) -> Result<bool, StoreError> {
        let idle_since = unix_seconds().saturating_sub(EVICT_IDLE_S);
        let oldest = self
            .sessions()
            .iter()
            .filter(|(_, session)| holder.is_none_or(|holder| session.is_of(holder)))
            .map(|(upload, session)| (session.touched(), upload, session))
            .min_by_key(|(touched, ..)| *touched)
            .filter(|(touched, ..)| *touched <= idle_since)
            .map(|(_, upload, session)| (upload.clone(), session.by.clone()));
        let Some((upload, by)) = oldest else { return Ok(false) };
        match self.cancel(&by, &upload) {
            Ok(()) => Ok(true),
            Err(AppendError::Store(error)) => Err(error),
            Err(AppendError::Busy | AppendError::Unknown | AppendError::Offset { .. }) => Ok(false),
        }
    }

    /// The session of that name, if it is of that client and repository; also one of an earlier process.
    fn session(&self, by: &Uploader, upload: &UploadId) -> Result<Option<Arc<Session>>, StoreError> {
        // Locked over look-up and insertion: a session that ends meanwhile must not come back.
        let mut sessions = self.sessions();
        let session = match sessions.get(upload) {
            Some(session) => Arc::clone(session),
            None => {
                let Some(record) = self.tables.record::<UploadRecord>(Table::Upload, upload.as_str().as_bytes())?
                else {
                    return Ok(None);
                };
                let session = self.old_session(upload, &record);
                sessions.insert(upload.clone(), Arc::clone(&session));
                session
            }
        };
        drop(sessions);
        if session.by != *by {
            return Ok(None);
        }
        session.touch();
        Ok(Some(session))
    }

    /// Waits a little until nobody adds bytes to an upload: a client whose connection broke comes back at once, while the
    /// last of what it sent is still being written.
    pub(super) async fn settled(&self, upload: &UploadId) {
        let claim = self.sessions().get(upload).map(|session| Arc::clone(&session.claim));
        if let Some(claim) = claim {
            let _free_or_late = tokio::time::timeout(CLAIM_PATIENCE, claim.acquire()).await;
        }
    }

    /// Whether what the session holds is in memory, as are all answers about it.
    pub(super) fn is_in_memory(&self, upload: &UploadId) -> bool {
        self.sessions().get(upload).is_some_and(|session| session.stays_in_memory(0))
    }

    pub(super) fn claim(
        &self,
        by: &Uploader,
        upload: &UploadId,
    ) -> Result<(Arc<Session>, OwnedSemaphorePermit), AppendError> {
        let session = self.session(by, upload)?.ok_or(AppendError::Unknown)?;
        let claim = Arc::clone(&session.claim).try_acquire_owned().map_err(|_| AppendError::Busy)?;
        // Whoever held the claim before may have ended the session.
        if self.sessions().contains_key(upload) { Ok((session, claim)) } else { Err(AppendError::Unknown) }
    }

    pub(super) fn len_of_upload(&self, by: &Uploader, upload: &UploadId) -> Result<u64, AppendError> {
        let session = self.session(by, upload)?.ok_or(AppendError::Unknown)?;
        Ok(session.len()?)
    }

    pub(super) fn cancel(&self, by: &Uploader, upload: &UploadId) -> Result<(), AppendError> {
        let (_session, _claim) = self.claim(by, upload)?;
        self.forget(upload)?;
        Ok(())
    }

    /// Ends a session. The caller holds its claim.
    fn forget(&self, upload: &UploadId) -> Result<(), StoreError> {
        let recorded = self.sessions().get(upload).is_some_and(|session| session.is_recorded());
        if recorded {
            let mut batch = self.tables.batch();
            batch.delete(Table::Upload, upload.as_str().as_bytes());
            batch.commit_later()?;
        }
        self.sessions().remove(upload);
        if recorded { remove_if_there(&self.upload_path(upload)) } else { Ok(()) }
    }

    /// Takes over the sessions of a store of the first format.
    pub(super) fn move_old_uploads(&self) -> Result<(), StoreError> {
        self.pages(Table::OldUpload, |inner, key, value| {
            let OldUploadRecord { repository, sha512, began } =
                super::tables::decode(value).map_err(StoreError::failed("understand a record"))?;
            let mut batch = inner.tables.batch();
            batch.put_record(Table::Upload, key, &UploadRecord { repository, user: None, sha512, began });
            batch.delete(Table::OldUpload, key);
            batch.commit_later()
        })
    }

    pub(super) fn expire(&self, age_s: u64) -> Result<usize, StoreError> {
        let oldest = unix_seconds().saturating_sub(age_s);
        let mut old = Vec::new();
        for item in self.tables.scan(Table::Upload, b"", b"") {
            let (key, value) = item?;
            let record: UploadRecord =
                super::tables::decode(&value).map_err(StoreError::failed("understand a record"))?;
            let Some(upload) = std::str::from_utf8(&key).ok().and_then(|name| name.parse::<UploadId>().ok()) else {
                continue;
            };
            let touched = self.sessions().get(&upload).map(|session| session.touched());
            if touched.unwrap_or(record.began) <= oldest {
                old.push((Uploader { repository: record.repository, user: record.user }, upload));
            }
        }
        for (upload, session) in &*self.sessions() {
            if !session.is_recorded() && session.touched() <= oldest {
                old.push((session.by.clone(), upload.clone()));
            }
        }
        let mut cancelled = 0;
        for (by, upload) in old {
            match self.cancel(&by, &upload) {
                Ok(()) => cancelled += 1,
                Err(AppendError::Store(error)) => return Err(error),
                Err(AppendError::Busy | AppendError::Unknown | AppendError::Offset { .. }) => {}
            }
        }
        Ok(cancelled)
    }

    /// Removes files in `uploads` that belong to no session: a crash between two steps leaves them.
    pub(super) fn remove_stray_uploads(&self) -> Result<usize, StoreError> {
        let mut removed = 0;
        for entry in fs::read_dir(self.dir.join("uploads")).map_err(StoreError::io("list uploads"))? {
            let entry = entry.map_err(StoreError::io("list uploads"))?;
            let known = match entry.file_name().to_str() {
                Some(name) => self.tables.has(Table::Upload, name.as_bytes())?,
                None => false,
            };
            if !known {
                remove_if_there(&entry.path())?;
                removed += 1;
            }
        }
        Ok(removed)
    }

    pub(super) fn commit(
        &self,
        by: &Uploader,
        upload: &UploadId,
        digest: Digest,
        sign: &Sign,
    ) -> Result<BlobInfo, CommitError> {
        let (session, _claim) = self.claim(by, upload).map_err(|error| match error {
            AppendError::Unknown | AppendError::Offset { .. } => CommitError::Unknown,
            AppendError::Busy => CommitError::Busy,
            AppendError::Store(error) => CommitError::Store(error),
        })?;
        let (state, path) = session.state()?;
        let found = if digest.algorithm() == session.algorithm {
            state.sha.clone().finish()
        } else {
            rehash(&state, &path, digest.algorithm())?
        };
        if found != digest {
            self.forget(upload)?;
            return Err(CommitError::Digest { found: Box::new(found) });
        }
        let recorded = session.is_recorded().then_some(upload);
        let info = self.keep(&by.repository, recorded, digest, state, &path, sign)?;
        self.sessions().remove(upload);
        if recorded.is_some() {
            remove_if_there(&path)?;
        }
        Ok(info)
    }

    /// Stores verified content: first its bytes, then, in one batch, all records of it; that of the `upload` goes with it.
    fn keep(
        &self,
        repository: &Repository,
        upload: Option<&UploadId>,
        digest: Digest,
        state: State,
        path: &PathBuf,
        sign: &Sign,
    ) -> Result<BlobInfo, StoreError> {
        let _collector_waits = self.rely(&digest);
        self.touch(repository, &digest);
        let _charged = self.charge(repository, &digest, state.tree.len())?;
        let mut batch = self.tables.batch();
        batch.put(Table::Link, &repository_key(repository, &digest_key(&digest)), b"");
        batch.put(Table::Holder, &holder_key(&digest, Table::Link, repository.as_str()), b"");
        batch.put(Table::Repository, repository.as_str().as_bytes(), b"");
        if let Some(upload) = upload {
            batch.delete(Table::Upload, upload.as_str().as_bytes());
        }
        if let Some(known) = self.info(&digest)? {
            batch.commit()?;
            return Ok(known);
        }
        let place = if state.small.is_some() { Place::Table } else { Place::File };
        let (info, hashes) = facts(digest, state.tree, sign).map_err(StoreError::failed("store a blob so large"))?;
        match &state.small {
            Some(small) => batch.put(Table::Content, &digest_key(&digest), small),
            None => self.place_file(path, &digest, info.size)?,
        }
        put_facts(&mut batch, &info, &hashes, place);
        batch.commit()?;
        Ok(info)
    }

    /// Moves a complete upload to its blob's place, and returns when both its bytes and its name are on the disk. The two are
    /// waited for at once: a name whose bytes a crash took has no record either, and is a stray.
    fn place_file(&self, path: &PathBuf, digest: &Digest, size: u64) -> Result<(), StoreError> {
        let file = OpenOptions::new().write(true).open(path).map_err(StoreError::io("open an upload"))?;
        // A failed write may have left bytes past the end.
        file.set_len(size).map_err(StoreError::io("cut an upload"))?;
        let target = self.blob_path(digest);
        let parent = target.parent().expect("a blob lies in a directory");
        fs::rename(path, &target).map_err(StoreError::io("place a blob"))?;
        let (bytes, name) = std::thread::scope(|both| {
            let name = both.spawn(|| sync_dir(parent));
            (file.sync_data(), name.join())
        });
        bytes.map_err(StoreError::io("sync an upload"))?;
        name.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

/// What is known of content after its last byte: root, piece hashes, statement.
pub(super) fn facts(digest: Digest, tree: BlobHasher, sign: &Sign) -> Result<(BlobInfo, PieceHashes), TooLarge> {
    let size = tree.len();
    let (root, hashes): (Blake3, PieceHashes) = tree.finish()?;
    let statement = sign(&Statement { digest, size, root });
    Ok((BlobInfo { digest, size, root, statement }, hashes))
}

pub(super) fn put_facts(batch: &mut super::tables::Batch<'_>, info: &BlobInfo, hashes: &PieceHashes, place: Place) {
    let key = digest_key(&info.digest);
    let record = BlobRecord { size: info.size, root: info.root, place, statement: info.statement.clone() };
    batch.put_record(Table::Blob, &key, &record);
    if hashes.as_slice().len() > 1 {
        batch.put(Table::Hashes, &key, hashes.as_slice().as_flattened());
    }
}

fn remove_if_there(path: &PathBuf) -> Result<(), StoreError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(StoreError::io("remove an upload")(error)),
        _ => Ok(()),
    }
}

pub(super) fn sync_dir(path: &std::path::Path) -> Result<(), StoreError> {
    let sync = || File::open(path)?.sync_all();
    sync().map_err(StoreError::io("sync a directory"))
}
