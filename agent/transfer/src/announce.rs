//! Telling others: have-deltas in batches to the peers of a blob, announcements and look-ups in the DHT.

use shoal_proto::have::{HAVE_BATCH_MAX, Have};

use crate::{
    Node,
    blob::{Blob, Holding},
    event::{Action, Batch},
    ids::BlobId,
};

impl Node {
    /// A piece was stored: peers are to be told, and whoever looks in the DHT, and the shell if it was the last.
    pub(crate) fn after_store(&mut self, id: BlobId) {
        let now = self.now;
        let interval = self.config.have_interval;
        let Some(blob) = self.blobs.get_mut(id) else { return };
        if !core::mem::replace(&mut blob.announced, true) {
            self.actions.push_back(Action::Announce { blob: id });
        }
        if blob.have.is_complete() {
            self.fetching.retain(|fetching| *fetching != id);
            self.actions.push_back(Action::Completed { blob: id });
            self.tell_news(id);
        } else if now.since(blob.told_at) >= interval || blob.have.len() == 1 {
            self.tell_news(id);
        } else {
            let at = blob.told_at + interval;
            self.wake_at(at);
        }
    }

    /// Sends what was gained to every peer of the blob that still lacks something.
    pub(crate) fn tell_news(&mut self, id: BlobId) {
        let Some(blob) = self.blobs.get_mut(id) else { return };
        blob.told_at = self.now;
        let whole = blob.have.is_complete() || blob.news.len() > HAVE_BATCH_MAX;
        for holder in blob.holders.iter().filter(|h| h.told && !matches!(h.holding, Holding::All)) {
            let peer = holder.peer;
            if whole {
                self.actions.push_back(Action::TellHave { peer, blob: id, have: blob.own_have() });
            } else {
                for part in blob.news.chunks(Batch::MAX) {
                    self.actions.push_back(Action::TellGained { peer, blob: id, pieces: Batch::first_of(part) });
                }
            }
        }
        blob.news.clear();
    }

    /// Tells all that is due, and says when the next is.
    pub(crate) fn tell_due(&mut self) {
        let (now, interval) = (self.now, self.config.have_interval);
        for at in 0..self.fetching.len() {
            let id = self.fetching[at];
            let due = |blob: &Blob| !blob.news.is_empty() && now.since(blob.told_at) >= interval;
            if self.blobs.get(id).is_some_and(due) {
                self.tell_news(id);
            }
        }
    }

    /// Looks for providers of a blob that has too few peers.
    pub(crate) fn find(&mut self, id: BlobId) {
        let now = self.now;
        let again = now + self.config.find_interval;
        let few = self.config.degree as usize / 2;
        let Some(blob) = self.blobs.get_mut(id) else { return };
        if blob.fetching() && blob.holders.len() < few && now >= blob.find_at {
            blob.find_at = again;
            self.actions.push_back(Action::FindProviders { blob: id });
            self.wake_at(again);
        }
    }

    /// Says once that a blob gets nothing from anywhere.
    pub(crate) fn tell_stalled(&mut self) {
        for at in 0..self.fetching.len() {
            let id = self.fetching[at];
            let Some(blob) = self.blobs.get_mut(id) else { continue };
            let long = self.now.since(blob.progress_at) >= self.config.stalled_after;
            if long && !core::mem::replace(&mut blob.stalled_told, true) {
                self.actions.push_back(Action::Stalled { blob: id });
            }
        }
    }

    /// Tells the peers of a blob that it is gone.
    pub(crate) fn tell_gone(&mut self, id: BlobId, blob: &Blob) {
        for holder in blob.holders.iter().filter(|holder| holder.told) {
            self.actions.push_back(Action::TellHave { peer: holder.peer, blob: id, have: Have::Gone });
        }
    }
}
