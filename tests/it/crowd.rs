//! A swarm under faults, by counts alone: how many copies the seeder sends and a region takes in, and that nobody fails.

use std::{
    net::SocketAddr,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use futures::future::{join_all, try_join_all};
use hyper::{Method, StatusCode};
use shoal_proto::{
    api::{self, PiecesWanted},
    codec,
    have::HaveSet,
    layout::Layout,
};
use shoal_tests::{
    cluster::{Cluster, Daemon},
    http,
    image::Image,
    metrics::names,
    pull, push, wait,
};
use tokio::net::TcpStream;

use crate::images::MIB;

const REPOSITORY: &str = "it/crowd";
/// How long anything here may take on a loaded machine.
const LONG: Duration = Duration::from_secs(120);
/// The most memory that a process may ever hold, in bytes.
const RSS_MAX: u64 = 150 << 20;
/// Verified payload bytes by how far they came.
const CAME: &str = "shoal_bytes_total";

async fn sent(cluster: &Cluster) -> Result<u64> {
    Ok(cluster.seeder.metrics().await?.count(names::SEEDER_SENT, &[]))
}

#[expect(clippy::cast_precision_loss, reason = "a ratio")]
fn copies(bytes: u64, image: &Image) -> f64 {
    bytes as f64 / image.unique_bytes() as f64
}

/// Agents of one region, slow enough that a pull has a middle.
async fn agents(cluster: &Cluster, region: &str, count: usize) -> Result<Vec<Daemon>> {
    let flags = ["--region", region, "--seeder-rate", "4MiB", "--upload-rate", "8MiB"];
    let names: Vec<String> = (0..count).map(|n| format!("{region}{n}")).collect();
    try_join_all(names.iter().map(|name| cluster.another(name, &flags))).await
}

/// Pulls through all of them at once; each must succeed.
async fn pull_all(agents: &[Daemon], tag: &str) -> Result<()> {
    let (options, clients) = (pull::Options::default(), agents.iter().map(Daemon::client).collect::<Vec<_>>());
    try_join_all(clients.iter().map(|client| pull::image(client, REPOSITORY, tag, &options))).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenth_of_the_owners_may_die_in_mid_transfer_for_about_one_copy() -> Result<()> {
    let mut cluster = Cluster::start(0).await?;
    cluster.agents = agents(&cluster, "eu", 10).await?;
    let image = Image::synthetic(81, &[40 * MIB, 8 * MIB]);
    push::image(&cluster.seeder.client(), REPOSITORY, "killed", &image).await?;
    let before = sent(&cluster).await?;
    let mut victim = cluster.agents.remove(4);
    let (options, client) = (pull::Options::default(), victim.client());
    let doomed = pull::image(&client, REPOSITORY, "killed", &options);
    let half = wait::until("half of it is sent", LONG, async || {
        Ok((sent(&cluster).await? - before > image.unique_bytes() / 2).then_some(()))
    });
    let kill = async {
        tokio::select! {
            half = half => half?,
            // It fails when its agent does, and not before.
            done = doomed => anyhow::bail!("a pull was over before half was sent: {done:?}"),
        }
        victim.kill().await
    };
    tokio::try_join!(pull_all(&cluster.agents, "killed"), kill)?;
    let copies = copies(sent(&cluster).await? - before, &image);
    shoal_tests::report::note(&format!("a tenth killed: {copies:.2} origin copies"));
    ensure!(copies <= 1.4, "{copies:.2} origin copies");
    cluster.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn each_region_takes_in_little_more_than_one_copy() -> Result<()> {
    let mut cluster = Cluster::start(0).await?;
    let (eu, us) = tokio::try_join!(agents(&cluster, "eu", 4), agents(&cluster, "us", 4))?;
    cluster.agents = eu.into_iter().chain(us).collect();
    let image = Image::synthetic(82, &[32 * MIB, 6 * MIB]);
    push::image(&cluster.seeder.client(), REPOSITORY, "regions", &image).await?;
    pull_all(&cluster.agents, "regions").await?;
    for (region, of) in [("eu", &cluster.agents[..4]), ("us", &cluster.agents[4..])] {
        // From the seeder or from peers in another region: both have the scope of the fleet.
        let crossed = try_join_all(of.iter().map(Daemon::metrics)).await?;
        let crossed: u64 = crossed.iter().map(|metrics| metrics.count(CAME, &["scope=\"fleet\""])).sum();
        let copies = copies(crossed, &image);
        shoal_tests::report::note(&format!("into {region}: {copies:.2} copies"));
        ensure!(copies <= 1.5, "{copies:.2} copies into {region}");
    }
    cluster.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_seeder_that_is_killed_and_comes_back_interrupts_nobody() -> Result<()> {
    let mut cluster = Cluster::start(0).await?;
    let agents = agents(&cluster, "eu", 3).await?;
    let image = Image::synthetic(83, &[24 * MIB, 5 * MIB]);
    push::image(&cluster.seeder.client(), REPOSITORY, "restart", &image).await?;
    ensure!(sent(&cluster).await? < MIB, "a push is no payload sent");
    let restart = async {
        for _ in 0..2 {
            // Each start counts from naught.
            let some = image.unique_bytes() / 5;
            wait::until("some of it is sent", LONG, async || Ok((sent(&cluster).await? > some).then_some(()))).await?;
            cluster.seeder.kill().await?;
            cluster.seeder.launch().await?;
        }
        anyhow::Ok(())
    };
    tokio::try_join!(pull_all(&agents, "restart"), restart)?;
    let got = try_join_all(agents.iter().map(Daemon::metrics)).await?;
    let got: u64 = got.iter().map(|metrics| metrics.count(names::AGENT_RECEIVED, &[names::FROM_SEEDER])).sum();
    ensure!(copies(got, &image) <= 1.6, "{:.2} origin copies", copies(got, &image));
    cluster.agents = agents;
    cluster.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_claims_that_every_source_failed_draws_no_more_than_twice() -> Result<()> {
    let cluster = Cluster::start(1).await?;
    let size = 12 * MIB;
    let image = Image::synthetic(84, &[size]);
    let client = cluster.seeder.client();
    push::image(&client, REPOSITORY, "liar", &image).await?;
    let before = sent(&cluster).await?;
    let layout = Layout::new(size)?;
    let wanted = PiecesWanted {
        want: HaveSet::full(&layout).to_bytes(),
        urgent: None,
        max: api::PIECES_GIVEN_MAX,
        stalled: true,
    };
    let target = format!("/v2/{REPOSITORY}/_shoal/pieces/{}", image.layers[0].blob.digest);
    let refused = loop {
        let body = http::full(codec::encode(&wanted));
        let reply =
            http::collect(client.send(Method::POST, &target, &[("content-type", api::CONTENT_TYPE)], body).await?);
        let reply = reply.await?;
        if reply.status != StatusCode::OK {
            break reply;
        }
    };
    ensure!(refused.status == StatusCode::TOO_MANY_REQUESTS, "{} {}", refused.status, refused.text());
    ensure!(refused.header("retry-after").parse::<u64>().is_ok_and(|seconds| seconds > 0), "{:?}", refused.headers);
    let drawn = sent(&cluster).await? - before;
    ensure!(drawn <= 2 * size, "{drawn} bytes of a layer of {size} were drawn");
    // Who is honest is served all the same.
    pull::image(&cluster.agents[0].client(), REPOSITORY, "liar", &pull::Options::default()).await?;
    cluster.agents[0].status().get("/readyz").await?;
    cluster.finish().await
}

/// Rounds of a flood, at least.
const ROUNDS_MIN: usize = 5;

/// Opens connections that say nothing, `at_once` at a time, until `until` is over. Gives how many were opened.
async fn flood(address: SocketAddr, at_once: usize, until: impl Future<Output = Result<()>>) -> Result<u64> {
    let (opened, enough) = (AtomicU64::new(0), tokio::sync::Notify::new());
    let rounds = async {
        let mut held = Vec::new();
        for round in 0.. {
            let sockets = join_all((0..at_once).map(|_| TcpStream::connect(address))).await;
            let sockets: Vec<_> = sockets.into_iter().filter_map(Result::ok).collect();
            opened.fetch_add(sockets.len() as u64, Ordering::Relaxed);
            // The last two rounds stay open.
            held.push(sockets);
            if held.len() > 2 {
                held.remove(0);
            }
            if round == ROUNDS_MIN {
                enough.notify_one();
            }
        }
    };
    tokio::select! {
        () = rounds => {}
        done = async { until.await?; enough.notified().await; anyhow::Ok(()) } => done?,
    }
    Ok(opened.into_inner())
}

#[tokio::test(flavor = "multi_thread")]
async fn thousands_of_connections_that_say_nothing_cost_neither_memory_nor_a_pull() -> Result<()> {
    let mut cluster = Cluster::start(0).await?;
    cluster.agents = agents(&cluster, "eu", 2).await?;
    let image = Image::synthetic(85, &[20 * MIB]);
    push::image(&cluster.seeder.client(), REPOSITORY, "flood", &image).await?;
    let target = cluster.agents[0].addresses().peer.context("a peer port")?;
    let opened = flood(target, 500, pull_all(&cluster.agents, "flood")).await?;
    ensure!(opened >= 2000, "only {opened} connections: this test shows nothing");
    let refused = cluster.agents[0].metrics().await?.count("shoal_agent_peer_refused_total", &["reason=\"limit\""]);
    ensure!(refused > 0, "of {opened} connections none was over the limit");
    ensure!(cluster.rss_peak() <= RSS_MAX, "peak memory of {} bytes", cluster.rss_peak());
    cluster.finish().await
}
