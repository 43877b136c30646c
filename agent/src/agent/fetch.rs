//! Requests for pieces, under the core's ids, and what has come of pieces whose requests are over.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use shoal_proto::{
    Digest,
    layout::PieceIndex,
    message::{Message, Priority, RefuseReason},
    signed::Scope,
};
use shoal_transfer::{
    event::{Failure, Input},
    ids::{BlobId, PeerId, RequestId},
};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Shell;
use crate::{
    history::Source,
    metrics,
    peer::{self, Partial, TakenBack},
};

/// Pieces begun that are kept for the next request. Each holds a hash state of 2 KiB and the right to write its piece;
/// requests are taken back a few at a time, at the end of a blob or when a peer starves.
const PARTIALS_MAX: usize = 64;

/// A stored blob is hashed again for a peer's complaint at most this often.
const VERIFY_PAUSE: Duration = Duration::from_secs(60);
/// Blobs that are hashed again within that time.
const VERIFY_MAX: usize = 4;

/// An open request.
#[derive(Debug)]
enum Request {
    Peer { peer: PeerId, blob: BlobId },
    Seeder { blob: BlobId, cancel: CancellationToken },
}

/// A piece of a blob.
type Piece = (Digest, PieceIndex);

/// A request for a piece that another hand still holds: a reader that is writing its bytes though the request was taken
/// back, or a task that hears of its end in a moment. The core takes the request back itself if that never comes.
#[derive(Debug)]
struct Parked {
    request: RequestId,
    peer: PeerId,
    piece: Piece,
    priority: Priority,
}

/// Open requests and pieces begun. Bounded by the core's limits on requests.
#[derive(Debug, Default)]
pub(super) struct Fetches {
    open: BTreeMap<RequestId, Request>,
    partials: BTreeMap<Piece, Partial>,
    /// The order in which partials came.
    order: VecDeque<Piece>,
    parked: Vec<Parked>,
    /// When stored blobs were last hashed again because a peer complained.
    verified: BTreeMap<Digest, Instant>,
}

impl Fetches {
    /// Whether a peer was asked for something.
    pub(super) fn any_of(&self, of: PeerId) -> bool {
        self.open.values().any(|request| matches!(request, Request::Peer { peer, .. } if *peer == of))
    }

    /// A connection is gone, and its requests with it.
    pub(super) fn forget_peer(&mut self, of: PeerId) {
        self.open.retain(|_, request| !matches!(request, Request::Peer { peer, .. } if *peer == of));
        self.parked.retain(|parked| parked.peer != of);
    }

    /// The blob is closed: what was begun of it is given up.
    pub(super) fn forget_blob(&mut self, digest: &Digest) {
        self.partials.retain(|(of, _), _| of != digest);
        self.order.retain(|(of, _)| of != digest);
    }

    /// Whether a blob may be hashed again now: a peer that complains without end must not keep the disk busy.
    pub(super) fn start_verifying(&mut self, digest: &Digest) -> bool {
        let now = Instant::now();
        self.verified.retain(|_, at| now - *at < VERIFY_PAUSE);
        if self.verified.contains_key(digest) || self.verified.len() >= VERIFY_MAX {
            return false;
        }
        self.verified.insert(*digest, now);
        true
    }

    pub(super) fn begin_seeder(&mut self, request: RequestId, blob: BlobId, cancel: CancellationToken) {
        self.open.insert(request, Request::Seeder { blob, cancel });
    }

    /// The blob that an open request is about.
    pub(super) fn blob_of(&self, request: RequestId) -> Option<BlobId> {
        self.open.get(&request).map(|request| match request {
            Request::Peer { blob, .. } | Request::Seeder { blob, .. } => *blob,
        })
    }

    /// A request is over; false if it was already.
    pub(super) fn end(&mut self, request: RequestId) -> bool {
        self.open.remove(&request).is_some()
    }

    pub(super) fn cancel_seeder(&self) {
        for request in self.open.values() {
            if let Request::Seeder { cancel, .. } = request {
                cancel.cancel();
            }
        }
    }

    fn take(&mut self, piece: &Piece) -> Option<Partial> {
        let partial = self.partials.remove(piece)?;
        self.order.retain(|other| other != piece);
        Some(partial)
    }
}

impl Shell {
    /// The core asks a peer for a piece.
    pub(super) fn fetch(&mut self, request: RequestId, peer: PeerId, blob: BlobId, piece: u32, priority: Priority) {
        let fail = |failure| Input::FetchFailed { request, failure };
        let Some(open) = self.blobs.by_id(blob) else { return self.feed(fail(Failure::Busy)) };
        let (digest, image) = (*open.blob.digest(), open.image);
        let Some(piece) = open.blob.layout().piece(piece) else { return self.feed(fail(Failure::Busy)) };
        if self.peers.link(peer).is_none() {
            // Between two connections; or gone, and the core is about to hear it.
            return self.feed(fail(Failure::Refused(RefuseReason::Busy)));
        }
        let place = (digest, piece);
        let partial = self.fetches.take(&place).or_else(|| open_writer(self, blob, piece));
        let Some(partial) = partial else {
            if self.blobs.by_id(blob).is_some_and(|open| open.blob.has(piece)) {
                return self.feed(Input::PieceStored { request, blob, piece: piece.get() });
            }
            self.fetches.open.insert(request, Request::Peer { peer, blob });
            return self.fetches.parked.push(Parked { request, peer, piece: place, priority });
        };
        self.fetches.open.insert(request, Request::Peer { peer, blob });
        if let Some(image) = image {
            self.show(peer, &image, &digest);
        }
        self.history.asked(&digest, self.source_of(peer), Instant::now());
        let fetch = peer::Fetch { request, partial, priority };
        let sent = self.peers.link(peer).map_or(Ok(()), |state| state.link.fetch(fetch));
        self.check(peer, sent);
    }

    /// The core takes a request back.
    pub(super) fn cancel(&mut self, request: RequestId) {
        self.fetches.parked.retain(|parked| parked.request != request);
        let peer = match self.fetches.open.remove(&request) {
            None => return,
            Some(Request::Seeder { cancel, .. }) => return cancel.cancel(),
            Some(Request::Peer { peer, .. }) => peer,
        };
        let Some(state) = self.peers.link(peer) else { return };
        match state.link.take_back(request) {
            Ok(TakenBack::Partial(partial)) => self.keep_partial(*partial),
            Ok(TakenBack::InHand | TakenBack::Over) => {}
            Err(error) => self.check(peer, Err(error)),
        }
    }

    /// Keeps what has come of a piece for its next request.
    pub(super) fn keep_partial(&mut self, partial: Partial) {
        let piece = (*partial.digest(), partial.piece());
        if self.blobs.get(&piece.0).is_none() {
            return;
        }
        if self.fetches.order.len() == PARTIALS_MAX
            && let Some(oldest) = self.fetches.order.pop_front()
        {
            self.fetches.partials.remove(&oldest);
        }
        self.fetches.partials.insert(piece, partial);
        self.fetches.order.push_back(piece);
        self.unpark(&piece);
    }

    /// Requests that waited for this piece to be let go can be made now.
    pub(super) fn unpark(&mut self, piece: &Piece) {
        while let Some(at) = self.fetches.parked.iter().position(|parked| parked.piece == *piece) {
            let Parked { request, peer, priority, .. } = self.fetches.parked.swap_remove(at);
            if let Some(blob) = self.fetches.blob_of(request) {
                self.fetch(request, peer, blob, piece.1.get(), priority);
            }
        }
    }

    /// The right to write a piece that the seeder will send, and what has come of it; none if a peer brings it.
    pub(super) fn claim(&mut self, blob: BlobId, piece: PieceIndex) -> Option<Partial> {
        let digest = *self.blobs.by_id(blob)?.blob.digest();
        self.fetches.take(&(digest, piece)).or_else(|| open_writer(self, blob, piece))
    }

    /// A piece that a peer finished is verified. The peer is not known if its connection ended too long ago.
    pub(super) fn on_stored(
        &mut self,
        peer: Option<PeerId>,
        request: RequestId,
        digest: &Digest,
        piece: PieceIndex,
        bytes: u64,
    ) {
        let source = peer.map_or(Source::peer(Scope::Fleet), |peer| self.source_of(peer));
        self.metrics.received(metrics::From::Peer, bytes);
        self.metrics.came(source, bytes);
        if let Some(known) = peer.and_then(|peer| self.peers.get(peer)) {
            self.history.from_peer(digest, source, known.info.node, bytes, Instant::now());
        }
        if let Some(state) = peer.and_then(|peer| self.peers.link_mut(peer)) {
            state.bytes_in += bytes;
            state.used = Instant::now();
        }
        self.stored(request, digest, piece);
    }

    /// How near a peer is.
    fn source_of(&self, peer: PeerId) -> Source {
        let scope = self.peers.get(peer).map_or(Scope::Fleet, |known| self.labels.shared(&known.info.labels));
        Source::peer(scope)
    }

    /// A piece is verified, whoever brought it.
    pub(super) fn stored(&mut self, request: RequestId, digest: &Digest, piece: PieceIndex) {
        self.fetches.parked.retain(|parked| parked.piece != (*digest, piece));
        if let Some(Request::Peer { .. }) = self.fetches.open.get(&request) {
            self.fetches.end(request);
        }
        if let Some((blob, _)) = self.blobs.get(digest) {
            self.feed(Input::PieceStored { request, blob, piece: piece.get() });
        }
    }

    pub(super) fn on_corrupt(
        &mut self,
        peer: PeerId,
        request: RequestId,
        digest: &Digest,
        piece: PieceIndex,
        sole_sender: bool,
    ) {
        tracing::warn!(%digest, piece = piece.get(), sole_sender, "a piece does not have its hash");
        self.discovery.bad_pieces += 1;
        if sole_sender {
            self.send(peer, Message::BadPiece { digest: *digest, piece: piece.get() });
        }
        self.fetches.end(request);
        self.feed(Input::PieceCorrupt { request, piece: piece.get(), sole_sender });
        self.unpark(&(*digest, piece));
    }

    /// A piece could not be written.
    pub(super) fn on_write_failed(&mut self, request: RequestId, digest: &Digest, full: bool) {
        self.fetches.end(request);
        let reason = if full { "no space left on the device" } else { "the data folder fails" };
        if full {
            self.disk_full();
        }
        if let Some((_, open)) = self.blobs.get(digest) {
            open.blob.fail(reason);
        }
        self.feed(Input::FetchFailed { request, failure: Failure::WriteFailed });
    }
}

fn open_writer(shell: &Shell, blob: BlobId, piece: PieceIndex) -> Option<Partial> {
    shell.blobs.by_id(blob)?.blob.writer(piece).map(Partial::new)
}
