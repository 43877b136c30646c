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

#[tokio::test(flavor = "multi_thread")]
async fn seven_agents_complete_without_the_seeder_once_the_first_has() -> Result<()> {
    let mut cluster = Cluster::start(8).await?;
    let image = Image::synthetic(51, &[24 * MIB, 6 * MIB, 50_000]);
    push::image(&cluster.seeder.client(), REPOSITORY, "1", &image).await?;
    pull::image(&cluster.agents[0].client(), REPOSITORY, "1", &pull::Options::default()).await?;
    ensure!(cluster.seeder.stop().await?.success(), "SIGTERM ends the seeder with status 0");
    let clients: Vec<_> = cluster.agents[1..].iter().map(Daemon::client).collect();
    let options = pull::Options::default();
    let pulls = try_join_all(clients.iter().map(|client| pull::image(client, REPOSITORY, "1", &options)));
    let reports = pulls.await.context("without the seeder")?;
    ensure!(reports.iter().all(|report| report.manifest == image.manifest.digest), "{reports:?}");
    cluster.finish().await
}
