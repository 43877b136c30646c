//! The command line: `shoal agent`, `pull`, `status`, `explain`, `image`.
//!
//! Data goes to standard output, as text or with `--json` as JSON; progress, logs and errors go to standard error. An
//! error is one line that says what failed and what to do. Exit 0: done; 1: it failed while running; 64: the command line
//! or the configuration is no good.

mod admin;
mod daemon;
mod explain;
mod export;
mod fetch;
mod image;
mod out;
mod progress;
mod pull;
mod reference;
mod status;
mod tar;
#[cfg(test)]
mod tests;

use std::{ffi::OsString, path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};

use crate::config::{AgentArgs, ConfigError};

use self::out::Out;

/// Usage or configuration (`EX_USAGE` of sysexits.h).
pub const EXIT_USAGE: u8 = 64;
/// It failed while running.
pub const EXIT_FAILED: u8 = 1;

/// Container images for a fleet, at the speed of its own network
#[derive(Debug, Parser)]
#[command(name = "shoal", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run this node's agent: a registry on localhost, fed by its peers
    Agent(Box<AgentArgs>),
    /// Pull an image, through the running agent or a temporary one
    Pull(pull::PullArgs),
    /// Show how this node's agent stands
    Status(status::StatusArgs),
    /// Tell what the last pulls were made of: bytes and time by source, and why the seeder was asked
    Explain(explain::ExplainArgs),
    /// List, remove and pin the images of this node's agent
    #[command(subcommand)]
    Image(image::ImageCommand),
}

/// Where the running agent's admin socket is.
#[derive(Debug, Clone, clap::Args)]
struct AdminArgs {
    /// The agent's data folder
    #[arg(long, value_name = "DIR", default_value = crate::config::DATA_DIR)]
    data_dir: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Runs the program with these arguments (the first is its name).
#[must_use]
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let mut out = Out::standard();
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) if error.use_stderr() => {
            out.usage(&error);
            return ExitCode::from(EXIT_USAGE);
        }
        Err(help) => {
            out.text(&help.render().to_string());
            return ExitCode::SUCCESS;
        }
    };
    let result = match cli.command {
        Command::Agent(args) => daemon::run(&args, &mut out),
        Command::Pull(args) => on_runtime(pull::run(&args, &mut out)),
        Command::Status(args) => on_runtime(status::run(&args, &mut out)),
        Command::Explain(args) => on_runtime(explain::run(&args, &mut out)),
        Command::Image(command) => on_runtime(image::run(&command, &mut out)),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            out.error(&error);
            let usage = error.is::<ConfigError>() || error.is::<out::Usage>();
            ExitCode::from(if usage { EXIT_USAGE } else { EXIT_FAILED })
        }
    }
}

/// Commands that last as long as one request, or one pull.
fn on_runtime(command: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    daemon::runtime()?.block_on(command)
}
