//! The bench: what Shoal moves and what that costs, beside others that do the same work.
//!
//! Everything runs as separate processes with shipped defaults, but for the mode under test. Bytes end in verified files
//! in memory (`/dev/shm`), nobody waits for a disk, and what is sent lies in memory already. CPU seconds are the
//! kernel's. Contenders take turns: each round runs every contender once, every other round in the opposite order, and
//! ratios are taken within rounds. Shaped links are network namespaces ([`topology`]), which only root can make; no
//! packet leaves this machine, and nothing of it is changed.
//!
//! | case | what |
//! |---|---|
//! | [`loopback`] | a warm peer → 1, 8 and 16 others, where the CPU is the limit |
//! | [`links`] | N peers on links of 50 Mbit/s, all at once, against the theoretical bound |
//! | [`regions`] | three regions with narrow links between them; and a site behind a narrow uplink |
//! | [`crowd`] | 200 agents in the same second |
//! | [`local`] | a client of a warm agent |
//! | [`idle`] | what an agent costs that does nothing |
//! | [`validate`] | real swarms beside what the simulator says of them; a program of its own, `shoal-validate` |
//!
//! Fleets are open; with `--trust` they let in only whom they know ([`trust`]).

pub mod accounting;
pub mod content;
pub mod crowd;
pub mod delay;
pub mod figures;
pub mod fleet;
pub mod goodput;
pub mod host;
pub mod idle;
pub mod links;
pub mod local;
pub mod loopback;
pub mod reader;
pub mod record;
pub mod regions;
pub mod room;
pub mod servers;
pub mod stats;
pub mod tables;
pub mod topology;
pub mod torrent;
pub mod trust;
pub mod validate;

use std::time::Duration;

use anyhow::Result;
use record::Run;

/// How long anything may take before it counts as failed.
pub const PATIENCE: Duration = Duration::from_secs(600);

/// What to run, and how much of it.
#[derive(Debug, Clone)]
pub struct Options {
    /// How often each contender runs.
    pub rounds: usize,
    /// How many receivers; none: those of the case.
    pub nodes: Vec<usize>,
    /// MiB of the blob; none: those of the case.
    pub sizes_mib: Vec<u64>,
    /// Which contenders; none: all that can run.
    pub contenders: Vec<String>,
    /// Which variants of the case (`plain`, `delay`, `killed`); none: all.
    pub variants: Vec<String>,
    /// Flags for every Shoal agent besides.
    pub agent_flags: Vec<String>,
    /// Whether Shoal lets in only whom it knows ([`trust`]), instead of everybody.
    pub trust: bool,
    /// Keeps the processes' directories and says where they are.
    pub keep_files: bool,
}

impl Options {
    /// The case's own where nothing is asked for.
    #[must_use]
    pub fn nodes_or(&self, default: &[usize]) -> Vec<usize> {
        if self.nodes.is_empty() { default.to_vec() } else { self.nodes.clone() }
    }

    /// The case's own where nothing is asked for.
    #[must_use]
    pub fn sizes_or(&self, default: &[u64]) -> Vec<u64> {
        if self.sizes_mib.is_empty() { default.to_vec() } else { self.sizes_mib.clone() }
    }

    /// How a seeder is started.
    #[must_use]
    pub fn seeder(&self) -> fleet::Start {
        fleet::Start { closed: self.trust, ..fleet::Start::default() }
    }

    /// Whether a contender takes part.
    #[must_use]
    pub fn wants(&self, contender: &str) -> bool {
        self.contenders.is_empty() || self.contenders.iter().any(|wanted| contender.replace(' ', "-") == *wanted)
    }

    /// Whether a variant is run.
    #[must_use]
    pub fn wants_variant(&self, variant: &str) -> bool {
        self.variants.is_empty() || self.variants.iter().any(|wanted| wanted == variant)
    }
}

/// Where runs go as they come, with a line about each.
#[derive(Debug, Default)]
pub struct Log {
    /// All runs so far.
    pub runs: Vec<Run>,
    /// What could not be run, and why.
    pub skipped: Vec<String>,
    /// Contenders that failed, and why.
    pub broken: Vec<String>,
}

impl Log {
    /// Notes a run, or why there is none: one contender's failure does not end the bench.
    pub fn take(&mut self, what: &str, run: Result<Run>) {
        match run {
            Ok(run) => {
                crate::report::note(&tables::line(&run));
                self.runs.push(run);
            }
            Err(error) => {
                let text = format!("{what}: {error:#}");
                crate::report::note(&format!("FAILED {text}"));
                self.broken.push(text);
            }
        }
    }

    /// Notes what cannot be run here.
    pub fn skip(&mut self, what: &str, why: &str) {
        let text = format!("{what}: {why}");
        crate::report::note(&format!("SKIPPED {text}"));
        self.skipped.push(text);
    }
}

/// The order of a round: every other one goes backwards, so that no contender always runs first.
#[must_use]
pub fn turns<T: Clone>(contenders: &[T], round: usize) -> Vec<T> {
    let mut order = contenders.to_vec();
    if round % 2 == 1 {
        order.reverse();
    }
    order
}

/// Removes a run's directory, or says where it stays.
fn kept(options: &Options, directory: room::Room) {
    if options.keep_files {
        crate::report::note(&format!("kept: {}", directory.keep().display()));
    }
}
