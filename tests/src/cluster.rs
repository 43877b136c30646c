//! One seeder and some agents as processes of the shipped binaries, on ports that the kernel chooses.

mod binaries;

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::ExitStatus,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use futures::future::try_join_all;
use serde::Deserialize;

use crate::{
    http::Client,
    metrics::Metrics,
    process::{self, Process},
    wait,
};

pub use binaries::Binaries;

/// How long a process may take until it is ready: on a loaded machine starting eight at once takes seconds.
const READY_TIME_MAX: Duration = Duration::from_secs(60);
/// How long an administrator's command may take on a loaded machine.
const ORDER_TIME_MAX: Duration = Duration::from_secs(30);
/// Where a process writes the addresses that it has bound, in its data directory.
const ADDRESSES: &str = "addresses.json";
/// Lets the kernel choose.
const ANY_PORT: &str = "127.0.0.1:0";

/// The addresses that a process has bound.
#[derive(Debug, Clone, Copy, Deserialize)]
pub struct Addresses {
    /// The registry.
    pub registry: SocketAddr,
    /// Health and metrics.
    pub status: SocketAddr,
    /// libp2p; agents only.
    #[serde(default)]
    pub libp2p: Option<SocketAddr>,
    /// The peer protocol; agents only.
    #[serde(default)]
    pub peer: Option<SocketAddr>,
}

/// What a process is.
#[derive(Debug, Clone)]
enum Role {
    /// `open`: anybody may join.
    Seeder {
        open: bool,
    },
    Agent {
        seeder: String,
    },
}

/// A seeder or an agent.
#[derive(Debug)]
pub struct Daemon {
    name: String,
    role: Role,
    program: PathBuf,
    directory: PathBuf,
    extra: Vec<String>,
    process: Option<Process>,
    addresses: Addresses,
}

impl Daemon {
    /// Starts a seeder with its data below `directory` and waits until it is ready.
    ///
    /// # Errors
    /// It ends, or is not ready in time.
    pub async fn seeder(binaries: &Binaries, directory: &Path, extra: &[&str]) -> Result<Self> {
        Self::start("seeder", Role::Seeder { open: true }, &binaries.seeder, directory, extra).await
    }

    /// The same, but nodes join by token alone.
    ///
    /// # Errors
    /// It ends, or is not ready in time.
    pub async fn closed_seeder(binaries: &Binaries, directory: &Path, extra: &[&str]) -> Result<Self> {
        Self::start("seeder", Role::Seeder { open: false }, &binaries.seeder, directory, extra).await
    }

    /// Starts an agent of the seeder at `seeder` and waits until it is ready. It is open unless it is given a join token.
    ///
    /// # Errors
    /// It ends, or is not ready in time.
    pub async fn agent(
        binaries: &Binaries,
        directory: &Path,
        name: &str,
        seeder: SocketAddr,
        extra: &[&str],
    ) -> Result<Self> {
        let role = Role::Agent { seeder: format!("http://{seeder}") };
        Self::start(name, role, &binaries.agent, directory, extra).await
    }

    async fn start(name: &str, role: Role, program: &Path, directory: &Path, extra: &[&str]) -> Result<Self> {
        let directory = directory.join(name);
        std::fs::create_dir_all(&directory).with_context(|| format!("create {}", directory.display()))?;
        let mut daemon = Self {
            name: name.to_owned(),
            role,
            program: program.to_owned(),
            directory,
            extra: extra.iter().map(|&argument| argument.to_owned()).collect(),
            process: None,
            addresses: Addresses { registry: any(), status: any(), libp2p: Some(any()), peer: Some(any()) },
        };
        daemon.launch().await?;
        Ok(daemon)
    }

    /// The arguments of the next start: the addresses bound by the last one, so that others find it again.
    #[must_use]
    pub fn arguments(&self) -> Vec<String> {
        let Addresses { registry, status, libp2p, peer } = self.addresses;
        let mut arguments: Vec<String> = Vec::new();
        let mut flag = |name: &str, value: String| arguments.extend([name.to_owned(), value]);
        flag("--listen", registry.to_string());
        flag("--status", status.to_string());
        flag("--data-dir", self.data_dir().display().to_string());
        let command = match &self.role {
            Role::Seeder { .. } => "serve",
            Role::Agent { seeder } => {
                flag("--libp2p-listen", libp2p.unwrap_or_else(any).to_string());
                // A test may say where.
                let peer = peer.unwrap_or_else(any).to_string();
                for (name, value) in [("--seeder", seeder.clone()), ("--peer-listen", peer)] {
                    if !self.extra.iter().any(|argument| argument == name) {
                        flag(name, value);
                    }
                }
                "agent"
            }
        };
        arguments.insert(0, command.to_owned());
        let open = match self.role {
            Role::Seeder { open } => open,
            Role::Agent { .. } => !self.extra.iter().any(|argument| argument.starts_with("--join-")),
        };
        if open {
            arguments.push("--insecure-open".to_owned());
        }
        arguments.extend(self.extra.iter().cloned());
        arguments
    }

    /// Starts the process, which must not be running, and waits until it is ready.
    ///
    /// # Errors
    /// It ends, or is not ready in time.
    pub async fn launch(&mut self) -> Result<()> {
        assert!(self.process.is_none(), "{} is running", self.name);
        let file = self.data_dir().join(ADDRESSES);
        if file.exists() {
            std::fs::remove_file(&file).with_context(|| format!("remove {}", file.display()))?;
        }
        let mut process = Process::start(&self.name, &self.program, self.arguments(), &[], &self.log())?;
        let what = format!("{} (log: {})", self.name, self.log().display());
        let mut bound: Option<Addresses> = None;
        let ready = wait::until(&what, READY_TIME_MAX, || {
            let state = process.check();
            bound = bound.or_else(|| serde_json::from_slice(&std::fs::read(&file).ok()?).ok());
            async move {
                state?;
                let Some(addresses) = bound else { return Ok(None) };
                let reply = Client::new(addresses.status.to_string()).get("/readyz").await;
                Ok(reply.ok().map(|_| addresses))
            }
        });
        self.addresses = ready.await.with_context(|| tail_of(&self.log()))?;
        self.process = Some(process);
        Ok(())
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it has bound.
    #[must_use]
    pub const fn addresses(&self) -> &Addresses {
        &self.addresses
    }

    /// Its data directory.
    #[must_use]
    pub fn data_dir(&self) -> PathBuf {
        self.directory.join("data")
    }

    /// Its output.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.directory.join("log")
    }

    /// A client of its registry.
    #[must_use]
    pub fn client(&self) -> Client {
        Client::new(self.addresses.registry.to_string())
    }

    /// A client of its status page.
    #[must_use]
    pub fn status(&self) -> Client {
        Client::new(self.addresses.status.to_string())
    }

    /// Its metrics.
    ///
    /// # Errors
    /// It does not answer.
    pub async fn metrics(&self) -> Result<Metrics> {
        Metrics::scrape(&self.status()).await.with_context(|| format!("metrics of {}", self.name))
    }

    /// Waits until `look` is content with its metrics.
    ///
    /// # Errors
    /// It does not answer, or `limit` passes.
    pub async fn metrics_until(&self, what: &str, limit: Duration, look: impl Fn(&Metrics) -> bool) -> Result<Metrics> {
        let what = format!("{what} at {}", self.name);
        wait::until(&what, limit, async || Ok(Some(self.metrics().await?).filter(|metrics| look(metrics)))).await
    }

    /// An agent's own account of itself (`/status`).
    ///
    /// # Errors
    /// It does not answer.
    pub async fn account(&self) -> Result<serde_json::Value> {
        let reply = self.status().get("/status").await.with_context(|| format!("status of {}", self.name))?;
        serde_json::from_slice(&reply.body).with_context(|| format!("status of {}", self.name))
    }

    /// The most memory that it ever had resident since it was started, in bytes.
    ///
    /// # Errors
    /// It does not run.
    pub fn rss_peak(&self) -> Result<u64> {
        self.running()?.rss_peak()
    }

    /// Its process.
    ///
    /// # Errors
    /// It does not run.
    pub fn pid(&self) -> Result<rustix::process::Pid> {
        self.running()?.pid()
    }

    /// Whether it stands still (SIGSTOP, SIGCONT).
    ///
    /// # Errors
    /// It does not run.
    pub fn pause(&self, paused: bool) -> Result<()> {
        self.running()?.pause(paused)
    }

    fn running(&self) -> Result<&Process> {
        self.process.as_ref().with_context(|| format!("{} is not running", self.name))
    }

    /// SIGKILL; it can be launched again.
    ///
    /// # Errors
    /// It does not run.
    pub async fn kill(&mut self) -> Result<()> {
        self.process.take().with_context(|| format!("{} is not running", self.name))?.kill().await
    }

    /// SIGTERM; gives the exit status. It can be launched again.
    ///
    /// # Errors
    /// It does not run, or does not end in time.
    pub async fn stop(&mut self) -> Result<ExitStatus> {
        self.process.take().with_context(|| format!("{} is not running", self.name))?.stop().await
    }
}

/// A private directory with one seeder and some agents in it.
#[derive(Debug)]
pub struct Cluster {
    /// The seeder.
    pub seeder: Daemon,
    /// The agents.
    pub agents: Vec<Daemon>,
    finished: bool,
    // Last, so that the processes are gone before their directories are.
    directory: tempfile::TempDir,
}

impl Cluster {
    /// Starts a seeder, then all agents at once.
    ///
    /// # Errors
    /// One of them does not become ready.
    pub async fn start(agents: usize) -> Result<Self> {
        Self::start_with(agents, "").await
    }

    /// [`Cluster::start`] with a config file (TOML) for the agents; addresses and directories are flags.
    ///
    /// # Errors
    /// One of them does not become ready.
    pub async fn start_with(agents: usize, config: &str) -> Result<Self> {
        let binaries = Binaries::find()?;
        let directory = scratch()?;
        let seeder = Daemon::seeder(&binaries, directory.path(), &[]).await?;
        let mut cluster = Self { seeder, agents: Vec::new(), finished: false, directory };
        let file = cluster.path().join("agent.toml");
        std::fs::write(&file, config).with_context(|| format!("write {}", file.display()))?;
        let file = file.display().to_string();
        let extra = if config.is_empty() { Vec::new() } else { vec!["--config", file.as_str()] };
        let names: Vec<String> = (1..=agents).map(|n| format!("agent{n}")).collect();
        let starts = names.iter().map(|name| cluster.another(name, &extra));
        cluster.agents = try_join_all(starts).await?;
        Ok(cluster)
    }

    /// Starts a seeder that admits by token alone, then agents that join by one token with these labels.
    ///
    /// # Errors
    /// One of them does not become ready.
    pub async fn members(agents: usize, labels: &str) -> Result<Self> {
        Self::members_with(agents, labels, "", &[]).await
    }

    /// [`Cluster::members`] with a config file (TOML) for the seeder, and flags for the agents.
    ///
    /// # Errors
    /// One of them does not become ready.
    pub async fn members_with(agents: usize, labels: &str, seeder: &str, flags: &[&str]) -> Result<Self> {
        let binaries = Binaries::find()?;
        let directory = scratch()?;
        let file = directory.path().join("seeder.toml");
        std::fs::write(&file, seeder).with_context(|| format!("write {}", file.display()))?;
        let config = file.display().to_string();
        let seeder = Daemon::closed_seeder(&binaries, directory.path(), &["--config", &config]).await?;
        let mut cluster = Self { seeder, agents: Vec::new(), finished: false, directory };
        let token = cluster.token(agents.max(1), labels).await?;
        let extra = [&["--join-token-file", token.as_str()], flags].concat();
        let names: Vec<String> = (1..=agents).map(|n| format!("agent{n}")).collect();
        cluster.agents = try_join_all(names.iter().map(|name| cluster.another(name, &extra))).await?;
        Ok(cluster)
    }

    /// Has the seeder make a join token; gives the file that holds it.
    ///
    /// # Errors
    /// It does not.
    pub async fn token(&self, uses: usize, labels: &str) -> Result<String> {
        let uses = uses.to_string();
        let token = self.order(&["join-token", "create", "--uses", &uses, "--labels", labels]).await?;
        let file = self.path().join(format!("token-{}", &token.trim()[token.trim().len() - 8..]));
        std::fs::write(&file, token).with_context(|| format!("write {}", file.display()))?;
        Ok(file.display().to_string())
    }

    /// What the seeder's administrator is answered to a command.
    ///
    /// # Errors
    /// It fails.
    pub async fn order(&self, command: &[&str]) -> Result<String> {
        let (program, data) = (self.seeder.program.display().to_string(), self.seeder.data_dir().display().to_string());
        let arguments = command.iter().copied().chain(["--data-dir", &data]);
        process::run(&program, arguments, &[], ORDER_TIME_MAX).await?.success(&command.join(" "))
    }

    /// Starts one more agent of this seeder, in the same directory; the caller keeps it.
    ///
    /// # Errors
    /// It does not become ready.
    pub async fn another(&self, name: &str, extra: &[&str]) -> Result<Daemon> {
        Daemon::agent(&Binaries::find()?, self.path(), name, self.seeder.addresses().registry, extra).await
    }

    /// The private directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Ends a test that went well: every process that still runs has to stop on SIGTERM, in time and with status 0.
    ///
    /// # Errors
    /// One does not.
    pub async fn finish(mut self) -> Result<()> {
        let running = self.agents.iter_mut().chain([&mut self.seeder]).filter(|daemon| daemon.process.is_some());
        let stops = running.map(async |daemon| {
            let status = daemon.stop().await?;
            ensure!(status.success(), "{} ended with {status} on SIGTERM", daemon.name);
            Ok(())
        });
        try_join_all(stops).await?;
        self.finished = true;
        Ok(())
    }

    /// Nothing is shown when it is dropped unfinished.
    pub const fn keep_quiet(&mut self) {
        self.finished = true;
    }

    /// Shows what every process said last.
    pub fn show_logs(&self) {
        for daemon in self.agents.iter().chain([&self.seeder]) {
            crate::report::note(&format!("--- {} said last:\n{}", daemon.name, tail_of(&daemon.log())));
        }
    }

    /// The highest memory peak of all processes that run, in bytes.
    #[must_use]
    pub fn rss_peak(&self) -> u64 {
        self.agents.iter().chain([&self.seeder]).filter_map(|daemon| daemon.rss_peak().ok()).max().unwrap_or(0)
    }
}

impl Drop for Cluster {
    /// A failing test shows what the processes said last; their files are gone afterwards.
    fn drop(&mut self) {
        if !self.finished {
            self.show_logs();
        }
    }
}

/// A private directory for data: on disk rather than in `/tmp`, which is memory on many machines, and short, since the
/// path of a unix socket below it has at most 107 bytes.
///
/// # Errors
/// It cannot be made.
pub fn scratch() -> Result<tempfile::TempDir> {
    let mut builder = tempfile::Builder::new();
    builder.prefix("shoal-");
    builder.tempdir_in("/var/tmp").or_else(|_| builder.tempdir()).context("make a private directory")
}

fn tail_of(log: &Path) -> String {
    process::tail(log)
}

fn any() -> SocketAddr {
    ANY_PORT.parse().expect("an address")
}
