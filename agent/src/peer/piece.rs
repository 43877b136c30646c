//! Pieces on their way in: the bytes so far of one piece, and the table of requests that a connection has open.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
};

use shoal_proto::{Digest, layout::PieceIndex, signed::NodeId};
use shoal_transfer::ids::RequestId;

use crate::store::{FinishError, PieceWriter, Verified, WriteError};

/// Requests taken back whose data may still be under way. A peer stops at the next frame, so a handful lives for one
/// round trip; who lets this many pile up is not a peer like us.
const ABANDONED_MAX: usize = 256;

/// Where bytes come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sender {
    /// A peer.
    Peer(NodeId),
    /// The seeder.
    Seeder,
}

/// A piece begun: the right to write it, and who has sent its bytes so far.
#[derive(Debug)]
pub struct Partial {
    writer: PieceWriter,
    from: From,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum From {
    Nobody,
    One(Sender),
    Several,
}

impl Partial {
    /// A piece without any byte.
    #[must_use]
    pub const fn new(writer: PieceWriter) -> Self {
        Self { writer, from: From::Nobody }
    }

    /// The blob.
    #[must_use]
    pub fn digest(&self) -> &Digest {
        self.writer.blob().digest()
    }

    /// The piece.
    #[must_use]
    pub const fn piece(&self) -> PieceIndex {
        self.writer.piece()
    }

    /// The first byte that is missing.
    ///
    /// # Panics
    /// Never: a piece has at most 4 GiB, and one that is whole is not asked for.
    #[must_use]
    pub fn offset(&self) -> u32 {
        u32::try_from(self.writer.written()).expect("a piece begun is shorter than 4 GiB")
    }

    /// Bytes that are there.
    #[must_use]
    pub const fn written(&self) -> u64 {
        self.writer.written()
    }

    /// Bytes that are missing.
    #[must_use]
    pub fn missing(&self) -> u64 {
        self.writer.missing()
    }

    /// Adds bytes. Blocks for the page cache and the hash.
    ///
    /// # Errors
    /// More than are missing, or the disk fails.
    pub fn write(&mut self, data: &[u8], sender: Sender) -> Result<(), WriteError> {
        self.writer.write(data)?;
        self.from = match self.from {
            From::Nobody => From::One(sender),
            From::One(before) if before == sender => self.from,
            From::One(_) | From::Several => From::Several,
        };
        Ok(())
    }

    /// Whether every byte came from `sender`.
    #[must_use]
    pub fn is_only_from(&self, sender: Sender) -> bool {
        self.from == From::One(sender)
    }

    /// Compares the hash.
    ///
    /// # Errors
    /// Bytes are missing, or it is another.
    pub fn finish(self) -> Result<Verified, FinishError> {
        self.writer.finish()
    }
}

/// A request that is open.
#[derive(Debug)]
struct Receipt {
    request: RequestId,
    digest: Digest,
    /// Bytes that the peer may still send for it.
    left: u64,
    /// Out while its bytes are being written.
    partial: Option<Partial>,
}

/// The requests that this side has open on one connection. The loop opens and takes back, the reader fills.
#[derive(Debug)]
pub(super) struct Receipts {
    peer: NodeId,
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    next: u32,
    open: BTreeMap<u32, Receipt>,
    /// Taken back: id and bytes that may still come.
    abandoned: VecDeque<(u32, u64)>,
}

/// What to do with the bytes of a data frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// They were asked for.
    Expected,
    /// The request was taken back: drop them.
    Late,
    /// Nobody asked for them, or for so many.
    Unasked,
}

/// A piece whose bytes are all there.
#[derive(Debug)]
pub(super) struct Whole {
    pub(super) request: RequestId,
    pub(super) partial: Partial,
}

/// Where a piece stands after its bytes were written.
#[derive(Debug)]
pub(super) enum After {
    /// More is to come.
    More(RequestId),
    /// It is whole.
    Whole(Whole),
    /// The request was taken back meanwhile: the loop gets what there is.
    TakenBack(Partial),
}

impl Receipts {
    pub(super) fn new(peer: NodeId) -> Self {
        Self { peer, table: Mutex::default() }
    }

    pub(super) const fn sender(&self) -> Sender {
        Sender::Peer(self.peer)
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens a request; its id on the wire.
    pub(super) fn open(&self, request: RequestId, partial: Partial) -> u32 {
        let mut table = self.table();
        table.next = table.next.wrapping_add(1);
        let id = table.next;
        let (digest, left) = (*partial.digest(), partial.missing());
        table.open.insert(id, Receipt { request, digest, left, partial: Some(partial) });
        id
    }

    /// Whether nothing is open: no data is expected.
    pub(super) fn is_idle(&self) -> bool {
        self.table().open.is_empty()
    }

    /// Takes a request back; its id and what is there of its piece, unless that is in the reader's hands.
    pub(super) fn take_back(&self, request: RequestId) -> Option<(u32, Option<Partial>)> {
        let mut table = self.table();
        let id = table.open.iter().find(|(_, receipt)| receipt.request == request).map(|(id, _)| *id)?;
        let receipt = table.open.remove(&id)?;
        table.abandon(id, receipt.left);
        Some((id, receipt.partial))
    }

    /// A frame with `len` bytes for `id` comes in.
    pub(super) fn admit(&self, id: u32, len: u64) -> Verdict {
        let mut table = self.table();
        if let Some(receipt) = table.open.get_mut(&id) {
            return spend(&mut receipt.left, len, Verdict::Expected);
        }
        match table.abandoned.iter_mut().find(|(other, _)| *other == id) {
            Some((_, left)) => spend(left, len, Verdict::Late),
            None => Verdict::Unasked,
        }
    }

    /// What is there of the piece of `id`, to be given back by [`Receipts::put_back`] before the next `await`: so a
    /// connection that ends loses nothing. `None` if the request is over.
    pub(super) fn take(&self, id: u32) -> Option<Partial> {
        self.table().open.get_mut(&id)?.partial.take()
    }

    /// Bytes were written into what [`Receipts::take`] gave out for `id`.
    pub(super) fn put_back(&self, id: u32, partial: Partial) -> After {
        let mut table = self.table();
        let Some(receipt) = table.open.get_mut(&id) else { return After::TakenBack(partial) };
        let request = receipt.request;
        if partial.missing() > 0 {
            receipt.partial = Some(partial);
            return After::More(request);
        }
        table.open.remove(&id);
        After::Whole(Whole { request, partial })
    }

    /// Bytes of `id` could not be written: the request is over, the rest of its bytes will be dropped.
    pub(super) fn fail(&self, id: u32) -> Option<(RequestId, Digest)> {
        let mut table = self.table();
        let receipt = table.open.remove(&id)?;
        table.abandon(id, receipt.left);
        Some((receipt.request, receipt.digest))
    }

    /// The peer refuses `id`: the core's request and what is there of its piece.
    pub(super) fn refused(&self, id: u32) -> Option<(RequestId, Option<Partial>)> {
        self.table().open.remove(&id).map(|receipt| (receipt.request, receipt.partial))
    }

    /// Whether `id` was taken back a moment ago.
    pub(super) fn was_abandoned(&self, id: u32) -> bool {
        self.table().abandoned.iter().any(|(other, _)| *other == id)
    }

    pub(super) fn leftovers(&self) -> Vec<Partial> {
        std::mem::take(&mut self.table().open).into_values().filter_map(|receipt| receipt.partial).collect()
    }
}

/// Takes `len` bytes out of what is left to be sent.
fn spend(left: &mut u64, len: u64, verdict: Verdict) -> Verdict {
    match left.checked_sub(len) {
        Some(rest) => {
            *left = rest;
            verdict
        }
        None => Verdict::Unasked,
    }
}

impl Table {
    fn abandon(&mut self, id: u32, left: u64) {
        if self.abandoned.len() == ABANDONED_MAX {
            self.abandoned.pop_front();
        }
        self.abandoned.push_back((id, left));
    }
}
