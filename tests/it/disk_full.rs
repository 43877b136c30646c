//! The disk is full: the client hears an error, nothing wrong is kept, and it goes on once there is room.

use anyhow::{Context, Result, ensure};
use hyper::{Method, StatusCode};
use shoal_tests::{cluster::Cluster, daemons, image::Image, metrics::names, pull, push, tmpfs::Tmpfs};

use crate::{cli, images::MIB};

const REPOSITORY: &str = "it/disk-full";

/// An agent with a disk of 80 MiB that has pulled the first of two images of 40 and 48 MiB.
async fn nearly_full() -> Result<(Cluster, Tmpfs, [Image; 2])> {
    let mut cluster = Cluster::start(0).await?;
    let disk = Tmpfs::mount(&cluster.path().join("small/data"), 80)?;
    let agent = cluster.another("small", &[]).await?;
    let images = [Image::synthetic(91, &[40 * MIB]), Image::synthetic(92, &[48 * MIB])];
    for (tag, image) in ["one", "two"].into_iter().zip(&images) {
        push::image(&cluster.seeder.client(), REPOSITORY, tag, image).await?;
    }
    pull::image(&agent.client(), REPOSITORY, "one", &pull::Options::default()).await.context("while there is room")?;
    cluster.agents.push(agent);
    Ok((cluster, disk, images))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_makes_room_by_letting_the_least_recently_used_go() -> Result<()> {
    if !daemons::available(&["mount", "umount"])? {
        return Ok(());
    }
    let (cluster, disk, [_, two]) = nearly_full().await?;
    let report = pull::image(&cluster.agents[0].client(), REPOSITORY, "two", &pull::Options::default()).await?;
    ensure!(report.manifest == two.manifest.digest, "{report:?}");
    cluster.finish().await?;
    drop(disk);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_with_a_full_disk_says_so_and_goes_on_when_there_is_room() -> Result<()> {
    if !daemons::available(&["mount", "umount"])? {
        return Ok(());
    }
    let (cluster, disk, [_, two]) = nearly_full().await?;
    let agent = &cluster.agents[0];
    let data = agent.data_dir().display().to_string();
    let name = format!("{REPOSITORY}:one");
    cli::shoal(&["image", "pin", &name, "--data-dir", &data]).await?.success("shoal image pin")?;
    // Now nothing may go, and both do not fit.
    let error = pull::image(&agent.client(), REPOSITORY, "two", &pull::Options::default()).await;
    let error = format!("{:#}", error.err().context("48 MiB came from a disk with less left")?);
    ensure!(error.contains("507 Insufficient Storage"), "{error}");
    agent.status().get("/readyz").await?;
    pull::image(&agent.client(), REPOSITORY, "one", &pull::Options::default()).await.context("what it had")?;
    disk.resize(300)?;
    let report = pull::image(&agent.client(), REPOSITORY, "two", &pull::Options::default()).await?;
    ensure!(report.manifest == two.manifest.digest, "{report:?}");
    cluster.finish().await?;
    drop(disk);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_seeder_with_a_full_disk_refuses_the_push_and_keeps_what_it_has() -> Result<()> {
    if !daemons::available(&["mount", "umount"])? {
        return Ok(());
    }
    let directory = shoal_tests::cluster::scratch()?;
    // A seeder leaves 64 MiB free by default.
    let disk = Tmpfs::mount(&directory.path().join("seeder/data"), 160)?;
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
