//! What peers hear from this node about blobs: have-sets and pieces.

use shoal_proto::{
    Digest,
    have::Have,
    layout::PieceIndex,
    message::{Message, Priority, RefuseReason},
};
use shoal_transfer::{
    event::Input,
    ids::{Arena, BlobId, PeerId, UploadId},
};
use tokio::time::Instant;

use super::{Shell, unix_now};
use crate::{
    metrics,
    peer::{self, PEER_REQUESTS_MAX},
};

/// A piece that a peer asked for.
#[derive(Debug)]
struct Upload {
    peer: PeerId,
    /// The peer's id for it.
    request: u32,
    blob: BlobId,
    piece: PieceIndex,
    offset: u32,
    priority: Priority,
    /// Whether the writer has it.
    sending: bool,
}

/// Pieces that peers asked for. Bounded by [`PEER_REQUESTS_MAX`] for each connection.
#[derive(Debug, Default)]
pub(super) struct Uploads {
    arena: Arena<UploadId, Upload>,
}

impl Uploads {
    pub(super) fn forget(&mut self, uploads: impl Iterator<Item = UploadId>) {
        for upload in uploads {
            self.arena.remove(upload);
        }
    }
}

/// A request as it came.
#[derive(Debug)]
pub(super) struct Requested {
    pub(super) id: u32,
    pub(super) digest: Digest,
    pub(super) piece: u32,
    pub(super) offset: u32,
    pub(super) priority: Priority,
}

impl Shell {
    /// Whether a peer may read a blob now.
    pub(super) fn may_read(&self, peer: PeerId, digest: &Digest) -> bool {
        self.peers.link(peer).is_some_and(|state| state.rights.may_read(digest, unix_now()))
    }

    /// A peer says what it holds, and wants to hear the same.
    pub(super) fn on_have(&mut self, peer: PeerId, digest: &Digest, have: Have) {
        let allowed = self.may_read(peer, digest);
        let open = self.blobs.get(digest).map(|(blob, open)| (blob, open.image));
        let told = open.is_some_and(|(blob, _)| self.peers.link(peer).is_some_and(|state| state.told.contains(&blob)));
        // Whoever was told of the blob may answer, even without a capability: that gives nothing away.
        if !allowed && !told {
            return;
        }
        if let Some(state) = self.peers.link_mut(peer) {
            state.used = Instant::now();
        }
        match (have, open) {
            (Have::Added(pieces), Some((blob, _))) => {
                self.feed(Input::PeerGained { peer, blob, pieces: pieces.into() });
            }
            (have @ (Have::All | Have::Set(_)), open) => {
                let image = open.and_then(|(_, image)| image).or_else(|| self.images.of_blob(digest));
                if let Some(image) = image {
                    self.on_interest(peer, &image, allowed);
                }
                if let Some(blob) = self.serve_blob(digest) {
                    self.feed(Input::PeerHas { peer, blob, have });
                }
            }
            (Have::Gone, Some((blob, _))) => self.feed(Input::PeerHas { peer, blob, have: Have::Gone }),
            (Have::Added(_) | Have::Gone, None) => {}
        }
    }

    pub(super) fn on_request(&mut self, peer: PeerId, requested: &Requested) {
        let Requested { id, digest, piece, offset, priority } = *requested;
        let Some(state) = self.peers.link_mut(peer) else { return };
        state.used = Instant::now();
        let full = state.uploads.len() >= PEER_REQUESTS_MAX || state.uploads.contains_key(&id);
        let refuse = |reason| Message::Refuse { id, reason };
        if full {
            return self.send(peer, refuse(RefuseReason::Busy));
        }
        let blob = if self.may_read(peer, &digest) { self.serve_blob(&digest) } else { None };
        let held = blob.and_then(|blob| {
            let stored = &self.blobs.by_id(blob)?.blob;
            let piece = stored.layout().piece(piece).filter(|piece| stored.has(*piece))?;
            (u64::from(offset) < stored.layout().len_of(piece)).then_some((blob, piece))
        });
        let Some((blob, piece)) = held else { return self.send(peer, refuse(RefuseReason::NotHeld)) };
        let upload = Upload { peer, request: id, blob, piece, offset, priority, sending: false };
        let upload = self.uploads.arena.insert(upload);
        if let Some(state) = self.peers.link_mut(peer) {
            state.uploads.insert(id, upload);
        }
        self.feed(Input::UploadRequested { upload, peer, blob, piece: piece.get(), priority });
    }

    pub(super) fn on_cancel(&mut self, peer: PeerId, id: u32) {
        let Some(state) = self.peers.link(peer) else { return };
        let Some(&upload) = state.uploads.get(&id) else { return };
        if self.uploads.arena.get(upload).is_some_and(|upload| upload.sending) {
            let sent = state.link.stop_serving(upload);
            return self.check(peer, sent);
        }
        self.end_upload(upload);
        self.feed(Input::UploadEnded { upload, bytes: 0 });
    }

    pub(super) fn on_upload_ended(&mut self, upload: UploadId, bytes: u64) {
        if let Some(peer) = self.end_upload(upload) {
            self.metrics.sent(metrics::To::Peer, bytes);
            if let Some(state) = self.peers.link_mut(peer) {
                state.bytes_out += bytes;
                state.used = Instant::now();
            }
            self.feed(Input::UploadEnded { upload, bytes });
        }
    }

    fn end_upload(&mut self, upload: UploadId) -> Option<PeerId> {
        let Upload { peer, request, .. } = self.uploads.arena.remove(upload)?;
        if let Some(state) = self.peers.link_mut(peer) {
            state.uploads.remove(&request);
        }
        Some(peer)
    }

    /// The core lets an upload go out.
    pub(super) fn serve(&mut self, id: UploadId) {
        let Some(upload) = self.uploads.arena.get_mut(id) else { return };
        upload.sending = true;
        let Upload { peer, request, blob, piece, offset, priority, .. } = *upload;
        let (Some(open), Some(state)) = (self.blobs.by_id(blob), self.peers.link(peer)) else {
            self.end_upload(id);
            return self.feed(Input::UploadEnded { upload: id, bytes: 0 });
        };
        let serve = peer::Serve { upload: id, request, blob: open.blob.clone(), piece, offset, priority };
        let sent = state.link.serve(serve);
        self.check(peer, sent);
    }

    /// The core refuses an upload.
    pub(super) fn refuse(&mut self, upload: UploadId, reason: RefuseReason) {
        let request = self.uploads.arena.get(upload).map(|upload| upload.request);
        if let (Some(peer), Some(id)) = (self.end_upload(upload), request) {
            self.send(peer, Message::Refuse { id, reason });
        }
    }

    /// The core tells a peer what this node holds.
    pub(super) fn tell_have(&mut self, peer: PeerId, blob: BlobId, have: Have) {
        // Of a blob that is closed all were told when it was.
        let Some(open) = self.blobs.by_id(blob) else { return };
        let (digest, image) = (*open.blob.digest(), open.image);
        if let Some(image) = image {
            self.show(peer, &image, &digest);
        }
        let Some(state) = self.peers.link_mut(peer) else { return };
        if have == Have::Gone {
            state.told.remove(&blob);
        } else {
            state.told.insert(blob);
        }
        self.send(peer, Message::Have { digest, have });
    }

    /// Tells all who were told of a blob that it is closed.
    pub(super) fn tell_gone(&mut self, blob: BlobId, digest: &Digest) {
        let told: Vec<PeerId> =
            self.peers.connected().filter(|(_, _, state)| state.told.contains(&blob)).map(|(peer, ..)| peer).collect();
        for peer in told {
            if let Some(state) = self.peers.link_mut(peer) {
                state.told.remove(&blob);
            }
            self.send(peer, Message::Have { digest: *digest, have: Have::Gone });
        }
    }

    /// Says everything about a blob again, on another connection to the same peer.
    pub(super) fn tell_again(&mut self, peer: PeerId, blob: BlobId) {
        let Some(open) = self.blobs.by_id(blob) else { return };
        let have = open.blob.have();
        let have = if have.is_complete() { Have::All } else { Have::Set(have.to_bytes()) };
        self.tell_have(peer, blob, have);
    }
}
