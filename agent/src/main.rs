//! The `shoal` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    shoal_agent::cli::run(std::env::args_os())
}
