//! `make validate`: holds the simulator against real agents in network namespaces, and writes
//! `target/bench/validate.json`.

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context, Result};
use clap::Parser;
use serde_json::json;
use shoal_tests::{
    bench::validate::{self, Case, Errors, Plan, Table},
    clone,
    report::{line, note},
};

/// The bars: median, 99th percentile, makespan, the origin's copies.
const BARS: [(&str, f64); 4] = [("median_err", 0.10), ("p99_err", 0.20), ("makespan_err", 0.15), ("origin_err", 0.10)];

/// Does the simulator predict a real swarm? Root: it makes network namespaces.
#[derive(Debug, Parser)]
#[command(name = "shoal-validate")]
struct Arguments {
    /// How many agents, separated by commas; the first, on the flat shape, is calibrated on
    #[arg(long, value_delimiter = ',', default_value = "8,16,32", value_parser = clap::value_parser!(u16).range(2..=100))]
    nodes: Vec<u16>,
    /// How often each swarm runs
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=100))]
    rounds: u16,
    /// MiB of the image
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u64).range(1..=4096))]
    size_mib: u64,
    /// The simulator [default: the one beside this program]
    #[arg(long)]
    simulator: Option<PathBuf>,
    /// Where the table goes [default: target/bench/validate.json of the clone]
    #[arg(long)]
    output: Option<PathBuf>,
}

#[tokio::main]
async fn main() -> ExitCode {
    match validated(Arguments::parse()).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            note(&format!("validate: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

async fn validated(arguments: Arguments) -> Result<bool> {
    let beside = || anyhow::Ok(std::env::current_exe().context("where this program lies")?.with_file_name("shoal-sim"));
    let simulator = arguments.simulator.map_or_else(beside, Ok)?;
    let output = match arguments.output {
        Some(output) => output,
        None => clone::root()?.join("target/bench/validate.json"),
    };
    let plan = Plan {
        nodes: arguments.nodes.iter().map(|&nodes| usize::from(nodes)).collect(),
        rounds: usize::from(arguments.rounds),
        mib: arguments.size_mib,
        simulator,
    };
    let table = validate::run(&plan).await?;
    let worst = Errors::worst(table.cases.iter().filter(|case| !case.calibrated_here).map(|case| case.errors));
    let found = [worst.median, worst.p99, worst.makespan, worst.origin];
    show(&table);
    let mut figures = serde_json::Map::new();
    for ((name, bar), value) in BARS.into_iter().zip(found) {
        line(&format!("{name:<14} {value:>6.3}   bar {bar:.2}   {}", if value <= bar { "holds" } else { "missed" }));
        figures.insert(name.to_owned(), json!(value));
    }
    let told = json!({ "figures": figures, "calibration": { "tcp_part": table.tcp_part, "swarm_part": table.swarm_part },
        "link_mbit_s": validate::RATE, "size_mib": plan.mib, "cases": table.cases });
    if let Some(folder) = output.parent() {
        std::fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
    }
    let text = serde_json::to_string_pretty(&told).context("figures are JSON")?;
    std::fs::write(&output, text + "\n").with_context(|| format!("write {}", output.display()))?;
    line(&format!("written: {}", output.display()));
    Ok(BARS.into_iter().zip(found).all(|((_, bar), value)| value <= bar))
}

/// Measured and predicted side by side, ready for the docs.
fn show(table: &Table) {
    let (tcp, swarm) = (table.tcp_part, table.swarm_part);
    line(&format!("TCP gets {tcp:.3} of a link; calibrated: a swarm gets {swarm:.3} of that"));
    line("| swarm | median s | p99 s | last s | origin copies |");
    line("|---|---|---|---|---|");
    for case in &table.cases {
        let Case { shape, nodes, calibrated_here, measured: m, predicted: p, .. } = case;
        let note = if *calibrated_here { " (calibrated)" } else { "" };
        let pair = |m: f64, p: f64| format!("{m:.1} / {p:.1}");
        line(&format!(
            "| {} {nodes}{note} | {} | {} | {} | {:.2} / {:.2} |",
            shape.name(),
            pair(m.median_s, p.median_s),
            pair(m.p99_s, p.p99_s),
            pair(m.makespan_s, p.makespan_s),
            m.origin_copies,
            p.origin_copies,
        ));
    }
}
