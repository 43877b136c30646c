//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::{network::Rates, plan::Policy};

/// What a rollout will take, before it runs: the agent's own decisions on a simulated network.
#[derive(Debug, Parser)]
#[command(name = "shoal-sim", version, max_term_width = 110)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Simulate a rollout, and write a report.
    Run(Run),
    /// Simulate many, over the values of some keys, and show what changes.
    Sweep(Sweep),
    /// Put two rollouts beside each other.
    Compare(Compare),
    /// Run again what a folder of results holds, and check that the same comes out.
    Replay(Replay),
    /// The scenarios that ship.
    List,
    /// Why one node took so long.
    ExplainNode(Explain),
    /// Write the transfers of a rollout as `start,from,to,bytes`, for other simulators.
    Export(Export),
    /// Whether the figures of three small rollouts are still those that were accepted.
    Gate(Gate),
    /// Measure the simulator itself: instructions, time, memory, and SimGrid beside it.
    Bench(Bench),
}

/// A rollout.
#[derive(Debug, Clone, Args)]
pub(crate) struct What {
    /// One of `shoal-sim list`, or a TOML file.
    pub(crate) scenario: String,
    /// Number of nodes.
    #[arg(long, value_name = "N")]
    pub(crate) nodes: Option<u32>,
    /// Another value for a key of the scenario, such as origin.up="1 Gb/s"; may be given again.
    #[arg(long, value_name = "KEY=VALUE")]
    pub(crate) set: Vec<String>,
    /// Where all chance comes from.
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
    /// How the network shares out its links.
    #[arg(long, value_enum, default_value_t = RatesChoice::Exact)]
    pub(crate) rates: RatesChoice,
    /// How far exact rates may be off, relatively.
    #[arg(long, value_name = "PART", default_value_t = EPSILON)]
    pub(crate) epsilon: f64,
    /// Sizes of the layers from an image manifest, `-` for standard input: skopeo inspect --raw docker://… |
    #[arg(long, value_name = "FILE")]
    pub(crate) image: Option<PathBuf>,
    /// Your own nodes, as CSV: region and any of name zone site up down count site_up site_down site_rtt.
    #[arg(long, value_name = "FILE")]
    pub(crate) topology: Option<PathBuf>,
}

/// How far exact rates may be off, relatively, unless somebody says otherwise.
pub(crate) const EPSILON: f64 = 1e-3;

/// `--rates`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum RatesChoice {
    /// Max-min fair.
    Exact,
    /// The least of capacity ÷ flows: right where all links are equal, too slow elsewhere.
    Fast,
}

impl RatesChoice {
    pub(crate) const fn with(self, epsilon: f64) -> Rates {
        match self {
            Self::Exact => Rates::Exact { epsilon },
            Self::Fast => Rates::Fast,
        }
    }
}

/// `run`.
#[derive(Debug, Args)]
pub(crate) struct Run {
    #[command(flatten)]
    pub(crate) what: What,
    /// How the image gets to the nodes; several separated by commas, all without. The last is told in detail.
    #[arg(long, value_enum, value_delimiter = ',')]
    pub(crate) policy: Vec<Policy>,
    /// Folder for the results (default: target/sim/SCENARIO).
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
    /// Open the report in a browser.
    #[arg(long)]
    pub(crate) open: bool,
    /// Policies simulated at once (default: as many as there are cores).
    #[arg(long, value_name = "N")]
    pub(crate) threads: Option<usize>,
}

/// `sweep`.
#[derive(Debug, Args)]
pub(crate) struct Sweep {
    #[command(flatten)]
    pub(crate) what: What,
    /// A key and its values: nodes.count=100,1000 or image.piece="1 MiB,4 MiB"; given again, all combinations.
    #[arg(long, value_name = "KEY=V1,V2,…", required = true)]
    pub(crate) over: Vec<String>,
    /// How the image gets to the nodes.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "shoal")]
    pub(crate) policy: Vec<Policy>,
    /// Seeds for each point, from --seed on.
    #[arg(long, value_name = "N", default_value_t = 5)]
    pub(crate) seeds: u32,
    /// Folder for sweep.csv and sweep.html (default: target/sim/SCENARIO-sweep).
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
    /// Runs at once (default: as many as there are cores).
    #[arg(long, value_name = "N")]
    pub(crate) threads: Option<usize>,
}

/// `compare`.
#[derive(Debug, Args)]
pub(crate) struct Compare {
    /// A folder of results, its summary.json, or a scenario, which is simulated first.
    pub(crate) a: String,
    /// What to put beside it.
    pub(crate) b: String,
    /// Fail if makespan, origin copies or cross-region bytes differ by more than so many percent.
    #[arg(long, value_name = "PERCENT")]
    pub(crate) tolerance: Option<f64>,
}

/// `replay`.
#[derive(Debug, Args)]
pub(crate) struct Replay {
    /// The folder, or its summary.json.
    pub(crate) results: PathBuf,
}

/// `explain-node`.
#[derive(Debug, Args)]
pub(crate) struct Explain {
    /// The node's number, as in nodes.csv.
    pub(crate) node: u32,
    #[command(flatten)]
    pub(crate) what: What,
    /// How the image gets to the nodes.
    #[arg(long, value_enum, default_value_t = Policy::Shoal)]
    pub(crate) policy: Policy,
    /// All that it was told and did, one line each, into this file.
    #[arg(long, value_name = "FILE")]
    pub(crate) trace: Option<PathBuf>,
}

/// `export`.
#[derive(Debug, Args)]
pub(crate) struct Export {
    #[command(flatten)]
    pub(crate) what: What,
    /// Where to (standard output without).
    #[arg(long, value_name = "FILE")]
    pub(crate) out: Option<PathBuf>,
    /// The links of the origin (-1) and of each node in bytes a second, as `node,up,down`, into this file.
    #[arg(long, value_name = "FILE")]
    pub(crate) links: Option<PathBuf>,
}

/// `gate`.
#[derive(Debug, Args)]
pub(crate) struct Gate {
    /// Take today's figures as those to be held.
    #[arg(long)]
    pub(crate) accept: bool,
}

/// `bench`.
#[derive(Debug, Args)]
pub(crate) struct Bench {
    /// Where the figures go.
    #[arg(long, value_name = "FILE", default_value = "target/bench/sim.json")]
    pub(crate) out: PathBuf,
    /// Leave out what takes minutes: a hundred thousand nodes.
    #[arg(long)]
    pub(crate) short: bool,
    /// Only the exact-rate replay of a trace on a star, for SimGrid's to be put beside: prints seconds.
    #[arg(long, value_name = "FILE", hide = true, requires = "links")]
    pub(crate) replay: Option<PathBuf>,
    /// The star's links for `--replay`.
    #[arg(long, value_name = "FILE", hide = true)]
    pub(crate) links: Option<PathBuf>,
}
