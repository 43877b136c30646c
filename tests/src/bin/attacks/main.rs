//! `make test-attacks`: switches off one check of the product after another, and demands that exactly the tests turn red
//! that are said to guard it (`tests/attacks.toml`).
//!
//! All switches are built in at once, in a copy of the commit: each does its work only in a process that is told
//! its name ([`SWITCH`]). So one build serves all, and what turns red does so by one switch alone. Takes long; no part of
//! `make test`.

mod scratch;
mod suite;
mod table;

use std::{collections::BTreeSet, path::PathBuf, process::ExitCode};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use shoal_tests::{
    clone,
    report::{line, note},
};

use self::{
    scratch::Scratch,
    suite::Suite,
    table::{Check, Table},
};

/// Names the check that a process does without.
const SWITCH: &str = "SHOAL_OFF";

/// Switches off the product's checks, each by itself, and looks which tests notice.
#[derive(Debug, Parser)]
#[command(name = "shoal-attacks")]
struct Arguments {
    /// Where the product is copied to and built; kept, so that the next build is short
    #[arg(long)]
    scratch: PathBuf,
    /// Only these checks, separated by commas [default: all]
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Say what the table holds, and that every edit fits the code; build nothing
    #[arg(long)]
    dry: bool,
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(&Arguments::parse()).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            note(&format!("attacks: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: &Arguments) -> Result<bool> {
    let table = Table::read(&clone::root()?.join("tests/attacks.toml"))?;
    let unknown: Vec<_> = arguments.only.iter().filter(|name| !table.check.iter().any(|c| c.name == **name)).collect();
    ensure!(unknown.is_empty(), "no such check: {unknown:?}");
    let scratch = Scratch::make(&arguments.scratch)?;
    for check in &table.check {
        scratch.edit(check).with_context(|| check.name.clone())?;
    }
    line(&format!("{} checks, {} tests", table.check.len(), table.tests().len()));
    if arguments.dry {
        return Ok(true);
    }
    scratch.settle()?;
    let suite = Suite::build(&scratch).await?;
    let all = table.tests();
    note("every check on");
    let red = suite.red(&all, None, None).await?;
    ensure!(red.is_empty(), "red with every check on: {red:?}");
    let wanted = |check: &&Check| arguments.only.is_empty() || arguments.only.contains(&check.name);
    let mut good = true;
    for check in table.check.iter().filter(wanted) {
        good &= judge(&suite, &all, check).await?;
    }
    Ok(good)
}

/// Runs the tests without one check, and says what that came to.
async fn judge(suite: &Suite, all: &BTreeSet<String>, check: &Check) -> Result<bool> {
    let mut red = suite.red(all, Some(check), None).await?;
    let named: BTreeSet<String> = check.red.iter().cloned().collect();
    // What turns red for another reason, on a busy machine say, does not do so twice.
    for surprise in red.difference(&named).cloned().collect::<Vec<_>>() {
        if suite.red(&BTreeSet::from([surprise.clone()]), Some(check), Some(&surprise)).await?.is_empty() {
            red.remove(&surprise);
        }
    }
    let (green, surprises): (Vec<_>, Vec<_>) = (named.difference(&red).collect(), red.difference(&named).collect());
    let verdict = if green.is_empty() && surprises.is_empty() { "ok" } else { "WRONG" };
    line(&format!("{verdict:5} {:28} {} ({} red)", check.name, check.attack, red.len()));
    for test in &green {
        line(&format!("      stays green: {test}"));
    }
    for test in &surprises {
        line(&format!("      turns red, and is not named: {test}"));
    }
    Ok(green.is_empty() && surprises.is_empty())
}
