//! What was measured, run by run, and the file that it ends in.

use std::{collections::BTreeMap, path::Path};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::figures::Figure;

/// Bytes of a GiB.
pub const GIB: f64 = (1_u64 << 30) as f64;

/// Names of the contenders.
pub mod contender {
    /// Shoal, peers in the clear.
    pub const PLAIN: &str = "shoal plain";
    /// Shoal, peers over TLS.
    pub const TLS: &str = "shoal tls";
    /// libtorrent.
    pub const LIBTORRENT: &str = "libtorrent";
    /// nginx and curl.
    pub const NGINX: &str = "nginx";
    /// docker-registry and curl.
    pub const REGISTRY: &str = "docker-registry";
}

/// One run of one contender.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Run {
    /// `loopback`, `links`, …
    pub case: String,
    /// Which of the case, such as `1x8 256 MiB`.
    pub variant: String,
    /// Who.
    pub contender: String,
    /// Contenders of one round ran one after the other: ratios are taken within rounds.
    pub round: usize,
    /// How many received.
    pub receivers: usize,
    /// Bytes that each received.
    pub bytes: u64,
    /// From the first request to the last byte of the last receiver that was not killed.
    pub seconds: f64,
    /// Receivers that got nothing, or not all, though nobody killed them.
    pub failed: usize,
    /// CPU seconds: who had the bytes, who received them.
    pub cpu_s: Option<(f64, f64)>,
    /// CPU seconds of the whole machine meanwhile, by anybody.
    pub machine_cpu_s: Option<f64>,
    /// Highest memory peak of a receiver, in bytes.
    pub rss_peak: Option<u64>,
    /// Payload bytes that the origin sent ÷ bytes of the image.
    pub origin_copies: Option<f64>,
    /// What only this case has.
    pub more: BTreeMap<String, f64>,
}

impl Run {
    /// Bytes delivered, in GiB.
    #[must_use]
    pub fn gib(&self) -> f64 {
        self.bytes as f64 * self.receivers as f64 / GIB
    }

    /// Aggregate speed, GiB/s.
    #[must_use]
    pub fn gib_per_s(&self) -> f64 {
        self.gib() / self.seconds
    }

    /// CPU seconds for each GiB delivered, both sides.
    #[must_use]
    pub fn cpu_s_per_gib(&self) -> Option<f64> {
        self.cpu_s.map(|(server, clients)| (server + clients) / self.gib())
    }

    /// Notes what only this case has.
    #[must_use]
    pub fn with(mut self, name: &str, value: f64) -> Self {
        self.more.insert(name.to_owned(), value);
        self
    }
}

/// All of it.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Report {
    /// CPU, cores, kernel.
    pub machine: String,
    /// How the bench was called.
    pub command: String,
    /// Everything that was run.
    pub cases: Vec<Run>,
    /// What came of it.
    pub figures: BTreeMap<String, f64>,
    /// The same with what surrounds it and what it must be.
    pub judged: Vec<Figure>,
    /// What could not be run here, and why.
    pub skipped: Vec<String>,
}

impl Report {
    /// An empty one for this machine.
    ///
    /// # Errors
    /// `/proc` cannot be read.
    pub fn new(command: String) -> Result<Self> {
        Ok(Self { machine: machine()?, command, ..Self::default() })
    }

    /// Takes over the runs of an earlier report whose cases were not run now.
    ///
    /// # Errors
    /// There is one, but it cannot be read.
    pub fn keep(&mut self, path: &Path) -> Result<()> {
        let Ok(bytes) = std::fs::read(path) else { return Ok(()) };
        let earlier: Self = serde_json::from_slice(&bytes).with_context(|| format!("read {}", path.display()))?;
        let now: std::collections::BTreeSet<_> = self.cases.iter().map(|run| run.case.clone()).collect();
        self.cases.extend(earlier.cases.into_iter().filter(|run| !now.contains(&run.case)));
        Ok(())
    }

    /// Writes it as JSON.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        if let Some(directory) = path.parent() {
            std::fs::create_dir_all(directory).with_context(|| format!("create {}", directory.display()))?;
        }
        std::fs::write(path, serde_json::to_vec_pretty(self)?).with_context(|| format!("write {}", path.display()))
    }
}

fn machine() -> Result<String> {
    let cpu = std::fs::read_to_string("/proc/cpuinfo").context("read /proc/cpuinfo")?;
    let model = cpu.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    let model = model.map_or("unknown CPU", |(_, model)| model.trim());
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").context("read the kernel's release")?;
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let memory = std::fs::read_to_string("/proc/meminfo").context("read /proc/meminfo")?;
    let memory = memory.lines().next().and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
    let memory = crate::report::human(memory.unwrap_or(0) * 1024);
    Ok(format!("{cores} × {model}, {memory}, Linux {}", kernel.trim()))
}
