//! How far a revocation travels: over the connections of a hundred agents that have pulled the same image.
//!
//! Whoever hears of it first may be any of them; so what counts is the greatest distance between two.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use futures::{StreamExt as _, TryStreamExt as _, future::try_join_all, stream};
use serde_json::{Value, json};
use shoal_agent::{Agent, Config, Running, config::JoinBy};
use shoal_proto::{
    signed::{Labels, NodeId},
    token::JoinToken,
};
use shoal_seeder::Seeder;
use shoal_tests::{http::Client, image::Image, pull, push, wait};

const REPOSITORY: &str = "bench/hops";
/// Agents that start at once.
const STARTS_AT_ONCE: usize = 4;
/// The image: a few seconds' work for all together, so that they find one another.
const IMAGE_LEN: u64 = 8 << 20;
/// How long anything may take on a loaded machine.
const LONG: Duration = Duration::from_secs(120);

async fn agent(seeder: &str, token: &JoinToken, directory: std::path::PathBuf) -> Result<Running> {
    let config = Config::loopback(seeder.parse().context("the seeder's URL")?, directory, "bench");
    Agent::start(Config { insecure_open: false, join_by: JoinBy::Token(token.clone()), ..config }).await
}

/// Who is connected with whom.
async fn graph(agents: &[Running]) -> Result<BTreeMap<String, BTreeSet<String>>> {
    let mut graph: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for agent in agents {
        let status = agent.handle().status().await.context("an agent has stopped")?;
        for peer in status.peers {
            graph.entry(peer.node.clone()).or_default().insert(status.node.clone());
            graph.entry(status.node.clone()).or_default().insert(peer.node);
        }
    }
    Ok(graph)
}

/// Hops from `start` to whoever is farthest, and how many are reached.
fn reach(graph: &BTreeMap<String, BTreeSet<String>>, start: &String, without: &String) -> (usize, usize) {
    let (mut seen, mut edge, mut hops) = (BTreeSet::from([without, start]), vec![start], 0);
    loop {
        let next: BTreeSet<&String> =
            edge.iter().filter_map(|node| graph.get(*node)).flatten().filter(|node| !seen.contains(node)).collect();
        if next.is_empty() {
            return (hops, seen.len() - 1);
        }
        hops += 1;
        seen.extend(&next);
        edge = next.into_iter().collect();
    }
}

/// Waits until so many have heard; how long that took.
async fn heard(agents: &[Running], least: usize, begun: Instant) -> Result<Duration> {
    wait::until("the revocation", LONG, async || {
        let mut heard = 0;
        for agent in agents {
            heard += agent.handle().status().await.context("an agent has stopped")?.revoked;
        }
        Ok((heard >= least).then(|| begun.elapsed()))
    })
    .await
}

pub(crate) async fn measure(count: usize) -> Result<(f64, Value)> {
    let directory = tempfile::tempdir_in("/dev/shm").context("a directory in memory")?;
    let any = "127.0.0.1:0".parse().context("an address")?;
    let data_dir = directory.path().join("seeder");
    let config = shoal_seeder::Config { listen: vec![any], status: any, data_dir, ..shoal_seeder::Config::default() };
    let seeder = Seeder::start(config).await?;
    let image = Image::synthetic(1, &[IMAGE_LEN]);
    push::image(&Client::new(seeder.registry_addr.to_string()), REPOSITORY, "1", &image).await?;
    let uses = u32::try_from(count).context("a token's uses")?;
    let token = seeder.members.create_token(uses, 3600, Labels::default()).await?;
    let url = format!("http://{}", seeder.registry_addr);
    let agents: Vec<Running> = stream::iter(0..count)
        .map(|n| agent(&url, &token, directory.path().join(format!("agent{n}"))))
        .buffer_unordered(STARTS_AT_ONCE)
        .try_collect()
        .await?;
    let options = pull::Options::default();
    let pulls = agents.iter().map(async |agent| {
        let client = Client::new(agent.addresses().registry.to_string());
        pull::image(&client, REPOSITORY, "1", &options).await
    });
    try_join_all(pulls).await?;
    let bad: NodeId = agents[0].node();
    let graph = graph(&agents).await?;
    let others: Vec<String> = agents[1..].iter().map(|agent| agent.node().to_string()).collect();
    let without = bad.to_string();
    let reached: Vec<(usize, usize)> = others.iter().map(|start| reach(&graph, start, &without)).collect();
    let hops = reached.iter().map(|(hops, _)| *hops).max().unwrap_or(usize::MAX);
    let least = reached.iter().map(|(_, nodes)| *nodes).min().unwrap_or(0);
    ensure!(least == others.len(), "only {least} of {} agents are connected with one another", others.len());
    let begun = Instant::now();
    seeder.members.revoke(&bad).await?;
    let first = heard(&agents[1..], 1, begun).await?;
    let last = heard(&agents[1..], others.len(), begun).await?;
    let links: usize = graph.values().map(BTreeSet::len).sum();
    let detail = json!({
        "agents": count, "links_each": links as f64 / count as f64,
        "first_heard_s": first.as_secs_f64(), "all_heard_s": last.as_secs_f64(),
    });
    try_join_all(agents.into_iter().map(Running::shutdown)).await?;
    seeder.shutdown().await;
    Ok((hops as f64, detail))
}
