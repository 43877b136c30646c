//! `make bench-trust`: what it costs that strangers get nothing; writes `target/bench/trust.json`.
//!
//! Costs are CPU seconds of processes by the kernel's account, each beside the same work without; hops are counted on the
//! connections of agents that run. A package of its own: it links the agent and the seeder.

mod capability;
mod connect;
mod hops;
mod renew;

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context, Result};
use clap::Parser;
use rustix::process::{Pid, Resource, Rlimit, getpid, getrlimit, setrlimit};
use serde_json::{Map, json};
use shoal_tests::{
    bench::{accounting, record::Report},
    clone,
    report::{line, note},
};

/// Figure, and what it must not exceed.
const BARS: [(&str, f64); 4] = [
    ("connect_cpu_vs_bare_libp2p", 1.5),
    ("capability_cpu_overhead", 0.02),
    ("renew_cost_10k_vs_10", 1.5),
    ("revocation_hops_100_agents", 4.0),
];

/// Measures what trust costs; writes target/bench/trust.json.
#[derive(Debug, Parser)]
#[command(name = "shoal-trust-bench")]
struct Cli {
    /// Only figures whose names hold this text.
    #[arg(long, default_value = "")]
    only: String,
    /// Rounds; a figure is their median.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Agents among which a revocation travels.
    #[arg(long, default_value_t = 100)]
    agents: usize,
    /// MiB of the transfer that capabilities are a part of.
    #[arg(long, default_value_t = 1024)]
    mib: u64,
    /// Where the report goes.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let run = || -> Result<bool> {
        let runtime = tokio::runtime::Runtime::new().context("start the runtime")?;
        runtime.block_on(run(&cli))
    };
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            note(&format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// CPU seconds that this process has used so far.
fn cpu() -> Result<f64> {
    accounting::cpu_of(getpid())
}

fn cpu_of(processes: &[Pid]) -> Result<f64> {
    processes.iter().map(|process| accounting::cpu_of(*process)).sum()
}

/// The middle one; of two the upper.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

async fn run(cli: &Cli) -> Result<bool> {
    let most = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: most, maximum: most }).context("have many files open")?;
    let (mut figures, mut good) = (Map::new(), true);
    let mut details = Map::new();
    for (name, bar) in BARS.iter().filter(|(name, _)| name.contains(&cli.only)) {
        note(&format!("--- {name}"));
        let (value, detail) = match *name {
            "connect_cpu_vs_bare_libp2p" => connect::measure(cli.rounds).await,
            "capability_cpu_overhead" => capability::measure(cli.mib).await,
            "renew_cost_10k_vs_10" => renew::measure(cli.rounds).await,
            _ => hops::measure(cli.agents).await,
        }
        .with_context(|| (*name).to_owned())?;
        good &= value <= *bar;
        line(&format!("{name:<32} {value:>10.4}  (at most {bar})"));
        figures.insert((*name).to_owned(), json!(value));
        details.insert((*name).to_owned(), detail);
    }
    let machine = Report::new(String::new())?.machine;
    let bars: Map<_, _> = BARS.iter().map(|(name, bar)| ((*name).to_owned(), json!(bar))).collect();
    let found = json!({ "machine": machine, "figures": figures, "at_most": bars, "details": details });
    let path = match &cli.json {
        Some(path) => path.clone(),
        None => clone::root()?.join("target/bench/trust.json"),
    };
    std::fs::create_dir_all(path.parent().context("the report lies in a directory")?)?;
    std::fs::write(&path, format!("{found:#}\n")).with_context(|| format!("write {}", path.display()))?;
    line(&format!("written: {}", path.display()));
    Ok(good)
}
