//! The `shoal` command.

use std::{os::unix::process::CommandExt as _, process::ExitCode};

/// Bytes of memory that the allocator keeps for the next use instead of giving them back to the system at once.
const KEPT: usize = 512 << 10;
/// The allocator's heaps, and the variable that tells it. Of itself it makes eight for each processor, and each keeps what
/// some burst once needed: on two processors a third of an idle agent's memory. Two are as fast for few threads.
const HEAPS: (&str, &str) = ("MALLOC_ARENA_MAX", "2");

fn main() -> ExitCode {
    with_few_heaps();
    // glibc gives the top of a heap back whenever 128 KiB of it are free, and takes it again for the next record, a page
    // fault for each 4 KiB. It keeps as much as twice the largest block that was mapped by itself and freed.
    drop(std::hint::black_box(Vec::<u8>::with_capacity(KEPT)));
    shoal_agent::cli::run(std::env::args_os())
}

/// Becomes itself again with [`HEAPS`] set, which the allocator reads before `main`. Where that cannot be done, all works as
/// well and takes more memory.
#[expect(clippy::disallowed_methods, reason = "the allocator is told by the environment alone")]
fn with_few_heaps() {
    let (name, value) = HEAPS;
    if std::env::var_os(name).is_some() {
        return;
    }
    let Ok(program) = std::env::current_exe() else { return };
    let mut arguments = std::env::args_os();
    let mut again = std::process::Command::new(program);
    if let Some(called) = arguments.next() {
        again.arg0(called);
    }
    // Comes back only with an error.
    let _ = again.args(arguments).env(name, value).exec();
}
