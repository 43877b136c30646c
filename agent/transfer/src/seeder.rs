//! The seeder as a source of last resort: asked for what no peer holds, or for anything when peers bring nothing.

use alloc::vec::Vec;

use shoal_proto::{layout::PieceIndex, signed::Scope};

use crate::{
    Node,
    blob::Blob,
    event::Action,
    fetch::{Request, Target},
    ids::{BlobId, RequestId},
    peers::backoff,
    time::Span,
};

impl Node {
    /// Asks the seeder for what this node wants and cannot find. The seeder picks among it, so that of all who ask
    /// each gets other pieces.
    pub(crate) fn ask_seeder(&mut self, id: BlobId) {
        let now = self.now;
        let Some(blob) = self.blobs.get(id).filter(|blob| blob.fetching()) else { return };
        if !self.writable || self.pause_until > now {
            return;
        }
        let stalled = now >= blob.cross_at;
        let heard = blob.holders.len() >= blob.candidates.len().min(4);
        let waits = now < blob.seeder.next_at || (now < blob.grace_until && !heard);
        if blob.holds_back(now) {
            let until = blob.hold_until;
            return self.wake_at(until);
        }
        // Among others each new piece has a node, and so an uplink, of its own to go on from.
        let most = if blob.holders.is_empty() { self.config.seeder_requests_max } else { 1 };
        if blob.missing.is_empty() || blob.seeder.open >= most || waits {
            return;
        }
        let words = blob.missing.words().len();
        if (0..words).all(|at| wanted(blob, at, stalled) == 0) {
            return;
        }
        let wants = |piece: &PieceIndex| wanted(blob, piece.as_usize() / 64, stalled) >> (piece.get() % 64) & 1 == 1;
        let urgent = self.urgent(blob).filter(wants).map(PieceIndex::get);
        let mut want: Vec<u8> = (0..words).flat_map(|at| wanted(blob, at, stalled).to_le_bytes()).collect();
        want.truncate(blob.layout.pieces().div_ceil(8) as usize);
        let target = Target::Seeder { pieces: Vec::new() };
        let request =
            Request { blob: id, target, issued: now, last: now, started: false, urgent: false, crosses: false };
        let request = self.requests.insert(request);
        self.blobs.get_mut(id).expect("looked up above").seeder.open += 1;
        self.stats.seeder_asks += 1;
        self.wake_at(now + self.config.seeder_patience.max(self.patience()));
        let max = self.config.seeder_batch;
        self.actions.push_back(Action::AskSeeder { request, blob: id, want, urgent, max, stalled });
    }

    pub(crate) fn seeder_gave(&mut self, id: RequestId, given: &[u32]) {
        let patience = self.patience();
        let Some(request) = self.requests.get_mut(id) else { return };
        let Some(blob) = self.blobs.get_mut(request.blob) else { return };
        let Target::Seeder { pieces } = &mut request.target else { return };
        request.last = self.now;
        blob.seeder.failures = 0;
        let due = self.now + patience;
        for &index in given {
            // What a peer is bringing meanwhile is left to it; the shell drops the seeder's bytes of it.
            if let Some(piece) = blob.layout.piece(index).filter(|piece| blob.missing.contains(*piece)) {
                blob.take(piece);
                pieces.push(index);
            }
        }
        self.wake_at(due);
    }

    pub(crate) fn seeder_deferred(&mut self, id: RequestId, retry_after: Span) {
        let Some(blob) = self.requests.get(id).map(|request| request.blob) else { return };
        self.end(id);
        self.stats.seeder_deferrals += 1;
        let at = self.now + retry_after.min(self.config.seeder_retry_max).max(Span::from_millis(1));
        if let Some(blob) = self.blobs.get_mut(blob) {
            blob.seeder.next_at = at;
            blob.seeder.failures = 0;
        }
        self.wake_at(at);
    }

    /// Leaves the seeder alone for as long as it asks, and up to half as much again: a crowd that was sent away together
    /// must not come back together.
    pub(crate) fn seeder_busy(&mut self, id: RequestId, retry_after: Span) {
        let Some(blob) = self.requests.get(id).map(|request| request.blob) else { return };
        self.end(id);
        self.stats.seeder_deferrals += 1;
        let asked = retry_after.min(self.config.seeder_busy_max).max(self.config.backoff_base);
        let jitter = (u128::from(self.rng.next()) * u128::from(asked.as_nanos() / 2)) >> 64;
        let at = self.now + asked + Span::from_nanos(u64::try_from(jitter).unwrap_or(0));
        self.with_blob(blob, |blob| blob.seeder.next_at = at);
        self.wake_at(at);
    }

    pub(crate) fn seeder_failed(&mut self, blob: BlobId) {
        let Some(blob) = self.blobs.get_mut(blob) else { return };
        let at = self.now + backoff(self.config.backoff_base, self.config.backoff_max, blob.seeder.failures);
        blob.seeder.failures += 1;
        blob.seeder.next_at = at;
        self.wake_at(at);
    }
}

/// The missing pieces of word `at` that no connected peer holds, of those that this node may bring in; all that are
/// missing if nothing has come for long.
fn wanted(blob: &Blob, at: usize, stalled: bool) -> u64 {
    let missing = blob.missing.words()[at];
    if stalled || missing == 0 {
        return missing;
    }
    let unheld = missing & blob.holders.held_by_none(at);
    match blob.boundaries.towards(Scope::Fleet) {
        Some(crossing) if unheld != 0 => unheld & crossing.word(at, &blob.holders),
        Some(_) | None => unheld,
    }
}
