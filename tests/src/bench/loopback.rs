//! A warm peer gives one blob to N others over loopback: the CPU is the limit.

use std::{
    net::Ipv4Addr,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use futures::future::try_join_all;

use super::{
    Log, Options, PATIENCE,
    accounting::Machine,
    content::Content,
    fleet::{Fleet, Start},
    host::Host,
    reader,
    record::{Run, contender},
    room::Room,
    servers::{self, Server},
    torrent::{self, Tuning},
    turns,
};

/// The case's name.
pub const NAME: &str = "loopback";
/// Receivers and MiB.
const VARIANTS: [(usize, u64); 5] = [(1, 256), (1, 1024), (8, 256), (8, 1024), (16, 256)];
/// Everybody who can do this work.
const CONTENDERS: [&str; 5] =
    [contender::PLAIN, contender::TLS, contender::LIBTORRENT, contender::NGINX, contender::REGISTRY];
/// Files up to this size are read back and compared after the clock has stopped.
const CHECKED_LEN_MAX: u64 = 256 << 20;
/// Room for what is not the blob: databases, logs.
const SLACK: u64 = 512 << 20;

/// Runs it.
///
/// # Errors
/// The machine lacks something that every contender needs.
pub async fn run(options: &Options, log: &mut Log) -> Result<()> {
    let asked = |(n, mib): &(usize, u64)| {
        (options.nodes.is_empty() || options.nodes.contains(n))
            && (options.sizes_mib.is_empty() || options.sizes_mib.contains(mib))
    };
    let mut variants: Vec<_> = VARIANTS.into_iter().filter(asked).collect();
    if variants.is_empty() {
        // Something of one's own.
        let sizes = options.sizes_or(&[256]);
        variants = options.nodes_or(&[1]).iter().flat_map(|&n| sizes.iter().map(move |&mib| (n, mib))).collect();
    }
    let mut contenders: Vec<&str> = CONTENDERS.into_iter().filter(|who| options.wants(who)).collect();
    if contenders.contains(&contender::LIBTORRENT) && !torrent::available().await {
        log.skip(contender::LIBTORRENT, "python3-libtorrent is not installed");
        contenders.retain(|who| *who != contender::LIBTORRENT);
    }
    for (receivers, mib) in variants {
        let content = Content::new(mib, mib << 20)?;
        for round in 0..options.rounds {
            for who in turns(&contenders, round) {
                let variant = format!("1x{receivers} {mib} MiB");
                let blank = Run {
                    case: NAME.to_owned(),
                    variant: variant.clone(),
                    contender: who.to_owned(),
                    round,
                    receivers,
                    bytes: content.len(),
                    ..Run::default()
                };
                let bytes = content.len() * (receivers as u64 + 2) + SLACK;
                let directory = Room::new(bytes).with_context(|| format!("{NAME} {variant}"));
                let run = match directory {
                    Ok(directory) => {
                        let run = one(options, blank, &content, directory.path()).await;
                        super::kept(options, directory);
                        run
                    }
                    Err(error) => Err(error),
                };
                log.take(&format!("{NAME} {variant} {who} round {round}"), run);
            }
        }
    }
    Ok(())
}

async fn one(options: &Options, run: Run, content: &Content, directory: &Path) -> Result<Run> {
    match run.contender.as_str() {
        contender::PLAIN => shoal(options, "plain", run, content, directory).await,
        contender::TLS => shoal(options, "tls", run, content, directory).await,
        contender::LIBTORRENT => libtorrent(run, content, directory).await,
        _ => whole_files(run, content, directory).await,
    }
}

/// 127.0.0.1, 127.0.0.2, …
fn hosts(count: usize) -> Vec<Arc<Host>> {
    let ip = |n: usize| {
        let [.., high, low] = (n + 1).to_be_bytes();
        Ipv4Addr::new(127, 0, high, low)
    };
    (0..count).map(|n| Arc::new(Host::here(format!("local{n}"), ip(n)))).collect()
}

async fn shoal(options: &Options, mode: &str, run: Run, content: &Content, directory: &Path) -> Result<Run> {
    let here = Arc::new(Host::here("local", Ipv4Addr::LOCALHOST));
    let mut start = Start::mode(mode);
    start.flags.extend(options.agent_flags.iter().cloned());
    let mut fleet = Fleet::start(&here, directory, &options.seeder(), content).await?;
    fleet.add(directory, vec![("warm".to_owned(), Arc::clone(&here), start.clone())]).await?;
    reader::prefetch(&fleet.agents[0], content, PATIENCE).await.context("warming the first agent")?;
    let cold = (1..=run.receivers).map(|n| (format!("agent{n}"), Arc::clone(&here), start.clone()));
    fleet.add(directory, cold.collect()).await?;
    let result = timed(run, &fleet, content).await;
    if result.is_err() {
        fleet.show_logs();
    }
    result
}

async fn timed(mut run: Run, fleet: &Fleet, content: &Content) -> Result<Run> {
    let cold = &fleet.agents[1..];
    let (origin, cpu) = (fleet.origin_bytes().await?, split(fleet)?);
    let (machine, begun) = (Machine::now()?, Instant::now());
    let ends = try_join_all(cold.iter().map(|agent| reader::prefetch(agent, content, PATIENCE))).await?;
    let (server, clients) = split(fleet)?;
    run.machine_cpu_s = Some(machine.since()?.0);
    run.cpu_s = Some((server - cpu.0, clients - cpu.1));
    let each: Vec<Duration> = ends.iter().map(|&end| end - begun).collect();
    run.seconds = each.iter().max().context("no receivers")?.as_secs_f64();
    run.rss_peak = Some(fleet.rss_peak());
    run.origin_copies = Some((fleet.origin_bytes().await? - origin) as f64 / content.image.unique_bytes() as f64);
    if content.len() <= CHECKED_LEN_MAX {
        for agent in cold {
            reader::read(agent, content, "").await.context("what is stored, read back")?;
        }
    }
    let mean = each.iter().sum::<Duration>().as_secs_f64() / each.len() as f64;
    Ok(run.with("mean_s", mean))
}

/// CPU seconds of those that have the bytes (seeder and warm agent), and of the others.
fn split(fleet: &Fleet) -> Result<(f64, f64)> {
    let (seeder, agents) = fleet.cpu()?;
    let warm = fleet.agents[0].cpu()?;
    Ok((seeder + warm, agents - warm))
}

async fn libtorrent(mut run: Run, content: &Content, directory: &Path) -> Result<Run> {
    let hosts = hosts(run.receivers + 1);
    let mut swarm = torrent::Swarm::start(&hosts, directory, content, Tuning::LOOPBACK).await?;
    let machine = Machine::now()?;
    let outcome = swarm.run(PATIENCE, &[], Duration::MAX).await?;
    run.machine_cpu_s = Some(machine.since()?.0);
    run.seconds = outcome.each.iter().flatten().max().context("no receivers")?.as_secs_f64();
    run.cpu_s = Some(outcome.cpu);
    run.rss_peak = Some(swarm.rss_peak());
    swarm.check(content)?;
    Ok(run)
}

async fn whole_files(mut run: Run, content: &Content, directory: &Path) -> Result<Run> {
    let here = Arc::new(Host::here("local", Ipv4Addr::LOCALHOST));
    let server = if run.contender == contender::NGINX {
        let file = directory.join("blob");
        content.write(&file)?;
        Server::nginx(&here, directory, &file).await?
    } else {
        Server::registry(&here, directory, content).await?
    };
    let clients: Vec<_> = (0..run.receivers).map(|_| Arc::clone(&here)).collect();
    let fetched = fetched(&mut run, &server, &clients, directory).await;
    server.stop().await?;
    let fetched = fetched?;
    run.seconds = fetched.elapsed.as_secs_f64();
    for n in 0..run.receivers {
        content.check(&servers::target(directory, n))?;
    }
    Ok(run)
}

async fn fetched(run: &mut Run, server: &Server, clients: &[Arc<Host>], directory: &Path) -> Result<servers::Fetched> {
    let (cpu, machine) = (server.cpu()?, Machine::now()?);
    let fetched = servers::fetch(clients, server.url(), Some(directory), PATIENCE).await?;
    run.machine_cpu_s = Some(machine.since()?.0);
    run.cpu_s = Some((server.cpu()? - cpu, fetched.cpu));
    Ok(fetched)
}
