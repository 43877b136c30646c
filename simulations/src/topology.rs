//! The nodes' places as links of the network: which way bytes go from one to another, and how long a word takes.

use crate::{
    network::{LINKS_MAX, Network},
    num::{at, small},
    scenario::{
        Scenario,
        spots::{NONE, Spots},
    },
};

/// One end of a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// A node.
    Node(u32),
    /// The registry.
    Origin,
    /// A region's mirror of it.
    Mirror(u32),
}

/// A way through the network.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Way {
    links: [u32; LINKS_MAX],
    len: usize,
}

impl Way {
    fn push(&mut self, link: u32) {
        if link != NONE {
            self.links[self.len] = link;
            self.len += 1;
        }
    }

    /// Its links, from the sender on.
    pub(crate) fn links(&self) -> &[u32] {
        &self.links[..self.len]
    }
}

/// Links and latencies.
#[derive(Debug)]
pub(crate) struct Topology {
    pub(crate) spots: Spots,
    /// The origin's region.
    pub(crate) home: u32,
    /// Out of the origin.
    pub(crate) origin_up: u32,
    /// Out of, and into, each region's mirror.
    mirrors: Vec<(u32, u32)>,
    /// Out of, and into, each rack or site; none where it can never be full.
    groups: Vec<(u32, u32)>,
    /// From region to region, by `from * regions + to`.
    wan: Vec<u32>,
    /// One way from region to region in nanoseconds.
    apart: Vec<u64>,
    lan: u64,
    zone: u64,
    flow_max: f64,
    window: f64,
}

impl Topology {
    /// Adds all links to an empty network: of node `n` up is link `2n`, down `2n + 1`.
    pub(crate) fn build<T: Copy>(scenario: &Scenario, spots: Spots, network: &mut Network<T>) -> Self {
        let payload = scenario.lan.payload.0;
        for node in &spots.nodes {
            network.add_link(node.up);
            network.add_link(node.down);
        }
        let mut group_sums = vec![(0.0, 0.0); spots.groups.len()];
        for node in spots.nodes.iter().filter(|node| node.group != NONE) {
            group_sums[at(node.group)].0 += node.up;
            group_sums[at(node.group)].1 += node.down;
        }
        let mut binding = |capacity: f64, sum: f64| if capacity < sum { network.add_link(capacity) } else { NONE };
        let groups = spots.groups.iter().zip(&group_sums);
        let groups = groups.map(|(group, sum)| (binding(group.up, sum.0), binding(group.down, sum.1))).collect();
        let count = spots.regions.len();
        let region = |name: &str| spots.regions.iter().position(|region| region == name);
        let home = scenario.origin.region.as_deref().and_then(region).unwrap_or(0);
        let mut wan = vec![NONE; count * count];
        let mut apart = vec![scenario.wan.rtt.0 / 2; count * count];
        for from in 0..count {
            for to in (0..count).filter(|to| *to != from) {
                wan[from * count + to] = network.add_link(scenario.wan.rate.0 * payload);
            }
            apart[from * count + from] = scenario.lan.zone_rtt.0 / 2;
        }
        for (one, other, rtt) in &scenario.wan.pairs {
            if let (Some(one), Some(other)) = (region(one), region(other)) {
                apart[one * count + other] = rtt.0 / 2;
                apart[other * count + one] = rtt.0 / 2;
            }
        }
        let origin_up = network.add_link(scenario.origin.up.0 * payload);
        let mirror = scenario.origin.mirror_up.0 * payload;
        let mirrors = (0..count).map(|_| (network.add_link(mirror), network.add_link(mirror))).collect();
        Self {
            home: small(home),
            origin_up,
            mirrors,
            groups,
            wan,
            apart,
            lan: scenario.lan.rtt.0 / 2,
            zone: scenario.lan.zone_rtt.0 / 2,
            flow_max: scenario.lan.flow.0,
            window: scenario.lan.window.0 as f64,
            spots,
        }
    }

    /// How many nodes.
    pub(crate) fn nodes(&self) -> usize {
        self.spots.nodes.len()
    }

    /// The region of an end.
    pub(crate) fn region(&self, end: End) -> u32 {
        match end {
            End::Node(node) => self.spots.nodes[at(node)].region,
            End::Origin => self.home,
            End::Mirror(region) => region,
        }
    }

    fn group(&self, end: End) -> u32 {
        match end {
            End::Node(node) => self.spots.nodes[at(node)].group,
            End::Origin | End::Mirror(_) => NONE,
        }
    }

    /// The line from one region to another.
    pub(crate) fn wan(&self, from: u32, to: u32) -> Option<u32> {
        let link = self.wan[at(from) * self.spots.regions.len() + at(to)];
        (link != NONE).then_some(link)
    }

    /// The links from one end to another.
    pub(crate) fn way(&self, from: End, to: End) -> Way {
        let mut way = Way { links: [NONE; LINKS_MAX], len: 0 };
        way.push(match from {
            End::Node(node) => 2 * node,
            End::Origin => self.origin_up,
            End::Mirror(region) => self.mirrors[at(region)].0,
        });
        let (here, there) = (self.group(from), self.group(to));
        if here != there && here != NONE {
            way.push(self.groups[at(here)].0);
        }
        way.push(self.wan[at(self.region(from)) * self.spots.regions.len() + at(self.region(to))]);
        if here != there && there != NONE {
            way.push(self.groups[at(there)].1);
        }
        way.push(match to {
            End::Node(node) => 2 * node + 1,
            End::Origin => NONE,
            End::Mirror(region) => self.mirrors[at(region)].1,
        });
        way
    }

    /// How long a word takes one way, in nanoseconds.
    pub(crate) fn latency(&self, from: End, to: End) -> u64 {
        let (here, there) = (self.region(from), self.region(to));
        let between = match (from, to) {
            _ if here != there => self.apart[at(here) * self.spots.regions.len() + at(there)],
            (End::Node(one), End::Node(other)) => {
                let (one, other) = (&self.spots.nodes[at(one)], &self.spots.nodes[at(other)]);
                if one.zone == other.zone { self.lan } else { self.zone }
            }
            _ => self.zone,
        };
        let (one, other) = (self.group(from), self.group(to));
        let outside = |group: u32| if group == NONE { 0 } else { self.spots.groups[at(group)].latency };
        if one == other { between } else { between + outside(one) + outside(other) }
    }

    /// The mean time of a word between a node and any other, for look-ups that wander through the fleet.
    pub(crate) fn mean_latency(&self, node: u32) -> u64 {
        let step = (self.nodes() / 16).max(1);
        let others: Vec<u64> = (0..self.nodes())
            .step_by(step)
            .map(|other| self.latency(End::Node(node), End::Node(small(other))))
            .collect();
        others.iter().sum::<u64>() / others.len() as u64
    }

    /// The most that one connection carries between two ends.
    pub(crate) fn flow_max(&self, from: End, to: End) -> f64 {
        let round_trip = 2.0 * crate::num::secs(self.latency(from, to));
        self.flow_max.min(if round_trip > 0.0 { self.window / round_trip } else { f64::INFINITY })
    }

    /// Whether all nodes have equal links and nothing else can be full: where fast rates are right.
    pub(crate) fn is_uniform(&self) -> bool {
        let first = &self.spots.nodes[0];
        let same = |a: f64, b: f64| (a - b).abs() <= 1e-9 * a;
        let equal = self.spots.nodes.iter().all(|node| same(node.up, first.up) && same(node.down, first.down));
        equal && self.groups.iter().all(|(up, down)| *up == NONE && *down == NONE) && self.spots.regions.len() == 1
    }
}
