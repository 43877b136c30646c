//! What the core says, done; and what peers say, passed on.

use shoal_proto::{
    have::Have,
    message::{CloseReason, PEERS_MAX},
    signed::Subject,
};
use shoal_transfer::{
    event::{Action, Failure, Input},
    ids::PeerId,
};

use tokio::time::Instant;

use super::{Shell, serve::Requested};
use crate::{config::PeerMode, peer::Heard};

impl Shell {
    pub(super) fn perform(&mut self, action: Action) {
        match action {
            Action::Fetch { request, peer, blob, piece, priority } => self.fetch(request, peer, blob, piece, priority),
            Action::AskSeeder { request, blob, want, urgent, max, stalled } => {
                self.ask_seeder(request, blob, super::seeder::Asked { want, urgent, max, stalled });
            }
            Action::Cancel { request } => self.cancel(request),
            Action::Serve { upload } => self.serve(upload),
            Action::Refuse { upload, reason } => self.refuse(upload, reason),
            Action::TellGained { peer, blob, pieces } => {
                self.tell_have(peer, blob, Have::Added(pieces.as_slice().to_vec()));
            }
            Action::TellHave { peer, blob, have } => self.tell_have(peer, blob, have),
            Action::Connect { peer } => self.connect(peer),
            Action::Ban { peer, span } => self.ban(peer, span),
            Action::Forget { peer } => self.forget_peer(peer),
            Action::FindProviders { blob } => {
                if let Some(open) = self.blobs.by_id(blob) {
                    let (digest, image) = (*open.blob.digest(), open.image);
                    self.find_blob(&digest, image);
                }
            }
            Action::Announce { blob } => {
                if let Some(open) = self.blobs.by_id(blob) {
                    let digest = *open.blob.digest();
                    self.announce_soon(&digest);
                }
            }
            Action::Completed { blob } => {
                if let Some(open) = self.blobs.by_id(blob) {
                    self.history.complete(open.blob.digest(), Instant::now());
                    tracing::info!(digest = %open.blob.digest(), bytes = open.blob.layout().size(), "blob complete");
                }
            }
            Action::Stalled { blob } => {
                if let Some(open) = self.blobs.by_id(blob) {
                    let trouble = open
                        .trouble
                        .as_deref()
                        .unwrap_or("no peer holds the missing pieces, and the seeder gives none");
                    tracing::warn!(digest = %open.blob.digest(), trouble, "a blob does not arrive");
                    open.blob.fail(trouble);
                }
            }
        }
    }

    pub(super) fn on_heard(&mut self, peer: PeerId, heard: Heard) {
        match heard {
            Heard::Capability(capability, proofs) => {
                // What only some may read does not go in the clear, unless the network is said to be trusted.
                let clear = self.config.mode == PeerMode::Plain && !self.config.trusted_network;
                if clear && capability.subject != Subject::AnyMember {
                    return;
                }
                if let Some(state) = self.peers.link_mut(peer) {
                    state.rights.add(*capability, &proofs);
                }
            }
            Heard::Signed(envelopes) => self.on_signed(peer, &envelopes),
            Heard::Ask { id, question } => self.on_ask(peer, id, question),
            Heard::Tell { id, answer } => self.on_tell(peer, id, answer),
            Heard::Have { digest, have } => self.on_have(peer, &digest, have),
            Heard::Request { id, digest, piece, offset, priority } => {
                self.on_request(peer, &Requested { id, digest, piece, offset, priority });
            }
            Heard::Cancel { id } => self.on_cancel(peer, id),
            Heard::Refused { request, reason } => {
                if self.fetches.end(request) {
                    self.feed(Input::FetchFailed { request, failure: Failure::Refused(reason) });
                }
            }
            Heard::Peers { image, peers } if peers.len() <= PEERS_MAX => self.on_exchange(peer, &image, peers),
            Heard::Peers { .. } => self.drop_link(peer, CloseReason::Protocol, "it names too many peers"),
            Heard::BadPiece { digest, piece } => {
                tracing::warn!(%digest, piece, "a peer says that this node sent a bad piece");
                if self.may_read(peer, &digest) {
                    self.verify_again(&digest);
                }
            }
            Heard::Progress { request, bytes } => self.feed(Input::Progress { request, bytes }),
            Heard::Stored { request, digest, piece, bytes } => {
                self.on_stored(Some(peer), request, &digest, piece, bytes)
            }
            Heard::Corrupt { request, digest, piece, sole_sender } => {
                self.on_corrupt(peer, request, &digest, piece, sole_sender);
            }
            Heard::WriteFailed { request, digest, full } => self.on_write_failed(request, &digest, full),
            Heard::Returned(partial) => self.keep_partial(*partial),
            Heard::UploadEnded { upload, bytes } => self.on_upload_ended(upload, bytes),
        }
    }
}
