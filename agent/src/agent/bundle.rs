//! Pulling a public reference without the seeder: its bundle, asked of all who may have it.
//!
//! Whoever holds a bundle is announced in the DHT under the reference's key; connected peers are asked besides, and some
//! that were connected in an earlier run are dialled. The first bundle whose signatures hold is taken; what it says is
//! checked again, against what was asked, by whoever asked.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use shoal_proto::{
    message::{Bundle, Question},
    signed::{Capability, DiscoveryKey, KeySet, Statement, Subject, TagRecord},
};
use shoal_transfer::ids::PeerId;
use tokio::{sync::oneshot, time::Instant};

use super::{Shell, answers::For};

/// How long a client waits for a bundle at most.
const BUNDLE_MAX: Duration = Duration::from_secs(5);
/// Bundles looked for at once.
const PENDING_MAX: usize = 64;
/// Connected peers that are asked.
const ASKED_MAX: usize = 32;
/// Nodes that are dialled for it.
const DIALLED_MAX: usize = 8;
/// Statements of a bundle that are opened here; each costs a signature check. An image of more digests has no bundle.
pub(super) const STATEMENTS_MAX: usize = 1024;

type Reply = oneshot::Sender<Option<Box<Bundle>>>;

#[derive(Debug)]
struct Pending {
    replies: Vec<Reply>,
    until: Instant,
    asked: BTreeSet<PeerId>,
    unanswered: usize,
    /// Whether the DHT is being asked.
    finding: bool,
    dialled: BTreeSet<PeerId>,
}

/// Bundles that are looked for.
#[derive(Debug, Default)]
pub(super) struct Bundles {
    pending: BTreeMap<DiscoveryKey, Pending>,
}

impl Shell {
    pub(super) fn on_bundle_wanted(&mut self, key: DiscoveryKey, reply: Reply) {
        if let Some(bundle) = self.images.bundle(&key) {
            let _ = reply.send(Some(Box::new((**bundle).clone())));
            return;
        }
        if let Some(pending) = self.bundles.pending.get_mut(&key) {
            return pending.replies.push(reply);
        }
        if self.bundles.pending.len() >= PENDING_MAX {
            let _ = reply.send(None);
            return;
        }
        let pending = Pending {
            replies: vec![reply],
            until: Instant::now() + BUNDLE_MAX,
            asked: BTreeSet::new(),
            unanswered: 0,
            finding: true,
            dialled: BTreeSet::new(),
        };
        self.bundles.pending.insert(key, pending);
        let connected: Vec<PeerId> = self.peers.connected().map(|(peer, ..)| peer).take(ASKED_MAX).collect();
        for peer in connected {
            self.ask_for_bundle(peer, key);
        }
        self.net.find(vec![key]);
        let known = self.peers.arena.iter().filter(|(_, known)| known.link.is_none() && !known.info.peer.is_empty());
        let mut known: Vec<_> = known.map(|(peer, known)| (!known.proven, peer)).collect();
        known.sort_unstable();
        for (_, peer) in known.into_iter().take(DIALLED_MAX) {
            self.dial_for_bundle(peer, &key);
        }
    }

    fn ask_for_bundle(&mut self, peer: PeerId, key: DiscoveryKey) {
        let Some(pending) = self.bundles.pending.get_mut(&key) else { return };
        if pending.asked.insert(peer) {
            pending.unanswered += 1;
            self.ask(peer, Question::Bundle(key), For::Bundle(key));
        }
    }

    fn dial_for_bundle(&mut self, peer: PeerId, key: &DiscoveryKey) {
        if self.dial_once(peer)
            && let Some(pending) = self.bundles.pending.get_mut(key)
        {
            pending.dialled.insert(peer);
        }
    }

    /// The DHT names nodes that have the bundle.
    pub(super) fn bundle_holder(&mut self, peer: PeerId, key: &DiscoveryKey) {
        if !self.bundles.pending.contains_key(key) {
            return;
        }
        if self.peers.link(peer).is_some() {
            self.ask_for_bundle(peer, *key);
        } else {
            self.dial_for_bundle(peer, key);
        }
    }

    /// The DHT has said all that it knows.
    pub(super) fn bundle_sought(&mut self, key: &DiscoveryKey) {
        if let Some(pending) = self.bundles.pending.get_mut(key) {
            pending.finding = false;
        }
    }

    /// A peer has come up: it is asked for all that is looked for.
    pub(super) fn ask_for_bundles(&mut self, peer: PeerId) {
        let keys: Vec<DiscoveryKey> = self.bundles.pending.keys().copied().collect();
        for key in keys {
            self.ask_for_bundle(peer, key);
        }
    }

    pub(super) fn on_bundle(&mut self, peer: Option<PeerId>, key: &DiscoveryKey, bundle: Option<Box<Bundle>>) {
        let Some(pending) = self.bundles.pending.get_mut(key) else { return };
        pending.unanswered = pending.unanswered.saturating_sub(1);
        let Some(bundle) = bundle else { return };
        if !holds(&bundle, &self.upstream.trust().keys()) {
            let node = peer.and_then(|peer| self.peers.get(peer)).map(|known| known.info.node);
            tracing::warn!(?node, "a peer's bundle is not signed as it should be");
            return;
        }
        if let Some(pending) = self.bundles.pending.remove(key) {
            for reply in pending.replies {
                let _ = reply.send(Some(bundle.clone()));
            }
        }
    }

    /// Gives up where nobody is left to answer.
    pub(super) fn tick_bundles(&mut self, now: Instant) {
        let peers = &self.peers;
        let dialling = |peer: &PeerId| peers.get(*peer).is_some_and(|known| known.dialling);
        let over: Vec<DiscoveryKey> = self
            .bundles
            .pending
            .iter()
            .filter(|(_, p)| {
                let idle = p.unanswered == 0 && !p.finding && !p.dialled.iter().any(dialling);
                idle || p.until <= now
            })
            .map(|(key, _)| *key)
            .collect();
        for key in over {
            for reply in self.bundles.pending.remove(&key).into_iter().flat_map(|pending| pending.replies) {
                let _ = reply.send(None);
            }
        }
    }
}

/// Whether everything in a bundle is the seeder's word, and for anybody.
fn holds(bundle: &Bundle, keys: &KeySet) -> bool {
    let public = bundle.capability.open::<Capability>(keys).is_ok_and(|covers| covers.subject == Subject::AnyMember);
    let tag = bundle.tag_record.as_ref().is_none_or(|record| {
        record.open::<TagRecord>(keys).is_ok_and(|record| record.digest == Some(bundle.digest) && record.public)
    });
    let few = bundle.statements.len() <= STATEMENTS_MAX;
    public && tag && few && bundle.statements.iter().all(|statement| statement.open::<Statement>(keys).is_ok())
}
