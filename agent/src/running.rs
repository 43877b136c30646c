//! The agent as a whole: started from a [`Config`], stopped in order.
//!
//! Start: data folder, identity, trust in the seeder, membership, ports of peers (the loop), admin socket, registry,
//! status; at the end `addresses.json` in the data folder says what was bound. Stop: registry and status drain, then the
//! loop takes leave of its peers, then the store syncs. A part that fails ends the whole.

use std::{
    fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use shoal_proto::signed::NodeId;
use tokio::{net::TcpListener, task::JoinSet, time::Instant};
use tokio_util::sync::CancellationToken;

use self::renewal::{Renewal, resume};
use crate::{
    Config, Parts, admin, agent,
    handle::{self, Handle},
    http::{ImagesParts, Registry},
    identity::Identity,
    metrics::Metrics,
    rate::Rate,
    status::{Addresses, Sources, StatusPage},
    store::{Store, StoreConfig},
    upstream::{Upstream, UpstreamConfig, UpstreamError, connect::Tls, trust::TrustError},
};

/// Where the bound addresses are written, in the data folder.
pub const ADDRESSES_FILE: &str = "addresses.json";
/// How long a first start waits for a seeder that does not answer: machines that start together do not start in order.
pub const FIRST_CONTACT_MAX: Duration = Duration::from_secs(30);
/// Pause between attempts to reach the seeder at the start, and to join.
const RETRY_PAUSE: Duration = Duration::from_millis(500);
/// Pause between two spot checks: a store of a thousand blobs is gone over in a week, for a CPU second or so each.
const SPOT_CHECK_PAUSE: Duration = Duration::from_secs(600);
/// How long shutdown may take before it is cut short.
const SHUTDOWN_MAX: Duration = Duration::from_secs(20);
/// How long the registry waits for transfers under way when the agent stops.
const DRAIN: Duration = Duration::from_secs(5);

/// An agent.
#[derive(Debug)]
pub struct Agent;

/// A started agent.
#[derive(Debug)]
pub struct Running {
    addresses: Addresses,
    node: NodeId,
    sources: Sources,
    tasks: JoinSet<Result<()>>,
    /// Stops the registry, status and admin; then the loop.
    stop_front: CancellationToken,
    stop_loop: CancellationToken,
    /// None once it has ended.
    loop_task: Option<agent::Loop>,
}

impl Agent {
    /// Starts an agent. Several may run in one process, each with its own data folder and ports.
    ///
    /// # Errors
    /// The data folder, a port or the seeder's word is not usable.
    pub async fn start(config: Config) -> Result<Running> {
        Self::start_on(config, None).await
    }

    /// The same with the registry on a socket that was bound before, whatever ports the configuration names for it.
    ///
    /// # Errors
    /// As [`Agent::start`].
    pub async fn start_on(config: Config, registry: Option<std::net::TcpListener>) -> Result<Running> {
        let config = Arc::new(config);
        if config.insecure_open {
            tracing::warn!("open mode (--insecure-open): anybody who reaches the ports is let in");
        }
        let store = open_store(&config).await?;
        let identity = Identity::load_or_create(&config.data_dir)?;
        // Before the seeder is waited for: a port that is taken shows at once.
        let registry_listeners = match registry {
            Some(bound) => vec![TcpListener::from_std(bound).context("cannot use the socket on standard input")?],
            None => bind(&config.listen.registry, "registry", "--listen").await?,
        };
        let status_listeners = bind(&config.listen.status, "status", "--status").await?;
        let (admin_listener, admin_path) = admin::bind(&config.data_dir)
            .with_context(|| format!("cannot make the admin socket in {}", config.data_dir.display()))?;
        let upstream = contact(&config, &store).await?;
        let resumed = resume(&upstream, &identity, &store).await;
        let stop_loop = CancellationToken::new();
        let stop_front = CancellationToken::new();
        let metrics = Metrics::new();
        let (handle, commands) = handle::channel();
        let mut tasks = JoinSet::new();
        let renewal = Renewal {
            config: config.clone(),
            upstream: upstream.clone(),
            identity: identity.clone(),
            store: store.clone(),
        };
        let joined = renewal.first(resumed).await?;
        tasks.spawn(renewal.run(joined, stop_front.clone()));
        tasks.spawn(renewal::revocations(upstream.clone(), stop_front.clone()));
        let parts = Parts {
            config: config.clone(),
            identity: identity.clone(),
            store: store.clone(),
            upstream: upstream.clone(),
            commands,
            metrics: metrics.clone(),
            shutdown: stop_loop.clone(),
        };
        let loop_task = agent::start(parts).await?;
        let addresses = Addresses {
            registry: first_of(&registry_listeners)?,
            status: first_of(&status_listeners)?,
            libp2p: *loop_task.libp2p.first().context("libp2p has bound no address")?,
            peer: *loop_task.peer.first().context("the peer protocol has bound no address")?,
        };
        let sources = Sources { store, upstream, handle, metrics, addresses: addresses.clone() };
        let front = Front { config: &config, sources: &sources, stop: &stop_front };
        front.spawn(&mut tasks, registry_listeners, status_listeners);
        tasks.spawn(front.admin(admin_listener, admin_path));
        tasks.spawn(spot_checks(sources.clone(), stop_front.clone()));
        write_addresses(&config.data_dir, &addresses)?;
        tracing::info!(
            node = %identity.node(), seeder = %config.seeder, registry = %addresses.registry, libp2p = %addresses.libp2p,
            peer = %addresses.peer, status = %addresses.status, "agent started"
        );
        Ok(Running {
            addresses,
            node: identity.node(),
            sources,
            tasks,
            stop_front,
            stop_loop,
            loop_task: Some(loop_task),
        })
    }
}

impl Running {
    /// What was bound.
    #[must_use]
    pub const fn addresses(&self) -> &Addresses {
        &self.addresses
    }

    /// Who this node is.
    #[must_use]
    pub const fn node(&self) -> NodeId {
        self.node
    }

    /// The loop, for tests and status.
    #[must_use]
    pub const fn handle(&self) -> &Handle {
        &self.sources.handle
    }

    /// The store, for tests and status.
    #[must_use]
    pub const fn store(&self) -> &Store {
        &self.sources.store
    }

    /// Waits until a part of the agent fails: none ends by itself. Cancel-safe.
    pub async fn failed(&mut self) -> anyhow::Error {
        tokio::select! {
            ended = self.tasks.join_next() => match ended {
                Some(Ok(Err(error))) => error,
                Some(Err(error)) => anyhow::Error::new(error).context("a part of the agent has panicked"),
                Some(Ok(Ok(()))) | None => anyhow::anyhow!("a part of the agent has ended by itself"),
            },
            result = ended(&mut self.loop_task) => match result {
                Err(error) => error,
                Ok(()) => anyhow::anyhow!("the loop has ended by itself"),
            },
        }
    }

    /// Stops in order, within 20 seconds.
    ///
    /// # Errors
    /// The store cannot be synced, or a part does not stop in time.
    pub async fn shutdown(mut self) -> Result<()> {
        let deadline = Instant::now() + SHUTDOWN_MAX;
        self.stop_front.cancel();
        let front = async { while self.tasks.join_next().await.is_some() {} };
        let in_time = tokio::time::timeout_at(deadline, front).await.is_ok();
        self.tasks.shutdown().await;
        self.stop_loop.cancel();
        let loop_ended = match &mut self.loop_task {
            Some(running) => tokio::time::timeout_at(deadline, running.wait()).await,
            None => Ok(Ok(())),
        };
        let store = self.sources.store.clone();
        tokio::task::spawn_blocking(move || store.close()).await.context("the store's last task")??;
        tracing::info!("agent stopped");
        match loop_ended {
            Ok(result) if in_time => result,
            Ok(_) | Err(_) => {
                bail!("the agent did not stop within {} s; what was under way is cut off", SHUTDOWN_MAX.as_secs())
            }
        }
    }
}

/// Waits for the loop's end; for ever where it was seen already.
async fn ended(task: &mut Option<agent::Loop>) -> Result<()> {
    let Some(running) = task else { return std::future::pending().await };
    let result = running.wait().await;
    *task = None;
    result
}

/// What faces local clients.
struct Front<'a> {
    config: &'a Config,
    sources: &'a Sources,
    stop: &'a CancellationToken,
}

impl Front<'_> {
    fn spawn(&self, tasks: &mut JoinSet<Result<()>>, registry: Vec<TcpListener>, status: Vec<TcpListener>) {
        let Sources { store, upstream, handle, metrics, .. } = self.sources.clone();
        let parts = ImagesParts {
            store,
            upstream,
            handle,
            metrics,
            config: self.config.registry.clone(),
            client_rate: Arc::new(Rate::new(self.config.limits.client_bytes_per_s)),
            shutdown: self.stop.clone(),
        };
        let service = Arc::new(Registry::new(parts, self.config.registry.hosts.clone()));
        let limits = shoal_http::Limits {
            connections_max: self.config.limits.client_connections_max,
            drain: DRAIN,
            ..shoal_http::Limits::default()
        };
        let stop = self.stop.clone();
        tasks.spawn(async move {
            shoal_http::serve(registry, service.clone(), limits, stop.cancelled_owned()).await;
            service.drain().await;
            Ok(())
        });
        let (page, stop) = (Arc::new(StatusPage::new(self.sources.clone())), self.stop.clone());
        tasks.spawn(async move {
            shoal_http::serve(status, page, shoal_http::Limits::default(), stop.cancelled_owned()).await;
            Ok(())
        });
    }

    fn admin(&self, listener: tokio::net::UnixListener, path: PathBuf) -> impl Future<Output = Result<()>> + use<> {
        let (sources, stop) = (self.sources.clone(), self.stop.clone());
        async move {
            admin::serve(listener, sources, stop).await;
            fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))
        }
    }
}

async fn open_store(config: &Config) -> Result<Store> {
    let store =
        StoreConfig { dir: config.data_dir.clone(), quota_bytes: config.quota_bytes, boot_id: config.boot_id.clone() };
    Ok(tokio::task::spawn_blocking(move || Store::open(store)).await.context("opening the store")??)
}

/// The seeder's client. A seeder that does not answer is waited for at the first start only: later ones go on without.
async fn contact(config: &Config, store: &Store) -> Result<Upstream> {
    let secure = config.seeder.scheme_str() == Some("https");
    let tls = secure.then(|| Tls::load(&config.seeder_tls)).transpose()?;
    let upstream = UpstreamConfig {
        seeder: config.seeder.clone(),
        insecure_open: config.insecure_open,
        join_by: config.join_by.clone(),
        fleet_key: config.fleet_key,
        tls,
    };
    let deadline = Instant::now() + FIRST_CONTACT_MAX;
    loop {
        match Upstream::connect(&upstream, store).await {
            Err(TrustError::Upstream(error @ UpstreamError::Unreachable { .. })) if Instant::now() < deadline => {
                tracing::warn!(%error, "waiting for the seeder: its key is not known here yet");
                tokio::time::sleep(RETRY_PAUSE).await;
            }
            result => return Ok(result?),
        }
    }
}

/// Hashes one whole blob after another, while nobody reads: bytes rot on disks, and peers trust what is offered here.
async fn spot_checks(sources: Sources, stop: CancellationToken) -> Result<()> {
    let mut last = None;
    loop {
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            () = tokio::time::sleep(SPOT_CHECK_PAUSE) => {}
        }
        if sources.handle.readers() > 0 {
            continue;
        }
        let whole: Vec<_> =
            sources.store.blobs().into_iter().filter(|info| info.complete).map(|info| info.digest).collect();
        let next = whole.iter().find(|digest| Some(**digest) > last).or_else(|| whole.first()).copied();
        last = next;
        let Some(digest) = next else { continue };
        let store = sources.store.clone();
        let checked = tokio::task::spawn_blocking(move || store.verify(&digest)).await.context("a spot check")??;
        if checked.is_some_and(|checked| !checked.bad.is_empty()) {
            sources.handle.forget(digest).await;
        }
    }
}

async fn bind(addresses: &[SocketAddr], what: &str, flag: &str) -> Result<Vec<TcpListener>> {
    let mut listeners = Vec::new();
    for address in addresses {
        let listener = TcpListener::bind(address).await;
        listeners.push(listener.with_context(|| format!("cannot bind the {what} port {address} ({flag})"))?);
    }
    Ok(listeners)
}

fn first_of(listeners: &[TcpListener]) -> Result<SocketAddr> {
    let listener = listeners.first().context("no address to listen on")?;
    Ok(listener.local_addr()?)
}

/// Written beside and renamed: a reader never sees half of it.
fn write_addresses(dir: &Path, addresses: &Addresses) -> Result<()> {
    let (part, path) = (dir.join("addresses.json.part"), dir.join(ADDRESSES_FILE));
    let write = || -> io::Result<()> {
        fs::write(&part, serde_json::to_vec(addresses)?)?;
        fs::rename(&part, &path)
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

mod renewal;
#[cfg(test)]
mod tests;
