//! The seeder is gone: what one agent has, all can have.

use anyhow::{Context, Result, ensure};
use futures::future::try_join_all;
use shoal_tests::{
    cluster::{Cluster, Daemon},
    image::Image,
    pull, push,
};

use crate::images::MIB;

const REPOSITORY: &str = "it/outage";

/// Pulls a tag through all these agents at once, checks every byte and that it is this image.
async fn pull_all(agents: &[Daemon], tag: &str, image: &Image) -> Result<()> {
    let clients: Vec<_> = agents.iter().map(Daemon::client).collect();
    let options = pull::Options::default();
    let pulls = clients.iter().map(|client| pull::image(client, REPOSITORY, tag, &options));
    let reports = try_join_all(pulls).await?;
    ensure!(reports.iter().all(|report| report.manifest == image.manifest.digest), "{reports:?}");
    Ok(())
}

async fn stop_seeder(cluster: &mut Cluster) -> Result<()> {
    ensure!(cluster.seeder.stop().await?.success(), "SIGTERM ends the seeder with status 0");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn pulls_under_way_complete_when_the_seeder_stops_after_the_first_has() -> Result<()> {
    // Slow enough that seven are in the middle when the first, which has no cap, is done.
    let slow = "[limits]\nseeder_bytes_per_s = \"2MiB\"\ndownload_bytes_per_s = \"16MiB\"\n";
    let mut cluster = Cluster::start_with(7, slow).await?;
    let fast = cluster.another("fast", &[]).await?;
    let image = Image::synthetic(52, &[28 * MIB, 6 * MIB, 50_000]);
    push::image(&cluster.seeder.client(), REPOSITORY, "1", &image).await?;
    let seven = std::mem::take(&mut cluster.agents);
    let (options, client) = (pull::Options::default(), fast.client());
    let first_then_stop = async {
        pull::image(&client, REPOSITORY, "1", &options).await.context("the first agent")?;
        stop_seeder(&mut cluster).await
    };
    tokio::try_join!(pull_all(&seven, "1", &image), first_then_stop)?;
    // And again, tag and manifest included.
    pull_all(&seven, "1", &image).await.context("without the seeder, from what each has")?;
    cluster.agents = seven;
    cluster.agents.push(fast);
    cluster.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tag_that_only_one_agent_has_reaches_those_that_know_it_from_another_image() -> Result<()> {
    let mut cluster = Cluster::start(4).await?;
    let (known, wanted) = (Image::synthetic(53, &[3 * MIB]), Image::synthetic(54, &[16 * MIB, 70_000]));
    push::image(&cluster.seeder.client(), REPOSITORY, "known", &known).await?;
    push::image(&cluster.seeder.client(), REPOSITORY, "wanted", &wanted).await?;
    pull_all(&cluster.agents, "known", &known).await?;
    pull_all(&cluster.agents[..1], "wanted", &wanted).await?;
    stop_seeder(&mut cluster).await?;
    pull_all(&cluster.agents[1..], "wanted", &wanted).await.context("without the seeder")?;
    cluster.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn seven_agents_that_never_pulled_complete_without_the_seeder_once_the_first_has() -> Result<()> {
    let mut cluster = Cluster::start(8).await?;
    let image = Image::synthetic(51, &[24 * MIB, 6 * MIB, 50_000]);
    push::image(&cluster.seeder.client(), REPOSITORY, "1", &image).await?;
    pull_all(&cluster.agents[..1], "1", &image).await?;
    stop_seeder(&mut cluster).await?;
    pull_all(&cluster.agents[1..], "1", &image).await.context("without the seeder")?;
    cluster.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_of_hundreds_of_layers_goes_on_from_agent_to_agent_without_the_seeder() -> Result<()> {
    let mut cluster = Cluster::start(3).await?;
    // More than a capability lists: it names a root above them.
    let image = Image::synthetic(55, &[3000; 700]);
    push::image(&cluster.seeder.client(), REPOSITORY, "1", &image).await?;
    pull_all(&cluster.agents[..1], "1", &image).await?;
    stop_seeder(&mut cluster).await?;
    pull_all(&cluster.agents[1..2], "1", &image).await.context("without the seeder")?;
    // Who had it from a peer gives it to the next.
    cluster.agents.remove(0).kill().await?;
    pull_all(&cluster.agents[1..], "1", &image).await.context("without the first")?;
    cluster.finish().await
}
