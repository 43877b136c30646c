//! Real clients push to the seeder and pull through an agent, and a container is started from what was pulled.

use std::{net::SocketAddr, path::Path};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use futures::future::try_join_all;
use http_body_util::BodyExt;
use hyper::{Method, StatusCode};
use shoal_tests::{
    cluster::{self, Cluster},
    daemons::{self, Containerd, Docker, Podman, Registry, Skopeo},
    http::{self, Client},
    image::{Image, real::GREETING},
    metrics::{Metrics, names},
    pull, push,
};

use crate::images::{self, MIB};

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

/// What each client's test needs.
async fn ready(programs: &[&str]) -> Result<Option<Cluster>> {
    if daemons::available(programs)? { Cluster::start(1).await.map(Some) } else { Ok(None) }
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_pushes_to_the_seeder_pulls_through_an_agent_and_runs_it() -> Result<()> {
    let Some(cluster) = ready(&["docker", "dockerd", "containerd", "ctr", ISOLATION[0], ISOLATION[1]]).await? else {
        return Ok(());
    };
    docker(Registries::of(&cluster), cluster.path()).await?;
    cluster.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn containerd_pushes_to_the_seeder_pulls_through_an_agent_and_runs_it() -> Result<()> {
    let Some(cluster) = ready(&["containerd", "ctr", ISOLATION[0], ISOLATION[1]]).await? else { return Ok(()) };
    containerd(Registries::of(&cluster), cluster.path()).await?;
    cluster.finish().await
}

/// Where the seeder keeps what a mirror of ghcr.io is asked for. Nothing of these tests reaches ghcr.io itself.
const MIRRORED: &str = "ghcr.io/clients/mirrored";

/// Pushes the runnable image as [`MIRRORED`] and as what it is called at the seeder.
async fn push_mirrored(cluster: &Cluster) -> Result<u64> {
    let image = images::runnable()?.image;
    for repository in [MIRRORED, "clients/mirrored"] {
        push::image(&cluster.seeder.client(), repository, "1", &image).await?;
    }
    Ok(image.layers.iter().map(|layer| layer.blob.size).sum())
}

/// The layers came through the agent, not past it.
async fn came_through(cluster: &Cluster, bytes: u64) -> Result<()> {
    let received = cluster.agents[0].metrics().await?.count(names::AGENT_RECEIVED, &[]);
    ensure!(received >= bytes, "the agent received {received} bytes of {bytes}");
    Ok(())
}

/// With a `hosts.toml` containerd asks the mirror with `?ns=`.
#[tokio::test(flavor = "multi_thread")]
async fn containerd_pulls_through_the_mirror_of_its_hosts_toml() -> Result<()> {
    let Some(cluster) = ready(&["containerd", "ctr", ISOLATION[0], ISOLATION[1]]).await? else { return Ok(()) };
    let bytes = push_mirrored(&cluster).await?;
    let containerd = Containerd::start(cluster.path()).await?;
    let agent = cluster.agents[0].addresses().registry;
    for name in [format!("{MIRRORED}:1"), format!("{}/clients/mirrored:1", cluster.seeder.addresses().registry)] {
        containerd.pull_through(agent, &name).await.with_context(|| name.clone())?;
        greets(&containerd.run(&name).await?)?;
        containerd.forget(&name).await?;
    }
    came_through(&cluster, bytes).await?;
    containerd.stop().await?;
    cluster.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn podman_pushes_to_the_seeder_pulls_through_an_agent_and_runs_it() -> Result<()> {
    let Some(cluster) = ready(&["podman", ISOLATION[1]]).await? else { return Ok(()) };
    podman(Registries::of(&cluster), cluster.path()).await?;
    cluster.finish().await
}

/// podman and CRI-O never send `?ns=`: the registry stands in the mirror's path.
#[tokio::test(flavor = "multi_thread")]
async fn podman_pulls_through_the_mirror_of_its_registries_conf() -> Result<()> {
    let Some(cluster) = ready(&["podman", ISOLATION[1]]).await? else { return Ok(()) };
    let bytes = push_mirrored(&cluster).await?;
    let podman = Podman::new(cluster.path())?;
    let agent = cluster.agents[0].addresses().registry;
    let seeder = cluster.seeder.addresses().registry.to_string();
    let mirrors = [
        ("ghcr.io", format!("{agent}/ghcr.io"), format!("{MIRRORED}:1")),
        (seeder.as_str(), agent.to_string(), format!("{seeder}/clients/mirrored:1")),
    ];
    for (registry, mirror, name) in mirrors {
        podman.mirror(registry, &mirror)?;
        podman.pull(&name).await.with_context(|| name.clone())?;
        greets(&podman.run(&name).await?)?;
        podman.forget(&name).await?;
    }
    came_through(&cluster, bytes).await?;
    cluster.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn skopeo_copies_an_image_to_the_seeder_and_back_through_an_agent() -> Result<()> {
    if !daemons::on_path("skopeo") && !daemons::available(&["skopeo"])? {
        return Ok(());
    }
    let cluster = Cluster::start(1).await?;
    skopeo(Registries::of(&cluster), cluster.path()).await?;
    cluster.finish().await
}

/// containerd 2.1 fetches a layer in parts: one request for the whole, of which it reads the first part and closes the
/// connection, and for every other part an open-ended range of which it reads as much as it needs (`open` in
/// core/remotes/docker/fetcher.go; on by `concurrent_layer_fetch_buffer`, pull request 10177). With a mirror it
/// appends `?ns=` (core/remotes/docker/resolver.go); so does Docker from version 28 on with the containerd image store
/// (daemon/hosts.go of moby).
#[tokio::test(flavor = "multi_thread")]
async fn the_split_requests_of_containerd_2_1_with_ns_get_the_right_bytes() -> Result<()> {
    const PART: u64 = 2 * MIB;
    let cluster = Cluster::start(1).await?;
    let image = Image::synthetic(81, &[9 * MIB + 77]);
    push::image(&cluster.seeder.client(), "clients/split", "1", &image).await?;
    let agent = cluster.agents[0].client();
    let query = format!("?ns={}", cluster.seeder.addresses().registry);
    let (digest, _) = pull::manifest(&agent, "clients/split", "1", &query).await?;
    ensure!(digest == image.manifest.digest, "the manifest is {digest}");
    let layer = &image.layers[0].blob;
    let target = format!("/v2/clients/split/blobs/{}{query}", layer.digest);
    let expected = layer.bytes()?;
    let starts: Vec<u64> = (0..layer.size).step_by(usize::try_from(PART)?).collect();
    let parts = starts.iter().map(|&start| part(&agent, &target, start, PART.min(layer.size - start), layer.size));
    for (start, part) in starts.iter().zip(try_join_all(parts).await?) {
        let start = usize::try_from(*start)?;
        ensure!(part[..] == expected[start..start + part.len()], "other bytes from {start} on");
    }
    // All but one left in the middle of their answers.
    let idle = |metrics: &Metrics| metrics.count(names::AGENT_READERS, &[]) == 0;
    cluster.agents[0].metrics_until("all readers gone", std::time::Duration::from_secs(60), idle).await?;
    cluster.finish().await
}

/// Asks for all from `start` on, takes `len` bytes and goes away.
async fn part(client: &Client, target: &str, start: u64, len: u64, size: u64) -> Result<Vec<u8>> {
    let range = format!("bytes={start}-");
    let mut headers = vec![
        ("accept", "application/vnd.oci.image.layer.v1.tar+gzip, */*"),
        ("accept-encoding", "zstd;q=1.0, gzip;q=0.8, deflate;q=0.5"),
    ];
    if start > 0 {
        headers.push(("range", &range));
    }
    let response = client.send(Method::GET, target, &headers, http::full(Bytes::new())).await?;
    let expected = if start > 0 { StatusCode::PARTIAL_CONTENT } else { StatusCode::OK };
    ensure!(response.status() == expected, "from {start} on: {}", response.status());
    ensure!(response.headers().get("content-encoding").is_none(), "layers are sent as they are");
    let length = response.headers().get("content-length").context("Content-Length")?.to_str()?;
    ensure!(length == (size - start).to_string(), "from {start} on: Content-Length {length}");
    let (mut body, len) = (response.into_body(), usize::try_from(len)?);
    let mut bytes = Vec::with_capacity(len);
    while bytes.len() < len {
        let frame = body.frame().await.context("the answer ended early")??;
        bytes.extend_from_slice(frame.data_ref().map_or(&[][..], |data| &data[..data.len().min(len - bytes.len())]));
    }
    Ok(bytes)
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
