//! `shoal-sim run`.

use std::{
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
};

use anyhow::{Context as _, Result};

use super::{Failure, complaint, exit_of, input, show};
use crate::{
    cli, files,
    job::{self, Keep, Outcome},
    network::Rates,
    out,
    plan::{Plan, Policy},
    progress::Board,
    report,
    setup::Setup,
    topology::Topology,
};

/// Where results go unless `--out` says otherwise.
pub(super) const RESULTS: &str = "target/sim";

pub(super) fn run(args: &cli::Run) -> Result<ExitCode, Failure> {
    let setup = Setup::read(&args.what).map_err(input)?;
    let policies = if args.policy.is_empty() { Policy::ALL.to_vec() } else { args.policy.clone() };
    warn_of_fast_rates(&setup).map_err(input)?;
    let board = Board::new(policies.len())?;
    // The last policy is what the report is about: it begins first, because it takes longest.
    let threads = args.threads.unwrap_or_else(job::cores);
    let last = policies.len() - 1;
    let mut outcomes = job::spread(policies.len(), threads, |index| {
        let policy = policies[last - index];
        job::simulate(&setup, policy, Keep::default(), &mut board.eye(policy.name()))
    })
    .into_iter()
    .collect::<Result<Vec<Outcome>>>()
    .map_err(input)?;
    outcomes.reverse();
    board.finish();
    let folder = args.out.clone().unwrap_or_else(|| Path::new(RESULTS).join(&setup.name));
    let main = outcomes.last().context("at least one policy")?;
    files::tables(&folder, main)?;
    files::write(&folder, "scenario.toml", &toml::to_string_pretty(&setup.scenario).context("a scenario is TOML")?)?;
    if let Some(topology) = &setup.topology {
        files::write(&folder, "topology.csv", topology)?;
    }
    let report = folder.join("report.html");
    files::write(&folder, "report.html", &report::page(&setup, &outcomes)?)?;
    figures(&setup, &outcomes);
    let place = std::path::absolute(&report).unwrap_or(report);
    out::say(format_args!("\nreport: file://{}", place.display()));
    for outcome in &outcomes {
        let policy = outcome.summary.policy;
        if let Some(text) = complaint(&setup, policy, &outcome.ended, outcome.summary.ended_s) {
            out::warn(format_args!("{}: {text}", policy.name()));
        }
    }
    if args.open {
        open(&place);
    }
    Ok(exit_of(&main.ended))
}

/// What the runs came to, for the terminal.
pub(crate) fn figures(setup: &Setup, outcomes: &[Outcome]) {
    let Some(main) = outcomes.last() else { return };
    let (summary, scenario) = (&main.summary, &setup.scenario);
    out::say(format_args!("{}: {}", setup.name, scenario.about));
    let size = crate::scenario::units::Bytes(summary.image_bytes);
    out::say(format_args!(
        "{} nodes × {size} in {} pieces, seed {}; the least possible is {:.2} s\n",
        summary.nodes, summary.pieces, setup.seed, summary.bound_s
    ));
    let runs: Vec<_> = outcomes.iter().map(|outcome| &outcome.summary).collect();
    show::table(&runs).iter().for_each(out::say);
    let end = summary.ended_s;
    out::say(format_args!("\n{:<18} {}", "nodes with it", show::sparkline(&main.samples, |s| f64::from(s.arrived))));
    out::say(format_args!("{:<18} {}  0–{end:.0} s", "origin's rate", show::sparkline(&main.samples, |s| s.origin)));
    let cost = &summary.cost;
    out::say(format_args!(
        "\n{} transfers in {:.1} s ({:.0} a second), {} MiB; trace {}",
        summary.counts.transfers, cost.wall_s, cost.transfers_per_s, cost.rss_mib, summary.trace_hash
    ));
}

/// Fast rates are right only where no flow leaves anything to another.
fn warn_of_fast_rates(setup: &Setup) -> Result<()> {
    if setup.rates.with(setup.epsilon) != Rates::Fast {
        return Ok(());
    }
    let plan = Plan::new(&setup.scenario, setup.seed, Policy::Shoal, Rates::Fast)?;
    let mut network = crate::network::Network::<u32>::new(Rates::Fast);
    if !Topology::build(&plan.scenario, setup.spots()?, &mut network).is_uniform() {
        out::warn(
            "--rates fast gives what a flow leaves of a link to no other. Here capacities are unequal: expect times 10 % \
             (mean) to 26 % (last node) too long; --rates exact has no such bias",
        );
    }
    Ok(())
}

fn open(report: &PathBuf) {
    let mut opener = Command::new("xdg-open");
    let begun = opener.arg(report).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    if let Err(error) = begun {
        out::warn(format_args!("cannot open a browser (xdg-open: {error}); open the file yourself"));
    }
}
