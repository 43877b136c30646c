//! Does the simulator predict a real swarm? Agents in network namespaces pull an image, all at once; `shoal-sim` is told
//! the same links, nodes and labels, and what it says is held against what happened.
//!
//! One number is fitted: which part of what raw TCP gets out of a link a swarm gets, so that the median of the smallest
//! flat swarm comes out right. It is written down and used for all others unchanged.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};

use anyhow::{Context, Result, ensure};
use futures::future::try_join_all;
use serde::{Deserialize, Serialize};

use super::{
    content::Content,
    fleet::{Fleet, Start},
    goodput, host, reader,
    room::Room,
    stats::Spread,
    topology::{Network, Site},
};
use crate::report::note;

/// Mbit/s of each host's link: little, so that 32 agents on a small machine wait for links and not for processors.
pub const RATE: u32 = 10;
/// Mbit/s between two zones.
const BETWEEN: u32 = 20;
/// Mbit/s of a slow uplink.
const SLOW: u32 = 4;
/// Seeds of which the simulator's median is taken.
const SEEDS: u64 = 7;
/// Steps of the fit; each brings the median several times nearer.
const FIT_STEPS: usize = 4;
/// Room for what is not the blob.
const SLACK: u64 = 1 << 30;
/// A difference of so many copies of the image from the origin is none: a piece more or less, and one lost race.
const COPIES_CLOSE: f64 = 0.3;

/// How the hosts are joined.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Shape {
    /// All on one switch.
    Flat,
    /// Two halves, each behind an uplink of 20 Mbit/s.
    TwoZone,
    /// All behind one uplink of 4 Mbit/s.
    SlowUplink,
}

impl Shape {
    /// All of them; the first is calibrated on.
    pub const ALL: [Self; 3] = [Self::Flat, Self::TwoZone, Self::SlowUplink];

    /// Its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Flat => "flat",
            Self::TwoZone => "two-zone",
            Self::SlowUplink => "slow-uplink",
        }
    }

    /// Groups of hosts: how many, and Mbit/s of their uplink.
    fn groups(self, nodes: usize) -> Vec<(usize, Option<u32>)> {
        match self {
            Self::Flat => vec![(nodes, None)],
            Self::TwoZone => vec![(nodes.div_ceil(2), Some(BETWEEN)), (nodes / 2, Some(BETWEEN))],
            Self::SlowUplink => vec![(nodes, Some(SLOW))],
        }
    }

    /// The simulator's table of the same nodes; `part` is what a swarm gets out of a Mbit/s.
    fn table(self, nodes: usize, part: f64) -> String {
        let rate = |mbit: u32| format!("{:.4} Mb/s", f64::from(mbit) * part);
        let mut text = "region,zone,site,count,up,down,site_up,site_down\n".to_owned();
        for (group, (count, uplink)) in self.groups(nodes).into_iter().enumerate() {
            let (site, shared) = uplink.map_or_else(Default::default, |mbit| (format!("s{group}"), rate(mbit)));
            let own = rate(RATE);
            text += &format!("local,z{group},{site},{count},{own},{own},{shared},{shared}\n");
        }
        text
    }
}

/// What is compared. Times in seconds from the first request.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Outcome {
    /// Of the middle node.
    pub median_s: f64,
    /// Of the node that only one in a hundred comes after.
    pub p99_s: f64,
    /// Of the last node.
    pub makespan_s: f64,
    /// What left the origin, in copies of the image.
    pub origin_copies: f64,
}

impl Outcome {
    fn map(all: &[Self], of: impl Fn(&Self) -> f64) -> Result<f64> {
        Ok(Spread::of(all.iter().map(of)).context("no outcome")?.median)
    }

    /// The medians of several.
    fn median(all: &[Self]) -> Result<Self> {
        Ok(Self {
            median_s: Self::map(all, |one| one.median_s)?,
            p99_s: Self::map(all, |one| one.p99_s)?,
            makespan_s: Self::map(all, |one| one.makespan_s)?,
            origin_copies: Self::map(all, |one| one.origin_copies)?,
        })
    }
}

/// Where the simulator is off, as parts of what was measured.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Errors {
    /// Of the median.
    pub median: f64,
    /// Of the 99th percentile.
    pub p99: f64,
    /// Of the makespan.
    pub makespan: f64,
    /// Of the origin's copies; 0 where less than a third of a copy lies between.
    pub origin: f64,
}

impl Errors {
    fn of(predicted: &Outcome, measured: &Outcome) -> Self {
        let off = |predicted: f64, measured: f64| (predicted / measured - 1.0).abs();
        let close = (predicted.origin_copies - measured.origin_copies).abs() <= COPIES_CLOSE;
        Self {
            median: off(predicted.median_s, measured.median_s),
            p99: off(predicted.p99_s, measured.p99_s),
            makespan: off(predicted.makespan_s, measured.makespan_s),
            origin: if close { 0.0 } else { off(predicted.origin_copies, measured.origin_copies) },
        }
    }

    /// The worst of several.
    #[must_use]
    pub fn worst(all: impl Iterator<Item = Self>) -> Self {
        let none = Self { median: 0.0, p99: 0.0, makespan: 0.0, origin: 0.0 };
        all.fold(none, |worst, one| Self {
            median: worst.median.max(one.median),
            p99: worst.p99.max(one.p99),
            makespan: worst.makespan.max(one.makespan),
            origin: worst.origin.max(one.origin),
        })
    }
}

/// One swarm, and what was said of it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Case {
    /// Its shape.
    pub shape: Shape,
    /// Agents.
    pub nodes: usize,
    /// Whether the one number was fitted here: such a case counts for nothing.
    pub calibrated_here: bool,
    /// Each run.
    pub runs: Vec<Outcome>,
    /// Their medians.
    pub measured: Outcome,
    /// What the simulator says.
    pub predicted: Outcome,
    /// Where it is off.
    pub errors: Errors,
}

/// What is measured.
#[derive(Debug)]
pub struct Plan {
    /// Agents of the swarms, the smallest first.
    pub nodes: Vec<usize>,
    /// Runs of each.
    pub rounds: usize,
    /// MiB of the image.
    pub mib: u64,
    /// The simulator's program.
    pub simulator: PathBuf,
}

/// What came out.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Table {
    /// What raw TCP gets out of a link, as part of its rate.
    pub tcp_part: f64,
    /// What a swarm gets of that: the number that was fitted.
    pub swarm_part: f64,
    /// All swarms.
    pub cases: Vec<Case>,
}

/// Runs all swarms, fits, and predicts.
///
/// # Errors
/// A swarm cannot be built, an agent fails, or the simulator does.
pub async fn run(plan: &Plan) -> Result<Table> {
    if let Some(why) = host::cannot() {
        anyhow::bail!("{why}");
    }
    host::sweep()?;
    let content = Content::new(plan.mib, plan.mib << 20)?;
    let mut measured = Vec::new();
    let mut goodputs = Vec::new();
    for shape in Shape::ALL {
        for &nodes in &plan.nodes {
            let mut runs = Vec::new();
            for round in 0..plan.rounds {
                let (outcome, goodput) = swarm(shape, nodes, &content).await?;
                goodputs.extend(goodput);
                note(&format!("{} {nodes} round {round}: {outcome:.2?}", shape.name()));
                runs.push(outcome);
            }
            measured.push((shape, nodes, runs));
        }
    }
    let tcp = Spread::of(goodputs).context("no flat swarm was run")?.median * 8.0 / (f64::from(RATE) * 1e6);
    let simulator = Simulator { program: &plan.simulator, mib: plan.mib, directory: tempfile::tempdir()? };
    let (shape, nodes, runs) = &measured[0];
    let swarm_part = simulator.fit(*shape, *nodes, tcp, Outcome::median(runs)?.median_s)?;
    let mut cases = Vec::new();
    for (at, (shape, nodes, runs)) in measured.into_iter().enumerate() {
        let predicted = simulator.run(shape, nodes, tcp * swarm_part)?;
        let measured = Outcome::median(&runs)?;
        let errors = Errors::of(&predicted, &measured);
        cases.push(Case { shape, nodes, calibrated_here: at == 0, runs, measured, predicted, errors });
    }
    Ok(Table { tcp_part: tcp, swarm_part, cases })
}

/// One swarm of real agents; on the flat shape also what TCP gets out of the same links.
async fn swarm(shape: Shape, nodes: usize, content: &Content) -> Result<(Outcome, Option<f64>)> {
    let groups = shape.groups(nodes);
    let mut sites = vec![Site::of(1, RATE, None)];
    sites.extend(groups.iter().map(|(count, uplink)| Site::of(*count, RATE, *uplink)));
    let network = Network::build(&sites).await?;
    let goodput = match shape {
        Shape::Flat => Some(goodput::ring(network.site(1)).await.context("raw goodput")?.median),
        Shape::TwoZone | Shape::SlowUplink => None,
    };
    let directory = Room::new(content.len() * (nodes as u64 + 2) + SLACK)?;
    let directory = directory.path();
    let mut fleet = Fleet::start(&network.site(0)[0], directory, &Start::default(), content).await?;
    let mut agents = Vec::new();
    for (group, (_, uplink)) in groups.iter().enumerate() {
        for host in network.site(group + 1) {
            let (zone, site) = (format!("z{group}"), format!("s{group}"));
            let mut flags = vec!["--region", "local", "--zone", &zone];
            if uplink.is_some() {
                flags.extend(["--site", &site]);
            }
            agents.push((format!("agent-{}", host.name()), Arc::clone(host), Start::flags(&flags)));
        }
    }
    fleet.add(directory, agents).await?;
    let outcome = timed(&fleet, content).await;
    if outcome.is_err() {
        fleet.show_logs();
    }
    Ok((outcome?, goodput))
}

async fn timed(fleet: &Fleet, content: &Content) -> Result<Outcome> {
    fleet.settle().await?;
    let (origin, begun) = (fleet.origin_bytes().await?, Instant::now());
    let ends = try_join_all(fleet.agents.iter().map(|agent| reader::read(agent, content, ""))).await?;
    let mut each: Vec<f64> = ends.into_iter().map(|end| (end - begun).as_secs_f64()).collect();
    each.sort_unstable_by(f64::total_cmp);
    let sent = fleet.origin_bytes().await? - origin;
    let place = |part: usize| each[(each.len() * part).div_ceil(100).max(1) - 1];
    Ok(Outcome {
        median_s: place(50),
        p99_s: place(99),
        makespan_s: place(100),
        origin_copies: sent as f64 / content.image.unique_bytes() as f64,
    })
}

/// The simulator, as a user calls it.
struct Simulator<'a> {
    program: &'a Path,
    mib: u64,
    directory: tempfile::TempDir,
}

impl Simulator<'_> {
    /// What it says of a swarm: medians over its seeds.
    fn run(&self, shape: Shape, nodes: usize, part: f64) -> Result<Outcome> {
        let (table, out) = (self.directory.path().join("nodes.csv"), self.directory.path().join("out"));
        let scenario = self.directory.path().join("swarm.toml");
        std::fs::write(&table, shape.table(nodes, part)).context("write a table of nodes")?;
        std::fs::write(&scenario, self.scenario(part)).context("write a scenario")?;
        let mut all = Vec::new();
        for seed in 1..=SEEDS {
            let mut command = std::process::Command::new(self.program);
            command.arg("run").arg(&scenario).args(["--policy", "shoal", "--seed", &seed.to_string()]);
            command.arg("--topology").arg(&table).arg("--out").arg(&out);
            let output = command.output().with_context(|| format!("start {}", self.program.display()))?;
            ensure!(output.status.success(), "shoal-sim: {}", String::from_utf8_lossy(&output.stderr));
            let summary = std::fs::read(out.join("summary.json")).context("read the summary")?;
            let summary: Summary = serde_json::from_slice(&summary).context("the summary")?;
            all.push(Outcome {
                median_s: summary.arrived.p50,
                p99_s: summary.arrived.p99,
                makespan_s: summary.arrived.max,
                origin_copies: summary.origin.copies,
            });
        }
        Outcome::median(&all)
    }

    /// All but the nodes' places. The core is the shipped one; nothing here is fitted but `part`.
    fn scenario(&self, part: f64) -> String {
        let (mib, up) = (self.mib, f64::from(RATE) * part);
        format!(
            "about = \"a swarm in network namespaces\"\n[image]\nsize = \"{mib} MiB\"\nlayers = 1\n\
             [nodes]\nunpack = \"10 GB/s\"\n[lan]\nrtt = \"0.2 ms\"\nzone_rtt = \"0.2 ms\"\npayload = 1.0\n\
             [origin]\nup = \"{up:.4} Mb/s\"\n[arrival]\nover = \"0 s\"\n"
        )
    }

    /// The part of TCP's goodput at which the median comes out right.
    fn fit(&self, shape: Shape, nodes: usize, tcp: f64, median_s: f64) -> Result<f64> {
        let mut part = 1.0;
        for _ in 0..FIT_STEPS {
            // Times go with the inverse of the rate, nearly.
            part *= self.run(shape, nodes, tcp * part)?.median_s / median_s;
        }
        Ok(part)
    }
}

/// What is read of a summary.
#[derive(Debug, Deserialize)]
struct Summary {
    arrived: Times,
    origin: Origin,
}

#[derive(Debug, Deserialize)]
struct Times {
    p50: f64,
    p99: f64,
    max: f64,
}

#[derive(Debug, Deserialize)]
struct Origin {
    copies: f64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_hold_every_node_once_and_errors_are_relative() {
        for shape in Shape::ALL {
            let table = shape.table(17, 0.9);
            let count = |line: &str| line.split(',').nth(3).and_then(|cell| cell.parse::<usize>().ok()).unwrap_or(0);
            assert_eq!(table.lines().map(count).sum::<usize>(), 17, "{table}");
        }
        let of = |origin_copies| Outcome { median_s: 10.0, p99_s: 20.0, makespan_s: 20.0, origin_copies };
        let errors = Errors::of(&Outcome { median_s: 11.0, ..of(1.25) }, &of(1.0));
        assert!((errors.median - 0.1).abs() < 1e-9 && errors.origin == 0.0, "{errors:?}");
        assert!(Errors::of(&of(1.5), &of(1.0)).origin > 0.4);
    }
}
