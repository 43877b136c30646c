//! Some agents in one process, each a node of its own: identity, store, ports, connections. The bench starts a few such
//! processes where one for each agent would measure the kernel's scheduler; it says what to do, and is told, by lines of
//! JSON (`shoal_tests::bench::crowd`).
//!
//! A package of its own: what tests the binaries from outside (`shoal-tests`) does not link the agent.

use std::{net::SocketAddr, process::ExitCode};

use anyhow::{Context, Result, ensure};
use futures::{StreamExt, TryStreamExt, stream};
use http::Uri;
use shoal_agent::{Agent, Config, Running, config::JoinBy};
use shoal_tests::{
    bench::{
        content::Content,
        crowd::{Order, PULL, Said},
        reader,
        trust::{self, Pass},
    },
    http::Client,
    report,
};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    task::JoinSet,
};
use tracing_subscriber::filter::LevelFilter;

/// Agents that start at once: more would only wait for each other's keys and databases.
const STARTS_AT_ONCE: usize = 4;
/// Threads for calls that block, as one agent has: they are shared.
const BLOCKING_THREADS_MAX: usize = 32;
/// One boot of one machine, for all.
const BOOT_ID: &str = "crowd";

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            report::note(&format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let order = std::env::args().nth(1).context("usage: shoal-crowd ORDER, which is JSON")?;
    let order: Order = serde_json::from_str(&order).context("the order")?;
    tracing_subscriber::fmt().with_max_level(LevelFilter::WARN).with_writer(std::io::stderr).with_ansi(false).init();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS_MAX)
        .build()
        .context("start the runtime")?;
    runtime.block_on(serve(&order))
}

/// Starts the agents, and serves until its input ends.
async fn serve(order: &Order) -> Result<()> {
    let content = Content::new(order.content.0, order.content.1)?;
    let start = config(order)?;
    let agents: Vec<Running> = stream::iter(0..order.agents)
        .map(|number| {
            Agent::start(Config { data_dir: order.directory.join(format!("agent{number}")), ..start.clone() })
        })
        .buffer_unordered(STARTS_AT_ONCE)
        .try_collect()
        .await?;
    say(&Said::Ready)?;
    let mut orders = BufReader::new(tokio::io::stdin()).lines();
    while let Some(line) = orders.next_line().await.context("read an order")? {
        ensure!(line == PULL, "{line:?} is no order");
        let mut readers = JoinSet::new();
        for agent in &agents {
            let mut client = Client::new(agent.addresses().registry.to_string());
            if let Some(password) = &order.password {
                client = client.user(trust::USER, password);
            }
            readers.spawn(reader::read_by(client, content.clone(), String::new()));
        }
        while let Some(read) = readers.join_next().await {
            let result = read.context("a reader")?.map(drop).map_err(|error| format!("{error:#}"));
            say(&Said::Read(result))?;
        }
    }
    futures::future::try_join_all(agents.into_iter().map(Running::shutdown)).await?;
    Ok(())
}

/// Of every agent, but for where its data goes.
fn config(order: &Order) -> Result<Config> {
    let seeder: Uri = order.seeder.parse().context("the seeder's URL")?;
    let mut config = Config::loopback(seeder, order.directory.clone(), BOOT_ID);
    let address = vec![SocketAddr::from((order.ip, 0))];
    config.listen.libp2p.clone_from(&address);
    config.listen.peer = address;
    if let Some(Pass { ca, token }) = &order.pass {
        let token = std::fs::read_to_string(token).with_context(|| format!("read {}", token.display()))?;
        config.insecure_open = false;
        config.join_by = JoinBy::Token(token.trim().parse().context("the join token")?);
        config.seeder_tls.ca = Some(ca.clone());
    }
    Ok(config)
}

fn say(said: &Said) -> Result<()> {
    report::line(&serde_json::to_string(said)?);
    Ok(())
}
