//! What no schedule can beat: the yardsticks of every run.

use crate::{
    num::{at, ratio, secs},
    plan::Plan,
    scenario::spots::{NONE, Spots},
    world::Log,
};

/// Points of the fluid bound's curve.
const POINTS: u32 = 200;

/// Links as bounds see them.
#[derive(Debug)]
pub(crate) struct Fluid {
    /// Bytes that each node has to get.
    bytes: f64,
    origin: f64,
    /// Uplinks of all nodes, and the slowest way into one.
    ups: f64,
    down_min: f64,
    nodes: f64,
    /// Whether all links out are equal, the origin's too, and what leads in is never the limit.
    equal: bool,
    pieces: f64,
}

impl Fluid {
    pub(crate) fn of(plan: &Plan, spots: &Spots) -> Self {
        let payload = plan.scenario.lan.payload.0;
        let origin = plan.scenario.origin.up.0 * payload;
        let down = |node: usize| way_in(spots, node);
        let down_min = (0..spots.nodes.len()).map(down).fold(f64::INFINITY, f64::min);
        let first = spots.nodes.first().map_or(0.0, |node| node.up);
        let same = |a: f64, b: f64| (a - b).abs() <= 1e-6 * a;
        let equal = spots.nodes.iter().all(|node| same(node.up, first) && node.group == NONE);
        Self {
            bytes: plan.wanted_bytes() as f64,
            origin,
            ups: spots.nodes.iter().map(|node| node.up).sum(),
            down_min,
            nodes: spots.nodes.len() as f64,
            equal: equal && same(first, origin) && down_min >= 2.0 * first && spots.regions.len() == 1,
            pieces: plan.wanted_pieces() as f64,
        }
    }

    /// The least time in which all can have all: Kumar and Ross, "Peer-Assisted File Distribution", HotWeb 2006.
    pub(crate) fn all(&self) -> f64 {
        let work = self.nodes * self.bytes / (self.origin + self.ups);
        (self.bytes / self.origin).max(self.bytes / self.down_min).max(work)
    }

    /// The same without peers.
    #[cfg(test)]
    pub(crate) fn client_server(&self) -> f64 {
        (self.nodes * self.bytes / self.origin).max(self.bytes / self.down_min)
    }

    /// The optimum with whole pieces over equal uplinks, which the origin's is one of: Mundinger, Weber and Weiss,
    /// "Optimal scheduling of peer-to-peer file dissemination", Journal of Scheduling 2008.
    pub(crate) fn rounds(&self) -> Option<f64> {
        self.equal.then(|| {
            self.bytes / self.origin * (1.0 + f64::from(crate::num::floor(self.nodes).max(1).ilog2()) / self.pieces)
        })
    }

    /// How many nodes can have all at a moment, as `(seconds, nodes)`, given when they start: nobody has it before its
    /// own way in has carried it, and all that have started cannot send more than their links carry.
    pub(crate) fn curve(&self, spots: &Spots, logs: &[Log], until: f64) -> Vec<(f64, f64)> {
        let mut earliest: Vec<f64> = Vec::new();
        let mut starts: Vec<(f64, f64)> = Vec::new();
        for (node, log) in logs.iter().enumerate().filter(|(_, log)| log.start != u64::MAX) {
            let start = secs(log.start);
            earliest.push(start + (self.bytes / way_in(spots, node)).max(self.bytes / self.origin));
            starts.push((start, spots.nodes[node].up));
        }
        earliest.sort_unstable_by(f64::total_cmp);
        starts.sort_unstable_by(|a, b| a.0.total_cmp(&b.0));
        let (mut next, mut rate, mut sent, mut before) = (0, self.origin, 0.0, 0.0);
        let mut curve = Vec::new();
        for point in 0..=POINTS {
            let time = until * f64::from(point) / f64::from(POINTS);
            while let Some((start, up)) = starts.get(next).filter(|(start, _)| *start <= time) {
                sent += rate * (start - before);
                (before, rate) = (*start, rate + up);
                next += 1;
            }
            sent += rate * (time - before);
            before = time;
            let reached = earliest.partition_point(|moment| *moment <= time) as f64;
            curve.push((time, reached.min(ratio(sent, self.bytes))));
        }
        curve
    }
}

/// What leads into a node at best.
fn way_in(spots: &Spots, node: usize) -> f64 {
    let spot = &spots.nodes[node];
    if spot.group == NONE { spot.down } else { spot.down.min(spots.groups[at(spot.group)].down) }
}
