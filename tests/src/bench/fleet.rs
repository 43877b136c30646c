//! Shoal as it ships: one seeder and some agents, each a process of its own, on given hosts.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use futures::future::try_join_all;

use super::{accounting, content::Content, host::Host, topology};
use crate::{
    bench::content::{REPOSITORY, TAG},
    cluster::{Addresses, Binaries},
    http::Client,
    metrics::{Metrics, names},
    process::{self, Process},
    push, wait,
};

/// How long a process may take until it is ready: thirty-two start at once on two cores.
const READY_TIME_MAX: Duration = Duration::from_secs(120);
/// A fleet is settled when over such a window its processes take less than [`SETTLED_CORES`] processors in all: what they
/// do when they start (keys, handshakes with each other) is not what a rollout costs a fleet that runs.
const SETTLE_WINDOW: Duration = Duration::from_millis(500);
/// See [`SETTLE_WINDOW`].
const SETTLED_CORES: f64 = 0.2;
/// How long a fleet may take to settle.
const SETTLE_TIME_MAX: Duration = Duration::from_secs(60);
/// Where hosts have ports of their own, these are the shipped ones.
const SEEDER_PORT: u16 = 5000;
const LIBP2P_PORT: u16 = 5051;
const PEER_PORT: u16 = 5052;
/// Ports that others connect to.
pub const PORTS: [u16; 3] = [SEEDER_PORT, LIBP2P_PORT, PEER_PORT];

/// A seeder or an agent.
#[derive(Debug)]
pub struct Node {
    // First: it must have ended when its host goes.
    process: Option<Process>,
    host: Arc<Host>,
    name: String,
    addresses: Addresses,
    directory: PathBuf,
}

/// How a node is started.
#[derive(Debug, Clone, Default)]
pub struct Start {
    /// Flags besides those for addresses and directories.
    pub flags: Vec<String>,
    /// The config file.
    pub config: String,
    /// The address by which others know it, where that is not its own.
    pub alias: Option<Ipv4Addr>,
}

impl Start {
    /// With these flags.
    #[must_use]
    pub fn flags(flags: &[&str]) -> Self {
        Self { flags: flags.iter().map(|&flag| flag.to_owned()).collect(), ..Self::default() }
    }
}

impl Node {
    /// Starts a seeder and waits until it is ready.
    ///
    /// # Errors
    /// It ends, or is not ready in time.
    pub async fn seeder(host: &Arc<Host>, directory: &Path, start: &Start) -> Result<Self> {
        let port = if host.is_apart() { SEEDER_PORT } else { 0 };
        let arguments = ["serve".to_owned(), "--listen".to_owned(), SocketAddr::from((host.ip(), port)).to_string()];
        Self::start(&Binaries::find()?.seeder, "seeder", host, directory, arguments.into(), start).await
    }

    /// Starts an agent of the seeder at `seeder` and waits until it is ready.
    ///
    /// # Errors
    /// It ends, or is not ready in time.
    pub async fn agent(
        host: &Arc<Host>,
        directory: &Path,
        name: &str,
        seeder: SocketAddr,
        start: &Start,
    ) -> Result<Self> {
        let port = |port: u16| if host.is_apart() { port } else { 0 };
        let mut arguments = vec!["agent".to_owned()];
        let mut flag = |name: &str, value: String| arguments.extend([name.to_owned(), value]);
        flag("--listen", "127.0.0.1:0".to_owned());
        flag("--libp2p-listen", SocketAddr::from((host.ip(), port(LIBP2P_PORT))).to_string());
        flag("--peer-listen", SocketAddr::from((host.ip(), port(PEER_PORT))).to_string());
        flag("--seeder", format!("http://{seeder}"));
        if let Some(alias) = start.alias {
            flag("--advertise", alias.to_string());
        }
        Self::start(&Binaries::find()?.agent, name, host, directory, arguments, start).await
    }

    async fn start(
        program: &Path,
        name: &str,
        host: &Arc<Host>,
        directory: &Path,
        mut arguments: Vec<String>,
        start: &Start,
    ) -> Result<Self> {
        let directory = directory.join(name);
        let data = directory.join("data");
        std::fs::create_dir_all(&data).with_context(|| format!("create {}", data.display()))?;
        let mut flag = |name: &str, value: String| arguments.extend([name.to_owned(), value]);
        flag("--status", "127.0.0.1:0".to_owned());
        flag("--data-dir", data.display().to_string());
        if !start.config.is_empty() {
            let config = directory.join("config.toml");
            std::fs::write(&config, &start.config).with_context(|| format!("write {}", config.display()))?;
            flag("--config", config.display().to_string());
        }
        arguments.push("--insecure-open".to_owned());
        arguments.extend(start.flags.iter().cloned());
        let (program, log) = (program.to_owned(), directory.join("log"));
        let (called, addresses) = (name.to_owned(), data.join("addresses.json"));
        // The process is the host's because the host's thread starts it.
        let launch = async move {
            let environment = [("NO_COLOR", "1".into()), ("RUST_BACKTRACE", "1".into())];
            let mut process = Process::start(&called, &program, arguments, &environment, &log)?;
            let what = format!("{called} (log: {})", log.display());
            let ready = wait::until(&what, READY_TIME_MAX, || {
                let (state, file) = (process.check(), addresses.clone());
                async move {
                    state?;
                    let Ok(file) = std::fs::read(&file) else { return Ok(None) };
                    let Ok(addresses) = serde_json::from_slice::<Addresses>(&file) else { return Ok(None) };
                    let reply = Client::new(addresses.status.to_string()).get("/readyz").await;
                    Ok(reply.ok().map(|_| addresses))
                }
            });
            let addresses = ready.await.with_context(|| process::tail(&log))?;
            Ok((process, addresses))
        };
        let (process, addresses) = host.run(launch).await?;
        Ok(Self { process: Some(process), host: Arc::clone(host), name: name.to_owned(), addresses, directory })
    }

    /// What it is called.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where it runs.
    #[must_use]
    pub const fn host(&self) -> &Arc<Host> {
        &self.host
    }

    /// What it has bound.
    #[must_use]
    pub const fn addresses(&self) -> &Addresses {
        &self.addresses
    }

    /// Where its data and its log are.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Its metrics.
    ///
    /// # Errors
    /// It does not answer.
    pub async fn metrics(&self) -> Result<Metrics> {
        let status = self.addresses.status.to_string();
        let scrape = async move { Metrics::scrape(&Client::new(status)).await };
        self.host.run(scrape).await.with_context(|| format!("metrics of {}", self.name))
    }

    /// CPU seconds that it has used so far.
    ///
    /// # Errors
    /// It does not run.
    pub fn cpu(&self) -> Result<f64> {
        accounting::cpu_of(self.process()?.pid()?)
    }

    /// The most memory that it ever had resident, in bytes.
    ///
    /// # Errors
    /// It does not run.
    pub fn rss_peak(&self) -> Result<u64> {
        self.process()?.rss_peak()
    }

    /// Its process.
    ///
    /// # Errors
    /// It does not run.
    pub fn process(&self) -> Result<&Process> {
        self.process.as_ref().with_context(|| format!("{} does not run", self.name))
    }

    /// Whether it has not been killed.
    #[must_use]
    pub const fn runs(&self) -> bool {
        self.process.is_some()
    }

    /// SIGKILL.
    ///
    /// # Errors
    /// It does not run.
    pub async fn kill(&mut self) -> Result<()> {
        self.process.take().with_context(|| format!("{} does not run", self.name))?.kill().await
    }
}

/// One seeder and some agents.
#[derive(Debug)]
pub struct Fleet {
    /// The agents.
    pub agents: Vec<Node>,
    /// The seeder.
    pub seeder: Node,
    seeder_known_as: SocketAddr,
}

impl Fleet {
    /// Starts a seeder and pushes `content` to it.
    ///
    /// # Errors
    /// It does not start, or refuses the push.
    pub async fn start(host: &Arc<Host>, directory: &Path, start: &Start, content: &Content) -> Result<Self> {
        let seeder = Node::seeder(host, directory, start).await?;
        let mut seeder_known_as = seeder.addresses().registry;
        if let Some(alias) = start.alias {
            seeder_known_as.set_ip(alias.into());
        }
        let (client, image) = (Client::new(seeder.addresses().registry.to_string()), content.image.clone());
        let push = async move { push::image(&client, REPOSITORY, TAG, &image).await };
        host.run(push).await.context("push to the seeder")?;
        Ok(Self { agents: Vec::new(), seeder, seeder_known_as })
    }

    /// How agents reach the seeder.
    #[must_use]
    pub const fn seeder_address(&self) -> SocketAddr {
        self.seeder_known_as
    }

    /// Starts agents, all at once: name, host, and how.
    ///
    /// # Errors
    /// One does not become ready.
    pub async fn add(&mut self, directory: &Path, agents: Vec<(String, Arc<Host>, Start)>) -> Result<()> {
        let seeder = self.seeder_known_as;
        let starts = agents.iter().map(|(name, host, start)| Node::agent(host, directory, name, seeder, start));
        self.agents.extend(try_join_all(starts).await?);
        Ok(())
    }

    /// Waits until the agents have done what they do when they start.
    ///
    /// # Errors
    /// One has ended by itself, or they do not come to rest.
    pub async fn settle(&self) -> Result<()> {
        settle(|| Ok(self.cpu()?.1)).await
    }

    /// Payload bytes that the seeder has sent so far.
    ///
    /// # Errors
    /// It does not answer.
    pub async fn origin_bytes(&self) -> Result<u64> {
        let metrics = self.seeder.metrics().await?;
        ensure!(metrics.has(names::SEEDER_SENT), "the seeder does not export {}", names::SEEDER_SENT);
        Ok(metrics.count(names::SEEDER_SENT, &[]))
    }

    /// CPU seconds of all that run: seeder, agents.
    ///
    /// # Errors
    /// One has ended by itself.
    pub fn cpu(&self) -> Result<(f64, f64)> {
        let agents = self.agents.iter().filter(|agent| agent.runs()).map(Node::cpu).sum::<Result<f64>>()?;
        Ok((self.seeder.cpu()?, agents))
    }

    /// The highest memory peak of an agent, in bytes.
    #[must_use]
    pub fn rss_peak(&self) -> u64 {
        self.agents.iter().filter_map(|agent| agent.rss_peak().ok()).max().unwrap_or(0)
    }

    /// What a host's link has carried: both counts in payload bytes, received and sent.
    ///
    /// # Errors
    /// It has no link.
    pub fn link_payload(host: &Host) -> Result<(u64, u64)> {
        let traffic = topology::Network::traffic(host)?;
        Ok((traffic.received.payload(), traffic.sent.payload()))
    }

    /// What every process said last, for the reader of a failure.
    pub fn show_logs(&self) {
        for node in self.agents.iter().chain([&self.seeder]) {
            let tail = process::tail(&node.directory.join("log"));
            crate::report::note(&format!("--- {} said last:\n{tail}", node.name));
        }
    }
}

/// Waits until agents, whose CPU seconds so far `cpu` gives, have done what they do when they start.
///
/// # Errors
/// One has ended by itself, or they do not come to rest.
pub async fn settle(cpu: impl Fn() -> Result<f64>) -> Result<()> {
    let limit = SETTLED_CORES * SETTLE_WINDOW.as_secs_f64();
    let windows = async {
        let mut ticks = tokio::time::interval(SETTLE_WINDOW);
        ticks.tick().await;
        let mut before = cpu()?;
        loop {
            ticks.tick().await;
            let now = cpu()?;
            if now - before < limit {
                return Ok(());
            }
            before = now;
        }
    };
    tokio::time::timeout(SETTLE_TIME_MAX, windows).await.context("the fleet does not come to rest")?
}
