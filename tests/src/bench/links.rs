//! N peers on shaped links, all at once: the links are the limit, and theory says what can be had.
//!
//! The bounds, for a file of F bytes and N receivers whose links and whose origin's carry u bytes a second each way:
//! no way of spreading it takes less than F ÷ u (fluid, T2), and none that moves M pieces whole takes less than
//! F ÷ u × (1 + ⌊log2 N⌋ ÷ M) (T3; M is fixed at 64, whatever the piece length). u is what raw TCP gets out of the same
//! links, all of them busy both ways. The clock runs from the first request to the last byte that a reading client got.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use futures::future::join_all;

use super::{
    Log, Options, PATIENCE,
    accounting::Machine,
    content::Content,
    delay,
    fleet::{self, Fleet, Node, Start},
    goodput,
    host::{self, Host},
    reader,
    record::{Run, contender},
    room::Room,
    servers::{self, Server},
    stats::Spread,
    topology::{Network, Site},
    torrent::{self, Tuning},
    turns,
};
use crate::metrics::names;

/// The case's name.
pub const NAME: &str = "links";
/// Mbit/s of each link, each way.
const RATE: u32 = 50;
/// MiB of the blob.
const SIZE_MIB: u64 = 64;
/// Receivers.
const NODES: [usize; 3] = [8, 16, 32];
/// Receivers in the variant with distance.
const DELAY_NODES: usize = 8;
/// One way, so that a round trip takes twice as long.
const DELAY: Duration = Duration::from_millis(80);
/// Receivers in the variant where some are killed.
const KILLED_NODES: usize = 32;
/// Pieces in the bound.
const M: f64 = 64.0;
/// A registry without a swarm sends everything through its one link: it gets so much to send that it takes as long as
/// eight copies of the whole blob.
const DIRECT_COPIES: u64 = 8;
/// Between two looks at how far the peers are.
const LOOK: Duration = Duration::from_millis(200);
/// Room for what is not the blob.
const SLACK: u64 = 1 << 30;

/// What is done to the swarm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Variant {
    Plain,
    Delay,
    Killed,
}

impl Variant {
    fn label(self, nodes: usize) -> String {
        match self {
            Self::Plain => nodes.to_string(),
            Self::Delay => format!("{nodes} delay"),
            Self::Killed => format!("{nodes} killed"),
        }
    }
}

/// Runs it.
///
/// # Errors
/// The network cannot be built.
pub async fn run(options: &Options, log: &mut Log) -> Result<()> {
    if let Some(why) = host::cannot() {
        log.skip(NAME, why);
        return Ok(());
    }
    host::sweep()?;
    let mut variants: Vec<(Variant, usize)> = Vec::new();
    let plain = options.nodes_or(&NODES).into_iter().map(|nodes| (Variant::Plain, nodes));
    variants.extend(plain.filter(|_| options.wants_variant("plain")));
    let more = [(Variant::Delay, "delay", DELAY_NODES), (Variant::Killed, "killed", KILLED_NODES)];
    for (variant, name, nodes) in more {
        // With a number of one's own only if asked for by name.
        let named = options.variants.iter().any(|wanted| wanted == name);
        if named || (options.variants.is_empty() && options.nodes.is_empty()) {
            variants.extend(options.nodes_or(&[nodes]).into_iter().map(|nodes| (variant, nodes)));
        }
    }
    let mib = options.sizes_or(&[SIZE_MIB])[0];
    let content = Content::new(mib, mib << 20)?;
    for (variant, nodes) in variants {
        for round in 0..options.rounds {
            for who in turns(&contenders(options, variant, round), round) {
                let what = format!("{NAME} {} {who} round {round}", variant.label(nodes));
                let run = one(options, variant, nodes, who, round, &content).await;
                log.take(&what, run);
            }
        }
    }
    Ok(())
}

/// The slow ones run once: a link's time does not vary much.
fn contenders(options: &Options, variant: Variant, round: usize) -> Vec<&'static str> {
    let all: &[&str] = match (variant, round) {
        (Variant::Plain, 0) => &[contender::TLS, contender::PLAIN, contender::LIBTORRENT, contender::REGISTRY],
        (Variant::Plain, _) => &[contender::TLS, contender::LIBTORRENT],
        (Variant::Delay, _) => &[contender::TLS],
        (Variant::Killed, 0) => &[contender::TLS, contender::LIBTORRENT],
        (Variant::Killed, _) => &[contender::TLS],
    };
    // The shipped mode is what is judged; the other one runs when asked for.
    let plain_asked = options.contenders.iter().any(|who| who == "shoal-plain");
    all.iter().copied().filter(|who| options.wants(who) && (*who != contender::PLAIN || plain_asked)).collect()
}

/// A built network with what its links carry.
struct Ground {
    // Before the network: proxies live in it.
    _delay: Option<delay::Delay>,
    network: Network,
    goodput: Spread,
    delayed: bool,
}

impl Ground {
    async fn build(variant: Variant, nodes: usize) -> Result<Self> {
        let rates = vec![RATE; nodes + 1];
        let delayed = variant == Variant::Delay;
        if !delayed {
            let network = Network::build(&[Site { uplink: None, hosts: rates }]).await?;
            let goodput = goodput::ring(network.site(0)).await.context("raw goodput")?;
            return Ok(Self { _delay: None, network, goodput, delayed });
        }
        // Hosts behind proxies cannot reach each other: the links are measured in a network of the same kind.
        let twin = Network::build(&[Site { uplink: None, hosts: rates.clone() }]).await?;
        let goodput = goodput::ring(twin.site(0)).await.context("raw goodput")?;
        drop(twin);
        let (network, delay) = Network::delayed(&rates, &fleet::PORTS, DELAY).await?;
        Ok(Self { _delay: Some(delay), network, goodput, delayed })
    }

    fn hosts(&self) -> &[Arc<Host>] {
        self.network.site(0)
    }

    /// The n-th host's process is known by its alias, where it has one.
    fn known(&self, n: usize, start: Start) -> Start {
        Start { alias: self.delayed.then(|| delay::alias(n)), ..start }
    }

    /// F ÷ u.
    fn t2(&self, bytes: u64) -> f64 {
        bytes as f64 / self.goodput.median
    }

    fn t3(&self, bytes: u64, nodes: usize) -> f64 {
        self.t2(bytes) * (1.0 + f64::from(nodes.ilog2()) / M)
    }
}

async fn one(
    options: &Options,
    variant: Variant,
    nodes: usize,
    who: &str,
    round: usize,
    content: &Content,
) -> Result<Run> {
    let ground = Ground::build(variant, nodes).await?;
    let directory = Room::new(content.len() * (nodes as u64 + 2) + SLACK)?;
    let run = Run {
        case: NAME.to_owned(),
        variant: variant.label(nodes),
        contender: who.to_owned(),
        round,
        receivers: nodes,
        bytes: content.len(),
        ..Run::default()
    };
    let victims = if variant == Variant::Killed { victims(nodes) } else { Vec::new() };
    let run = match who {
        contender::LIBTORRENT => libtorrent(run, &ground, content, directory.path(), &victims).await,
        contender::REGISTRY => direct(run, &ground, content, directory.path()).await,
        _ => shoal(options, run, &ground, content, directory.path(), &victims).await,
    };
    super::kept(options, directory);
    let run = run?;
    let (t2, t3) = (ground.t2(run.bytes), ground.t3(run.bytes, nodes));
    let over = run.seconds / t3;
    let mut run = run.with("over_t3", over).with("t3_s", t3).with("t2_s", t2);
    if let Some(mean) = run.more.get("mean_s").copied() {
        run = run.with("mean_over_t3", mean / t3);
    }
    Ok(run.with("goodput_mbit_s", ground.goodput.median * 8.0 / 1e6))
}

/// A tenth of all, spread over them.
fn victims(nodes: usize) -> Vec<usize> {
    let count = nodes.div_ceil(10);
    (0..count).map(|n| n * nodes / count + nodes / count / 2).collect()
}

async fn shoal(
    options: &Options,
    run: Run,
    ground: &Ground,
    content: &Content,
    directory: &Path,
    victims: &[usize],
) -> Result<Run> {
    let mode = if run.contender == contender::PLAIN { "plain" } else { "tls" };
    let mut agent = Start::mode(mode);
    agent.flags.extend(options.agent_flags.iter().cloned());
    let hosts = ground.hosts();
    let mut seeder = ground.known(0, options.seeder());
    if ground.delayed {
        seeder.config = format!("introduce_ranges = [\"{}\"]\n", delay::ALIASES);
    }
    let mut fleet = Fleet::start(&hosts[0], directory, &seeder, content).await?;
    let agents = hosts.iter().enumerate().skip(1);
    let agents = agents.map(|(n, host)| (format!("agent{n}"), Arc::clone(host), ground.known(n, agent.clone())));
    fleet.add(directory, agents.collect()).await?;
    let result = timed(run, &mut fleet, content, victims).await;
    if !matches!(&result, Ok(run) if run.failed == 0) {
        fleet.show_logs();
    }
    result
}

/// All pull at once; those in `victims` are killed when half of the bytes have come.
pub(super) async fn timed(mut run: Run, fleet: &mut Fleet, content: &Content, victims: &[usize]) -> Result<Run> {
    fleet.settle().await?;
    let (origin, cpu) = (fleet.origin_bytes().await?, fleet.cpu()?);
    let (machine, begun) = (Machine::now()?, Instant::now());
    let mut doomed: Vec<Node> = Vec::new();
    // From the back, so that the indexes hold.
    for &victim in victims.iter().rev() {
        doomed.push(fleet.agents.remove(victim));
    }
    let pulls = join_all(fleet.agents.iter().map(|agent| reader::read(agent, content, "")));
    let over = AtomicBool::new(false);
    let pulls = async {
        let ends = pulls.await;
        over.store(true, Ordering::Relaxed);
        ends
    };
    let (ends, killed) = tokio::join!(pulls, perish(&mut doomed, content, &fleet.agents, &over));
    let killed_at = killed?;
    let after = fleet.cpu()?;
    run.machine_cpu_s = Some(machine.since()?.0);
    run.cpu_s = Some((after.0 - cpu.0, after.1 - cpu.1)).filter(|_| victims.is_empty());
    run.failed = ends.iter().filter(|end| end.is_err()).count();
    for error in ends.iter().filter_map(|end| end.as_ref().err()) {
        crate::report::note(&format!("{error:#}"));
    }
    let each: Vec<Duration> = ends.into_iter().flatten().map(|end| end - begun).collect();
    run.seconds = each.iter().max().context("no pull came to its end")?.as_secs_f64();
    run.rss_peak = Some(fleet.rss_peak());
    run.origin_copies = Some((fleet.origin_bytes().await? - origin) as f64 / content.image.unique_bytes() as f64);
    let mean = each.iter().sum::<Duration>().as_secs_f64() / each.len() as f64;
    let run = run.with("mean_s", mean);
    Ok(match killed_at {
        Some(at) => run.with("killed_at_s", (at - begun).as_secs_f64()),
        None => run,
    })
}

/// Starts the pulls of those who will not see the end, and ends them when the middle one of all the others has half.
async fn perish(doomed: &mut [Node], content: &Content, others: &[Node], over: &AtomicBool) -> Result<Option<Instant>> {
    if doomed.is_empty() {
        return Ok(None);
    }
    let half = reader::stored_len(content) / 2;
    let pulls = join_all(doomed.iter().map(|node| reader::read(node, content, "")));
    let wait = async {
        let mut ticks = tokio::time::interval(LOOK);
        while !over.load(Ordering::Relaxed) {
            ticks.tick().await;
            let mut stored = Vec::new();
            for node in others {
                stored.push(node.metrics().await?.count(names::AGENT_RECEIVED, &[]));
            }
            stored.sort_unstable();
            if stored[stored.len() / 2] >= half {
                break;
            }
        }
        anyhow::Ok(())
    };
    // The pulls go on until they are cut off.
    let mut pulls = Box::pin(async {
        pulls.await;
        std::future::pending::<()>().await;
    });
    tokio::select! {
        result = wait => result?,
        () = &mut pulls => {}
    }
    drop(pulls);
    let now = Instant::now();
    for node in doomed {
        node.kill().await?;
    }
    Ok(Some(now))
}

async fn libtorrent(
    mut run: Run,
    ground: &Ground,
    content: &Content,
    directory: &Path,
    victims: &[usize],
) -> Result<Run> {
    anyhow::ensure!(torrent::available().await, "python3-libtorrent is not installed");
    let hosts = ground.hosts();
    let mut swarm = torrent::Swarm::start(hosts, directory, content, Tuning::LINKS).await?;
    let machine = Machine::now()?;
    let sent = Fleet::link_payload(&hosts[0])?.1;
    // Half of what it takes them, by experience: twice the bound.
    let half = Duration::from_secs_f64(ground.t3(content.len(), run.receivers));
    let outcome = swarm.run(PATIENCE, victims, half).await?;
    run.machine_cpu_s = Some(machine.since()?.0);
    run.cpu_s = Some(outcome.cpu);
    let each: Vec<Duration> = outcome.each.into_iter().flatten().collect();
    run.seconds = each.iter().max().context("no receivers")?.as_secs_f64();
    run.rss_peak = Some(swarm.rss_peak());
    // What TCP carried, its own messages included.
    run.origin_copies = Some((Fleet::link_payload(&hosts[0])?.1 - sent) as f64 / content.len() as f64);
    swarm.check(content)?;
    let mean = each.iter().sum::<Duration>().as_secs_f64() / each.len() as f64;
    Ok(run.with("mean_s", mean))
}

/// Everybody from one registry. Its one link is all that counts, so a smaller blob tells the same.
async fn direct(mut run: Run, ground: &Ground, content: &Content, directory: &Path) -> Result<Run> {
    let len = content.len() * DIRECT_COPIES / (run.receivers as u64).max(DIRECT_COPIES);
    let small = Content::new(1, len)?;
    let server = Server::registry(&ground.hosts()[0], directory, &small).await?;
    let cpu = server.cpu()?;
    let fetched = servers::fetch(&ground.hosts()[1..], server.url(), Some(directory), PATIENCE).await?;
    run.bytes = small.len();
    run.cpu_s = Some((server.cpu()? - cpu, fetched.cpu));
    run.seconds = fetched.elapsed.as_secs_f64();
    run.origin_copies = Some(run.receivers as f64);
    for n in 0..run.receivers {
        small.check(&servers::target(directory, n))?;
    }
    Ok(run)
}
