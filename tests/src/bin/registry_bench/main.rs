//! `shoal-registry-bench`: the seeder as a plain registry, side by side with Debian's docker-registry and nginx.
//!
//! Both registries run at the same time, each with a directory of its own on the same disk, and are asked by turns; a
//! figure is the median of the rounds. The seeder is measured as it is shipped: it syncs before it acknowledges, which
//! docker-registry does not. `--memory` puts both on a tmpfs, where syncing costs nothing; the small push is measured there
//! in every run.

mod load;
mod operations;
mod servers;

use std::{collections::BTreeMap, path::PathBuf, process::ExitCode};

use anyhow::{Context, Result};
use clap::Parser;
use serde_json::{Value, json};
use shoal_tests::{clone, report};

use operations::{OPERATIONS, Operation, SMALL_PUSH};
use servers::{Pair, Server};

/// Measures the seeder beside docker-registry and nginx; writes target/bench/registry.json.
#[derive(Debug, Parser)]
#[command(version, about)]
struct Cli {
    /// Rounds; a figure is their median.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Both registries on a tmpfs: what they cost without the disk.
    #[arg(long)]
    memory: bool,
    /// Repositories, and then tags of one of them, for the figures of their lists; 0 leaves these out.
    #[arg(long, default_value_t = 100_000)]
    repositories: usize,
    /// Only operations whose names hold this text.
    #[arg(long, default_value = "")]
    only: String,
    /// Where the report goes.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let run = || -> Result<()> {
        let runtime = tokio::runtime::Runtime::new().context("start the runtime")?;
        runtime.block_on(run(&cli))
    };
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            report::note(&format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// The middle one; of two the upper.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn ratio(row: &Value) -> f64 {
    row["ratio"].as_f64().unwrap_or(f64::NAN)
}

fn show(name: &str, row: &Value) {
    let number = |key: &str| row[key].as_f64().unwrap_or(f64::NAN);
    let (shoal, other) = (number("shoal"), number("docker_registry"));
    report::line(&format!("{name:<32} shoal {shoal:>9.1}/s  docker-registry {other:>9.1}/s  {:>6.2} x", ratio(row)));
}

async fn run(cli: &Cli) -> Result<()> {
    let scratch = if cli.memory { tempfile::tempdir_in("/dev/shm")? } else { shoal_tests::cluster::scratch()? };
    let pair = Pair::start(scratch.path()).await?;
    let mut rows: BTreeMap<&str, Value> = BTreeMap::new();
    for operation in OPERATIONS.iter().filter(|operation| operation.name.contains(&cli.only)) {
        let row = compare(&pair, operation, cli.rounds).await.with_context(|| operation.name.to_owned())?;
        show(operation.name, &row);
        rows.insert(operation.name, row);
    }
    let ahead =
        OPERATIONS.iter().filter(|one| one.zb && rows.get(one.name).is_some_and(|row| ratio(row) > 1.0)).count();
    let mut figures = json!({ "zb_ops_ahead": ahead });
    for (figure, name) in [("manifest_get_vs_distribution", "manifest get"), ("small_push_vs_distribution", SMALL_PUSH)]
    {
        if let Some(row) = rows.get(name) {
            figures[figure] = row["ratio"].clone();
        }
    }
    if cli.only.is_empty() {
        let (seeder, nginx) = servers::large_get(&pair, scratch.path(), cli.rounds).await?;
        figures["large_get_vs_nginx"] = json!(seeder / nginx);
        report::line(&format!("large get: shoal {:.0} MiB/s, nginx {:.0} MiB/s", seeder, nginx));
        figures["rss_64_clients_mib"] = json!(servers::rss_of_64_clients(scratch.path()).await?);
    }
    pair.stop().await?;
    if cli.only.is_empty() && !cli.memory {
        let memory = tempfile::tempdir_in("/dev/shm")?;
        let pair = Pair::start(memory.path()).await?;
        let operation = OPERATIONS.iter().find(|one| one.name == SMALL_PUSH).context("there is a small push")?;
        let row = compare(&pair, operation, cli.rounds).await?;
        show("small push, both on tmpfs", &row);
        figures["small_push_vs_distribution_tmpfs"] = row["ratio"].clone();
        rows.insert("small push, both on tmpfs", row);
        pair.stop().await?;
    }
    if cli.repositories > 0 && cli.only.is_empty() {
        let memory = tempfile::tempdir_in("/dev/shm")?;
        let lists = servers::lists(memory.path(), cli.repositories).await?;
        figures["catalog_100k_vs_1k"] = json!(lists.catalog);
        figures["tags_100k_vs_1k"] = json!(lists.tags);
        figures["delete_among_100k_tags_ms"] = json!(lists.delete_ms);
    }
    let found = json!({
        "figures": figures, "operations": rows, "rounds": cli.rounds,
        "disk": if cli.memory { "tmpfs: syncing costs nothing" } else { "the seeder syncs, docker-registry does not" },
    });
    report::line(&format!("{figures:#}"));
    let path = match &cli.json {
        Some(path) => path.clone(),
        None => clone::root()?.join("target/bench/registry.json"),
    };
    std::fs::create_dir_all(path.parent().context("the report lies in a directory")?)?;
    std::fs::write(&path, format!("{found:#}\n")).with_context(|| format!("write {}", path.display()))
}

/// Both servers by turns, the one that begins changing with the round.
async fn compare(pair: &Pair, operation: &Operation, rounds: usize) -> Result<Value> {
    let servers = [&pair.seeder, &pair.registry];
    let mut rates = [Vec::new(), Vec::new()];
    for round in 0..rounds {
        for turn in 0..2 {
            let at = (round + turn) % 2;
            let server: &Server = servers[at];
            rates[at].push((operation.run)(server, operation).await.with_context(|| server.name)?);
        }
    }
    let [shoal, other] = rates.map(median);
    Ok(json!({ "shoal": shoal, "docker_registry": other, "ratio": shoal / other }))
}
