//! Starting the loop.

use std::{
    collections::VecDeque,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use anyhow::Context;
use shoal_dht::{Net, NetConfig};
use shoal_proto::{layout::PIECE_LEN_MIN, message::PeerInfo, signed::Labels};
use shoal_transfer::{Config as CoreConfig, Node, time::Time};
use tokio::{
    net::TcpListener,
    sync::mpsc,
    task::JoinSet,
    time::{Instant, MissedTickBehavior},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    DONE_MAX, Done, Loop, Shell, Sources, TICK,
    answers::Asks,
    blobs::Blobs,
    bundle::Bundles,
    discovery::Discovery,
    fetch::Fetches,
    fleet::SeederFleet,
    images::Images,
    peers::{Peers, rank},
    readers::Readers,
    serve::Uploads,
    status,
    trace::Trace,
};
use crate::{
    Config, Parts,
    config::PeerMode,
    history::History,
    metrics::Metrics,
    peer::{Endpoint, EndpointConfig, INCOMING_MAX, Mode},
    rate::Rate,
    store::Store,
    upstream::Upstream,
};

/// Starts the loop: binds its ports, says to the seeder how this node is reached, takes up what is stored.
///
/// # Errors
/// A port is taken, or TLS or libp2p cannot be set up.
pub async fn start(parts: Parts) -> anyhow::Result<Loop> {
    let Parts { config, identity, store, upstream, commands, metrics, shutdown } = parts;
    let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
    let fleet = Arc::new(SeederFleet::new(upstream.clone()));
    let rates = Rates::new(&config);
    let (endpoint, peers) =
        Endpoint::new(identity.clone(), peer_config(&config, &rates), fleet.clone(), tasks.clone(), stop.clone())?;
    let listeners = bind(&config.listen.peer).await?;
    let peer = listeners.iter().map(TcpListener::local_addr).collect::<Result<Vec<_>, _>>()?;
    let net_config =
        NetConfig { listen: config.listen.libp2p.clone(), advertise: config.advertise.clone(), peer: peer.clone() };
    let (net, net_events) = Net::start(identity.secret(), &net_config, fleet.clone(), &tasks, stop.clone()).await?;
    let libp2p = net.listening().to_vec();

    let labels = upstream.member().borrow().as_ref().map_or_else(Labels::default, |m| m.membership.labels.clone());
    let me = PeerInfo {
        node: identity.node(),
        peer: reached_at(&peer, &config.advertise),
        libp2p: reached_at(&libp2p, &config.advertise),
        labels,
    };
    endpoint.set_self(me.clone());
    upstream.set_self(me);
    status::export(&metrics, endpoint.counters());
    listeners.into_iter().for_each(|listener| endpoint.listen(listener));
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (done, done_queue) = mpsc::channel(DONE_MAX);
    let sources = Sources {
        commands,
        commanded: true,
        peers,
        net: net_events,
        done: done_queue,
        store: store.clone(),
        fleet,
        tick,
        stop: shutdown,
    };
    let seeder_rate = Arc::new(Rate::new(config.limits.seeder_bytes_per_s).within(rates.inwards()));
    let hands = Hands { store, upstream, metrics, endpoint, net, tasks, stop, done, seeder_rate };
    let shell = resume(shell(config, hands)?).await?;
    shell.meet();
    let mut task = JoinSet::new();
    task.spawn(shell.run(sources));
    Ok(Loop { libp2p, peer, task })
}

/// The caps that several kinds of bytes share.
struct Rates {
    /// All that goes over the network.
    total: Arc<Rate>,
    /// All that is written to the disk.
    disk: Arc<Rate>,
}

impl Rates {
    fn new(config: &Config) -> Self {
        let rate = |cap| Arc::new(Rate::new(cap));
        Self { total: rate(config.limits.total_bytes_per_s), disk: rate(config.limits.disk_bytes_per_s) }
    }

    /// Those that arriving bytes count for.
    fn inwards(&self) -> Vec<Arc<Rate>> {
        vec![self.total.clone(), self.disk.clone()]
    }
}

fn peer_config(config: &Config, rates: &Rates) -> EndpointConfig {
    EndpointConfig {
        mode: match config.mode {
            PeerMode::Tls => Mode::Tls,
            PeerMode::Plain => Mode::Plain,
        },
        upload_bytes_per_s: config.limits.upload_bytes_per_s,
        download_bytes_per_s: config.limits.download_bytes_per_s,
        upload_within: vec![rates.total.clone()],
        download_within: rates.inwards(),
        // As many as this node seeks, and as many again that seek it: a node that has what all want is sought more.
        incoming_max: Some((2 * config.limits.peer_connections_max).min(INCOMING_MAX)),
    }
}

/// What the loop acts through.
struct Hands {
    store: Store,
    upstream: Upstream,
    metrics: Metrics,
    endpoint: Endpoint,
    net: Net,
    tasks: TaskTracker,
    stop: CancellationToken,
    done: mpsc::Sender<Done>,
    seeder_rate: Arc<Rate>,
}

/// The owner, knowing nothing yet.
fn shell(config: Arc<Config>, hands: Hands) -> anyhow::Result<Shell> {
    let Hands { store, upstream, metrics, endpoint, net, tasks, stop, done, seeder_rate } = hands;
    let me = endpoint.node();
    let (core, trace) = core(&config, rank(&me))?;
    Ok(Shell {
        core,
        epoch: Instant::now(),
        inputs: VecDeque::new(),
        trace,
        me,
        labels: endpoint.me().labels,
        seeder_rate,
        peers: Peers::new(&config.peers),
        config,
        store,
        upstream,
        metrics,
        endpoint,
        net,
        tasks,
        stop,
        done,
        blobs: Blobs::default(),
        images: Images::default(),
        readers: Readers::default(),
        fetches: Fetches::default(),
        uploads: Uploads::default(),
        asks: Asks::default(),
        bundles: Bundles::default(),
        discovery: Discovery::default(),
        history: History::default(),
        ticks: 0,
        disk_full_until: None,
        keys_asked: None,
    })
}

/// Takes up images and nodes of the last run. Reads the store: on a blocking thread.
async fn resume(mut shell: Shell) -> anyhow::Result<Shell> {
    let resume = move || {
        for image in shell.store.images()? {
            shell.resume_image(image);
        }
        shell.load_known();
        shell.tick_static();
        shell.announce_stored();
        anyhow::Ok(shell)
    };
    tokio::task::spawn_blocking(resume).await.context("taking up the last run")?
}

fn core(config: &Config, rank: u64) -> anyhow::Result<(Node, Option<Trace>)> {
    let connections = u32::try_from(config.limits.peer_connections_max).unwrap_or(u32::MAX);
    let defaults = CoreConfig::default();
    let in_flight = u32::try_from(config.limits.inflight_bytes_max / PIECE_LEN_MIN).unwrap_or(u32::MAX).max(1);
    let core = CoreConfig {
        rank,
        connections_max: connections.min(defaults.connections_max),
        requests_base: defaults.requests_base.min(in_flight),
        requests_max: defaults.requests_max.min(in_flight),
        ..defaults
    };
    let mut seed = [0; 8];
    getrandom::fill(&mut seed).map_err(|error| anyhow::anyhow!("the system gives no random bytes: {error}"))?;
    let seed = u64::from_le_bytes(seed);
    let trace = match &config.trace {
        None => None,
        Some(path) => {
            let path = if path.is_dir() { &path.join(format!("{rank:016x}.jsonl")) } else { path };
            let trace = Trace::create(path, &core, seed);
            Some(trace.with_context(|| format!("cannot write the trace {}", path.display()))?)
        }
    };
    Ok((Node::new(core, seed, Time::ZERO), trace))
}

async fn bind(addresses: &[SocketAddr]) -> anyhow::Result<Vec<TcpListener>> {
    let mut listeners = Vec::new();
    for address in addresses {
        let listener = TcpListener::bind(address).await;
        listeners.push(listener.with_context(|| format!("cannot bind the peer port {address} (--peer-listen)"))?);
    }
    Ok(listeners)
}

/// How others reach what is bound: by the advertised addresses, else by the bound ones. An unspecified one stands for
/// the address that this node is seen at.
fn reached_at(bound: &[SocketAddr], advertise: &[IpAddr]) -> Vec<SocketAddr> {
    if advertise.is_empty() {
        return bound.to_vec();
    }
    advertise.iter().flat_map(|ip| bound.iter().map(|bound| SocketAddr::new(*ip, bound.port()))).collect()
}
