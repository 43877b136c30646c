//! Have-deltas. A node tells some dozens of peers the same; those that hear it at the same moment share one event, and
//! each is handed the indexes by reference.

use shoal_transfer::{
    event::{Batch, Input},
    ids::PeerId,
};

use super::{Event, World, agent::blob_id};
use crate::{num::at, slab::Handle, topology::End};

/// Who hears: node, the slot of the sender there, and the connection.
#[derive(Debug, Clone, Copy)]
struct Hearer {
    node: u32,
    slot: u32,
    conn: u32,
}

/// Gained pieces on their way.
#[derive(Debug)]
pub(super) struct News {
    layer: u32,
    pieces: Batch,
    hearers: Vec<Hearer>,
}

/// What one node says at one moment, until it has said all.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    /// What is being said.
    current: Option<(u32, Batch)>,
    hearers: Vec<(u64, Hearer)>,
    /// Lists to be used again.
    spare: Vec<Vec<Hearer>>,
}

impl World {
    pub(super) fn tell_gained(&mut self, node: u32, peer: PeerId, layer: u32, pieces: Batch) {
        if self.outbox.current.is_some_and(|current| current != (layer, pieces)) {
            self.send_news(node);
        }
        let Some(agent) = self.agents[at(node)].as_deref() else { return };
        let Some(peer) = agent.peers.get(peer).filter(|peer| peer.conn != 0) else { return };
        let hearer = Hearer { node: peer.node, slot: peer.theirs, conn: peer.conn };
        let when = self.reach(End::Node(node), End::Node(peer.node));
        self.outbox.current = Some((layer, pieces));
        self.outbox.hearers.push((when, hearer));
    }

    /// Sends what was collected: one event for each moment of arrival.
    pub(super) fn send_news(&mut self, _node: u32) {
        let Some((layer, pieces)) = self.outbox.current.take() else { return };
        let mut all = core::mem::take(&mut self.outbox.hearers);
        while let Some(&(when, _)) = all.first() {
            let mut hearers = self.outbox.spare.pop().unwrap_or_default();
            all.retain(|(other, hearer)| {
                if *other == when {
                    hearers.push(*hearer);
                }
                *other != when
            });
            let news = self.news.insert(News { layer, pieces, hearers });
            self.push(when, Event::News(news));
        }
        self.outbox.hearers = all;
    }

    pub(super) fn news_arrived(&mut self, news: Handle) {
        let Some(News { layer, pieces, mut hearers }) = self.news.remove(news) else { return };
        for hearer in &hearers {
            if self.is_linked(hearer.node, hearer.slot, hearer.conn) {
                let Some(agent) = self.agents[at(hearer.node)].as_deref() else { continue };
                let peer = agent.peers.id(hearer.slot);
                self.meter.news += 1;
                self.feed(
                    hearer.node,
                    Input::PeerGained { peer, blob: blob_id(layer), pieces: pieces.as_slice().into() },
                );
            }
        }
        hearers.clear();
        self.outbox.spare.push(hearers);
    }
}
