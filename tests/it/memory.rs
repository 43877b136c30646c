//! Memory does not grow with the size of a layer.

use anyhow::{Result, ensure};
use futures::future::try_join_all;
use shoal_tests::{
    cluster::{Cluster, Daemon},
    image::Image,
    pull, push,
    report::{human, note},
};

use crate::images::MIB;

const REPOSITORY: &str = "it/memory";
/// The most memory that a process may ever hold, in bytes.
const RSS_MAX: u64 = 150 << 20;

async fn peaks_with_a_layer_of(size: u64, agents: usize) -> Result<()> {
    let cluster = Cluster::start(agents).await?;
    let free = free_bytes(cluster.path())?;
    // A copy at the seeder and at each agent, and room for the rest of the machine.
    let needed = size * (agents as u64 + 1) + (2 << 30);
    ensure!(free >= needed, "this test needs {} of disk below {}", human(needed), cluster.path().display());
    let image = Image::synthetic(size, &[size]);
    push::image(&cluster.seeder.client(), REPOSITORY, "1", &image).await?;
    let clients: Vec<_> = cluster.agents.iter().map(Daemon::client).collect();
    let options = pull::Options::default();
    try_join_all(clients.iter().map(|client| pull::image(client, REPOSITORY, "1", &options))).await?;
    for daemon in cluster.agents.iter().chain([&cluster.seeder]) {
        let peak = daemon.rss_peak()?;
        note(&format!("a layer of {}: peak memory of {} {}", human(size), daemon.name(), human(peak)));
        ensure!(peak <= RSS_MAX, "{} held {peak} bytes with a layer of {}", daemon.name(), human(size));
    }
    cluster.finish().await
}

fn free_bytes(path: &std::path::Path) -> Result<u64> {
    let stat = rustix::fs::statvfs(path)?;
    Ok(stat.f_bavail * stat.f_frsize)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_of_256_mib_needs_no_more_than_150_mib_of_memory() -> Result<()> {
    peaks_with_a_layer_of(256 * MIB, 2).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_of_4_gib_needs_no_more_than_150_mib_of_memory() -> Result<()> {
    peaks_with_a_layer_of(4096 * MIB, 1).await
}
