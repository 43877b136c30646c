//! `make bench`: runs the cases, prints tables, and writes `target/bench/swarm.json` (`swarm-trust.json`).

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context, Result};
use clap::{Parser, ValueEnum};
use shoal_tests::{
    bench::{Log, Options, crowd, figures, idle, links, local, loopback, record::Report, regions, tables},
    clone,
    report::{line, note},
};
use tokio::signal::unix::{SignalKind, signal};

/// A case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Case {
    /// A warm peer to 1, 8 and 16 others over loopback, beside libtorrent, nginx and docker-registry
    Loopback,
    /// 8, 16 and 32 peers on links of 50 Mbit/s (root)
    Links,
    /// Three regions with narrow links between them (root)
    Regions,
    /// Eight agents behind one narrow uplink (root)
    Edge,
    /// 200 agents in the same second
    Crowd,
    /// A client of a warm agent, beside nginx
    Local,
    /// An agent that does nothing (root)
    Idle,
}

/// What Shoal moves and what it costs, beside others that do the same work.
#[derive(Debug, Parser)]
#[command(name = "shoal-bench")]
struct Arguments {
    /// Which cases, separated by commas [default: all]
    #[arg(long, value_delimiter = ',')]
    case: Vec<Case>,
    /// How many receivers, separated by commas [default: those of the case]
    #[arg(long, value_delimiter = ',', value_parser = clap::value_parser!(u16).range(1..=400))]
    nodes: Vec<u16>,
    /// MiB of the blob, separated by commas [default: those of the case]
    #[arg(long, value_delimiter = ',', value_parser = clap::value_parser!(u64).range(1..=16384))]
    size_mib: Vec<u64>,
    /// How often each contender runs
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=100))]
    rounds: u16,
    /// shoal-plain, shoal-tls, libtorrent, nginx, docker-registry [default: all]
    #[arg(long, value_delimiter = ',')]
    contender: Vec<String>,
    /// Of `links`: plain, delay, killed [default: all]
    #[arg(long, value_delimiter = ',')]
    variant: Vec<String>,
    /// A flag for every agent besides, as `--agent-flag=--log=debug`; may be repeated
    #[arg(long, allow_hyphen_values = true)]
    agent_flag: Vec<String>,
    /// Seconds over which `idle` counts: one refresh period of the DHT
    #[arg(long, default_value_t = 1500)]
    idle_seconds: u64,
    /// Fleets that let in only whom they know, a private image, and its user; the report is swarm-trust.json then
    #[arg(long)]
    trust: bool,
    /// Keep the processes' directories (in memory!) and say where they are
    #[arg(long)]
    keep_files: bool,
    /// Take over earlier runs of other cases from the report
    #[arg(long)]
    keep: bool,
    /// Where the report goes [default: target/bench/swarm.json of the clone]
    #[arg(long)]
    output: Option<PathBuf>,
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let outcome = tokio::select! {
        outcome = bench(&arguments) => outcome,
        // Whatever was started or built goes as its owners are dropped.
        result = stopped() => Err(result.err().unwrap_or_else(|| anyhow::anyhow!("interrupted"))),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            note(&format!("bench: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

async fn stopped() -> Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}

async fn bench(arguments: &Arguments) -> Result<bool> {
    let output = match &arguments.output {
        Some(output) => output.clone(),
        None if arguments.trust => clone::root()?.join("target/bench/swarm-trust.json"),
        None => clone::root()?.join("target/bench/swarm.json"),
    };
    let options = Options {
        rounds: usize::from(arguments.rounds),
        nodes: arguments.nodes.iter().map(|&nodes| usize::from(nodes)).collect(),
        sizes_mib: arguments.size_mib.clone(),
        contenders: arguments.contender.clone(),
        variants: arguments.variant.clone(),
        agent_flags: arguments.agent_flag.clone(),
        trust: arguments.trust,
        keep_files: arguments.keep_files,
    };
    let mut report = Report::new(std::env::args().skip(1).collect::<Vec<_>>().join(" "))?;
    let mut log = Log::default();
    let cases = if arguments.case.is_empty() { Case::value_variants() } else { &arguments.case };
    for &case in cases {
        note(&format!("--- {case:?}"));
        if let Err(error) = run(case, &options, arguments, &mut log).await {
            log.take(&format!("{case:?}"), Err(error));
        }
        // After each case: an hour's work must not hang on the last minute.
        report.cases.clone_from(&log.runs);
        report.skipped.clone_from(&log.skipped);
        finish(&mut report, arguments.keep, &output)?;
    }
    line(&format!("{}\n", report.machine));
    line(&tables::cases(&report.cases));
    line(&tables::figures(&report.judged));
    for text in &log.skipped {
        line(&format!("skipped: {text}"));
    }
    for text in &log.broken {
        line(&format!("failed: {text}"));
    }
    line(&format!("written: {}", output.display()));
    Ok(log.broken.is_empty())
}

async fn run(case: Case, options: &Options, arguments: &Arguments, log: &mut Log) -> Result<()> {
    match case {
        Case::Loopback => loopback::run(options, log).await,
        Case::Links => links::run(options, log).await,
        Case::Regions => regions::run(options, log, &[regions::REGIONS]).await,
        Case::Edge => regions::run(options, log, &[regions::EDGE]).await,
        Case::Crowd => crowd::run(options, log).await,
        Case::Local => local::run(options, log).await,
        Case::Idle => idle::run(options, log, Duration::from_secs(arguments.idle_seconds)).await,
    }
}

fn finish(report: &mut Report, keep: bool, output: &Path) -> Result<()> {
    if keep {
        report.keep(output)?;
    }
    report.judged = figures::judge(&report.cases);
    report.figures = report.judged.iter().map(|figure| (figure.key.clone(), figure.value.median)).collect();
    report.write(output)
}
