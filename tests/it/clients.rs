//! Real clients push to the seeder and pull through an agent, and a container is started from what was pulled.

use std::{net::SocketAddr, path::Path};

use anyhow::{Context, Result, ensure};
use shoal_tests::{
    cluster::{self, Cluster},
    daemons::{self, Containerd, Docker, Podman, Registry, Skopeo},
    image::real::GREETING,
};

use crate::images;

/// Programs that the daemons are run with.
const ISOLATION: [&str; 2] = ["unshare", "runc"];

/// Where a client pushes and where it pulls.
#[derive(Clone, Copy)]
struct Registries {
    push: SocketAddr,
    pull: SocketAddr,
}

impl Registries {
    fn of(cluster: &Cluster) -> Self {
        Self { push: cluster.seeder.addresses().registry, pull: cluster.agents[0].addresses().registry }
    }

    fn images(self, path: &str) -> (String, String) {
        (format!("{}/{path}", self.push), format!("{}/{path}", self.pull))
    }
}

fn greets(output: &str) -> Result<()> {
    ensure!(output.contains(GREETING), "the container said {output:?}");
    Ok(())
}

async fn docker(registries: Registries, directory: &Path) -> Result<()> {
    let image = images::runnable()?;
    let docker = Docker::start(directory).await?;
    let (pushed, pulled) = registries.images("clients/docker:1");
    docker.push(&image.base_file, GREETING, &pushed).await?;
    docker.pull(&pulled).await?;
    greets(&docker.run(&pulled).await?)?;
    docker.stop().await
}

async fn containerd(registries: Registries, directory: &Path) -> Result<()> {
    let image = images::runnable()?;
    let containerd = Containerd::start(directory).await?;
    let layout = directory.join("layout");
    image.image.write_layout(&layout, "1")?;
    let (pushed, pulled) = registries.images("clients/containerd:1");
    containerd.push(&layout, "1", &pushed).await?;
    containerd.pull(&pulled).await?;
    greets(&containerd.run(&pulled).await?)?;
    containerd.forget(&pulled).await?;
    containerd.stop().await
}

async fn podman(registries: Registries, directory: &Path) -> Result<()> {
    let image = images::runnable()?;
    let podman = Podman::new(directory)?;
    let (pushed, pulled) = registries.images("clients/podman:1");
    podman.push(&image.base_file, GREETING, &pushed).await?;
    podman.pull(&pulled).await?;
    greets(&podman.run(&pulled).await?)
}

async fn skopeo(registries: Registries, directory: &Path) -> Result<()> {
    let image = images::runnable()?;
    let (layout, copy) = (directory.join("layout"), directory.join("copy"));
    image.image.write_layout(&layout, "1")?;
    let (pushed, pulled) = registries.images("clients/skopeo:1");
    Skopeo.push(&layout, "1", &pushed).await?;
    Skopeo.pull(&pulled, &copy, "1").await?;
    for blob in image.image.blobs().chain([&image.image.manifest]) {
        let path = copy.join("blobs/sha256").join(blob.digest.hex());
        ensure!(std::fs::metadata(&path)?.len() == blob.size, "{} has another size", path.display());
    }
    Ok(())
}

/// If this one fails, it is the machine or the harness, not Shoal.
#[tokio::test]
async fn the_clients_work_with_a_registry_that_is_not_ours() -> Result<()> {
    if !daemons::available(&[
        "docker-registry",
        "dockerd",
        "containerd",
        "ctr",
        "podman",
        "skopeo",
        ISOLATION[0],
        ISOLATION[1],
    ])? {
        return Ok(());
    }
    let directory = cluster::scratch()?;
    let registry = Registry::start(directory.path()).await?;
    let registries = Registries { push: registry.address(), pull: registry.address() };
    skopeo(registries, &directory.path().join("skopeo")).await.context("skopeo")?;
    podman(registries, directory.path()).await.context("podman")?;
    docker(registries, &directory.path().join("d")).await.context("docker")?;
    containerd(registries, &directory.path().join("c")).await.context("containerd")?;
    registry.stop().await
}
