//! A member that lies: everything it sends is spoilt.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use futures::future::try_join_all;
use shoal_tests::{
    cluster::{Cluster, Daemon},
    flip::Flip,
    image::Image,
    pull, push, wait,
};

use crate::images::MIB;

const REPOSITORY: &str = "it/corruption";
/// Agents besides the liar.
const HONEST: usize = 4;
/// How long anything here may take on a loaded machine.
const LONG: Duration = Duration::from_secs(120);

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_spoils_all_it_sends_is_banned_by_all_and_harms_nobody() -> Result<()> {
    let mut cluster = Cluster::start(0).await?;
    let image = Image::synthetic(61, &[40 * MIB, 10 * MIB]);
    push::image(&cluster.seeder.client(), REPOSITORY, "1", &image).await?;
    // The liar has everything; whoever wants to speak to it meets the proxy.
    let behind = IpAddr::from([127, 0, 0, 9]);
    let flip = Flip::start(behind).await?;
    let listen = SocketAddr::new(behind, flip.address().port()).to_string();
    let flags = ["--mode", "plain", "--peer-listen", &listen, "--advertise", "127.0.0.1"];
    let liar = cluster.another("liar", &flags).await?;
    pull::image(&liar.client(), REPOSITORY, "1", &pull::Options::default()).await.context("the liar's own pull")?;
    for n in 1..=HONEST {
        let agent = cluster.another(&format!("agent{n}"), &["--mode", "plain"]).await?;
        cluster.agents.push(agent);
    }

    let clients: Vec<_> = cluster.agents.iter().map(Daemon::client).collect();
    let options = pull::Options::default();
    let pulls = try_join_all(clients.iter().map(|client| pull::image(client, REPOSITORY, "1", &options)));
    // The client checks each byte with a SHA-256 of its own.
    let reports = pulls.await?;
    ensure!(reports.iter().all(|report| report.manifest == image.manifest.digest), "{reports:?}");
    ensure!(flip.flipped() > 0, "nobody asked the liar: this test shows nothing");
    let name = liar.account().await?["swarm"]["node"].as_str().context("a node has a name")?.to_owned();
    for agent in &cluster.agents {
        wait::until(&format!("{} bans the liar", agent.name()), LONG, async || {
            let swarm = agent.account().await?["swarm"].take();
            let banned = swarm["banned"].as_array().context("a list of the banned")?;
            ensure!(banned.iter().all(|node| *node == name), "{} banned an honest peer: {banned:?}", agent.name());
            Ok((!banned.is_empty() && swarm["bad_pieces"].as_u64() > Some(0)).then_some(()))
        })
        .await?;
    }
    cluster.agents.push(liar);
    cluster.finish().await
}
