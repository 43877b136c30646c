//! What is counted while it runs.

use shoal_transfer::stats::Stats;

use super::{Event, World};
use crate::{
    num::{at, small},
    plan::Plan,
    topology::End,
};

/// Samples of the timeline; when there are twice as many, every second goes and the pace halves.
const SAMPLES: usize = 512;
/// First pace of the timeline in nanoseconds.
const SAMPLE_EVERY: u64 = 5_000_000;
/// A timer that goes off so often within [`SPIN_SPAN`] will never do anything else.
const SPINS_MAX: u32 = 20_000;
const SPIN_SPAN: u64 = 1_000_000;

/// One node's story.
#[derive(Debug, Clone)]
pub(crate) struct Log {
    /// Moments in nanoseconds; `u64::MAX` where it has not come.
    pub(crate) start: u64,
    pub(crate) opened: u64,
    pub(crate) first_byte: u64,
    pub(crate) arrived: u64,
    pub(crate) ready: u64,
    pub(crate) up: u64,
    pub(crate) down: u64,
    pub(crate) from_origin: u64,
    pub(crate) pieces: u32,
    pub(crate) unpacked: usize,
    pub(crate) unpack_free: u64,
    pub(crate) pulls_failed: u32,
    pub(crate) crashes: u32,
    pub(crate) slow: bool,
    pub(crate) left: bool,
    pub(crate) stats: Stats,
    spin: (u64, u32),
}

impl Default for Log {
    fn default() -> Self {
        Self {
            start: u64::MAX,
            opened: u64::MAX,
            first_byte: u64::MAX,
            arrived: u64::MAX,
            ready: u64::MAX,
            up: 0,
            down: 0,
            from_origin: 0,
            pieces: 0,
            unpacked: 0,
            unpack_free: 0,
            pulls_failed: 0,
            crashes: 0,
            slow: false,
            left: false,
            stats: Stats::default(),
            spin: (0, 0),
        }
    }
}

/// One moment of the timeline.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Sample {
    pub(crate) time: u64,
    /// Nodes that have all bytes, and that are ready.
    pub(crate) arrived: u32,
    pub(crate) ready: u32,
    /// Part of all bytes that have arrived.
    pub(crate) done: f64,
    /// Bytes a second out of the origin, and between regions.
    pub(crate) origin: f64,
    pub(crate) cross: f64,
    pub(crate) flows: u32,
    /// Nodes that have the rarest piece.
    pub(crate) rarest: u32,
}

/// All that is counted.
#[derive(Debug)]
pub(crate) struct Meter {
    pub(crate) logs: Vec<Log>,
    pub(crate) samples: Vec<Sample>,
    every: u64,
    /// Nodes that have a piece, by word and bit of its layer.
    replicas: Vec<u32>,
    starts: Vec<usize>,
    regions: usize,
    /// Bytes from region to region, the origin's own in the last row.
    pub(crate) matrix: Vec<u64>,
    /// Bytes from region to region, whoever sent them.
    pub(crate) cross_bytes: u64,
    pub(crate) origin_bytes: u64,
    pub(crate) mirror_bytes: u64,
    pub(crate) peer_bytes: u64,
    /// Bytes of pieces that were new to their node.
    pub(crate) useful_bytes: u64,
    pub(crate) pieces: u64,
    pub(crate) pieces_total: u64,
    pub(crate) arrived: u32,
    pub(crate) ready: u32,
    pub(crate) last_gain: u64,
    pub(crate) transfers: u64,
    pub(crate) duplicates: u64,
    pub(crate) corrupt: u64,
    pub(crate) bans: u64,
    pub(crate) stalled: u64,
    pub(crate) news: u64,
    pub(crate) found: u64,
    pub(crate) decisions: u64,
    /// A node whose timer goes off again and again.
    pub(crate) spinning: Option<u32>,
}

impl Meter {
    pub(super) fn new(plan: &Plan, regions: usize, nodes: usize) -> Self {
        let (mut starts, mut pieces) = (Vec::new(), 0);
        for layer in &plan.layers {
            starts.push(pieces);
            pieces += at(layer.layout.pieces());
        }
        Self {
            logs: vec![Log::default(); nodes],
            samples: Vec::new(),
            every: SAMPLE_EVERY,
            replicas: vec![0; pieces],
            starts,
            regions,
            matrix: vec![0; (regions + 1) * regions],
            cross_bytes: 0,
            origin_bytes: 0,
            mirror_bytes: 0,
            peer_bytes: 0,
            useful_bytes: 0,
            pieces: 0,
            pieces_total: plan.wanted_pieces() * nodes as u64,
            arrived: 0,
            ready: 0,
            last_gain: 0,
            transfers: 0,
            duplicates: 0,
            corrupt: 0,
            bans: 0,
            stalled: 0,
            news: 0,
            found: 0,
            decisions: 0,
            spinning: None,
        }
    }

    pub(super) fn started(&mut self, node: u32, now: u64) {
        let log = &mut self.logs[at(node)];
        log.start = log.start.min(now);
    }

    /// A piece that a node did not have.
    pub(super) fn gained(&mut self, node: u32, layer: u32, piece: u32, bytes: u64, from_origin: bool, now: u64) {
        let log = &mut self.logs[at(node)];
        log.first_byte = log.first_byte.min(now);
        log.pieces += 1;
        log.from_origin += if from_origin { bytes } else { 0 };
        self.useful_bytes += bytes;
        self.pieces += 1;
        self.replicas[self.starts[at(layer)] + at(piece)] += 1;
        self.last_gain = now;
    }

    /// Bytes have passed.
    pub(super) fn moved(&mut self, from: End, to: u32, there: u32, here: u32, bytes: u64) {
        self.transfers += 1;
        self.logs[at(to)].down += bytes;
        let row = match from {
            End::Node(node) => {
                self.logs[at(node)].up += bytes;
                self.peer_bytes += bytes;
                there
            }
            End::Origin => {
                self.origin_bytes += bytes;
                small(self.regions)
            }
            End::Mirror(_) => {
                self.mirror_bytes += bytes;
                there
            }
        };
        self.matrix[at(row) * self.regions + at(here)] += bytes;
        self.cross_bytes += if there == here { 0 } else { bytes };
    }

    /// A mirror has fetched something.
    pub(super) fn filled(&mut self, home: u32, region: u32, bytes: u64) {
        self.origin_bytes += bytes;
        self.matrix[self.regions * self.regions + at(region)] += bytes;
        self.cross_bytes += if home == region { 0 } else { bytes };
    }

    /// A node's timer has gone off.
    pub(super) fn spin(&mut self, node: u32, now: u64) {
        let (since, count) = &mut self.logs[at(node)].spin;
        if now - *since > SPIN_SPAN {
            (*since, *count) = (now, 0);
        }
        *count += 1;
        if *count > SPINS_MAX {
            self.spinning = Some(node);
        }
    }

    /// Adds what a node's policy has counted.
    pub(super) fn note_stats(&mut self, node: u32, stats: &Stats) {
        let sum = &mut self.logs[at(node)].stats;
        sum.pieces_from_peers += stats.pieces_from_peers;
        sum.pieces_from_seeder += stats.pieces_from_seeder;
        sum.fetches += stats.fetches;
        sum.seeder_asks += stats.seeder_asks;
        sum.seeder_deferrals += stats.seeder_deferrals;
        sum.timeouts += stats.timeouts;
        sum.steals += stats.steals;
        sum.refusals += stats.refusals;
        sum.corrupt += stats.corrupt;
        sum.bans += stats.bans;
        sum.crossings += stats.crossings;
        sum.served += stats.served;
        sum.refused += stats.refused;
        sum.served_bytes += stats.served_bytes;
        sum.dials_failed += stats.dials_failed;
    }

    fn rarest(&self, plan: &Plan) -> u32 {
        let of = |layer: u32| {
            let start = self.starts[at(layer)];
            self.replicas[start..start + at(plan.layers[at(layer)].layout.pieces())].iter().copied()
        };
        plan.wanted.iter().flat_map(|layer| of(*layer)).min().unwrap_or(0)
    }
}

impl World {
    /// Takes a sample, and plans the next.
    pub(super) fn sample(&mut self) {
        let sample = self.sampled();
        self.meter.samples.push(sample);
        if self.meter.samples.len() >= 2 * SAMPLES {
            let mut keep = false;
            self.meter.samples.retain(|_| {
                keep = !keep;
                keep
            });
            self.meter.every *= 2;
        }
        self.push(self.now + self.meter.every, Event::Sample);
    }

    pub(super) fn sampled(&self) -> Sample {
        let regions = 0..small(self.topology.spots.regions.len());
        let pairs = regions.clone().flat_map(|from| regions.clone().map(move |to| (from, to)));
        let cross =
            pairs.filter_map(|(from, to)| self.topology.wan(from, to)).map(|link| self.network.used(link)).sum();
        Sample {
            time: self.now,
            arrived: self.meter.arrived,
            ready: self.meter.ready,
            done: crate::num::ratio(self.meter.pieces as f64, self.meter.pieces_total as f64),
            origin: self.network.used(self.topology.origin_up),
            cross,
            flows: small(self.network.live()),
            rarest: self.meter.rarest(&self.plan),
        }
    }
}
