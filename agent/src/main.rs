//! The `shoal` command.

use std::process::ExitCode;

/// Bytes of memory that the allocator keeps for the next use instead of giving them back to the system at once.
const KEPT: usize = 4 << 20;

fn main() -> ExitCode {
    // glibc gives the top of a heap back whenever 128 KiB of it are free, and takes it again for the next record, a page
    // fault for each 4 KiB. It keeps as much as twice the largest block that was mapped by itself and freed.
    drop(std::hint::black_box(Vec::<u8>::with_capacity(KEPT)));
    shoal_agent::cli::run(std::env::args_os())
}
