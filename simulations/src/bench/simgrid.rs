//! The same transfers through both simulators: here on this crate's network with exact rates, and in SimGrid.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

use anyhow::{Context as _, Result, anyhow, ensure};

use super::{RUNS, median, own};
use crate::{
    cli::EPSILON,
    network::{Network, Rates},
    num::{at, secs},
    out,
};

/// The rollout whose transfers are replayed.
const STAR: &str = include_str!("../../bench/star.toml");

/// SimGrid's side of the comparison.
const PROGRAM: &str = include_str!("../../bench/simgrid.cpp");

/// Seconds that this simulator and SimGrid take for the transfers of a swarm of that size, and how many they are; none
/// without SimGrid.
pub(super) fn against(nodes: u32, scratch: &Path) -> Result<Option<(f64, f64, f64)>> {
    let Some(program) = compiled(scratch)? else { return Ok(None) };
    let (trace, links) = (scratch.join(format!("star-{nodes}.csv")), scratch.join(format!("star-{nodes}.links.csv")));
    let (scenario, nodes_arg) = (scratch.join("star.toml"), format!("--nodes={nodes}"));
    fs::write(&scenario, STAR).with_context(|| format!("cannot write {}", scenario.display()))?;
    let mut export = own()?;
    export.arg("export").arg(&scenario).args([&nodes_arg, "--out"]).arg(&trace).arg("--links").arg(&links);
    let output = export.output().context("cannot export a trace")?;
    ensure!(output.status.success(), "export: {}", String::from_utf8_lossy(&output.stderr));
    let transfers = fs::read_to_string(&trace).context("the trace was just written")?.lines().count() - 1;
    let seconds = |command: &mut Command| -> Result<(f64, f64)> {
        let output = command.output().context("cannot start a replay")?;
        ensure!(output.status.success(), "replay: {}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8_lossy(&output.stdout);
        let mut numbers = text.split_whitespace().filter_map(|word| word.parse::<f64>().ok());
        numbers.next().zip(numbers.next()).ok_or_else(|| anyhow!("a replay said {text:?}"))
    };
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..RUNS {
        let (wall, end) = seconds(own()?.arg("bench").arg("--replay").arg(&trace).arg("--links").arg(&links))?;
        let (their_wall, their_end) = seconds(Command::new(&program).arg(&trace).arg(&links))?;
        ensure!(
            (end / their_end - 1.0).abs() < 0.01,
            "the replays end at {end} s here and at {their_end} s in SimGrid"
        );
        ours.push(wall);
        theirs.push(their_wall);
    }
    Ok(Some((median(ours), median(theirs), transfers as f64)))
}

fn compiled(scratch: &Path) -> Result<Option<PathBuf>> {
    let (source, program) = (scratch.join("simgrid.cpp"), scratch.join("simgrid"));
    fs::write(&source, PROGRAM).with_context(|| format!("cannot write {}", source.display()))?;
    let mut compiler = Command::new("g++");
    let output = compiler.args(["-O2", "-std=c++17", "-o"]).arg(&program).arg(&source).arg("-lsimgrid").output();
    Ok(output.is_ok_and(|output| output.status.success()).then_some(program))
}

/// A transfer of a trace: its start, its ends (node 0 is the origin) and its bytes.
type Row = (u64, u32, u32, f64);

fn read(trace: &Path) -> Result<Vec<Row>> {
    let text = fs::read_to_string(trace).with_context(|| format!("cannot read {}", trace.display()))?;
    let row = |line: &str| {
        let mut cells = line.split(',');
        let start = cells.next()?.parse().ok()?;
        let mut node = || cells.next()?.parse::<i64>().ok().and_then(|node| u32::try_from(node + 1).ok());
        let (from, to) = (node()?, node()?);
        Some((start, from, to, cells.next()?.parse().ok()?))
    };
    let rows = text.lines().enumerate().skip(1);
    rows.map(|(at, line)| row(line).with_context(|| format!("{}:{}: no transfer", trace.display(), at + 1))).collect()
}

/// The links of the origin and the nodes of a star: up and down, one after the other.
fn links(path: &Path) -> Result<Vec<f64>> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut links = Vec::new();
    for (at, line) in text.lines().enumerate().skip(1) {
        let mut rates = line.split(',').skip(1).map_while(|cell| cell.parse::<f64>().ok());
        let (up, down) =
            rates.next().zip(rates.next()).with_context(|| format!("{}:{}: no link", path.display(), at + 1))?;
        links.extend([up, down]);
    }
    Ok(links)
}

/// Replays a trace with the ε that `run` has, and prints the seconds that it took and the simulated moment of its end.
pub(super) fn replay(trace: &Path, rates: &Path) -> Result<()> {
    let (rows, links) = (read(trace)?, links(rates)?);
    let nodes = rows.iter().map(|row| row.1.max(row.2)).max().map_or(0, |node| node + 1);
    ensure!(2 * at(nodes) <= links.len(), "{} lacks nodes of {}", rates.display(), trace.display());
    let mut network = Network::new(Rates::Exact { epsilon: EPSILON });
    links.iter().for_each(|rate| {
        network.add_link(*rate);
    });
    let begun = Instant::now();
    let (mut over, mut end, mut rows) = (Vec::new(), 0, rows.iter().peekable());
    loop {
        let due = network.due();
        let now = if let Some(&(start, from, to, bytes)) = rows.next_if(|row| row.0 <= due) {
            network.start(start, &[2 * from, 2 * to + 1], bytes, f64::INFINITY, ());
            start
        } else if due < u64::MAX {
            network.fire(due, &mut over);
            // Who was slowed down is not over when it was thought to be.
            end = if over.is_empty() { end } else { due };
            over.clear();
            due
        } else {
            break;
        };
        network.settle(now);
    }
    out::say(format_args!("{} {}", begun.elapsed().as_secs_f64(), secs(end)));
    Ok(())
}
