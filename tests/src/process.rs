//! Guards around child processes: what a test starts, and only that, it ends.

use std::{
    ffi::{OsStr, OsString},
    fs::File,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    process::{Child, Command},
    time::timeout,
};

/// How long a process may take to end after SIGTERM.
const STOP_TIME_MAX: Duration = Duration::from_secs(30);
/// Bytes of a process's log that go into an error message.
const LOG_TAIL_LEN: usize = 2000;

/// A running process; killed when dropped.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `program` with its output (both streams) appended to `log`.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start<S: AsRef<OsStr>>(
        name: &str,
        program: &Path,
        arguments: impl IntoIterator<Item = S>,
        environment: &[(&str, OsString)],
        log: &Path,
    ) -> Result<Self> {
        let file =
            File::options().create(true).append(true).open(log).with_context(|| format!("open {}", log.display()))?;
        let child = Command::new(program)
            .args(arguments)
            .envs(environment.iter().map(|(name, value)| (*name, value)))
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("start {}", program.display()))?;
        Ok(Self { name: name.to_owned(), child, log: log.to_owned() })
    }

    /// Its process id.
    ///
    /// # Errors
    /// It has ended.
    pub fn pid(&self) -> Result<Pid> {
        let id = self.child.id().with_context(|| format!("{} has ended", self.name))?;
        Pid::from_raw(i32::try_from(id)?).context("a process id is positive")
    }

    /// What it has printed last.
    #[must_use]
    pub fn log_tail(&self) -> String {
        tail(&self.log)
    }

    /// Fails with what it printed if it has ended.
    ///
    /// # Errors
    /// It has ended.
    pub fn check(&mut self) -> Result<()> {
        if let Some(status) = self.child.try_wait()? {
            bail!("{} ended with {status}:\n{}", self.name, self.log_tail());
        }
        Ok(())
    }

    /// SIGKILL; returns when it is gone.
    ///
    /// # Errors
    /// It had ended before.
    pub async fn kill(mut self) -> Result<()> {
        kill_process(self.pid()?, Signal::KILL).with_context(|| format!("kill {}", self.name))?;
        self.child.wait().await?;
        Ok(())
    }

    /// SIGTERM; gives the status.
    ///
    /// # Errors
    /// It had ended before, or does not end in time.
    pub async fn stop(mut self) -> Result<ExitStatus> {
        kill_process(self.pid()?, Signal::TERM).with_context(|| format!("stop {}", self.name))?;
        match timeout(STOP_TIME_MAX, self.child.wait()).await {
            Ok(status) => Ok(status?),
            Err(_) => bail!("{} did not stop within {STOP_TIME_MAX:?}:\n{}", self.name, self.log_tail()),
        }
    }

    /// SIGSTOP or SIGCONT: the process stands still, its connections stay open.
    ///
    /// # Errors
    /// It has ended.
    pub fn pause(&self, paused: bool) -> Result<()> {
        let signal = if paused { Signal::STOP } else { Signal::CONT };
        kill_process(self.pid()?, signal).with_context(|| format!("signal {}", self.name))
    }

    /// The most memory that it ever had resident, in bytes.
    ///
    /// # Errors
    /// It has ended.
    pub fn rss_peak(&self) -> Result<u64> {
        let path = format!("/proc/{}/status", self.pid()?.as_raw_nonzero());
        let status = std::fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
        Ok(line.trim().trim_end_matches("kB").trim().parse::<u64>()? * 1024)
    }
}

/// The end of a log file as text.
#[must_use]
pub fn tail(log: &Path) -> String {
    let bytes = std::fs::read(log).unwrap_or_default();
    String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(LOG_TAIL_LEN)..]).into_owned()
}

/// What a command that was run to its end said.
#[derive(Debug, Clone)]
pub struct Output {
    /// Its exit code; none after a signal.
    pub code: Option<i32>,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

/// Runs a command to its end, for at most `limit`.
///
/// # Errors
/// It cannot be started or takes too long; a status other than 0 is no error.
pub async fn run<S: AsRef<OsStr>>(
    program: &str,
    arguments: impl IntoIterator<Item = S>,
    environment: &[(&str, OsString)],
    limit: Duration,
) -> Result<Output> {
    let child = Command::new(program)
        .args(arguments)
        .envs(environment.iter().map(|(name, value)| (*name, value)))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("start {program}"))?;
    let output =
        timeout(limit, child.wait_with_output()).await.with_context(|| format!("{program} took over {limit:?}"))??;
    Ok(Output {
        code: output.status.code(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

impl Output {
    /// Standard output of a command that must have succeeded.
    ///
    /// # Errors
    /// It did not.
    pub fn success(self, what: &str) -> Result<String> {
        ensure!(self.code == Some(0), "{what} ended with {:?}:\n{}{}", self.code, self.stdout, self.stderr);
        Ok(self.stdout)
    }
}
