//! An agent is killed in the middle of a pull and started again.

use std::time::Duration;

use anyhow::{Result, ensure};
use shoal_tests::{cluster::Cluster, image::Image, metrics::names, pull, push, wait};

use crate::images::MIB;

const REPOSITORY: &str = "it/restart";
/// How long anything here may take on a loaded machine.
const LONG: Duration = Duration::from_secs(120);
/// Share of the image that may be fetched twice, in per cent.
const REFETCHED_MAX: u64 = 5;

#[tokio::test(flavor = "multi_thread")]
async fn what_was_recorded_is_not_fetched_again_after_a_kill() -> Result<()> {
    let mut cluster = Cluster::start_with(1, "[limits]\nseeder_bytes_per_s = \"64MiB\"\n").await?;
    for (seed, percent) in [(41, 10), (42, 50), (43, 90)] {
        let image = Image::synthetic(seed, &[160 * MIB, 32 * MIB]);
        let tag = format!("at-{percent}");
        push::image(&cluster.seeder.client(), REPOSITORY, &tag, &image).await?;
        let before = sent(&cluster).await?;
        let client = cluster.agents[0].client();
        let (options, tag_) = (pull::Options::default(), tag.clone());
        let pulling = async { pull::image(&client, REPOSITORY, &tag_, &options).await };
        let reached = wait::until("progress", LONG, async || {
            Ok((sent(&cluster).await? - before > image.unique_bytes() * percent / 100).then_some(()))
        });
        tokio::select! {
            result = pulling => ensure!(false, "the pull ended before the kill: {result:?}"),
            reached = reached => reached?,
        }
        cluster.agents[0].kill().await?;
        cluster.agents[0].launch().await?;
        let report = pull::image(&cluster.agents[0].client(), REPOSITORY, &tag, &pull::Options::default()).await?;
        ensure!(report.manifest == image.manifest.digest, "{report:?}");
        let twice = (sent(&cluster).await? - before).saturating_sub(image.unique_bytes());
        let most = image.unique_bytes() * REFETCHED_MAX / 100;
        ensure!(twice <= most, "killed at {percent} %: {twice} bytes were fetched again, at most {most}");
    }
    cluster.finish().await
}

async fn sent(cluster: &Cluster) -> Result<u64> {
    Ok(cluster.seeder.metrics().await?.count(names::SEEDER_SENT, &[]))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_agent_serves_from_disk_what_it_had() -> Result<()> {
    let mut cluster = Cluster::start(1).await?;
    let image = Image::synthetic(44, &[20 * MIB, 100]);
    push::image(&cluster.seeder.client(), REPOSITORY, "kept", &image).await?;
    pull::image(&cluster.agents[0].client(), REPOSITORY, "kept", &pull::Options::default()).await?;
    let before = sent(&cluster).await?;
    ensure!(cluster.agents[0].stop().await?.success(), "SIGTERM ends an agent with status 0");
    cluster.agents[0].launch().await?;
    pull::image(&cluster.agents[0].client(), REPOSITORY, "kept", &pull::Options::default()).await?;
    let again = sent(&cluster).await? - before;
    ensure!(again < MIB, "{again} bytes came from the seeder after the restart");
    cluster.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_that_was_acknowledged_survives_a_kill_of_the_seeder() -> Result<()> {
    let mut cluster = Cluster::start(0).await?;
    let image = Image::synthetic(45, &[5 * MIB, 1000, 0]);
    push::image(&cluster.seeder.client(), REPOSITORY, "acknowledged", &image).await?;
    cluster.seeder.kill().await?;
    cluster.seeder.launch().await?;
    let report = pull::image(&cluster.seeder.client(), REPOSITORY, "acknowledged", &pull::Options::default()).await?;
    ensure!(report.manifest == image.manifest.digest, "{report:?}");
    cluster.finish().await
}
