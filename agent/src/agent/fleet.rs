//! What connections must know of the fleet, and what members pass on to one another: key sets and revocations.
//!
//! **How a revocation travels.** Whoever hears of a newer list first (from the seeder, which each asks only now and then)
//! tells its connected peers, and they theirs; each connection carries each version at most once each way. Nodes that are
//! not connected hear of it when they are: it is the first thing that is said. A node closes its connections to a revoked
//! member as soon as it has the list.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use shoal_dht::gate::Gate;
use shoal_proto::{
    envelope::{Envelope, EnvelopeError, PayloadType},
    member::{NotAdmitted, admit},
    message::{Message, PeerInfo},
    signed::{KeySet, NodeId},
};
use shoal_transfer::ids::PeerId;
use tokio::{sync::Notify, task::block_in_place, time::Instant};

use super::{Done, Shell, unix_now};
use crate::{
    peer::Fleet,
    upstream::{Upstream, trust::REFRESH_MIN},
};

/// libp2p connections whose memberships are remembered: over this many, those that were are judged as gone and are made
/// anew. Several times what libp2p keeps open.
const ADMITTED_MAX: usize = 4096;

/// The fleet by the seeder's word.
#[derive(Debug)]
pub(super) struct SeederFleet {
    upstream: Upstream,
    unknown: Notify,
    /// Serials by which nodes were let in to libp2p.
    admitted: Mutex<HashMap<NodeId, u64>>,
}

impl SeederFleet {
    pub(super) fn new(upstream: Upstream) -> Self {
        Self { upstream, unknown: Notify::new(), admitted: Mutex::default() }
    }

    /// Waits until somebody showed a key that is not known. Cancel-safe.
    pub(super) async fn wanted(&self) {
        self.unknown.notified().await;
    }

    /// Waits until there is a newer key set or revocation list. Cancel-safe.
    pub(super) async fn news(&self) {
        self.upstream.trust().news().await;
    }

    fn admitted(&self) -> MutexGuard<'_, HashMap<NodeId, u64>> {
        self.admitted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Fleet for SeederFleet {
    fn keys(&self) -> Arc<KeySet> {
        self.upstream.trust().keys()
    }

    fn membership(&self) -> Option<Envelope> {
        self.upstream.member().borrow().as_ref().map(|member| member.envelope.clone())
    }

    fn is_revoked(&self, serial: u64) -> bool {
        self.upstream.trust().is_revoked(serial)
    }

    fn unknown_key(&self) {
        self.unknown.notify_one();
    }
}

impl Gate for SeederFleet {
    fn membership(&self) -> Option<Envelope> {
        Fleet::membership(self)
    }

    fn admit(&self, node: &NodeId, membership: Option<&Envelope>) -> Result<(), NotAdmitted> {
        let admitted = admit(membership, node, &*self.keys(), |serial| self.is_revoked(serial), unix_now());
        if let Err(NotAdmitted::Foreign(EnvelopeError::Key { .. })) = &admitted {
            self.unknown_key();
        }
        let serial = admitted?.serial;
        let mut table = self.admitted();
        if table.len() >= ADMITTED_MAX {
            table.clear();
        }
        table.insert(*node, serial);
        Ok(())
    }

    fn may_stay(&self, node: &NodeId) -> bool {
        self.admitted().get(node).is_some_and(|serial| !self.is_revoked(*serial))
    }
}

/// First pause before the seeder is asked again to introduce this node; it doubles up to the other.
const MEET_PAUSE: Duration = Duration::from_secs(1);
/// Longest pause: a seeder that comes back is not run over by its fleet.
const MEET_PAUSE_MAX: Duration = Duration::from_secs(60);

impl Shell {
    /// A renewed membership may place this node elsewhere, and the first one may come late.
    pub(super) fn tick_labels(&mut self) {
        let member = self.upstream.member();
        let labels = member.borrow().as_ref().map(|member| member.membership.labels.clone());
        if let Some(labels) = labels.filter(|labels| *labels != self.labels) {
            self.labels = labels;
            let me = PeerInfo { labels: self.labels.clone(), ..self.endpoint.me() };
            self.endpoint.set_self(me.clone());
            self.upstream.set_self(me);
        }
    }

    /// Meets the fleet as soon as the node is a member and the seeder can be reached: should the seeder go before this node
    /// has pulled anything, it knows others whom it can ask.
    pub(super) fn meet(&self) {
        let (upstream, stop, done) = (self.upstream.clone(), self.stop.clone(), self.done.clone());
        let mut member = upstream.member();
        self.tasks.spawn(async move {
            let met = async {
                let mut pause = MEET_PAUSE;
                loop {
                    if member.wait_for(Option::is_some).await.is_err() {
                        return;
                    }
                    match upstream.meet().await {
                        Ok(introductions) => return drop(done.send(Done::Met(introductions)).await),
                        Err(error) => tracing::debug!(%error, "the seeder does not introduce this node yet"),
                    }
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(MEET_PAUSE_MAX);
                }
            };
            tokio::select! {
                () = stop.cancelled() => {}
                () = met => {}
            }
        });
    }

    pub(super) fn on_met(&mut self, introductions: Vec<PeerInfo>) {
        for info in introductions {
            self.know(info, false);
        }
    }

    /// Tells a peer what it may not have heard: the newest key set and revocation list.
    pub(super) fn pass_news(&mut self, peer: PeerId) {
        let trust = self.upstream.trust().clone();
        let Some(state) = self.peers.link_mut(peer) else { return };
        let (keys, list) = (trust.signed_keys(), trust.signed_revocations());
        let mut news = Vec::new();
        // A fleet's first set is everybody's.
        if keys.1.counter > 1 && state.news.0 < keys.1 {
            state.news.0 = keys.1;
            news.push(keys.0);
        }
        if let Some((envelope, version)) = list
            && state.news.1 < version
        {
            state.news.1 = version;
            news.push(envelope);
        }
        if !news.is_empty() {
            self.send(peer, Message::Signed(news));
        }
    }

    /// There is a newer key set or revocation list.
    pub(super) fn on_news(&mut self) {
        self.close_outsiders();
        self.net.recheck();
        let connected: Vec<PeerId> = self.peers.connected().map(|(peer, ..)| peer).collect();
        for peer in connected {
            self.pass_news(peer);
        }
    }

    /// A peer passes a key set or a revocation list on; true if it is one. What is not newer changes nothing.
    pub(super) fn on_peers_news(&mut self, peer: PeerId, envelope: &Envelope) -> bool {
        let trust = self.upstream.trust().clone();
        let accepted = if envelope.kind() == PayloadType::RevocationList as u8 {
            block_in_place(|| trust.accept_revocations(envelope)).map(|version| (false, version))
        } else if envelope.kind() == PayloadType::KeySet as u8 {
            block_in_place(|| trust.accept_keys(envelope)).map(|version| (true, version))
        } else {
            return false;
        };
        match (accepted, self.peers.link_mut(peer)) {
            (Ok((true, version)), Some(state)) => state.news.0 = state.news.0.max(version),
            (Ok((false, version)), Some(state)) => state.news.1 = state.news.1.max(version),
            (Ok(_), None) => {}
            (Err(error), _) => tracing::debug!(%error, "a peer passes on what is not to be believed"),
        }
        true
    }

    /// Asks the seeder for a newer key set, not more than once in [`REFRESH_MIN`].
    pub(super) fn refresh_keys(&mut self) {
        let now = Instant::now();
        if self.keys_asked.is_some_and(|asked| now.duration_since(asked) < REFRESH_MIN) {
            return;
        }
        self.keys_asked = Some(now);
        let (upstream, stop) = (self.upstream.clone(), self.stop.clone());
        self.tasks.spawn(async move {
            let info = tokio::select! {
                () = stop.cancelled() => return,
                info = upstream.info() => info,
            };
            // Out of reach, it is asked again when the next unknown key comes by.
            if let Ok(info) = info
                && let Err(error) = upstream.trust().accept(&info)
            {
                tracing::error!(%error, "the seeder's keys are not taken");
            }
        });
    }
}
