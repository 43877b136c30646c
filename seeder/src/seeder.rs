//! The seeder as a whole: opens the store, loads the keys, binds the ports, runs until told to stop.

use std::{
    future::Future,
    io,
    net::SocketAddr,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use shoal_http::tls::{Tls, TlsError};
use tokio::{
    net::TcpListener,
    task::{JoinError, JoinSet},
};
use tokio_util::sync::CancellationToken;

use crate::{
    access::Access,
    admin::{self, Admin, Report},
    config::{Config, ConfigError},
    http::{Parts, Realm, Registry},
    keys::{Fleet, KeysError},
    kubernetes::{Clusters, ClustersError},
    members::{Members, OrderError, order::Order},
    metrics::Metrics,
    status::Status,
    store::{
        Collected, Store, StoreError,
        local::{
            Local, OpenError, Options,
            backup::{Backup, RestoreError, finish_restore, restore},
            ledger::Times,
        },
    },
    swarm::AddressRule,
};

/// How often uploads are looked through for abandoned ones.
const EXPIRE_EVERY: Duration = Duration::from_secs(3600);

/// Added to the deadline of what was condemned, so that the next pass does not come a moment too early.
const GC_SLACK: Duration = Duration::from_millis(100);

/// Why the seeder does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The store does not open.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The fleet's keys cannot be had.
    #[error(transparent)]
    Keys(#[from] KeysError),
    /// There is no TLS with the files that were named.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// A cluster cannot be asked whom it vouches for.
    #[error(transparent)]
    Clusters(#[from] ClustersError),
    /// A port or socket cannot be had.
    #[error("cannot listen on {addr}: {error}")]
    Listen {
        /// Which.
        addr: String,
        /// Why.
        error: io::Error,
    },
    /// An order cannot be carried out.
    #[error(transparent)]
    Order(#[from] OrderError),
    /// The backup is not put back.
    #[error(transparent)]
    Restore(#[from] RestoreError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The seeder.
#[derive(Debug)]
pub struct Seeder;

impl Seeder {
    /// Starts a seeder. It serves when this returns.
    ///
    /// # Errors
    /// A bad configuration, a data directory that cannot be used or is in use, a port that is taken.
    pub async fn start(config: Config) -> Result<Running, StartError> {
        config.check()?;
        let tls = load_tls(&config)?.map(Arc::new);
        let clusters = Clusters::load(&config.join.kubernetes)?;
        let (store, members) = open(&config).await?;
        let fleet = Arc::clone(members.fleet());
        let metrics = Arc::new(Metrics::new());
        let (listeners, listen) = bind_all(&config.listen).await?;
        let (status_listener, status) = bind(config.status).await?;
        let admin_listener = admin::bind(&config.data_dir).map_err(|error| StartError::Listen {
            addr: admin::socket_path(&config.data_dir).display().to_string(),
            error,
        })?;
        let (stop, stop_status) = (CancellationToken::new(), CancellationToken::new());
        let ready = Arc::new(AtomicBool::new(true));
        let registry = Arc::new(Registry::new(Parts {
            store: Arc::clone(&store),
            members: Arc::clone(&members),
            clusters,
            access: Access::new(config.insecure_open, config.access_rules.then(|| Arc::clone(members.users()))),
            realm: Realm { url: config.public_url.clone(), secure: tls.is_some() },
            metrics: Arc::clone(&metrics),
            addresses: AddressRule { ranges: config.ranges()? },
            transfers_max: config.limits.transfers,
            piece_slots: config.limits.piece_slots,
            requests_per_s: config.limits.requests_per_s,
        }));
        let mut tasks = JoinSet::new();
        serve_registry(&mut tasks, listeners, tls, registry, http_limits(&config), &stop);
        tasks.spawn(expire_uploads(Arc::clone(&store), config.limits.upload_idle_s, stop.clone()));
        if config.gc.every_s > 0 {
            let (every, deadline) =
                (Duration::from_secs(config.gc.every_s), Duration::from_millis(config.gc.deadline_ms));
            tasks.spawn(collect(Arc::clone(&store), every, deadline, stop.clone()));
        }
        let admin = Arc::new(Admin {
            store: Arc::clone(&store),
            metrics: Arc::clone(&metrics),
            members: Arc::clone(&members),
            listen: listen.clone(),
            started: Instant::now(),
        });
        tasks.spawn(admin.run(admin_listener, stop.clone()));
        let mut status_task = JoinSet::new();
        let service =
            Arc::new(Status { metrics: Arc::clone(&metrics), store: Arc::clone(&store), ready: Arc::clone(&ready) });
        status_task.spawn(shoal_http::serve(
            vec![status_listener],
            service,
            status_limits(),
            stop_status.clone().cancelled_owned(),
        ));
        write_addresses(&config.data_dir, &listen, status)?;
        announce(&config, &listen, status, &fleet);
        Ok(Running {
            registry_addr: listen[0],
            status_addr: status,
            listen,
            metrics,
            fleet,
            members,
            store,
            ready,
            stop,
            stop_status,
            tasks,
            status_task,
        })
    }

    /// Copies the store of `config` into `to`, when no seeder serves it.
    ///
    /// # Errors
    /// The store cannot be opened, or `to` not be written.
    pub async fn backup(config: &Config, to: &Path) -> Result<Backup, StartError> {
        let (store, _fleet) = open(config).await?;
        let done = store.backup(to).await?;
        store.close().await;
        Ok(done)
    }

    /// Puts a backup into the empty data directory of `config`, and raises the fleet's epoch: what the lost store had
    /// signed after the backup is not taken for newer than what this one signs.
    ///
    /// # Errors
    /// There is no whole backup, the data directory is in use, or copying failed.
    pub async fn restore(config: &Config, from: &Path) -> Result<Backup, StartError> {
        let (source, target) = (from.to_owned(), config.data_dir.clone());
        let copied = tokio::task::spawn_blocking(move || restore(&source, &target)).await;
        let done = copied.map_err(StoreError::failed("restore"))??;
        let dir = config.data_dir.clone();
        let options = Options { free_bytes_min: config.limits.free_bytes, ..Options::default() };
        let opened = tokio::task::spawn_blocking(move || Local::open_any(&dir, options)).await;
        let store = opened.map_err(StoreError::failed("open"))??;
        if !Fleet::raise_epoch(&config.data_dir, &store).await? {
            tracing::warn!(
                "the root key is not in the backup: `shoal-seeder key rotate --root-key FILE` before nodes come"
            );
        }
        store.close().await;
        finish_restore(&config.data_dir)?;
        Ok(done)
    }

    /// Hashes again what the store of `config` holds, when no seeder serves it.
    ///
    /// # Errors
    /// The store cannot be opened or read.
    pub async fn scrub(config: &Config) -> Result<admin::Scrub, StartError> {
        let (store, _members) = open(config).await?;
        let found = admin::scrub(&*store).await?;
        store.close().await;
        Ok(found)
    }

    /// Carries out an order about tokens and members when no seeder serves the store of `config`.
    ///
    /// # Errors
    /// The store cannot be opened, or the order not carried out.
    pub async fn execute(config: &Config, order: Order) -> Result<serde_json::Value, StartError> {
        let (store, members) = open(config).await?;
        let done = members.execute(order).await?;
        store.close().await;
        Ok(done)
    }

    /// How the store of `config` is when no seeder serves it.
    ///
    /// # Errors
    /// The store cannot be opened.
    pub async fn inspect(config: &Config) -> Result<Report, StartError> {
        let (store, members) = open(config).await?;
        let report = admin::report(&store.counts().await?, store.usage(), members.fleet());
        store.close().await;
        Ok(report)
    }
}

async fn open(config: &Config) -> Result<(Arc<dyn Store>, Arc<Members>), StartError> {
    let dir = config.data_dir.clone();
    let times = Times { grace_ms: config.gc.grace_ms, deadline_ms: config.gc.deadline_ms };
    let quotas = config.quotas.clone();
    let options = Options { free_bytes_min: config.limits.free_bytes, times, quotas };
    let opened = tokio::task::spawn_blocking(move || Local::open_with(&dir, options)).await;
    let store: Arc<dyn Store> = Arc::new(opened.map_err(StoreError::failed("open"))??);
    store.expire_uploads(config.limits.upload_idle_s).await?;
    let fleet = Arc::new(Fleet::load(&config.data_dir, &*store).await?);
    let members = Arc::new(Members::load(Arc::clone(&store), fleet).await?);
    Ok((store, members))
}

async fn bind(addr: SocketAddr) -> Result<(TcpListener, SocketAddr), StartError> {
    let failed = |error| StartError::Listen { addr: addr.to_string(), error };
    let listener = TcpListener::bind(addr).await.map_err(failed)?;
    let addr = listener.local_addr().map_err(failed)?;
    Ok((listener, addr))
}

async fn bind_all(addrs: &[SocketAddr]) -> Result<(Vec<TcpListener>, Vec<SocketAddr>), StartError> {
    let (mut listeners, mut bound) = (Vec::new(), Vec::new());
    for addr in addrs {
        let (listener, addr) = bind(*addr).await?;
        listeners.push(listener);
        bound.push(addr);
    }
    Ok((listeners, bound))
}

/// Writes where the seeder listens to `addresses.json` in the data directory: for whoever let the system choose a port.
fn write_addresses(dir: &Path, listen: &[SocketAddr], status: SocketAddr) -> Result<(), StoreError> {
    let json = serde_json::json!({ "registry": listen[0], "listen": listen, "status": status });
    let (path, new) = (dir.join("addresses.json"), dir.join("addresses.json.new"));
    let written = std::fs::write(&new, json.to_string()).and_then(|()| std::fs::rename(&new, &path));
    written.map_err(StoreError::io("write addresses.json"))
}

fn announce(config: &Config, listen: &[SocketAddr], status: SocketAddr, fleet: &Fleet) {
    for addr in listen {
        tracing::info!(%addr, tls = config.tls.certificate.is_some(), "registry listens");
    }
    tracing::info!(addr = %status, data_dir = %config.data_dir.display(), root = %hex::encode(fleet.root()), "status listens");
    if config.insecure_open {
        tracing::warn!("this seeder is OPEN: whoever reaches its port may push, pull, delete and join");
    } else if config.access_rules {
        tracing::info!("users may do what they were given; nodes join by token");
    } else {
        tracing::warn!("whoever can reach the port from this machine may push, pull and delete; nodes join by token");
    }
}

/// Reads the certificate of `config`, if it names one.
///
/// # Errors
/// There is no TLS with what it names.
pub fn load_tls(config: &Config) -> Result<Option<Tls>, StartError> {
    Ok(config.tls.files()?.map(Tls::load).transpose()?)
}

fn serve_registry(
    tasks: &mut JoinSet<()>,
    listeners: Vec<TcpListener>,
    tls: Option<Arc<Tls>>,
    registry: Arc<Registry>,
    limits: shoal_http::Limits,
    stop: &CancellationToken,
) {
    let stopped = stop.clone().cancelled_owned();
    match tls {
        None => tasks.spawn(shoal_http::serve(listeners, registry, limits, stopped)),
        Some(tls) => {
            tasks.spawn(Arc::clone(&tls).follow(stop.clone()));
            tasks.spawn(shoal_http::serve_tls(listeners, tls, registry, limits, stopped))
        }
    };
}

/// What clients of the registry may take up.
fn http_limits(config: &Config) -> shoal_http::Limits {
    shoal_http::Limits {
        connections_max: config.limits.connections,
        drain: Duration::from_secs(config.limits.drain_s),
        ..shoal_http::Limits::default()
    }
}

/// What those who look after the seeder may take up.
fn status_limits() -> shoal_http::Limits {
    shoal_http::Limits { connections_max: 64, drain: Duration::from_secs(1), ..shoal_http::Limits::default() }
}

async fn expire_uploads(store: Arc<dyn Store>, idle_s: u64, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(EXPIRE_EVERY) => {}
        }
        match store.expire_uploads(idle_s).await {
            Ok(0) => {}
            Ok(expired) => tracing::info!(expired, "abandoned uploads cancelled"),
            Err(error) => tracing::error!(%error, "abandoned uploads could not be cancelled"),
        }
    }
}

/// Runs the collector: every so often, and once more as soon as what it condemned may be deleted.
async fn collect(store: Arc<dyn Store>, every: Duration, deadline: Duration, stop: CancellationToken) {
    let mut wait = every;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(wait) => {}
        }
        wait = every;
        match store.collect().await {
            Ok(done) => {
                if done != Collected::default() {
                    tracing::info!(?done, "garbage collected");
                }
                if done.condemned > 0 {
                    wait = every.min(deadline + GC_SLACK);
                }
            }
            Err(error) => tracing::error!(%error, "the collector stopped early; nothing that is in use was deleted"),
        }
    }
}

/// A seeder that serves.
#[derive(Debug)]
pub struct Running {
    /// Where the registry listens (the first address).
    pub registry_addr: SocketAddr,
    /// Where health and metrics are.
    pub status_addr: SocketAddr,
    /// All addresses of the registry.
    pub listen: Vec<SocketAddr>,
    /// What it counts.
    pub metrics: Arc<Metrics>,
    /// Its keys.
    pub fleet: Arc<Fleet>,
    /// Its members.
    pub members: Arc<Members>,
    store: Arc<dyn Store>,
    ready: Arc<AtomicBool>,
    stop: CancellationToken,
    stop_status: CancellationToken,
    tasks: JoinSet<()>,
    status_task: JoinSet<()>,
}

impl Running {
    /// Serves until `signal` resolves, then stops in order. Passes on a panic of one of its tasks.
    pub async fn until(mut self, signal: impl Future<Output = ()>) {
        tokio::select! {
            () = signal => {}
            Some(ended) = self.tasks.join_next() => pass_on(ended),
            Some(ended) = self.status_task.join_next() => pass_on(ended),
        }
        self.shutdown().await;
    }

    /// Stops in order: no new connections, requests in work finish or are cut off at the deadline, the store is left as
    /// it should be. When this returns, the data directory can be used by another process.
    pub async fn shutdown(mut self) {
        self.ready.store(false, Ordering::Relaxed);
        self.stop.cancel();
        while let Some(ended) = self.tasks.join_next().await {
            pass_on(ended);
        }
        self.store.close().await;
        self.stop_status.cancel();
        while let Some(ended) = self.status_task.join_next().await {
            pass_on(ended);
        }
    }
}

fn pass_on(ended: Result<(), JoinError>) {
    if let Err(error) = ended
        && let Ok(panic) = error.try_into_panic()
    {
        std::panic::resume_unwind(panic);
    }
}
