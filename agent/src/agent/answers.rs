//! Questions between peers: what this node answers, and what it has asked.

use std::{collections::BTreeMap, time::Duration};

use shoal_proto::{
    Digest, codec,
    message::{Answer, FRAME_LEN_MAX, Message, PEERS_MAX, PeerInfo, Question},
    signed::DiscoveryKey,
};
use shoal_transfer::ids::PeerId;
use tokio::{task::block_in_place, time::Instant};

use super::Shell;

/// Questions of ours that are open, of all peers together.
const ASKS_MAX: usize = 512;
/// Bytes of a frame that an answer leaves to what is around it.
pub(super) const ANSWER_HEAD_LEN: usize = 16;
/// A peer that has not answered by then has nothing.
const ANSWER_MAX: Duration = Duration::from_secs(3);

/// What an answer is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum For {
    /// The piece hashes of a blob that is wanted.
    Hashes(Digest),
    /// A bundle that is wanted.
    Bundle(DiscoveryKey),
}

/// Questions that peers have not answered.
#[derive(Debug, Default)]
pub(super) struct Asks {
    open: BTreeMap<(PeerId, u32), (For, Instant)>,
    next: u32,
    /// Questions to peers that have gone, to be taken as answered with nothing.
    void: Vec<For>,
}

impl Asks {
    /// The peer's connection is gone: it will not answer.
    pub(super) fn forget_peer(&mut self, peer: PeerId) {
        let void = &mut self.void;
        self.open.retain(|(of, _), (purpose, _)| {
            if *of == peer {
                void.push(*purpose);
            }
            *of != peer
        });
    }
}

impl Shell {
    /// Asks a peer; the answer, or the lack of one, comes to [`Shell::on_answer`].
    pub(super) fn ask(&mut self, peer: PeerId, question: Question, purpose: For) {
        if self.asks.open.len() >= ASKS_MAX || self.peers.link(peer).is_none() {
            return self.asks.void.push(purpose);
        }
        self.asks.next = self.asks.next.wrapping_add(1);
        let id = self.asks.next;
        self.asks.open.insert((peer, id), (purpose, Instant::now() + ANSWER_MAX));
        self.send(peer, Message::Ask { id, question });
    }

    /// An answer that nobody waits for is dropped.
    pub(super) fn on_tell(&mut self, peer: PeerId, id: u32, answer: Answer) {
        if let Some((purpose, _)) = self.asks.open.remove(&(peer, id)) {
            self.on_answer(peer, purpose, answer);
        }
    }

    fn on_answer(&mut self, peer: PeerId, purpose: For, answer: Answer) {
        match (purpose, answer) {
            (For::Hashes(digest), Answer::Hashes(hashes)) => self.on_hashes(&digest, Some(hashes)),
            (For::Hashes(digest), _) => self.on_hashes(&digest, None),
            (For::Bundle(key), Answer::Bundle(bundle)) => self.on_bundle(Some(peer), &key, Some(bundle)),
            (For::Bundle(key), _) => self.on_bundle(Some(peer), &key, None),
        }
    }

    /// Gives up on peers that do not answer.
    pub(super) fn tick_asks(&mut self, now: Instant) {
        let late: Vec<_> = self.asks.open.iter().filter(|(_, (_, until))| *until <= now).map(|(id, _)| *id).collect();
        for id in late {
            if let Some((purpose, _)) = self.asks.open.remove(&id) {
                self.on_answer(id.0, purpose, Answer::Nothing);
            }
        }
        for purpose in std::mem::take(&mut self.asks.void) {
            match purpose {
                For::Hashes(digest) => self.on_hashes(&digest, None),
                For::Bundle(key) => self.on_bundle(None, &key, None),
            }
        }
    }

    /// A peer asks. What it may not read does not exist.
    pub(super) fn on_ask(&mut self, peer: PeerId, id: u32, question: Question) {
        let answer = match question {
            Question::Statement(digest) if self.may_read(peer, &digest) => {
                let blob = block_in_place(|| self.store.blob(&digest));
                blob.map(|blob| Answer::Signed(vec![blob.envelope().clone()]))
            }
            Question::Hashes(digest) if self.may_read(peer, &digest) => {
                let blob = block_in_place(|| self.store.blob(&digest));
                blob.map(|blob| Answer::Hashes(blob.hashes().as_slice().to_vec()))
            }
            // Knowing the key is the right: a bundle is public, and the key stands for the reference.
            Question::Bundle(key) => {
                self.images.bundle(&key).map(|bundle| Answer::Bundle(Box::new((**bundle).clone())))
            }
            Question::Peers(image) if self.may_read(peer, &image) => Some(Answer::Peers(self.others(peer, &image))),
            Question::Statement(_) | Question::Hashes(_) | Question::Peers(_) => None,
        };
        let fits = |answer: &Answer| codec::encode(answer).len() + ANSWER_HEAD_LEN <= FRAME_LEN_MAX;
        let answer = answer.filter(fits).unwrap_or(Answer::Nothing);
        self.send(peer, Message::Tell { id, answer });
    }

    /// Nodes interested in an image besides `peer`, connected ones first.
    pub(super) fn others(&mut self, peer: PeerId, image: &Digest) -> Vec<PeerInfo> {
        let turn = self.discovery.next_turn();
        let Some(image) = self.images.get(image) else { return Vec::new() };
        let mut others: Vec<_> = image
            .peers
            .iter()
            .filter(|other| **other != peer)
            .filter_map(|other| self.peers.get(*other))
            .filter(|known| !known.info.peer.is_empty())
            .collect();
        // Others for everybody who asks, or all newcomers would flock to the same few.
        let start = turn % others.len().max(1);
        others.rotate_left(start);
        others.sort_by_key(|known| known.link.is_none());
        others.into_iter().take(PEERS_MAX / 2).map(|known| known.info.clone()).collect()
    }
}
