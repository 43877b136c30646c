//! Why a node took as long as it did.

use crate::{
    num::{at, ratio, secs},
    plan::Plan,
    scenario::{
        spots::{NONE, Spots},
        units::Rate,
    },
    world::Log,
};

/// The parts of a node's time, in seconds and in order.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Parts {
    /// Until its runtime asked.
    pub(crate) start: f64,
    /// Until the registry answered.
    pub(crate) manifest: f64,
    /// Until the first piece was there.
    pub(crate) first: f64,
    /// Until the last.
    pub(crate) transfer: f64,
    /// Until it was unpacked.
    pub(crate) unpack: f64,
}

impl Parts {
    pub(crate) fn of(log: &Log) -> Self {
        let known = |moment: u64| (moment != u64::MAX).then(|| secs(moment));
        let start = known(log.start).unwrap_or(0.0);
        let opened = known(log.opened).unwrap_or(start).max(start);
        let first = known(log.first_byte).unwrap_or(opened).max(opened);
        let arrived = known(log.arrived).unwrap_or(first).max(first);
        let ready = known(log.ready).unwrap_or(arrived);
        let parts = (start, opened - start, first - opened, arrived - first, ready - arrived);
        Self { start: parts.0, manifest: parts.1, first: parts.2, transfer: parts.3, unpack: parts.4 }
    }
}

/// One word for a table.
pub(crate) fn short(log: &Log) -> &'static str {
    if log.start == u64::MAX {
        return "never-started";
    }
    if log.arrived == u64::MAX {
        return if log.pulls_failed > 0 { "pull-refused" } else { "incomplete" };
    }
    if log.crashes > 0 {
        return "crashed";
    }
    if log.slow {
        return "slow-link";
    }
    let parts = Parts::of(log);
    let largest = parts.start.max(parts.manifest).max(parts.first).max(parts.transfer).max(parts.unpack);
    match largest {
        _ if log.pulls_failed > 0 && largest <= parts.manifest => "pull-refused",
        _ if largest <= parts.unpack => "unpack",
        _ if largest <= parts.transfer => "transfer",
        _ if largest <= parts.start => "started-late",
        _ if largest <= parts.first => "no-source",
        _ => "manifest",
    }
}

/// A sentence.
pub(crate) fn long(log: &Log, node: usize, plan: &Plan, spots: &Spots) -> String {
    let parts = Parts::of(log);
    let mut text = match short(log) {
        "never-started" => return "it never started: the rollout ended before its turn".to_owned(),
        "pull-refused" => format!("the origin refused {} of its pulls", log.pulls_failed),
        "incomplete" => format!("{} of {} pieces when the run ended", log.pieces, plan.wanted_pieces()),
        "crashed" => format!("crashed, and came back after {}", plan.scenario.faults.restart),
        "slow-link" => format!("its links are slower by {}", plan.scenario.faults.slow_factor),
        "unpack" => format!("{:.1} s of unpacking after its last byte", parts.unpack),
        "started-late" => format!("started only after {:.1} s", parts.start),
        "no-source" => format!("{:.1} s until anybody gave it a first piece", parts.first),
        "manifest" => format!("{:.1} s until the origin answered its pull", parts.manifest),
        _ => transfer(log, node, parts.transfer, spots),
    };
    let stats = &log.stats;
    for (count, what) in [(stats.timeouts, "requests starved"), (stats.corrupt, "broken pieces")] {
        if count > 0 {
            text += &format!("; {count} {what}");
        }
    }
    text
}

/// What held the transfer itself back.
fn transfer(log: &Log, node: usize, took: f64, spots: &Spots) -> String {
    let spot = &spots.nodes[node];
    let rate = ratio(log.down as f64, took);
    if let Some(group) = (spot.group != NONE).then(|| &spots.groups[at(spot.group)])
        && group.down < spot.down
    {
        let members = spots.nodes.iter().filter(|other| other.group == spot.group).count();
        let kind = if group.kind.is_empty() { "a shared uplink" } else { &group.kind };
        return format!("{took:.1} s behind {kind} of {}, shared by {members} nodes", Rate(group.down));
    }
    if rate > 0.9 * spot.down {
        return format!("its own link was full: {} of {}", Rate(rate), Rate(spot.down));
    }
    format!(
        "{took:.1} s of transfer at {} (its link could carry {}): its sources had no more",
        Rate(rate),
        Rate(spot.down)
    )
}
