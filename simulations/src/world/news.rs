//! Have-deltas. A node tells some dozens of peers what it has gained, to each what that one lacks; all who hear it at the
//! same moment share one event, and each is handed its indexes by reference.

use shoal_transfer::{
    event::{Batch, Input},
    ids::PeerId,
};

use super::{Event, World, agent::blob_id};
use crate::{
    num::{at, small},
    slab::Handle,
};

/// What one peer hears: its node, the slot of the sender there, the connection, and where its indexes stand.
#[derive(Debug, Clone, Copy)]
struct Word {
    node: u32,
    slot: u32,
    conn: u32,
    layer: u32,
    from: u32,
    to: u32,
}

/// What arrives at one moment.
#[derive(Debug, Default)]
pub(super) struct News {
    words: Vec<Word>,
    pieces: Vec<u32>,
}

/// What one node says at one moment, until it has said all.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    /// By the moment at which it arrives; there are a few, for the near and the far.
    open: Vec<(u64, News)>,
    /// To be used again.
    spare: Vec<News>,
}

impl Outbox {
    fn at(&mut self, when: u64) -> &mut News {
        let place = self.open.iter().position(|open| open.0 == when).unwrap_or_else(|| {
            self.open.push((when, self.spare.pop().unwrap_or_default()));
            self.open.len() - 1
        });
        &mut self.open[place].1
    }
}

impl World {
    pub(super) fn tell_gained(&mut self, node: u32, peer: PeerId, layer: u32, batch: Batch) {
        let Some(agent) = self.agents[at(node)].as_deref() else { return };
        let Some(&peer) = agent.peers.get(peer).filter(|peer| peer.conn != 0) else { return };
        let when = self.heard_at(node, &peer);
        let (news, pieces) = (self.outbox.at(when), batch.as_slice());
        // The next peer often hears the same.
        if !news.pieces.ends_with(pieces) {
            news.pieces.extend_from_slice(pieces);
        }
        let to = news.pieces.len();
        let (from, to) = (small(to - pieces.len()), small(to));
        news.words.push(Word { node: peer.node, slot: peer.theirs, conn: peer.conn, layer, from, to });
    }

    /// Sends what was collected.
    #[inline]
    pub(super) fn send_news(&mut self) {
        while let Some((when, news)) = self.outbox.open.pop() {
            let news = self.news.insert(news);
            self.push(when, Event::News(news));
        }
    }

    pub(super) fn news_arrived(&mut self, news: Handle) {
        let Some(mut news) = self.news.remove(news) else { return };
        for word in &news.words {
            let Some(agent) = self.agents[at(word.node)].as_deref() else { continue };
            if agent.peers.is_linked(word.slot, word.conn) {
                let peer = agent.peers.id(word.slot);
                let pieces = news.pieces[at(word.from)..at(word.to)].into();
                self.meter.news += 1;
                self.feed(word.node, Input::PeerGained { peer, blob: blob_id(word.layer), pieces });
            }
        }
        news.words.clear();
        news.pieces.clear();
        self.outbox.spare.push(news);
    }
}
