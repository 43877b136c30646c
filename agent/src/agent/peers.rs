//! The nodes that this one knows, under the core's ids: where they are, and whom not to talk to.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    net::SocketAddr,
    time::Duration,
};

use shoal_proto::{
    message::{ADDRESSES_MAX, CloseReason, PeerInfo},
    signed::{Labels, NodeId},
};
use shoal_transfer::{
    event::Input,
    ids::{Arena, PeerId},
    time::Span,
};
use tokio::time::Instant;

use super::{
    Done, Shell,
    links::{LinkState, Orphan},
};
use crate::{config::StaticPeer, peer::LinkId};

/// Nodes whose ban is remembered. Whoever is banned keeps its entry for minutes; more than this many at once means that
/// the fleet itself is bad.
const BANS_MAX: usize = 4096;
/// Ended connections that are remembered: what one had in hand is told of within moments of its end, and no more than
/// this many end in that time but in a storm, when bytes of an older one count as from somewhere in the fleet.
const BURIED_MAX: usize = 64;
/// Pause between attempts to reach a node that the configuration names.
const STATIC_PAUSE: Duration = Duration::from_secs(15);

/// A node that is known, connected or not.
#[derive(Debug)]
pub(super) struct Known {
    pub(super) info: PeerInfo,
    pub(super) fixed: bool,
    pub(super) link: Option<LinkState>,
    /// A dial under way that the loop has begun, not the core.
    pub(super) dialling: bool,
    /// Whether it was connected at least once: worth to be remembered.
    pub(super) proven: bool,
}

/// A node that the configuration names.
#[derive(Debug)]
pub(super) struct Static {
    peer: StaticPeer,
    tried: Option<Instant>,
}

/// All nodes that are known. Bounded by the core, which says whom to forget.
#[derive(Debug, Default)]
pub(super) struct Peers {
    pub(super) arena: Arena<PeerId, Known>,
    by_node: HashMap<NodeId, PeerId>,
    pub(super) by_link: HashMap<LinkId, PeerId>,
    /// Connections that ended, the latest last.
    buried: VecDeque<(LinkId, PeerId)>,
    /// Dials under way.
    dials: HashMap<u64, PeerId>,
    next_dial: u64,
    bans: BTreeMap<NodeId, Instant>,
    pub(super) statics: Vec<Static>,
    /// Peers between two connections.
    pub(super) orphans: Vec<Orphan>,
}

impl Peers {
    pub(super) fn new(statics: &[StaticPeer]) -> Self {
        let statics = statics.iter().map(|peer| Static { peer: peer.clone(), tried: None }).collect();
        Self { statics, ..Self::default() }
    }

    pub(super) fn by_node(&self, node: &NodeId) -> Option<PeerId> {
        self.by_node.get(node).copied()
    }

    pub(super) fn get(&self, peer: PeerId) -> Option<&Known> {
        self.arena.get(peer)
    }

    pub(super) fn link(&self, peer: PeerId) -> Option<&LinkState> {
        self.arena.get(peer)?.link.as_ref()
    }

    pub(super) fn link_mut(&mut self, peer: PeerId) -> Option<&mut LinkState> {
        self.arena.get_mut(peer)?.link.as_mut()
    }

    /// Whose connection this was.
    pub(super) fn buried(&self, link: LinkId) -> Option<PeerId> {
        self.buried.iter().rev().find(|(id, _)| *id == link).map(|(_, peer)| *peer)
    }

    pub(super) fn bury(&mut self, link: LinkId, peer: PeerId) {
        if self.buried.len() == BURIED_MAX {
            self.buried.pop_front();
        }
        self.buried.push_back((link, peer));
    }

    /// How many nodes are remembered.
    pub(super) fn known(&self) -> usize {
        self.by_node.len()
    }

    /// Peers with a connection.
    pub(super) fn connected(&self) -> impl Iterator<Item = (PeerId, &Known, &LinkState)> {
        self.arena.iter().filter_map(|(id, known)| Some((id, known, known.link.as_ref()?)))
    }

    pub(super) fn is_banned(&self, node: &NodeId, now: Instant) -> bool {
        self.bans.get(node).is_some_and(|until| *until > now)
    }

    pub(super) fn banned(&self, now: Instant) -> impl Iterator<Item = &NodeId> {
        self.bans.iter().filter(move |(_, until)| **until > now).map(|(node, _)| node)
    }

    pub(super) fn close_all(&self) {
        for (_, _, state) in self.connected() {
            state.link.close(CloseReason::Shutdown);
        }
    }
}

/// The number under which all nodes know a node in elections.
pub(super) fn rank(node: &NodeId) -> u64 {
    let mut first = [0; 8];
    first.copy_from_slice(&node.0[..8]);
    u64::from_be_bytes(first)
}

impl Shell {
    /// Takes note of a node, new addresses first; its id, unless it is this node.
    pub(super) fn know(&mut self, info: PeerInfo, fixed: bool) -> Option<PeerId> {
        if info.node == self.me {
            return None;
        }
        self.net.know(info.node, info.libp2p.clone());
        if let Some(id) = self.peers.by_node(&info.node)
            && let Some(known) = self.peers.arena.get_mut(id)
        {
            merge(&mut known.info.peer, &info.peer);
            merge(&mut known.info.libp2p, &info.libp2p);
            if fixed && !known.fixed {
                known.fixed = true;
                self.tell_known(id);
            }
            return Some(id);
        }
        let node = info.node;
        let id = self.peers.arena.insert(Known { info, fixed, link: None, dialling: false, proven: false });
        self.peers.by_node.insert(node, id);
        self.tell_known(id);
        Some(id)
    }

    fn tell_known(&mut self, peer: PeerId) {
        let Some(known) = self.peers.arena.get(peer) else { return };
        let scope = self.labels.shared(&known.info.labels);
        let (rank, fixed) = (rank(&known.info.node), known.fixed);
        self.feed(Input::PeerKnown { peer, scope, rank, fixed });
    }

    /// A membership has shown where the node stands.
    pub(super) fn learn_labels(&mut self, peer: PeerId, labels: &Labels) {
        if let Some(known) = self.peers.arena.get_mut(peer)
            && known.info.labels != *labels
        {
            known.info.labels = labels.clone();
            self.tell_known(peer);
        }
    }

    /// The core wants a connection.
    pub(super) fn connect(&mut self, peer: PeerId) {
        if self.peers.link(peer).is_some() {
            return self.feed(Input::Connected { peer });
        }
        if !self.dial(peer) {
            self.feed(Input::ConnectFailed { peer });
        }
    }

    /// Dials a node; false if that cannot be.
    pub(super) fn dial(&mut self, peer: PeerId) -> bool {
        let Some(known) = self.peers.arena.get_mut(peer) else { return false };
        let (node, addresses) = (known.info.node, known.info.peer.clone());
        if addresses.is_empty() || self.peers.is_banned(&node, Instant::now()) {
            return false;
        }
        self.peers.next_dial += 1;
        let dial = self.peers.next_dial;
        self.peers.dials.insert(dial, peer);
        self.endpoint.dial(dial, addresses, Some(node));
        true
    }

    /// Dials a node of the loop's own accord, once at a time; true if a dial is under way.
    pub(super) fn dial_once(&mut self, peer: PeerId) -> bool {
        match self.peers.arena.get_mut(peer) {
            None => return false,
            Some(known) if known.link.is_some() => return false,
            Some(known) if known.dialling => return true,
            Some(_) => {}
        }
        let under_way = self.dial(peer);
        if let Some(known) = self.peers.arena.get_mut(peer) {
            known.dialling = under_way;
        }
        under_way
    }

    /// A dial is over: whom it was for.
    pub(super) fn dialled(&mut self, dial: u64) -> Option<PeerId> {
        let peer = self.peers.dials.remove(&dial)?;
        if let Some(known) = self.peers.arena.get_mut(peer) {
            known.dialling = false;
        }
        Some(peer)
    }

    /// The core will have nothing to do with the node for a while.
    pub(super) fn ban(&mut self, peer: PeerId, span: Span) {
        let now = Instant::now();
        let Some(known) = self.peers.arena.get(peer) else { return };
        let node = known.info.node;
        tracing::warn!(node = %node, seconds = span.as_nanos() / 1_000_000_000, "banned a peer for what it sent");
        self.peers.bans.retain(|_, until| *until > now);
        if self.peers.bans.len() < BANS_MAX {
            self.peers.bans.insert(node, now + Duration::from_nanos(span.as_nanos()));
        }
        if let Some(state) = self.peers.link(peer) {
            state.link.close(CloseReason::Banned);
        }
    }

    /// The core knows the node no more.
    pub(super) fn forget_peer(&mut self, peer: PeerId) {
        if let Some(known) = self.peers.arena.remove(peer) {
            self.peers.by_node.remove(&known.info.node);
            if let Some(state) = known.link {
                self.peers.by_link.remove(&state.link.id());
                state.link.close(CloseReason::Limit);
            }
        }
        self.images.forget_peer(peer);
    }

    /// Looks up and dials the nodes that the configuration names, while they are not connected.
    pub(super) fn tick_static(&mut self) {
        let now = Instant::now();
        for at in 0..self.peers.statics.len() {
            let entry = &self.peers.statics[at];
            let StaticPeer { node, host, port } = entry.peer.clone();
            let resting = entry.tried.is_some_and(|tried| now.duration_since(tried) < STATIC_PAUSE);
            let up = self.peers.by_node(&node).is_some_and(|peer| self.peers.link(peer).is_some());
            if resting || up || node == self.me {
                continue;
            }
            self.peers.statics[at].tried = Some(now);
            let (done, stop) = (self.done.clone(), self.stop.clone());
            self.tasks.spawn(async move {
                let look_up = async {
                    match tokio::net::lookup_host((host.as_str(), port)).await {
                        Ok(found) => {
                            let addresses = found.take(ADDRESSES_MAX).collect();
                            let _ = done.send(Done::Resolved { node, addresses }).await;
                        }
                        Err(error) => tracing::warn!(%error, host, "a static peer's name cannot be looked up"),
                    }
                };
                tokio::select! {
                    () = stop.cancelled() => {}
                    () = look_up => {}
                }
            });
        }
    }

    pub(super) fn on_resolved(&mut self, node: NodeId, addresses: &[SocketAddr]) {
        let info = PeerInfo { node, peer: addresses.to_vec(), libp2p: Vec::new(), labels: Labels::default() };
        if let Some(peer) = self.know(info, true) {
            self.dial_once(peer);
        }
    }
}

/// Puts `new` in front, without doubles, bounded.
fn merge(known: &mut Vec<SocketAddr>, new: &[SocketAddr]) {
    let mut merged: Vec<SocketAddr> = new.to_vec();
    merged.extend(known.iter().filter(|address| !new.contains(address)));
    merged.truncate(ADDRESSES_MAX);
    *known = merged;
}
