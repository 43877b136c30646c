//! `shoal-conformance`: runs the conformance suite against a registry.

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context, Result};
use clap::Parser;
use shoal_tests::{
    conformance::{Suite, Verdict},
    report,
};

/// Exit: it ran, and rules failed.
const EXIT_FAILED: u8 = 1;
/// Exit: it could not run.
const EXIT_ERROR: u8 = 2;

/// Runs the OCI conformance suite against a registry that anybody may push to and delete from.
#[derive(Debug, Parser)]
#[command(version, about)]
struct Cli {
    /// Where it is: `http://127.0.0.1:5000`. The repositories that are made begin with `conformance/`.
    registry: String,
    /// Run the rules whose names hold this text.
    #[arg(long, value_name = "TEXT", default_value = "")]
    only: String,
    /// Write all outcomes as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Show what was asked and answered where a rule fails.
    #[arg(long)]
    exchanges: bool,
    /// List the rules and end.
    #[arg(long)]
    list: bool,
}

fn main() -> ExitCode {
    match run(&Cli::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(EXIT_FAILED),
        Err(error) => {
            report::note(&format!("{error:#}"));
            ExitCode::from(EXIT_ERROR)
        }
    }
}

fn run(cli: &Cli) -> Result<bool> {
    let suite = Suite::all().only(&cli.only);
    if cli.list {
        for rule in suite.rules() {
            report::line(&rule.name);
        }
        return Ok(true);
    }
    let authority = cli.registry.strip_prefix("http://").unwrap_or(&cli.registry).trim_end_matches('/');
    let runtime = tokio::runtime::Runtime::new().context("start the runtime")?;
    let found = runtime.block_on(suite.run(authority))?;
    if let Some(file) = &cli.json {
        std::fs::write(file, found.json()).with_context(|| format!("write {}", file.display()))?;
    }
    if cli.exchanges {
        for outcome in found.of(Verdict::Fail) {
            report::line(&format!("{}:\n  {}", outcome.rule, outcome.exchanges.join("\n  ")));
        }
    }
    report::line(&found.text());
    Ok(found.count(Verdict::Fail) == 0)
}
