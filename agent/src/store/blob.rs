//! One blob: its file, its bits, and the writers that set them.
//!
//! **Invariant.** A piece is in at most one of *have* (verified, may be read), *writing* (one writer holds it) and
//! *doubtful* (recorded before a crash of the machine, not yet hashed again); else it is missing. Only
//! [`PieceWriter::finish`] and the verifier move a piece to *have*.

use std::{
    collections::BTreeSet,
    fs::File,
    io,
    os::unix::fs::FileExt,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::AtomicBool},
};

use shoal_proto::{
    Digest,
    envelope::Envelope,
    have::HaveSet,
    layout::{Layout, PieceIndex},
    signed::Statement,
    tree::{PieceHasher, PieceHashes},
};
use tokio::sync::watch;

use super::{OpenedStatement, Shared, UNRECORDED_PIECES_MAX, files};

/// A blob in the store, whole or in part.
pub struct Blob {
    signed: OpenedStatement,
    hashes: PieceHashes,
    file: Arc<File>,
    bits: Mutex<Bits>,
    /// Held while a snapshot of the bits goes to RocksDB, so that an older one never overwrites a newer.
    pub(super) recording: Mutex<()>,
    /// Held while doubtful pieces are hashed again.
    pub(super) settling: Mutex<()>,
    /// Whether the file's name survives a power loss.
    pub(super) name_synced: AtomicBool,
    progress: watch::Sender<Progress>,
    shared: Arc<Shared>,
}

/// Where the pieces stand.
#[derive(Debug, Clone)]
pub(super) struct Bits {
    pub(super) have: HaveSet,
    /// A handful at any time.
    pub(super) writing: BTreeSet<PieceIndex>,
    pub(super) doubtful: HaveSet,
    /// A subset of `have` whose bytes an fdatasync has covered.
    pub(super) durable: HaveSet,
    /// Pieces of `have` that RocksDB does not know of.
    pub(super) unrecorded: u32,
    /// Guards held.
    pub(super) uses: u32,
    /// Evicted or removed: the file has no name any more.
    pub(super) gone: bool,
}

/// What readers of a blob wait for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// Verified pieces.
    pub stored: u32,
    /// Whether all are.
    pub complete: bool,
    /// Whether the blob was evicted or removed.
    pub gone: bool,
    /// The last failure. A reader that sees another number than when it began gives up.
    pub failure: Option<Failure>,
}

/// The fetch of a blob failed; a later one may succeed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Counts the failures of this blob since it was opened, from 1.
    pub number: u64,
    /// What failed, for the client's log.
    pub reason: Arc<str>,
}

impl Blob {
    pub(super) fn new(
        shared: Arc<Shared>,
        signed: OpenedStatement,
        hashes: PieceHashes,
        file: File,
        bits: Bits,
    ) -> Arc<Self> {
        let progress =
            Progress { stored: bits.have.len(), complete: bits.have.is_complete(), gone: false, failure: None };
        Arc::new(Self {
            signed,
            hashes,
            file: Arc::new(file),
            bits: Mutex::new(bits),
            recording: Mutex::new(()),
            settling: Mutex::new(()),
            name_synced: AtomicBool::new(false),
            progress: watch::Sender::new(progress),
            shared,
        })
    }

    /// Its digest.
    #[must_use]
    pub const fn digest(&self) -> &Digest {
        &self.signed.statement.digest
    }

    /// Its statement.
    #[must_use]
    pub const fn statement(&self) -> &Statement {
        &self.signed.statement
    }

    /// The statement as signed.
    #[must_use]
    pub const fn envelope(&self) -> &Envelope {
        &self.signed.envelope
    }

    /// Both.
    #[must_use]
    pub const fn signed(&self) -> &OpenedStatement {
        &self.signed
    }

    /// Its cut into pieces.
    #[must_use]
    pub const fn layout(&self) -> &Layout {
        self.hashes.layout()
    }

    /// What its pieces must hash to.
    #[must_use]
    pub const fn hashes(&self) -> &PieceHashes {
        &self.hashes
    }

    /// The file, for `pread` and `sendfile`. Bytes outside verified pieces are garbage: ask [`Blob::has`] first, and
    /// hold a [`Blob::guard`] while reading.
    #[must_use]
    pub const fn file(&self) -> &Arc<File> {
        &self.file
    }

    /// The verified pieces, as they are now.
    #[must_use]
    pub fn have(&self) -> HaveSet {
        self.bits().have.clone()
    }

    /// Whether `piece` is verified.
    #[must_use]
    pub fn has(&self, piece: PieceIndex) -> bool {
        self.bits().have.contains(piece)
    }

    /// Whether all pieces are verified (true for an empty blob).
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.bits().have.is_complete()
    }

    /// Whether it was evicted or removed; then it has no pieces and takes none.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        self.bits().gone
    }

    /// The end of the verified bytes that start at `offset`: `offset` itself if its piece is missing.
    #[must_use]
    pub fn verified_until(&self, offset: u64) -> u64 {
        let layout = self.layout();
        let bits = self.bits();
        let mut end = offset;
        while let Some(piece) = layout.piece_at(end).filter(|&piece| bits.have.contains(piece)) {
            end = layout.range(piece).end;
        }
        end
    }

    /// The right to write `piece`, or `None` while another has it, it is stored or in doubt, or the blob is gone.
    /// Dropping the writer gives the right back.
    #[must_use]
    pub fn writer(self: &Arc<Self>, piece: PieceIndex) -> Option<PieceWriter> {
        let mut bits = self.bits();
        if bits.gone || bits.have.contains(piece) || bits.doubtful.contains(piece) || !bits.writing.insert(piece) {
            return None;
        }
        drop(bits);
        Some(PieceWriter {
            hasher: PieceHasher::new(self.layout(), piece),
            blob: self.clone(),
            piece,
            written: 0,
            done: false,
        })
    }

    /// Keeps the blob from being evicted.
    #[must_use]
    pub fn guard(self: &Arc<Self>) -> InUse {
        self.bits().uses += 1;
        InUse { blob: self.clone() }
    }

    /// Wakes at every newly verified piece, at failures, and when the blob goes. Values coalesce: look at
    /// [`Blob::has`] after each.
    #[must_use]
    pub fn changed(&self) -> watch::Receiver<Progress> {
        self.progress.subscribe()
    }

    /// Tells everybody who waits for pieces that the fetch has failed.
    pub fn fail(&self, reason: &str) {
        self.progress.send_modify(|progress| {
            let number = progress.failure.as_ref().map_or(1, |failure| failure.number + 1);
            progress.failure = Some(Failure { number, reason: reason.into() });
        });
    }

    pub(super) fn bits(&self) -> MutexGuard<'_, Bits> {
        self.bits.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) const fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// `piece` was verified by whoever has it in `writing`.
    pub(super) fn verified(self: &Arc<Self>, piece: PieceIndex) -> Verified {
        let mut bits = self.bits();
        bits.writing.remove(&piece);
        if bits.gone {
            return Verified { piece, complete: false };
        }
        bits.have.insert(piece);
        bits.unrecorded += 1;
        let (complete, behind) = (bits.have.is_complete(), bits.unrecorded >= UNRECORDED_PIECES_MAX);
        drop(bits);
        self.publish();
        if behind {
            self.shared.record_now(self);
        } else {
            self.shared.recorder.dirty(self);
        }
        Verified { piece, complete }
    }

    /// Tells readers and the index how many pieces there are.
    pub(super) fn publish(&self) {
        self.shared.update_stored(self);
        self.progress.send_modify(|progress| {
            let bits = self.bits();
            progress.stored = bits.have.len();
            progress.complete = bits.have.is_complete();
            progress.gone = bits.gone;
        });
    }

    /// Takes the blob out of service, unless it is in use; true if it is gone now.
    pub(super) fn retire(&self) -> bool {
        let mut bits = self.bits();
        if bits.uses > 0 || !bits.writing.is_empty() {
            return false;
        }
        bits.gone = true;
        let none = HaveSet::empty(self.layout());
        (bits.have, bits.durable, bits.doubtful) = (none.clone(), none.clone(), none);
        true
    }

    /// Whether eviction must leave it alone: guarded, being written, or a pull's that has not ended.
    pub(super) fn is_busy(&self) -> bool {
        let bits = self.bits();
        bits.uses > 0 || !bits.writing.is_empty() || !bits.have.is_complete()
    }
}

impl std::fmt::Debug for Blob {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let bits = self.bits();
        write!(f, "Blob({}, {} of {} pieces)", self.digest(), bits.have.len(), bits.have.pieces())
    }
}

/// Keeps a blob from being evicted while it lives.
#[derive(Debug)]
pub struct InUse {
    blob: Arc<Blob>,
}

impl InUse {
    /// The blob.
    #[must_use]
    pub const fn blob(&self) -> &Arc<Blob> {
        &self.blob
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        self.blob.bits().uses -= 1;
    }
}

/// The right to write one piece. The bytes may come in parts of any length; nothing counts before
/// [`PieceWriter::finish`].
#[derive(Debug)]
pub struct PieceWriter {
    blob: Arc<Blob>,
    piece: PieceIndex,
    hasher: PieceHasher,
    written: u64,
    done: bool,
}

/// Why bytes were not taken. The piece must be given up.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// More bytes than the piece has.
    #[error("more bytes came than the piece has")]
    TooLong,
    /// No space left.
    #[error("no space left on the device")]
    DiskFull,
    /// The file fails.
    #[error("the blob's file cannot be written: {0}")]
    File(io::Error),
}

/// Why a piece does not count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FinishError {
    /// The bytes are not those of the piece.
    #[error("the piece's bytes do not have the signed hash")]
    Corrupt,
    /// Bytes are missing.
    #[error("the piece ended early")]
    Short,
}

/// A piece that counts from now on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verified {
    /// The piece.
    pub piece: PieceIndex,
    /// Whether the blob is complete with it.
    pub complete: bool,
}

impl PieceWriter {
    /// The piece.
    #[must_use]
    pub const fn piece(&self) -> PieceIndex {
        self.piece
    }

    /// The blob.
    #[must_use]
    pub const fn blob(&self) -> &Arc<Blob> {
        &self.blob
    }

    /// Bytes written so far.
    #[must_use]
    pub const fn written(&self) -> u64 {
        self.written
    }

    /// Bytes of the piece that are missing.
    #[must_use]
    pub fn missing(&self) -> u64 {
        self.blob.layout().len_of(self.piece) - self.written
    }

    /// Adds the next bytes: into the page cache and the hash.
    ///
    /// # Errors
    /// Too many bytes, or the disk fails. The writer is of no use afterwards.
    pub fn write(&mut self, data: &[u8]) -> Result<(), WriteError> {
        if data.len() as u64 > self.missing() {
            return Err(WriteError::TooLong);
        }
        let offset = self.blob.layout().offset(self.piece) + self.written;
        self.blob
            .file
            .write_all_at(data, offset)
            .map_err(|error| if files::is_full(&error) { WriteError::DiskFull } else { WriteError::File(error) })?;
        self.hasher.update(data);
        self.written += data.len() as u64;
        Ok(())
    }

    /// Compares the hash; if it holds, the piece counts from now on.
    ///
    /// # Errors
    /// The piece is short or has another hash; it is missing as before.
    pub fn finish(mut self) -> Result<Verified, FinishError> {
        if self.missing() > 0 {
            return Err(FinishError::Short);
        }
        if self.hasher.finish() != *self.blob.hashes.of(self.piece) {
            return Err(FinishError::Corrupt);
        }
        self.done = true;
        Ok(self.blob.verified(self.piece))
    }
}

impl Drop for PieceWriter {
    fn drop(&mut self) {
        if !self.done {
            self.blob.bits().writing.remove(&self.piece);
        }
    }
}
