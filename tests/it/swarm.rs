//! Many agents, one image, at the same time.

use std::{sync::atomic::Ordering, time::Duration};

use anyhow::{Context, Result, ensure};
use futures::future::{select, try_join_all};
use shoal_tests::{
    cluster::{Cluster, Daemon},
    image::Image,
    metrics::{Metrics, names},
    pull, push,
};
use tokio::time::timeout;

use crate::images::MIB;

const REPOSITORY: &str = "it/swarm";
/// Payload bytes that the seeder may send for one image, as a multiple of the image.
const ORIGIN_COPIES_MAX: f64 = 1.5;
/// The most memory that a process may ever hold, in bytes.
const RSS_MAX: u64 = 150 << 20;
/// How long anything here may take on a loaded machine.
const LONG: Duration = Duration::from_secs(120);

/// Bytes that an agent has verified and stored.
async fn stored(agent: &Daemon) -> Result<u64> {
    Ok(agent.metrics().await?.count(names::AGENT_RECEIVED, &[]))
}

async fn from_peers(agent: &Daemon) -> Result<u64> {
    Ok(agent.metrics().await?.count(names::AGENT_RECEIVED, &[names::FROM_PEERS]))
}

#[tokio::test(flavor = "multi_thread")]
async fn eight_agents_at_once_cost_the_origin_little_more_than_one_copy() -> Result<()> {
    let cluster = Cluster::start(8).await?;
    let image = Image::synthetic(31, &[48 * MIB, 20 * MIB, 9 * MIB, 2 * MIB, 300_000]);
    push::image(&cluster.seeder.client(), REPOSITORY, "cold", &image).await?;
    let before = cluster.seeder.metrics().await?.count(names::SEEDER_SENT, &[]);
    let options = pull::Options::default();
    let clients: Vec<_> = cluster.agents.iter().map(Daemon::client).collect();
    let pulls = try_join_all(clients.iter().map(|client| pull::image(client, REPOSITORY, "cold", &options)));
    let reports = pulls.await?;
    // Whoever was complete first had bytes from peers by then: so they flowed before any agent was complete.
    for agent in &cluster.agents {
        ensure!(from_peers(agent).await? > 0, "{} took everything from the seeder", agent.name());
    }
    ensure!(reports.iter().all(|report| report.manifest == image.manifest.digest), "{reports:?}");
    let all = try_join_all(cluster.agents.iter().map(Daemon::metrics)).await?;
    let waited = all.iter().map(Metrics::waited_for_first_byte).fold((0, 0), |all, one| (all.0 + one.0, all.1 + one.1));
    ensure!(waited.0 > 0 && waited.1 == 0, "layers waited for, and those stored to over a quarter by then: {waited:?}");
    let sent = cluster.seeder.metrics().await?.count(names::SEEDER_SENT, &[]) - before;
    #[expect(clippy::cast_precision_loss, reason = "a ratio")]
    let copies = sent as f64 / image.unique_bytes() as f64;
    ensure!(copies <= ORIGIN_COPIES_MAX, "{copies:.2} origin copies");
    ensure!(cluster.rss_peak() <= RSS_MAX, "peak memory of {} bytes", cluster.rss_peak());
    cluster.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_byte_reaches_the_client_before_a_quarter_is_stored() -> Result<()> {
    // Slow enough that a quarter is no matter of milliseconds.
    let cluster = Cluster::start_with(1, "[limits]\nseeder_bytes_per_s = \"16MiB\"\n").await?;
    let image = Image::synthetic(32, &[48 * MIB]);
    push::image(&cluster.seeder.client(), REPOSITORY, "stream", &image).await?;
    let options = pull::Options { stop_after: Some(image.config.size + 1), ..Default::default() };
    let report = pull::image(&cluster.agents[0].client(), REPOSITORY, "stream", &options).await?;
    let stored = stored(&cluster.agents[0]).await?;
    ensure!(report.stopped, "the pull ended before it was stopped: {report:?}");
    ensure!(stored < 12 * MIB, "{stored} bytes were stored when the first reached the client");
    cluster.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_client_holds_up_nobody_and_leaves_nothing_behind() -> Result<()> {
    let cluster = Cluster::start(3).await?;
    let image = Image::synthetic(33, &[48 * MIB, 16 * MIB]);
    push::image(&cluster.seeder.client(), REPOSITORY, "slow", &image).await?;
    let slow = pull::Options { rate: Some(1_000_000), ..Default::default() };
    let slow_bytes = slow.received.clone();
    let slow_agent = &cluster.agents[0];
    let slow_client = slow_agent.client();
    let slow_pull = Box::pin(pull::image(&slow_client, REPOSITORY, "slow", &slow));
    let options = pull::Options::default();
    let clients: Vec<_> = cluster.agents.iter().map(Daemon::client).collect();
    let others = Box::pin(try_join_all(clients.iter().map(|client| pull::image(client, REPOSITORY, "slow", &options))));
    match timeout(LONG, select(slow_pull, others)).await.context("the others did not finish")? {
        futures::future::Either::Left((slow, _)) => ensure!(false, "the slow client ended first: {slow:?}"),
        futures::future::Either::Right((others, slow_pull)) => {
            others?;
            let had = slow_bytes.load(Ordering::Relaxed);
            ensure!(had < image.unique_bytes() / 2, "the slow client had {had} bytes when the others were done");
            // It goes away in the middle.
            drop(slow_pull);
        }
    }
    let idle = |metrics: &Metrics| metrics.count(names::AGENT_READERS, &[]) == 0;
    slow_agent.metrics_until("all readers gone", LONG, idle).await?;
    ensure!(cluster.rss_peak() <= RSS_MAX, "peak memory of {} bytes", cluster.rss_peak());
    cluster.finish().await
}
