//! `shoal-sim compare` and `shoal-sim replay`.

use std::{fs, path::Path, process::ExitCode};

use anyhow::{Context as _, Result, anyhow};

use super::{Failure, input, show};
use crate::{
    cli,
    job::{self, Keep},
    out,
    plan::Policy,
    progress::Board,
    setup::Setup,
    summary::Summary,
};

/// Reads a folder of results, or its summary.
fn load(path: &Path) -> Result<Summary> {
    let file = if path.is_dir() { path.join("summary.json") } else { path.to_owned() };
    let text = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
    serde_json::from_str(&text).with_context(|| format!("{} is no summary of a run", file.display()))
}

fn load_or_run(name: &str) -> Result<Summary, Failure> {
    let path = Path::new(name);
    if path.is_dir() || path.extension().is_some_and(|end| end == "json") {
        return load(path).map_err(input);
    }
    let what = cli::What {
        scenario: name.to_owned(),
        nodes: None,
        set: Vec::new(),
        seed: 1,
        rates: cli::RatesChoice::Exact,
        epsilon: cli::EPSILON,
        image: None,
        topology: None,
    };
    let setup = Setup::read(&what).map_err(input)?;
    let board = Board::new(1)?;
    let outcome = job::simulate(&setup, Policy::Shoal, Keep::default(), &mut board.eye(name)).map_err(input)?;
    board.finish();
    Ok(outcome.summary)
}

/// One line of a comparison.
struct Row {
    name: &'static str,
    a: Option<f64>,
    b: Option<f64>,
    /// Whether `--tolerance` is about it.
    gated: bool,
}

impl Row {
    fn change(&self) -> Option<f64> {
        let (a, b) = (self.a?, self.b?);
        if a == 0.0 { (b != 0.0).then_some(f64::INFINITY) } else { Some(100.0 * (b / a - 1.0)) }
    }
}

fn rows(a: &Summary, b: &Summary) -> Vec<Row> {
    let row = |name, of: &dyn Fn(&Summary) -> Option<f64>| Row { name, a: of(a), b: of(b), gated: false };
    let gated = |name, of: &dyn Fn(&Summary) -> Option<f64>| Row { gated: true, ..row(name, of) };
    vec![
        row("nodes", &|s| Some(f64::from(s.nodes))),
        row("image, MiB", &|s| Some(s.image_bytes as f64 / 1_048_576.0)),
        row("least possible, s", &|s| Some(s.bound_s)),
        row("half of the nodes have it, s", &|s| s.arrived.p50),
        row("99 % have it, s", &|s| s.arrived.p99),
        gated("all have it, s", &|s| s.arrived.max),
        row("all are ready, s", &|s| s.ready.max),
        gated("origin copies", &|s| Some(s.origin.copies)),
        row("origin's peak, Gb/s", &|s| Some(s.origin.peak_gbit)),
        gated("copies between regions", &|s| Some(s.cross_copies)),
        row("part of uplinks used", &|s| Some(s.uplink_use)),
        row("Jain's index of uploads", &|s| Some(s.jain_upload)),
        row("wasted, MiB", &|s| Some(s.counts.wasted_bytes as f64 / 1_048_576.0)),
        row("starved requests", &|s| Some(s.counts.timeouts as f64)),
    ]
}

pub(super) fn compare(args: &cli::Compare) -> Result<ExitCode, Failure> {
    let (a, b) = (load_or_run(&args.a)?, load_or_run(&args.b)?);
    let title = |s: &Summary| format!("{} ({}, seed {})", s.setup.name, s.policy.name(), s.setup.seed);
    out::say(format_args!("A: {}\nB: {}\n", title(&a), title(&b)));
    out::say(format_args!("{:<30} {:>12} {:>12} {:>10}", "", "A", "B", "change"));
    let mut beyond = Vec::new();
    for row in rows(&a, &b) {
        let change = row.change().map_or_else(String::new, |change| format!("{change:+.1} %"));
        let number = |value: Option<f64>| value.map_or_else(|| "—".to_owned(), |v| show::seconds(Some(v)));
        out::say(format_args!("{:<30} {:>12} {:>12} {change:>10}", row.name, number(row.a), number(row.b)));
        if let (true, Some(tolerance), Some(change)) = (row.gated, args.tolerance, row.change())
            && change.abs() > tolerance
        {
            beyond.push(format!("{} {change:+.1} %", row.name));
        }
    }
    if beyond.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    out::warn(format_args!("beyond the tolerance: {}", beyond.join(", ")));
    Ok(ExitCode::FAILURE)
}

pub(super) fn replay(args: &cli::Replay) -> Result<ExitCode, Failure> {
    let recorded = load(&args.results).map_err(input)?;
    let setup = recorded.setup.clone().recorded().map_err(input)?;
    let board = Board::new(1)?;
    let mut eye = board.eye(setup.name.as_str());
    let outcome = job::simulate(&setup, recorded.policy, Keep::default(), &mut eye).map_err(input)?;
    drop(eye);
    board.finish();
    super::figures(&setup, core::slice::from_ref(&outcome));
    if outcome.summary.trace_hash == recorded.trace_hash {
        out::say(format_args!("the same as recorded: trace {}", recorded.trace_hash));
        return Ok(ExitCode::SUCCESS);
    }
    let (now, then) = (&outcome.summary.version, &recorded.version);
    let (new, old) = (&outcome.summary.trace_hash, &recorded.trace_hash);
    Err(anyhow!("trace {new} differs from the recorded {old}: recorded with {then}, this is {now}").into())
}
