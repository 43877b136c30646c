//! One seed has one history, whatever the program was compiled with and however many threads it runs on.

use std::{
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

/// A rollout in which all goes wrong that can.
const ROLLOUT: [&str; 7] = [
    "run",
    "chaos",
    "--policy=random,shoal",
    "--nodes=60",
    "--set=image.size=\"64 MiB\"",
    "--set=faults.crash=\"10 %\"",
    "--seed=9",
];

/// Whether this program and one of the other profile have the same trace on one thread and on three; none where cargo
/// does not build the other.
pub(super) fn same(scratch: &Path) -> Result<Option<bool>> {
    let target = scratch.join("release");
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
    let mut cargo = Command::new("cargo");
    cargo.args(["build", "--quiet", "--release", "--bin=shoal-sim", "--manifest-path", manifest, "--target-dir"]);
    cargo.arg(&target).stdout(Stdio::null()).stderr(Stdio::null());
    if !cargo.status().is_ok_and(|status| status.success()) {
        return Ok(None);
    }
    let own = std::env::current_exe().context("a program knows where it lies")?;
    let other = target.join("release/shoal-sim");
    let mut hashes = Vec::new();
    for (program, threads) in [(&own, "1"), (&own, "3"), (&other, "1"), (&other, "3")] {
        hashes.push(hash(program, threads, scratch)?);
    }
    Ok(Some(hashes.iter().all(|hash| *hash == hashes[0])))
}

fn hash(program: &Path, threads: &str, scratch: &Path) -> Result<Value> {
    let folder = scratch.join("history");
    let mut command = Command::new(program);
    let output = command.args(ROLLOUT).args(["--threads", threads, "--out"]).arg(&folder).output();
    let output = output.with_context(|| format!("cannot start {}", program.display()))?;
    ensure!(output.status.success(), "{}: {}", program.display(), String::from_utf8_lossy(&output.stderr));
    let text = std::fs::read(folder.join("summary.json")).context("a run writes a summary")?;
    let mut summary: Value = serde_json::from_slice(&text).context("a summary is JSON")?;
    Ok(summary["trace_hash"].take())
}
