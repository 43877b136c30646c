//! What an agent costs that does nothing: it holds a thousand blobs among fifty peers, and nobody pulls.
//!
//! The agent under test has a network namespace of its own, so that its bytes are counted on its link: everything that
//! leaves or reaches it, headers included.

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use futures::{StreamExt, TryStreamExt, stream};

use super::{
    Log, Options, PATIENCE, accounting,
    content::{Content, REPOSITORY, TAG},
    crowd::{Crowd, Order},
    fleet::{Fleet, Node, Start},
    host,
    record::{Run, contender},
    room::Room,
    topology::{Network, Site},
};
use crate::{image::Image, metrics::names, pull, wait};

/// The case's name.
pub const NAME: &str = "idle";
/// Images that it holds.
const IMAGES: u64 = 100;
/// Layers of each, so that with the config it has ten blobs: most small, one large enough for a DHT key of its own.
const LAYERS: [u64; 9] = [16 << 10, 16 << 10, 16 << 10, 16 << 10, 64 << 10, 64 << 10, 64 << 10, 256 << 10, 5 << 20];
/// Other agents.
const PEERS: usize = 49;
/// Mbit/s of the links: not the limit.
const RATE: u32 = 100;
/// Images pulled at once while it is filled.
const PULLS_AT_ONCE: usize = 4;
/// What was set off by the pulls has ended by then.
const SETTLE: Duration = Duration::from_secs(60);
/// Room for its blobs, the seeder's copies, and the others' databases.
const ROOM: u64 = 4 << 30;

/// Runs it: the traffic is averaged over `window`.
///
/// # Errors
/// The network cannot be built.
pub async fn run(options: &Options, log: &mut Log, window: Duration) -> Result<()> {
    if let Some(why) = host::cannot() {
        log.skip(NAME, why);
        return Ok(());
    }
    host::sweep()?;
    let network = Network::build(&[Site::of(3, RATE, None)]).await?;
    let directory = Room::new(ROOM)?;
    let run = measured(options, &network, directory.path(), window).await;
    super::kept(options, directory);
    log.take(NAME, run);
    Ok(())
}

async fn measured(options: &Options, network: &Network, directory: &Path, window: Duration) -> Result<Run> {
    let [seeder_host, host, others_host] = network.site(0) else { unreachable!("three hosts were asked for") };
    let content = Content::new(1, 1 << 20)?;
    let images = (1..=IMAGES).map(|n| (format!("v{n}"), image(n)));
    let images = images.chain([(TAG.to_owned(), content.image.clone())]).collect();
    let mut fleet = Fleet::start_with(seeder_host, directory, &options.seeder(), images).await?;
    let start = Start { flags: options.agent_flags.clone(), ..Start::default() };
    fleet.add(directory, vec![("agent".to_owned(), Arc::clone(host), start)]).await?;
    let order = Order {
        agents: PEERS,
        ip: others_host.ip(),
        seeder: fleet.seeder_url(),
        pass: fleet.admit(PEERS, None).await?,
        password: fleet.seeder.password().map(str::to_owned),
        directory: directory.join("others"),
        content: (1, content.len()),
    };
    let mut others = Crowd::start(others_host, &order).await?;
    let agent = &fleet.agents[0];
    fill(agent).await?;
    // The others hold something as well, and know the agent from fetching it.
    let ends = others.pull().await?;
    ensure!(ends.iter().all(Result::is_ok), "the other agents could not pull: {ends:?}");
    tokio::time::sleep(SETTLE).await;
    let (before, cpu, begun) = (Network::traffic(host)?, agent.cpu()?, Instant::now());
    tokio::time::sleep(window).await;
    let (after, cpu, seconds) = (Network::traffic(host)?, agent.cpu()? - cpu, begun.elapsed().as_secs_f64());
    let (received, sent) = (after.received.since(&before.received).bytes, after.sent.since(&before.sent).bytes);
    let rss = accounting::rss(agent.process()?.pid()?)?;
    let run = Run {
        case: NAME.to_owned(),
        variant: format!("{} blobs, {PEERS} peers", IMAGES * (LAYERS.len() as u64 + 1)),
        contender: contender::TLS.to_owned(),
        receivers: 1,
        seconds,
        rss_peak: Some(rss),
        ..Run::default()
    };
    Ok(run
        .with("bytes_per_s", (received + sent) as f64 / seconds)
        .with("received_bytes_per_s", received as f64 / seconds)
        .with("sent_bytes_per_s", sent as f64 / seconds)
        .with("cpu_percent", 100.0 * cpu / seconds)
        .with("rss_peak_mib", agent.rss_peak()? as f64 / 1_048_576.0))
}

/// Has the agent fetch all images.
async fn fill(agent: &Node) -> Result<()> {
    let client = agent.client();
    let pull = async move {
        let options = pull::Options::default();
        let pulls = stream::iter(1..=IMAGES)
            .map(async |n| pull::image(&client, REPOSITORY, &format!("v{n}"), &options).await.map(drop));
        pulls.buffer_unordered(PULLS_AT_ONCE).try_collect::<()>().await
    };
    agent.host().run(pull).await.context("fill the agent")?;
    let needed: u64 = (1..=IMAGES).flat_map(|n| image(n).blobs().map(|blob| blob.size).collect::<Vec<_>>()).sum();
    let stored = async || {
        let stored = agent.metrics().await?.count(names::AGENT_RECEIVED, &[]);
        // The config is the same in all images.
        Ok((stored + IMAGES * 1024 >= needed).then_some(()))
    };
    wait::until("everything stored", PATIENCE, stored).await
}

fn image(n: u64) -> Image {
    Image::synthetic(1000 + n, &LAYERS)
}
