//! What there is without a swarm: every node pulls whole layers from the origin, or from a mirror in its region that
//! fetches each layer once and gives it out when it has it.

use super::{End, Owner, World};
use crate::{
    num::{at, ceil},
    plan::{Plan, Policy},
};

/// An hour: what pulls are counted in.
const HOUR: u64 = 3_600_000_000_000;

#[derive(Debug, Clone, Copy, Default)]
struct Puller {
    /// Index of the next layer to pull, among those wanted.
    next: usize,
    active: u32,
    pulls: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Held {
    Not,
    Coming,
    Whole,
}

/// Nodes and mirrors that know nothing of peers.
#[derive(Debug)]
pub(super) struct Baseline {
    pullers: Vec<Puller>,
    layers: usize,
    /// By `region * layers + layer`.
    held: Vec<Held>,
    waiting: Vec<Vec<u32>>,
    /// When each mirror is done with the requests that it has.
    free_at: Vec<u64>,
}

impl Baseline {
    pub(super) fn new(plan: &Plan, regions: usize, nodes: usize) -> Self {
        let (nodes, regions) = if plan.policy.swarms() { (0, 0) } else { (nodes, regions) };
        let layers = plan.layers.len();
        Self {
            pullers: vec![Puller::default(); nodes],
            layers,
            held: vec![Held::Not; regions * layers],
            waiting: vec![Vec::new(); regions * layers],
            free_at: vec![0; regions],
        }
    }
}

impl World {
    fn source(&self, node: u32) -> End {
        match self.plan.policy {
            Policy::MirrorPerRegion => End::Mirror(self.topology.region(End::Node(node))),
            Policy::OriginOnly | Policy::Random | Policy::Shoal => End::Origin,
        }
    }

    pub(super) fn pull_without_swarm(&mut self, node: u32) {
        let when = self.reach(End::Node(node), self.source(node));
        self.say(when, super::Word::Pull { node, life: 0, counted: false });
    }

    pub(super) fn pull_without_swarm_arrived(&mut self, node: u32, counted: bool) {
        let source = self.source(node);
        if source == End::Origin && (self.origin.down || !self.may_pull(counted)) {
            return self.retry_pull(node);
        }
        if !counted {
            let when = match source {
                End::Mirror(region) => {
                    let takes = ceil(1e9 / self.plan.scenario.origin.requests);
                    let free = &mut self.baseline.free_at[at(region)];
                    *free = (*free).max(self.now) + takes;
                    *free
                }
                End::Origin | End::Node(_) => self.origin.turn(self.now),
            };
            return self.say(when, super::Word::Pull { node, life: 0, counted: true });
        }
        self.meter.logs[at(node)].opened = self.now;
        if !core::mem::replace(&mut self.baseline.pullers[at(node)].pulls, true) {
            self.pull_layers(node);
        }
    }

    /// Whether the origin lets the address of the nodes pull once more in this hour.
    fn may_pull(&mut self, counted: bool) -> bool {
        let (most, now) = (at(self.plan.scenario.origin.pulls_per_hour), self.now);
        if most == 0 || counted {
            return true;
        }
        let pulls = &mut self.origin.pulls;
        while pulls.front().is_some_and(|pull| now - pull >= HOUR) {
            pulls.pop_front();
        }
        let may = pulls.len() < most;
        if may {
            pulls.push_back(now);
        }
        may
    }

    /// Pulls the next layers, as many at once as the runtime does.
    fn pull_layers(&mut self, node: u32) {
        while self.baseline.pullers[at(node)].active < self.plan.scenario.nodes.parallel_layers {
            let puller = &mut self.baseline.pullers[at(node)];
            let Some(&layer) = self.plan.wanted.get(puller.next) else { return };
            puller.next += 1;
            puller.active += 1;
            match self.source(node) {
                End::Mirror(region) => self.pull_from_mirror(node, region, layer),
                source @ (End::Origin | End::Node(_)) => self.pull_layer(source, node, layer),
            }
        }
    }

    fn pull_layer(&mut self, source: End, node: u32, layer: u32) {
        let bytes = self.plan.layers[at(layer)].layout.size() as f64;
        let (way, cap) = (self.topology.way(source, End::Node(node)), self.topology.flow_max(source, End::Node(node)));
        self.network.start(self.now, way.links(), bytes, cap, Owner::Layer { node, layer });
    }

    fn pull_from_mirror(&mut self, node: u32, region: u32, layer: u32) {
        let index = at(region) * self.baseline.layers + at(layer);
        match self.baseline.held[index] {
            Held::Whole => return self.pull_layer(End::Mirror(region), node, layer),
            Held::Coming => {}
            Held::Not => {
                self.baseline.held[index] = Held::Coming;
                let bytes = self.plan.layers[at(layer)].layout.size() as f64;
                let to = End::Mirror(region);
                let (way, cap) = (self.topology.way(End::Origin, to), self.topology.flow_max(End::Origin, to));
                self.network.start(self.now, way.links(), bytes, cap, Owner::Fill { region, layer });
            }
        }
        self.baseline.waiting[index].push(node);
    }

    pub(super) fn mirror_filled(&mut self, region: u32, layer: u32) {
        let bytes = self.plan.layers[at(layer)].layout.size();
        self.meter.filled(self.topology.home, region, bytes);
        let index = at(region) * self.baseline.layers + at(layer);
        self.baseline.held[index] = Held::Whole;
        for node in core::mem::take(&mut self.baseline.waiting[index]) {
            self.pull_layer(End::Mirror(region), node, layer);
        }
    }

    pub(super) fn layer_pulled(&mut self, node: u32, layer: u32) {
        let layout = self.plan.layers[at(layer)].layout;
        let source = self.source(node);
        self.moved(source, node, layout.size() as f64);
        for piece in 0..layout.pieces() {
            let word = at(node) * self.plan.words + self.plan.layers[at(layer)].word + at(piece) / 64;
            self.have[word] |= 1 << (piece % 64);
            let bytes = self.plan.piece_bytes(layer, piece);
            self.meter.gained(node, layer, piece, bytes, source == End::Origin, self.now);
        }
        self.baseline.pullers[at(node)].active -= 1;
        self.unpack(node);
        self.pull_layers(node);
    }
}
