//! How nodes learn of each other: the pull's answer, the DHT, and what peers tell.

use std::collections::VecDeque;

use shoal_transfer::event::{Goal, Input};

use super::{
    End, Event, Word, World,
    agent::{blob_id, reader_id},
    tracker::Lists,
};
use crate::{
    num::{at, ceil},
    rng::Stream,
};

/// Nodes that a node remembers as interested, as the agent does.
const INTERESTED_MAX: usize = 128;
/// Neighbours that hear of newcomers at once, as the agent tells them.
const EXCHANGE_WITH_MAX: usize = 8;
/// Names in one answer of the DHT.
const FOUND_MAX: usize = 20;
/// Parallel requests of a look-up, and the neighbours that know the last step.
const KAD_ALPHA: usize = 4;
const KAD_BUCKET: usize = 20;
/// Longest pause of a runtime after pulls that failed.
const PULL_RETRY_MAX: u64 = 300_000_000_000;

/// Holders that the DHT knows: the last ones that announced themselves, in the fleet and in each region.
#[derive(Debug)]
pub(super) struct Records {
    regions: usize,
    fleet: Vec<VecDeque<u32>>,
    near: Vec<VecDeque<u32>>,
}

impl Records {
    pub(super) fn new(layers: usize, regions: usize) -> Self {
        Self {
            regions,
            fleet: (0..layers).map(|_| VecDeque::new()).collect(),
            near: (0..layers * regions).map(|_| VecDeque::new()).collect(),
        }
    }
}

impl World {
    /// A node's runtime pulls the image.
    pub(super) fn arrive(&mut self, node: u32) {
        self.meter.started(node, self.now);
        if !self.plan.policy.swarms() {
            return self.pull_without_swarm(node);
        }
        if self.agents[at(node)].is_none() {
            self.lives[at(node)] += 1;
            self.start_agent(node);
            self.begin_crash(node);
        }
        self.ask_for_image(node);
    }

    /// Asks the origin for the manifest and all that comes with it.
    pub(super) fn ask_for_image(&mut self, node: u32) {
        let life = self.lives[at(node)];
        let when = self.reach(End::Node(node), End::Origin);
        self.say(when, Word::Pull { node, life, counted: false });
    }

    /// After a pull that failed, the runtime tries again later and later.
    pub(super) fn retry_pull(&mut self, node: u32) {
        let tries = self.meter.logs[at(node)].pulls_failed;
        self.meter.logs[at(node)].pulls_failed += 1;
        let base = self.plan.scenario.control.pull_retry.0;
        let pause = base.saturating_mul(1 << tries.min(20)).min(PULL_RETRY_MAX.max(base));
        let jitter =
            Stream::new(self.plan.seed, u64::from(node) << 8 | u64::from(tries), crate::rng::Purpose::Retry).unit();
        self.push(self.now + pause + crate::num::floor(pause as f64 * 0.1 * jitter), Event::Arrive(node));
    }

    pub(super) fn pull_arrived(&mut self, node: u32, life: u32, counted: bool) {
        if self.lives[at(node)] != life {
            return;
        }
        if !self.plan.policy.swarms() {
            return self.pull_without_swarm_arrived(node, counted);
        }
        if self.origin.down {
            return self.retry_pull(node);
        }
        if !counted {
            let when = self.origin.turn(self.now);
            return self.say(when, Word::Pull { node, life, counted: true });
        }
        let (control, now) = (&self.plan.scenario.control, self.now);
        let (names, members) = (at(control.introductions), at(control.members));
        let most = if control.labels { at(control.candidates) } else { 0 };
        let spots = control.labels.then_some(&self.topology.spots);
        let names = self.tracker.introduce(node, spots, names, members, now);
        let lists = self.tracker.lists(node, &self.topology.spots, &self.ranks, most, now);
        let when = self.reach(End::Origin, End::Node(node));
        self.say(when, Word::Opened { node, life, names, lists });
    }

    pub(super) fn opened(&mut self, node: u32, life: u32, names: &[u32], lists: Lists) {
        if self.lives[at(node)] != life || self.agents[at(node)].is_none() {
            return;
        }
        self.meter.logs[at(node)].opened = self.now;
        let slots: Vec<u32> = names.iter().filter_map(|name| self.know(node, *name)).collect();
        let Some(agent) = self.agent(node) else { return };
        agent.lists = lists;
        let introduced: Vec<_> = slots.into_iter().map(|slot| agent.peers.id(slot)).collect();
        for index in 0..self.plan.wanted.len() {
            let layer = self.plan.wanted[index];
            let layout = self.plan.layers[at(layer)].layout;
            let start = at(node) * self.plan.words + self.plan.layers[at(layer)].word;
            let words = &self.have[start..start + at(layout.pieces().div_ceil(64))];
            let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
            bytes.truncate(at(layout.pieces().div_ceil(8)));
            self.feed(
                node,
                Input::BlobOpened {
                    blob: blob_id(layer),
                    size: layout.size(),
                    piece_len: layout.piece_len(),
                    have: shoal_proto::have::Have::Set(bytes),
                    goal: Goal::Fetch { background: false },
                    prefix: None,
                    introduced: introduced.as_slice().into(),
                },
            );
            self.tell_lists(node, layer);
        }
        self.open_readers(node);
    }

    /// Opens clients on the next layers, as many as the runtime reads at once.
    pub(super) fn open_readers(&mut self, node: u32) {
        let most = at(self.plan.scenario.nodes.parallel_layers);
        for index in 0..self.plan.wanted.len() {
            let layer = self.plan.wanted[index];
            if self.agent(node).is_none_or(|agent| agent.readers.len() >= most) {
                return;
            }
            let open = self.agent(node).is_some_and(|agent| agent.readers.iter().any(|(other, _)| *other == layer));
            if open || self.is_complete(node, layer) {
                continue;
            }
            let pieces = self.plan.layers[at(layer)].layout.pieces();
            let from = (0..pieces).find(|piece| !self.has(node, layer, *piece)).unwrap_or(pieces);
            if let Some(agent) = self.agent(node) {
                agent.readers.push((layer, from));
            }
            self.feed(node, Input::ReaderOpened { reader: reader_id(layer), blob: blob_id(layer), from, to: pieces });
        }
    }

    /// Tells a node who may be elected for a layer's pieces.
    fn tell_lists(&mut self, node: u32, layer: u32) {
        let lists = self.agent(node).map(|agent| agent.lists.clone()).unwrap_or_default();
        for (scope, _, ranks) in lists.0 {
            self.feed(node, Input::Candidates { blob: blob_id(layer), scope, ranks: ranks.as_ref().into() });
        }
    }

    /// A peer has spoken of the image: it is sent the lists that this node knows, once on each connection.
    pub(super) fn send_lists(&mut self, node: u32, slot: u32) {
        let Some(agent) = self.agent(node).filter(|agent| !agent.lists.0.is_empty()) else { return };
        let lists = agent.lists.clone();
        let peer = &mut agent.peers.list[at(slot)];
        if core::mem::replace(&mut peer.listed, peer.conn) == peer.conn {
            return;
        }
        let peer = *peer;
        let (when, life) = (self.heard_at(node, &peer), self.lives[at(peer.node)]);
        self.say(when, Word::Lists { to: peer.node, life, from: node, lists });
    }

    /// A node hears of another's lists: it takes those that are newer than its own.
    pub(super) fn heard_lists(&mut self, node: u32, life: u32, from: u32, lists: Lists) {
        let shared = self.topology.spots.shared(node, from);
        let same = self.lives[at(node)] == life;
        let Some(agent) = self.agent(node).filter(|_| same) else { return };
        let mut changed = false;
        for entry in lists.0.into_iter().filter(|entry| shared <= entry.0) {
            match agent.lists.0.iter_mut().find(|own| own.0 == entry.0) {
                Some(own) if own.1 < entry.1 => *own = entry,
                None => agent.lists.0.push(entry),
                Some(_) => continue,
            }
            changed = true;
        }
        if changed {
            (0..self.plan.wanted.len()).for_each(|index| self.tell_lists(node, self.plan.wanted[index]));
        }
    }

    /// A node hears of others that are interested in one layer, or in all.
    pub(super) fn named(&mut self, to: u32, life: u32, blob: Option<u32>, names: &[u32]) {
        if self.lives[at(to)] != life {
            return;
        }
        for &name in names.iter().filter(|name| **name != to) {
            self.introduce(to, name, blob);
        }
    }

    fn introduce(&mut self, node: u32, other: u32, blob: Option<u32>) {
        let Some(agent) = self.agent(node) else { return };
        let slot = match agent.peers.find(other) {
            // For all layers there is nothing new about whom the node has known.
            Some(_) if blob.is_none() => return,
            None if agent.peers.list.len() >= INTERESTED_MAX => return,
            Some(slot) => Some(slot),
            None => self.know(node, other),
        };
        if let Some(slot) = slot {
            self.introduce_slot(node, slot, blob);
        }
    }

    fn introduce_slot(&mut self, node: u32, slot: u32, blob: Option<u32>) {
        let Some(agent) = self.agent(node) else { return };
        let peer = agent.peers.id(slot);
        if let Some(layer) = blob {
            return self.feed(node, Input::PeerIntroduced { peer, blob: blob_id(layer) });
        }
        for index in 0..self.plan.wanted.len() {
            let blob = blob_id(self.plan.wanted[index]);
            self.feed(node, Input::PeerIntroduced { peer, blob });
        }
    }

    /// A connection has come up: its other end is interested in the image, and hears of some others that are.
    pub(super) fn plan_exchange(&mut self, node: u32) {
        let control = &self.plan.scenario.control;
        let (pause, most) = (control.exchange.0, at(control.exchange_names));
        let Some(slot) = self.agent(node).and_then(|agent| agent.fresh.last().copied()) else { return };
        self.introduce_slot(node, slot, None);
        let now = self.now;
        let Some(agent) = self.agent(node) else { return };
        if pause == 0 {
            agent.fresh.clear();
            return;
        }
        let begins = !core::mem::replace(&mut agent.exchanges, true);
        let others: Vec<u32> = agent.peers.list.iter().map(|peer| peer.node).collect();
        let start = agent.names.below(others.len());
        let to = agent.peers.list[at(slot)].node;
        let usable = |other: &&u32| **other != to && **other != super::agent::Peers::FREE;
        let names: Vec<u32> =
            others[start..].iter().chain(&others[..start]).filter(usable).take(most).copied().collect();
        if begins {
            self.push(now + pause, Event::Exchange(node));
        }
        self.send_names(node, to, names);
    }

    fn send_names(&mut self, node: u32, to: u32, names: Vec<u32>) {
        if !names.is_empty() {
            let (when, life) = (self.reach(End::Node(node), End::Node(to)), self.lives[at(to)]);
            self.say(when, Word::Names { to, life, blob: None, names });
        }
    }

    /// Tells some neighbours of those that are new.
    pub(super) fn exchange(&mut self, node: u32) {
        let most = at(self.plan.scenario.control.exchange_names);
        let Some(agent) = self.agent(node) else { return };
        agent.exchanges = false;
        let fresh = core::mem::take(&mut agent.fresh);
        let names: Vec<u32> = fresh.iter().take(most).map(|slot| agent.peers.list[at(*slot)].node).collect();
        let peers: Vec<u32> = agent.peers.connected().map(|(_, peer)| peer.node).collect();
        let start = agent.names.below(peers.len());
        for to in peers[start..].iter().chain(&peers[..start]).take(EXCHANGE_WITH_MAX) {
            self.send_names(node, *to, names.iter().copied().filter(|name| name != to).collect());
        }
    }

    /// How long a look-up in the DHT takes.
    fn look_up(&self, node: u32) -> u64 {
        let (mut reached, mut hops) = (KAD_BUCKET, 1);
        while reached < self.topology.nodes() {
            reached *= KAD_ALPHA * KAD_ALPHA;
            hops += 1;
        }
        ceil(hops as f64 * 1.5 * 2.0 * self.topology.mean_latency(node) as f64)
    }

    pub(super) fn announce(&mut self, node: u32, layer: u32) {
        if self.plan.scenario.control.dht {
            let when = self.now + self.look_up(node) + 2 * self.topology.mean_latency(node);
            self.say(when, Word::Announced { node, blob: layer });
        }
    }

    pub(super) fn announced(&mut self, node: u32, blob: u32) {
        let most = at(self.plan.scenario.control.dht_records);
        let region = at(self.topology.region(End::Node(node)));
        let near = &mut self.records.near[at(blob) * self.records.regions + region];
        for ring in [&mut self.records.fleet[at(blob)], near] {
            ring.retain(|other| *other != node);
            ring.push_back(node);
            if ring.len() > most {
                ring.pop_front();
            }
        }
    }

    pub(super) fn find(&mut self, node: u32, layer: u32) {
        if self.plan.scenario.control.dht {
            let (when, life) = (self.now + self.look_up(node), self.lives[at(node)]);
            self.say(when, Word::Found { node, life, blob: layer });
        }
    }

    pub(super) fn found(&mut self, node: u32, life: u32, blob: u32) {
        let region = at(self.topology.region(End::Node(node)));
        let labels = self.plan.scenario.control.labels;
        let near = &self.records.near[at(blob) * self.records.regions + region];
        let fleet = &self.records.fleet[at(blob)];
        let Some(agent) = self.agents[at(node)].as_deref_mut() else { return };
        let mut names: Vec<u32> = Vec::new();
        for ring in if labels { vec![near, fleet] } else { vec![fleet] } {
            let start = agent.names.below(ring.len());
            names.extend(ring.iter().cycle().skip(start).take(FOUND_MAX.min(ring.len())));
        }
        self.meter.found += 1;
        self.named(node, life, Some(blob), &names);
    }
}
