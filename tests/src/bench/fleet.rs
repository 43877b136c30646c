//! Shoal as it ships: one seeder and some agents, each a process of its own, on given hosts.

use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use futures::future::try_join_all;

use super::{
    accounting,
    content::{Content, REPOSITORY, TAG},
    host::Host,
    topology,
    trust::{self, Trust},
};
use crate::{
    cluster::{Addresses, Binaries},
    http::Client,
    image::Image,
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
    /// That of [`trust::USER`], where clients need one.
    password: Option<String>,
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
    /// Where it stands; agents only.
    pub region: Option<String>,
    /// Whether it lets in only whom it knows. What its agents need for that, the fleet gives them.
    pub closed: bool,
}

impl Start {
    /// With these flags.
    #[must_use]
    pub fn flags(flags: &[&str]) -> Self {
        Self { flags: flags.iter().map(|&flag| flag.to_owned()).collect(), ..Self::default() }
    }

    /// An agent whose peers speak `plain` or `tls`; private content goes either way.
    #[must_use]
    pub fn mode(mode: &str) -> Self {
        let config = if mode == "plain" { "trusted_network = true\n" } else { "" };
        Self { config: config.to_owned(), ..Self::flags(&["--mode", mode]) }
    }
}

impl Node {
    /// Starts a seeder that listens at `ip` of its host, and waits until it is ready.
    ///
    /// # Errors
    /// It ends, or is not ready in time.
    pub async fn seeder(host: &Arc<Host>, directory: &Path, ip: Ipv4Addr, start: &Start) -> Result<Self> {
        let port = if host.is_apart() { SEEDER_PORT } else { 0 };
        let arguments = ["serve".to_owned(), "--listen".to_owned(), SocketAddr::from((ip, port)).to_string()];
        Self::start(&Binaries::find()?.seeder, "seeder", host, directory, arguments.into(), start).await
    }

    /// Starts an agent of the seeder at `seeder` and waits until it is ready.
    ///
    /// # Errors
    /// It ends, or is not ready in time.
    pub async fn agent(host: &Arc<Host>, directory: &Path, name: &str, seeder: &str, start: &Start) -> Result<Self> {
        let port = |port: u16| if host.is_apart() { port } else { 0 };
        let mut arguments = vec!["agent".to_owned()];
        let mut flag = |name: &str, value: String| arguments.extend([name.to_owned(), value]);
        flag("--listen", "127.0.0.1:0".to_owned());
        flag("--libp2p-listen", SocketAddr::from((host.ip(), port(LIBP2P_PORT))).to_string());
        flag("--peer-listen", SocketAddr::from((host.ip(), port(PEER_PORT))).to_string());
        flag("--seeder", seeder.to_owned());
        if let Some(alias) = start.alias {
            flag("--advertise", alias.to_string());
        }
        // Whoever joins by token stands where the token says.
        if let Some(region) = start.region.as_ref().filter(|_| !start.closed) {
            flag("--region", region.clone());
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
        if !start.closed {
            arguments.push("--insecure-open".to_owned());
        }
        arguments.extend(start.flags.iter().cloned());
        let (program, log) = (program.to_owned(), directory.join("log"));
        let (called, addresses) = (name.to_owned(), data.join("addresses.json"));
        if addresses.exists() {
            std::fs::remove_file(&addresses).with_context(|| format!("remove {}", addresses.display()))?;
        }
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
        let (host, name, password) = (Arc::clone(host), name.to_owned(), None);
        Ok(Self { process: Some(process), host, name, addresses, directory, password })
    }

    /// A client of its registry that may read and write what is moved; for use on its own host.
    #[must_use]
    pub fn client(&self) -> Client {
        let client = Client::new(self.addresses.registry.to_string());
        match &self.password {
            Some(password) => client.user(trust::USER, password),
            None => client,
        }
    }

    /// The password of [`trust::USER`], where clients need one.
    #[must_use]
    pub fn password(&self) -> Option<&str> {
        self.password.as_deref()
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

    /// SIGTERM.
    ///
    /// # Errors
    /// It does not run, or does not end well.
    pub async fn stop(&mut self) -> Result<()> {
        let process = self.process.take().with_context(|| format!("{} does not run", self.name))?;
        let status = process.stop().await?;
        ensure!(status.success(), "{} ended with {status} on SIGTERM", self.name);
        Ok(())
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
    trust: Option<Trust>,
}

impl Fleet {
    /// Starts a seeder that has `content`.
    ///
    /// # Errors
    /// It does not start, or refuses the push.
    pub async fn start(host: &Arc<Host>, directory: &Path, start: &Start, content: &Content) -> Result<Self> {
        Self::start_with(host, directory, start, vec![(TAG.to_owned(), content.image.clone())]).await
    }

    /// Starts a seeder that has these images under these tags.
    ///
    /// # Errors
    /// It does not start, or refuses a push.
    pub async fn start_with(
        host: &Arc<Host>,
        directory: &Path,
        start: &Start,
        images: Vec<(String, Image)>,
    ) -> Result<Self> {
        let known_as = start.alias.unwrap_or_else(|| host.ip());
        let (seeder, trust) = if start.closed {
            let (trust, start) = Trust::establish(directory, known_as, start)?;
            // Who pushes here speaks no TLS, which a seeder that is alone with itself does not ask for.
            let alone = Start { flags: Vec::new(), ..start.clone() };
            let mut seeder = Node::seeder(host, directory, Ipv4Addr::LOCALHOST, &alone).await?;
            let password = trust.user(&seeder).await?;
            seeder.password = Some(password.clone());
            push(&seeder, images).await?;
            seeder.stop().await?;
            seeder = Node::seeder(host, directory, host.ip(), &start).await?;
            seeder.password = Some(password);
            (seeder, Some(trust))
        } else {
            let seeder = Node::seeder(host, directory, host.ip(), start).await?;
            push(&seeder, images).await?;
            (seeder, None)
        };
        let seeder_known_as = SocketAddr::from((known_as, seeder.addresses().registry.port()));
        Ok(Self { agents: Vec::new(), seeder, seeder_known_as, trust })
    }

    /// How agents reach the seeder.
    #[must_use]
    pub fn seeder_url(&self) -> String {
        let scheme = if self.trust.is_some() { "https" } else { "http" };
        format!("{scheme}://{}", self.seeder_known_as)
    }

    /// What so many agents that stand in `region` need to join; nothing where the seeder is open.
    ///
    /// # Errors
    /// The seeder makes no token.
    pub async fn admit(&self, agents: usize, region: Option<&str>) -> Result<Option<trust::Pass>> {
        match &self.trust {
            Some(trust) => trust.admit(&self.seeder, agents, region).await.map(Some),
            None => Ok(None),
        }
    }

    /// Starts agents, all at once: name, host, and how.
    ///
    /// # Errors
    /// One does not become ready.
    pub async fn add(&mut self, directory: &Path, mut agents: Vec<(String, Arc<Host>, Start)>) -> Result<()> {
        let regions: BTreeSet<_> = agents.iter().map(|(.., start)| start.region.clone()).collect();
        for region in regions {
            let count = agents.iter().filter(|(.., start)| start.region == region).count();
            let Some(pass) = self.admit(count, region.as_deref()).await? else { continue };
            for (.., start) in agents.iter_mut().filter(|(.., start)| start.region == region) {
                start.closed = true;
                start.flags.extend(pass.flags());
            }
        }
        let seeder = self.seeder_url();
        let starts = agents.iter().map(|(name, host, start)| Node::agent(host, directory, name, &seeder, start));
        let mut started = try_join_all(starts).await?;
        if let (Some(_), Some(agent)) = (&self.trust, started.first()) {
            trust::refuses_strangers(agent).await?;
        }
        for agent in &mut started {
            agent.password.clone_from(&self.seeder.password);
        }
        self.agents.append(&mut started);
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

/// Pushes images from the seeder's own host.
async fn push(seeder: &Node, images: Vec<(String, Image)>) -> Result<()> {
    let client = seeder.client();
    let push = async move {
        for (tag, image) in images {
            push::image(&client, REPOSITORY, &tag, &image).await?;
        }
        Ok(())
    };
    seeder.host().run(push).await.context("push to the seeder")
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
