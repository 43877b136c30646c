//! The `shoal` command.

use std::process::ExitCode;

use tikv_jemallocator::Jemalloc;

/// glibc's keeps what some burst once needed: of an idle agent's heap of 20 MiB hardly more than half was in use. This one
/// gives it back; how eagerly is compiled in (`.cargo/config.toml`).
#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

fn main() -> ExitCode {
    shoal_agent::cli::run(std::env::args_os())
}
