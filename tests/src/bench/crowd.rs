//! Two hundred agents ask for the same image in the same second.
//!
//! Each is a node of its own: identity, store, ports, connections. Only processes are shared, since two hundred of them
//! would measure the kernel's scheduler: each `shoal-crowd` runs some of them through the agent's library.

use std::{
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use futures::future::try_join_all;
use rustix::process::Pid;
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout, Command},
    time::timeout,
};

use super::{
    Log, Options, PATIENCE,
    accounting::{self, Machine},
    content::Content,
    fleet::{Fleet, settle},
    host::Host,
    record::{Run, contender},
    room::Room,
    trust::Pass,
};
use crate::cluster::Binaries;

/// The case's name.
pub const NAME: &str = "crowd";
/// How many.
const NODES: usize = 200;
/// MiB of the blob.
const SIZE_MIB: u64 = 32;
/// Agents a process.
const AGENTS_A_PROCESS: usize = 25;
/// How long the agents of a process may take until all are ready.
const READY_TIME_MAX: Duration = Duration::from_secs(180);
/// Room for an agent's databases and logs.
const SLACK_EACH: u64 = 16 << 20;

/// What a process of agents is told, on a line of its own: let a reader pull through each agent, all at once.
pub const PULL: &str = "pull";

/// How one process of agents is started: its only argument, as JSON.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Order {
    /// How many agents.
    pub agents: usize,
    /// Where libp2p and the peer protocol listen.
    pub ip: Ipv4Addr,
    /// The seeder's URL.
    pub seeder: String,
    /// What the agents join by, where the seeder is not open.
    pub pass: Option<Pass>,
    /// The password of [`super::trust::USER`], where readers need one.
    pub password: Option<String>,
    /// Where their data goes.
    pub directory: PathBuf,
    /// The content's seed and length: readers hold what they get against it.
    pub content: (u64, u64),
}

/// What a process of agents says, a line each, as JSON.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Said {
    /// All agents are ready.
    Ready,
    /// One agent's reader has come to its end, or why it has not.
    Read(Result<(), String>),
}

/// A process of agents.
#[derive(Debug)]
pub struct Crowd {
    child: Child,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
    agents: usize,
}

impl Crowd {
    /// Starts one and waits until all its agents are ready.
    ///
    /// # Errors
    /// They do not become ready.
    pub async fn start(host: &Host, order: &Order) -> Result<Self> {
        std::fs::create_dir_all(&order.directory)?;
        let log = std::fs::File::create(order.directory.join("log"))?;
        let program = Binaries::find()?.crowd;
        let text = serde_json::to_string(order)?;
        let launch = async move {
            let mut child = Command::new(program)
                .arg(text)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(log)
                .kill_on_drop(true)
                .spawn()
                .context("start a process of agents")?;
            let input = child.stdin.take().context("its input is a pipe")?;
            let output = BufReader::new(child.stdout.take().context("its output is a pipe")?).lines();
            Ok((child, input, output))
        };
        let (child, input, output) = host.run(launch).await?;
        let mut crowd = Self { child, input, output, agents: order.agents };
        let log = order.directory.join("log");
        let said = timeout(READY_TIME_MAX, crowd.next()).await.context("agents do not become ready");
        let said = said.and_then(|said| said).with_context(|| crate::process::tail(&log))?;
        ensure!(matches!(said, Said::Ready), "a process of agents said {said:?}");
        Ok(crowd)
    }

    async fn next(&mut self) -> Result<Said> {
        let line = self.output.next_line().await?.context("a process of agents has ended")?;
        serde_json::from_str(&line).with_context(|| format!("a process of agents said {line:?}"))
    }

    /// Lets readers pull through all agents at once, and gives when each was done.
    ///
    /// # Errors
    /// The process ends, or takes too long.
    pub async fn pull(&mut self) -> Result<Vec<Result<Instant, String>>> {
        self.input.write_all(format!("{PULL}\n").as_bytes()).await?;
        let mut ends = Vec::with_capacity(self.agents);
        while ends.len() < self.agents {
            let said = timeout(PATIENCE, self.next()).await.context("a reader does not come to its end")??;
            let Said::Read(result) = said else { continue };
            ends.push(result.map(|()| Instant::now()));
        }
        Ok(ends)
    }

    /// CPU seconds that it has used so far.
    ///
    /// # Errors
    /// It has ended.
    pub fn cpu(&self) -> Result<f64> {
        accounting::cpu_of(self.pid()?)
    }

    fn pid(&self) -> Result<Pid> {
        let id = self.child.id().context("a process of agents has ended")?;
        Pid::from_raw(i32::try_from(id)?).context("a process id is positive")
    }
}

/// Runs it.
///
/// # Errors
/// There is no room for it.
pub async fn run(options: &Options, log: &mut Log) -> Result<()> {
    let mib = options.sizes_or(&[SIZE_MIB])[0];
    for nodes in options.nodes_or(&[NODES]) {
        for round in 0..options.rounds {
            let run = one(options, nodes, mib, round).await;
            log.take(&format!("{NAME} {nodes} round {round}"), run);
        }
    }
    Ok(())
}

async fn one(options: &Options, nodes: usize, mib: u64, round: usize) -> Result<Run> {
    let content = Content::new(mib, mib << 20)?;
    let directory = Room::new((content.len() + SLACK_EACH) * (nodes as u64 + 1))?;
    let run = Run {
        case: NAME.to_owned(),
        variant: format!("{nodes} agents, {mib} MiB"),
        contender: contender::TLS.to_owned(),
        round,
        receivers: nodes,
        bytes: content.len(),
        ..Run::default()
    };
    let run = timed(options, run, &content, directory.path()).await;
    super::kept(options, directory);
    run
}

async fn timed(options: &Options, mut run: Run, content: &Content, directory: &Path) -> Result<Run> {
    let here = Arc::new(Host::here("local", Ipv4Addr::LOCALHOST));
    let fleet = Fleet::start(&here, directory, &options.seeder(), content).await?;
    let pass = fleet.admit(run.receivers, None).await?;
    let mut crowds = Vec::new();
    let mut left = run.receivers;
    // One process after the other: all at once would only wait for each other, and for longer than they may.
    while left > 0 {
        let order = Order {
            agents: left.min(AGENTS_A_PROCESS),
            ip: Ipv4Addr::LOCALHOST,
            seeder: fleet.seeder_url(),
            pass: pass.clone(),
            password: fleet.seeder.password().map(str::to_owned),
            directory: directory.join(format!("crowd{}", crowds.len())),
            content: (content.len() >> 20, content.len()),
        };
        left -= order.agents;
        crowds.push(Crowd::start(&here, &order).await?);
    }
    settle(|| Ok(cpu(&fleet, &crowds)?.1)).await?;
    let (origin, cpu) = (fleet.origin_bytes().await?, cpu(&fleet, &crowds)?);
    let (machine, begun) = (Machine::now()?, Instant::now());
    let ends = try_join_all(crowds.iter_mut().map(Crowd::pull)).await?;
    let after = self::cpu(&fleet, &crowds)?;
    run.machine_cpu_s = Some(machine.since()?.0);
    run.cpu_s = Some((after.0 - cpu.0, after.1 - cpu.1));
    let ends: Vec<_> = ends.into_iter().flatten().collect();
    run.failed = ends.iter().filter(|end| end.is_err()).count();
    for error in ends.iter().filter_map(|end| end.as_ref().err()).take(5) {
        crate::report::note(error);
    }
    let mut each: Vec<Duration> = ends.into_iter().flatten().map(|end| end - begun).collect();
    each.sort_unstable();
    run.seconds = each.last().context("no pull came to its end")?.as_secs_f64();
    run.origin_copies = Some((fleet.origin_bytes().await? - origin) as f64 / content.image.unique_bytes() as f64);
    let (first, middle) = (each[0].as_secs_f64(), each[each.len() / 2].as_secs_f64());
    Ok(run.with("first_s", first).with("median_s", middle))
}

fn cpu(fleet: &Fleet, crowds: &[Crowd]) -> Result<(f64, f64)> {
    Ok((fleet.seeder.cpu()?, crowds.iter().map(Crowd::cpu).sum::<Result<f64>>()?))
}
