//! A run as figures.

use serde::{Deserialize, Serialize};
use shoal_transfer::stats::Stats;

use crate::{
    bounds::Fluid,
    num::{ratio, secs},
    plan::Policy,
    setup::Setup,
    world::{Ended, Log, World},
};

/// `summary.json`. Times are seconds since the rollout began.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Summary {
    pub(crate) setup: Setup,
    pub(crate) policy: Policy,
    /// `complete`, or what kept it from that.
    pub(crate) ended: String,
    /// When the simulated time stood still.
    pub(crate) ended_s: f64,
    /// Equal for equal runs: every event is in it.
    pub(crate) trace_hash: String,
    /// Version of the simulator, and the commit of the clone that it was built in.
    pub(crate) version: String,
    pub(crate) nodes: u32,
    pub(crate) image_bytes: u64,
    pub(crate) pieces: u64,
    /// Nodes that have all bytes, and nodes that could start.
    pub(crate) nodes_arrived: u32,
    pub(crate) nodes_ready: u32,
    pub(crate) arrived: Times,
    pub(crate) ready: Times,
    /// From a node's own start to its last byte.
    pub(crate) took: Times,
    /// The fluid bound, and the last byte's time as a multiple of it (since the last node's start where they start over
    /// a time, at the least 1).
    pub(crate) bound_s: f64,
    pub(crate) ratio_to_bound: Option<f64>,
    /// The same against the optimum in whole pieces, where all links are equal.
    pub(crate) ratio_to_rounds: Option<f64>,
    pub(crate) origin: Origin,
    /// Bytes between regions, and as a multiple of the image.
    pub(crate) cross_bytes: u64,
    pub(crate) cross_copies: f64,
    pub(crate) regions: Vec<String>,
    /// Bytes from each region (the last row: from the origin) to each region.
    pub(crate) matrix: Vec<Vec<u64>>,
    /// Part of what the nodes' uplinks could have sent until the last byte came.
    pub(crate) uplink_use: f64,
    /// Jain's index of bytes sent, and of the rates at which nodes completed.
    pub(crate) jain_upload: f64,
    pub(crate) jain_rate: f64,
    pub(crate) counts: Counts,
    pub(crate) cost: Cost,
}

/// Percentiles in seconds; none where fewer nodes got so far.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Times {
    pub(crate) p50: Option<f64>,
    pub(crate) p90: Option<f64>,
    pub(crate) p99: Option<f64>,
    pub(crate) p999: Option<f64>,
    pub(crate) max: Option<f64>,
}

/// What the origin had to do.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Origin {
    pub(crate) bytes: u64,
    /// Bytes as a multiple of the image.
    pub(crate) copies: f64,
    pub(crate) requests: u64,
    pub(crate) peak_gbit: f64,
}

/// What was counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct Counts {
    pub(crate) transfers: u64,
    pub(crate) peer_bytes: u64,
    pub(crate) wasted_bytes: u64,
    pub(crate) duplicates: u64,
    pub(crate) corrupt: u64,
    pub(crate) refusals: u64,
    pub(crate) timeouts: u64,
    pub(crate) steals: u64,
    pub(crate) bans: u64,
    pub(crate) dials_failed: u64,
    pub(crate) seeder_asks: u64,
    pub(crate) seeder_deferrals: u64,
    pub(crate) crossings: u64,
    pub(crate) news: u64,
    /// Inputs that policies were handed.
    pub(crate) decisions: u64,
    pub(crate) pulls_failed: u64,
    pub(crate) crashes: u64,
}

/// What the simulation took.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Cost {
    pub(crate) wall_s: f64,
    pub(crate) events: u64,
    pub(crate) transfers_per_s: f64,
    pub(crate) relaxations: u64,
    /// Most memory of the whole process so far.
    pub(crate) rss_mib: u64,
}

impl Times {
    fn of(mut moments: Vec<u64>) -> Self {
        moments.sort_unstable();
        let part = |part: f64| {
            let rank = crate::num::ceil(moments.len() as f64 * part).max(1);
            let moment = moments.get(usize::try_from(rank - 1).unwrap_or(usize::MAX)).copied();
            moment.filter(|moment| *moment != u64::MAX).map(secs)
        };
        Self { p50: part(0.5), p90: part(0.9), p99: part(0.99), p999: part(0.999), max: part(1.0) }
    }
}

impl Summary {
    /// Of a world that has run.
    pub(crate) fn of(setup: &Setup, world: &World, ended: &Ended, wall_s: f64) -> Self {
        let (meter, plan, spots) = (&world.meter, &world.plan, &world.topology.spots);
        let (fluid, wanted) = (Fluid::of(plan, spots), plan.wanted_bytes() as f64);
        let took = |log: &Log| if log.arrived == u64::MAX { u64::MAX } else { log.arrived - log.start };
        let arrived = Times::of(meter.logs.iter().map(|log| log.arrived).collect());
        let last_start = meter.logs.iter().map(|log| log.start).max().map_or(0.0, secs);
        let span = arrived.max.map(|max| if last_start > fluid.all() { max - last_start } else { max });
        let until = arrived.max.unwrap_or_else(|| secs(world.now));
        let can: f64 = spots.nodes.iter().map(|node| node.up).sum::<f64>() * until;
        let rates = meter.logs.iter().map(|log| ratio(1.0, secs(took(log)))).collect::<Vec<_>>();
        let moved = meter.origin_bytes + meter.peer_bytes + meter.mirror_bytes;
        Self {
            setup: setup.clone(),
            policy: plan.policy,
            ended: ended.name().to_owned(),
            ended_s: secs(world.now),
            trace_hash: format!("{:016x}", world.hash),
            version: version(),
            nodes: crate::num::small(spots.nodes.len()),
            image_bytes: plan.wanted_bytes(),
            pieces: plan.wanted_pieces(),
            nodes_arrived: meter.arrived,
            nodes_ready: meter.ready,
            arrived,
            ready: Times::of(meter.logs.iter().map(|log| log.ready).collect()),
            took: Times::of(meter.logs.iter().map(took).collect()),
            bound_s: fluid.all(),
            ratio_to_bound: span.map(|span| ratio(span, fluid.all())),
            ratio_to_rounds: fluid.rounds().and_then(|bound| arrived.max.map(|max| ratio(max, bound))),
            origin: Origin {
                bytes: meter.origin_bytes,
                copies: ratio(meter.origin_bytes as f64, wanted),
                requests: world.requests(),
                peak_gbit: meter.samples.iter().map(|sample| sample.origin).fold(0.0, f64::max) / 125e6,
            },
            cross_bytes: meter.cross_bytes,
            cross_copies: ratio(meter.cross_bytes as f64, wanted),
            regions: spots.regions.clone(),
            matrix: meter.matrix.chunks(spots.regions.len()).map(<[u64]>::to_vec).collect(),
            uplink_use: ratio(meter.peer_bytes as f64, can),
            jain_upload: jain(meter.logs.iter().map(|log| log.up as f64)),
            jain_rate: jain(rates.into_iter()),
            counts: Counts::of(world, moved - meter.useful_bytes.min(moved)),
            cost: Cost {
                wall_s,
                events: world.events,
                transfers_per_s: ratio(meter.transfers as f64, wall_s),
                relaxations: world.network.relaxations,
                rss_mib: rss_mib(),
            },
        }
    }

    /// Whether all nodes got to the end.
    pub(crate) fn is_complete(&self) -> bool {
        self.nodes_ready == self.nodes
    }
}

impl Counts {
    fn of(world: &World, wasted_bytes: u64) -> Self {
        let meter = &world.meter;
        let sum = |count: fn(&Stats) -> u64| meter.logs.iter().map(|log| count(&log.stats)).sum::<u64>();
        Self {
            transfers: meter.transfers,
            peer_bytes: meter.peer_bytes,
            wasted_bytes,
            duplicates: meter.duplicates,
            corrupt: meter.corrupt,
            refusals: sum(|stats| stats.refusals),
            timeouts: sum(|stats| stats.timeouts),
            steals: sum(|stats| stats.steals),
            bans: meter.bans,
            dials_failed: sum(|stats| stats.dials_failed),
            seeder_asks: sum(|stats| stats.seeder_asks),
            seeder_deferrals: sum(|stats| stats.seeder_deferrals),
            crossings: sum(|stats| stats.crossings),
            news: meter.news,
            decisions: meter.decisions,
            pulls_failed: meter.logs.iter().map(|log| u64::from(log.pulls_failed)).sum(),
            crashes: meter.logs.iter().map(|log| u64::from(log.crashes)).sum(),
        }
    }
}

/// Jain's index: 1 where all are equal, 1/n where one has all.
fn jain(values: impl Iterator<Item = f64>) -> f64 {
    let (mut count, mut sum, mut squares) = (0.0, 0.0, 0.0);
    for value in values {
        count += 1.0;
        sum += value;
        squares += value * value;
    }
    ratio(sum * sum, count * squares)
}

/// Most memory that this process has had, where Linux tells.
pub(crate) fn rss_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok()).map_or(0, |kib| kib / 1024)
}

/// The version, and the commit if the clone that this was built in is still there.
fn version() -> String {
    let mut git = std::process::Command::new("git");
    git.args(["-C", env!("CARGO_MANIFEST_DIR"), "describe", "--always", "--dirty", "--exclude=*"]);
    let commit = git.output().ok().filter(|output| output.status.success());
    let commit = commit.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    format!("{} {}", env!("CARGO_PKG_VERSION"), commit.unwrap_or_else(|| "(no clone)".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fairness_and_percentiles_are_what_they_should_be() {
        assert!((jain([1.0, 1.0, 1.0].into_iter()) - 1.0).abs() < 1e-12);
        assert!((jain([1.0, 0.0, 0.0, 0.0].into_iter()) - 0.25).abs() < 1e-12);
        let times = Times::of((1..=100).map(|s| s * 1_000_000_000).chain([u64::MAX]).collect());
        assert_eq!((times.p50, times.p99, times.max), (Some(51.0), Some(100.0), None));
        assert_eq!(Times::of(Vec::new()).max, None);
    }
}
