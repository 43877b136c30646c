//! `shoal-sim explain-node`: one node's story.

use std::{collections::BTreeMap, process::ExitCode};

use anyhow::anyhow;

use super::{Failure, complaint, exit_of, input, show};
use crate::{
    cause::{self, Parts},
    cli,
    job::{self, Keep, Outcome},
    num::{at, ratio, secs},
    out,
    plan::Plan,
    progress::Board,
    scenario::units::{Bytes, Rate},
    setup::Setup,
};

/// Senders that are named.
const SENDERS: usize = 8;
/// Pauses that are told.
const PAUSES: usize = 5;

pub(super) fn explain(args: &cli::Explain) -> Result<ExitCode, Failure> {
    let setup = Setup::read(&args.what).map_err(input)?;
    if args.node >= setup.scenario.nodes.count {
        let last = setup.scenario.nodes.count - 1;
        return Err(input(anyhow!("there is no node {}: they are 0 to {last}", args.node)));
    }
    let board = Board::new(1)?;
    let keep = Keep { trace: Some(args.node), transfers: true };
    let mut eye = board.eye(setup.name.as_str());
    let outcome = job::simulate(&setup, args.policy, keep, &mut eye).map_err(input)?;
    drop(eye);
    board.finish();
    let plan = Plan::new(&setup.scenario, setup.seed, args.policy, setup.rates.with(setup.epsilon))?;
    phases(args.node, &outcome, &plan);
    senders(args.node, &outcome);
    words(&outcome);
    if let Some(path) = &args.trace {
        let text = outcome.trace.join("\n") + "\n";
        std::fs::write(path, text).map_err(|error| anyhow!("cannot write {}: {error}", path.display()))?;
        out::say(format_args!("\nall of it: {}", path.display()));
    }
    if let Some(text) = complaint(&setup, args.policy, &outcome.ended, outcome.summary.ended_s) {
        out::warn(text);
    }
    Ok(exit_of(&outcome.ended))
}

fn phases(node: u32, outcome: &Outcome, plan: &Plan) {
    let log = &outcome.logs[at(node)];
    let spot = &outcome.spots.nodes[at(node)];
    let region = show::region(&outcome.summary, spot.region);
    let name = outcome.spots.names.get(at(node)).filter(|name| !name.is_empty());
    let name = name.map_or_else(String::new, |name| format!(" ({name})"));
    out::say(format_args!("node {node}{name} in {region}: {} up, {} down", Rate(spot.up), Rate(spot.down)));
    out::say(format_args!("cause: {}\n", cause::long(log, at(node), plan, &outcome.spots)));
    let parts = Parts::of(log);
    let whole = parts.start + parts.manifest + parts.first + parts.transfer + parts.unpack;
    for (name, part) in [
        ("before its pull", parts.start),
        ("until the answer", parts.manifest),
        ("until a first piece", parts.first),
        ("until the last piece", parts.transfer),
        ("until unpacked", parts.unpack),
    ] {
        let bar = "█".repeat(usize::try_from(crate::num::floor(40.0 * ratio(part, whole))).unwrap_or(0));
        out::say(format_args!("{name:<22} {part:>9.3} s  {bar}"));
    }
    let rank = outcome.logs.iter().filter(|other| other.arrived < log.arrived).count();
    out::say(format_args!("{rank} of {} nodes had it before", outcome.logs.len() - 1));
}

fn senders(node: u32, outcome: &Outcome) {
    let mut from: BTreeMap<u32, (u64, f64)> = BTreeMap::new();
    let (mut before, mut pauses) = (None, Vec::new());
    for transfer in outcome.transfers.iter().filter(|transfer| transfer.to == node) {
        let entry = from.entry(transfer.from).or_default();
        *entry = (entry.0 + 1, entry.1 + transfer.bytes);
        if let Some(last) = before.replace(transfer.start) {
            pauses.push((transfer.start - last, last));
        }
    }
    let mut senders: Vec<_> = from.into_iter().collect();
    senders.sort_by(|a, b| b.1.1.total_cmp(&a.1.1));
    out::say(format_args!("\nit got its pieces from {} senders; the most from", senders.len()));
    for (sender, (pieces, bytes)) in senders.iter().take(SENDERS) {
        let name = if *sender == u32::MAX { "the origin".to_owned() } else { format!("node {sender}") };
        let bytes = Bytes(crate::num::floor(*bytes));
        out::say(format_args!("  {name:<14} {pieces:>6} transfers {:>12}", bytes.to_string()));
    }
    pauses.sort_unstable_by(|a, b| b.cmp(a));
    out::say("longest times in which no transfer to it began:");
    for (length, since) in pauses.iter().take(PAUSES) {
        out::say(format_args!("  {:>9.3} s from {:.3} s on", secs(*length), secs(*since)));
    }
}

/// How often it was told and did what.
fn words(outcome: &Outcome) {
    let mut counts: BTreeMap<String, u64> = BTreeMap::new();
    for line in &outcome.trace {
        let Some((_, rest)) = line.split_once(" s  ") else { continue };
        let (way, word) = rest.split_at(rest.find(['{', '"']).unwrap_or(rest.len()));
        let word: String = word.trim_start_matches(['{', '"']).chars().take_while(|c| c.is_alphanumeric()).collect();
        *counts.entry(format!("{} {word}", way.trim())).or_default() += 1;
    }
    out::say("\nwhat it was told (<-) and did (->):");
    let mut counts: Vec<_> = counts.into_iter().collect();
    counts.sort_by_key(|(_, count)| core::cmp::Reverse(*count));
    counts.iter().for_each(|(word, count)| out::say(format_args!("  {count:>8}  {word}")));
}
