//! Real clients: Docker, containerd, podman and skopeo, each with data, sockets and settings of its own below a private
//! directory. Nothing of the machine's own daemons is used or changed.
//!
//! Daemons run in a mount namespace of their own, so that whatever they mount goes with them. Storage drivers are those
//! that copy (`vfs`, `native`): they work on any file system, below containers too, and the images are small.

mod containerd;
mod docker;
mod podman;
mod registry;
mod skopeo;

use std::{ffi::OsString, path::Path, time::Duration};

use anyhow::{Result, ensure};

use crate::process::{self, Output};

pub use containerd::{Containerd, Login};
pub use docker::Docker;
pub use podman::Podman;
pub use registry::Registry;
pub use skopeo::Skopeo;

/// How long one command of a client may take. A pull of a few MiB takes a second; starting a container on a loaded
/// machine some more.
const COMMAND_TIME_MAX: Duration = Duration::from_secs(120);
/// How long a daemon may take to answer.
const DAEMON_TIME_MAX: Duration = Duration::from_secs(60);

/// Whether tests that need root and these programs can run. Where the programs have to be there (in CI, or as root,
/// after `make test` has installed them) a missing one fails the test; elsewhere the skip is printed.
///
/// # Errors
/// A program is missing that must not be.
pub fn available(programs: &[&str]) -> Result<bool> {
    let root = rustix::process::geteuid().is_root();
    let missing: Vec<_> = programs.iter().filter(|program| !on_path(program)).collect();
    if root || in_ci() {
        ensure!(root, "CI runs these tests as root");
        ensure!(missing.is_empty(), "{missing:?} not found: `.ci/setup test` installs them");
        return Ok(true);
    }
    crate::report::note(&format!("SKIPPED: {programs:?} can only be started by root"));
    Ok(false)
}

#[expect(clippy::disallowed_methods, reason = "CI is told by the environment")]
fn in_ci() -> bool {
    std::env::var_os("CI").is_some_and(|value| value == "true")
}

/// Whether a program is there.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "programs are looked up as a shell does")]
pub fn on_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]).any(|dir| dir.join(program).exists())
}

/// Runs a client's command, which must succeed, and gives its standard output.
async fn command(program: &str, arguments: &[&str], environment: &[(&str, OsString)]) -> Result<String> {
    let what = format!("{program} {}", arguments.join(" "));
    run(program, arguments, environment).await?.success(&what)
}

async fn run(program: &str, arguments: &[&str], environment: &[(&str, OsString)]) -> Result<Output> {
    process::run(program, arguments, environment, COMMAND_TIME_MAX).await
}

/// `unshare` with what makes a daemon's mounts its own.
fn unshare(program: &str, arguments: Vec<String>) -> Vec<String> {
    let own = ["--mount", "--propagation", "private", "--", program].map(str::to_owned);
    own.into_iter().chain(arguments).collect()
}

/// A path as an argument.
fn text(path: &Path) -> String {
    path.display().to_string()
}
