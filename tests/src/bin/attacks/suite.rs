//! The tests of the scratch clone: built once, run with and without a check.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::Value;
use shoal_tests::report::note;
use tokio::{process::Command, time::timeout};

use super::{SWITCH, scratch::Scratch, table::Check};

/// Without a check a test may wait for what never comes.
const RUN_TIME_MAX: Duration = Duration::from_secs(240);
/// The tests that drive the binaries: they may notice whatever is changed anywhere.
const OUTSIDE: &str = "it";

/// A program of tests.
#[derive(Debug)]
struct Program {
    path: PathBuf,
    /// The package's directory, in which cargo runs its tests.
    directory: PathBuf,
}

/// All programs of tests, by target.
#[derive(Debug)]
pub(crate) struct Suite {
    programs: BTreeMap<String, Program>,
    /// Directories of packages, and those of the packages that each uses.
    uses: BTreeMap<PathBuf, BTreeSet<PathBuf>>,
    tree: PathBuf,
    binaries: PathBuf,
}

impl Suite {
    /// Builds binaries and tests.
    pub(crate) async fn build(scratch: &Scratch) -> Result<Self> {
        let (tree, target) = (scratch.tree(), scratch.target());
        cargo(tree, target, &["build", "--workspace", "--bins"]).await?;
        let built = cargo(tree, target, &["test", "--workspace", "--no-run", "--message-format=json"]).await?;
        let mut programs = BTreeMap::new();
        for message in built.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()) {
            let text = |value: &Value| value.as_str().map(str::to_owned);
            let (Some(path), Some(name), Some(manifest)) =
                (text(&message["executable"]), text(&message["target"]["name"]), text(&message["manifest_path"]))
            else {
                continue;
            };
            // The tests of binaries are none: their code is the library's.
            let kinds = message["target"]["kind"].to_string();
            if message["profile"]["test"] == true && !kinds.contains("\"bin\"") {
                let directory = Path::new(&manifest).parent().context("a manifest lies in a directory")?.to_owned();
                let program = Program { path: path.into(), directory };
                let twice = programs.insert(name.replace('-', "_"), program);
                ensure!(twice.is_none(), "two targets are called {name}");
            }
        }
        let metadata = cargo(tree, target, &["metadata", "--no-deps", "--format-version=1"]).await?;
        let uses = uses(&serde_json::from_str(&metadata).context("what cargo says of the packages")?)?;
        Ok(Self { programs, uses, tree: tree.to_owned(), binaries: target.join("debug") })
    }

    /// Which of `tests` are red while `off` is switched off; only in the program of `alone`, if it is given.
    pub(crate) async fn red(
        &self,
        tests: &BTreeSet<String>,
        off: Option<&Check>,
        alone: Option<&str>,
    ) -> Result<BTreeSet<String>> {
        let mut by_program: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for test in tests {
            let (target, path) = test.split_once("::").with_context(|| format!("{test} names no target"))?;
            by_program.entry(target).or_default().push(path);
        }
        let mut red = BTreeSet::new();
        for (target, paths) in by_program {
            let program = self.programs.get(target).with_context(|| format!("there is no test target {target}"))?;
            if alone.is_none() && off.is_some_and(|check| !self.can_notice(target, program, check)) {
                continue;
            }
            let said = self.run(program, &paths, off).await.with_context(|| target.to_owned())?;
            for path in paths {
                match said.get(path) {
                    Some(true) => {}
                    None if off.is_none() => bail!("{target} has no test {path}, or it did not end"),
                    Some(false) | None => drop(red.insert(format!("{target}::{path}"))),
                }
            }
        }
        Ok(red)
    }

    /// Whether a program has anything of what the check's edits change in it.
    fn can_notice(&self, target: &str, program: &Program, check: &Check) -> bool {
        target == OUTSIDE
            || check.edit.iter().any(|edit| {
                let file = self.tree.join(&edit.file);
                let package = self.uses.keys().filter(|directory| file.starts_with(directory));
                let package = package.max_by_key(|directory| directory.as_os_str().len());
                package.is_none_or(|package| self.in_it(&program.directory).contains(package.as_path()))
            })
    }

    /// All packages of the workspace that a package is made of.
    fn in_it<'a>(&'a self, package: &'a Path) -> BTreeSet<&'a Path> {
        let (mut found, mut open) = (BTreeSet::new(), vec![package]);
        while let Some(package) = open.pop() {
            if found.insert(package) {
                open.extend(self.uses.get(package).into_iter().flatten().map(PathBuf::as_path));
            }
        }
        found
    }

    /// Runs tests of a program; whether each was green, as far as they came to an end.
    async fn run(&self, program: &Program, tests: &[&str], off: Option<&Check>) -> Result<BTreeMap<String, bool>> {
        let mut command = Command::new(&program.path);
        command.arg("--exact").args(tests).current_dir(&program.directory).env("SHOAL_BIN_DIR", &self.binaries);
        if let Some(check) = off {
            command.env(SWITCH, &check.name);
        }
        let output = tempfile::NamedTempFile::new()?;
        let file = output.as_file();
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(Stdio::null());
        // A group of its own, so that what a test has started ends with it.
        let mut child = command.process_group(0).spawn().context("start it")?;
        let group = child.id().and_then(|id| Pid::from_raw(id.cast_signed())).context("it has an id")?;
        if timeout(RUN_TIME_MAX, child.wait()).await.is_err() {
            note(&format!("{} is ended after {RUN_TIME_MAX:?}", program.path.display()));
            kill_process_group(group, Signal::KILL)?;
            child.wait().await?;
        }
        let text = std::fs::read_to_string(output.path())?;
        let mut said = BTreeMap::new();
        for line in text.lines() {
            let Some((test, result)) = line.strip_prefix("test ").and_then(|rest| rest.rsplit_once(" ... ")) else {
                continue;
            };
            said.insert(test.to_owned(), result == "ok");
        }
        Ok(said)
    }
}

/// What each package of the workspace uses of it, tests' needs included.
fn uses(metadata: &Value) -> Result<BTreeMap<PathBuf, BTreeSet<PathBuf>>> {
    let mut uses = BTreeMap::new();
    for package in metadata["packages"].as_array().context("there are packages")? {
        let manifest = package["manifest_path"].as_str().context("a package has a manifest")?;
        let directory = Path::new(manifest).parent().context("a manifest lies in a directory")?.to_owned();
        let used = package["dependencies"].as_array().context("a package has a list of what it uses")?;
        let used = used.iter().filter_map(|used| used["path"].as_str()).map(PathBuf::from).collect();
        uses.insert(directory, used);
    }
    Ok(uses)
}

/// Runs cargo there; gives its output. What it reports goes to the terminal.
async fn cargo(tree: &Path, target: &Path, arguments: &[&str]) -> Result<String> {
    note(&format!("cargo {}", arguments.join(" ")));
    let output = Command::new("cargo")
        .args(arguments)
        .current_dir(tree)
        .env("CARGO_TARGET_DIR", target)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .await
        .context("start cargo")?;
    ensure!(output.status.success(), "cargo {} ended with {}", arguments.join(" "), output.status);
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
