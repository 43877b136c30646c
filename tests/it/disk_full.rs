//! The disk is full: the client hears an error, nothing wrong is kept, and it goes on once there is room.

use anyhow::{Result, ensure};
use hyper::{Method, StatusCode};
use shoal_tests::{cluster::Cluster, daemons, image::Image, metrics::names, pull, push, tmpfs::Tmpfs};

use crate::images::MIB;

const REPOSITORY: &str = "it/disk-full";

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_with_a_full_disk_resumes_when_there_is_room() -> Result<()> {
    if !daemons::available(&["mount", "umount"])? {
        return Ok(());
    }
    let cluster = Cluster::start(0).await?;
    let disk = Tmpfs::mount(&cluster.path().join("small"), 80)?;
    let mut agent = cluster.another("small", &[]).await?;
    let (one, two) = (Image::synthetic(91, &[40 * MIB]), Image::synthetic(92, &[48 * MIB]));
    push::image(&cluster.seeder.client(), REPOSITORY, "one", &one).await?;
    push::image(&cluster.seeder.client(), REPOSITORY, "two", &two).await?;
    pull::image(&agent.client(), REPOSITORY, "one", &pull::Options::default()).await?;
    // Both do not fit, and the quota lets nothing go.
    let full = pull::image(&agent.client(), REPOSITORY, "two", &pull::Options::default()).await;
    ensure!(full.is_err(), "an image of 48 MiB came from a disk with 40 MiB left: {full:?}");
    agent.status().get("/healthz").await?;
    pull::image(&agent.client(), REPOSITORY, "one", &pull::Options::default()).await?;
    disk.resize(300)?;
    let report = pull::image(&agent.client(), REPOSITORY, "two", &pull::Options::default()).await?;
    ensure!(report.manifest == two.manifest.digest, "{report:?}");
    ensure!(agent.stop().await?.success(), "SIGTERM ends an agent with status 0");
    drop(disk);
    cluster.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_seeder_with_a_full_disk_refuses_the_push_and_keeps_what_it_has() -> Result<()> {
    if !daemons::available(&["mount", "umount"])? {
        return Ok(());
    }
    let directory = shoal_tests::cluster::scratch()?;
    // A seeder leaves 64 MiB free by default.
    let disk = Tmpfs::mount(&directory.path().join("seeder"), 160)?;
    let binaries = shoal_tests::cluster::Binaries::find()?;
    let mut seeder = shoal_tests::cluster::Daemon::seeder(&binaries, directory.path(), &[]).await?;
    let client = seeder.client();
    let (one, two) = (Image::synthetic(93, &[20 * MIB]), Image::synthetic(94, &[200 * MIB]));
    push::image(&client, REPOSITORY, "one", &one).await?;
    let error = push::upload(&client, REPOSITORY, &two.layers[0].blob).await;
    ensure!(error.is_err(), "200 MiB were taken on a disk of 160");
    let head = format!("/v2/{REPOSITORY}/blobs/{}", two.layers[0].blob.digest);
    let reply = client.fetch(Method::HEAD, &head, &[]).await?;
    ensure!(reply.status == StatusCode::NOT_FOUND, "a blob that did not fit: {}", reply.status);
    pull::image(&client, REPOSITORY, "one", &pull::Options::default()).await?;
    ensure!(seeder.metrics().await?.count(names::SEEDER_SENT, &[]) > 20 * MIB, "what it has it still sends");
    disk.resize(600)?;
    push::image(&client, REPOSITORY, "two", &two).await?;
    pull::image(&client, REPOSITORY, "two", &pull::Options::default()).await?;
    ensure!(seeder.stop().await?.success(), "SIGTERM ends a seeder with status 0");
    drop(disk);
    Ok(())
}
