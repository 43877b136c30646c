//! A client on the node itself fetches what the agent has: a file on disk and a socket, nothing more.

use std::{net::Ipv4Addr, path::Path, sync::Arc};

use anyhow::{Context, Result};

use super::{
    Log, Options, PATIENCE,
    content::{Content, REPOSITORY},
    fleet::{Fleet, Start},
    host::Host,
    reader,
    record::{Run, contender},
    room::Room,
    servers::{self, Server},
    trust, turns,
};

/// The case's name.
pub const NAME: &str = "local";
/// MiB of the blob.
const SIZE_MIB: u64 = 1024;
/// A fetch takes a second: more of them cost little.
const FETCHES_A_ROUND: usize = 3;
/// Room for what is not the blob.
const SLACK: u64 = 512 << 20;

/// Runs it.
///
/// # Errors
/// The agent or nginx does not start.
pub async fn run(options: &Options, log: &mut Log) -> Result<()> {
    let mib = options.sizes_or(&[SIZE_MIB])[0];
    let content = Content::new(mib, mib << 20)?;
    let directory = Room::new(content.len() * 4 + SLACK)?;
    let here = Arc::new(Host::here("local", Ipv4Addr::LOCALHOST));
    let mut fleet = Fleet::start(&here, directory.path(), &options.seeder(), &content).await?;
    let start = Start { flags: options.agent_flags.clone(), ..Start::default() };
    fleet.add(directory.path(), vec![("agent".to_owned(), Arc::clone(&here), start)]).await?;
    let agent = &fleet.agents[0];
    reader::prefetch(agent, &content, PATIENCE).await.context("warming the agent")?;
    let file = directory.path().join("blob");
    content.write(&file)?;
    let nginx = Server::nginx(&here, directory.path(), &file).await?;
    let registry = agent.addresses().registry;
    let user = agent.password().map(|password| format!("{}:{password}@", trust::USER)).unwrap_or_default();
    let url = format!("http://{user}{registry}/v2/{REPOSITORY}/blobs/{}", content.layer().digest);
    for round in 0..options.rounds * FETCHES_A_ROUND {
        for (variant, into) in [("to a file", Some(directory.path())), ("to nowhere", None)] {
            for who in turns(&[contender::PLAIN, contender::NGINX], round) {
                let run = Run {
                    case: NAME.to_owned(),
                    variant: variant.to_owned(),
                    contender: who.to_owned(),
                    round,
                    receivers: 1,
                    bytes: content.len(),
                    ..Run::default()
                };
                let cpu = || if who == contender::NGINX { nginx.cpu() } else { agent.cpu() };
                let url = if who == contender::NGINX { nginx.url() } else { &url };
                let run = one(run, &here, &content, url, into, &cpu).await;
                log.take(&format!("{NAME} {variant} {who} round {round}"), run);
            }
        }
    }
    nginx.stop().await
}

async fn one(
    mut run: Run,
    here: &Arc<Host>,
    content: &Content,
    url: &str,
    into: Option<&Path>,
    cpu_of_server: &(dyn Fn() -> Result<f64> + Sync),
) -> Result<Run> {
    let cpu = cpu_of_server()?;
    let fetched = servers::fetch(&[Arc::clone(here)], url, into, PATIENCE).await?;
    run.seconds = fetched.elapsed.as_secs_f64();
    run.cpu_s = Some((cpu_of_server()? - cpu, fetched.cpu));
    if let Some(into) = into {
        let file = servers::target(into, 0);
        content.check(&file)?;
        std::fs::remove_file(&file)?;
    }
    Ok(run)
}
