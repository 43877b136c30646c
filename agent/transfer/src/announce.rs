//! Telling others: have-deltas in batches to the peers of a blob, announcements and look-ups in the DHT.

use shoal_proto::have::{HAVE_BATCH_MAX, Have};

use crate::{
    Node,
    blob::Blob,
    event::{Action, Batch},
    ids::BlobId,
    node::NEVER,
};

/// The first pieces are told at once: a swarm begins with them, and each generation of it waits for the one before.
const TOLD_AT_ONCE: u32 = 4;
/// Gained pieces that are told before their time: half a batch.
const NEWS_FULL: usize = Batch::MAX / 2;

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
            self.fetching.retain(|wanted| wanted.id != id);
            self.actions.push_back(Action::Completed { blob: id });
            self.tell_news(id);
        } else if now.since(blob.told_at) >= interval || blob.have.len() <= TOLD_AT_ONCE || blob.news.len() >= NEWS_FULL
        {
            self.tell_news(id);
        } else {
            self.news_wake = self.news_wake.min(blob.told_at + interval);
        }
    }

    /// Sends what was gained to every peer of the blob that still lacks it. Of a piece that it has a peer needs no word:
    /// whole sets, which are said at the end, do not rest on it.
    pub(crate) fn tell_news(&mut self, id: BlobId) {
        let Some(blob) = self.blobs.get_mut(id) else { return };
        blob.told_at = self.now;
        let whole = blob.have.is_complete() || blob.news.len() > HAVE_BATCH_MAX;
        for (at, holder) in blob.holders.iter().filter(|(at, h)| h.told && !blob.holders.is_complete(*at)) {
            let peer = holder.peer;
            if whole {
                self.actions.push_back(Action::TellHave { peer, blob: id, have: blob.own_have() });
            } else {
                let lacks =
                    |piece: &&u32| blob.layout.piece(**piece).is_some_and(|piece| !blob.holders.holds(at, piece));
                let mut left = blob.news.iter().filter(lacks).copied();
                loop {
                    let pieces = Batch::take(&mut left);
                    if pieces.as_slice().is_empty() {
                        break;
                    }
                    self.actions.push_back(Action::TellGained { peer, blob: id, pieces });
                }
            }
        }
        blob.news.clear();
    }

    /// Tells all that is due, and says when the next is.
    pub(crate) fn tell_due(&mut self) {
        let (now, interval) = (self.now, self.config.have_interval);
        self.news_wake = NEVER;
        for at in 0..self.fetching.len() {
            let id = self.fetching[at].id;
            let Some(blob) = self.blobs.get(id).filter(|blob| !blob.news.is_empty()) else { continue };
            if now.since(blob.told_at) >= interval {
                self.tell_news(id);
            } else {
                self.news_wake = self.news_wake.min(blob.told_at + interval);
            }
        }
    }

    /// Looks for providers of a blob that has too few peers.
    pub(crate) fn find(&mut self, id: BlobId) {
        let now = self.now;
        let again = now + self.config.find_interval;
        let few = self.config.few();
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
            let id = self.fetching[at].id;
            let Some(blob) = self.blobs.get_mut(id) else { continue };
            let long = self.now.since(blob.progress_at) >= self.config.stalled_after;
            if long && !core::mem::replace(&mut blob.stalled_told, true) {
                self.actions.push_back(Action::Stalled { blob: id });
            }
        }
    }

    /// Tells the peers of a blob that it is gone.
    pub(crate) fn tell_gone(&mut self, id: BlobId, blob: &Blob) {
        for (_, holder) in blob.holders.iter().filter(|(_, holder)| holder.told) {
            self.actions.push_back(Action::TellHave { peer: holder.peer, blob: id, have: Have::Gone });
        }
    }
}
