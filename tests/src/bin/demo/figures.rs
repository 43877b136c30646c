//! What was measured, what it must be, and how it is told.

use std::{path::Path, time::Duration};

use anyhow::{Context, Result};
use serde_json::json;
use shoal_tests::{
    cluster::{Cluster, Daemon},
    image::Image,
    metrics::names,
    pull,
    report::{human, line},
    wait,
};

/// Payload bytes that the seeder may send for one image, as a multiple of the image.
const ORIGIN_COPIES_MAX: f64 = 1.5;
/// The most memory that a process may ever hold, in bytes.
const RSS_MAX: u64 = 150 << 20;

/// One agent's pull.
pub(crate) struct AgentFigures {
    name: String,
    seconds: f64,
    first_byte_seconds: f64,
    from_peers: u64,
    from_seeder: u64,
    rss_peak: u64,
    /// Large layers whose first byte was waited for, and how many of them were stored to more than a quarter by then.
    waited: (u64, u64),
}

/// An agent counts a piece right after its readers see it.
const COUNT_LATE_MAX: Duration = Duration::from_secs(5);

impl AgentFigures {
    /// Reads an agent's counts once they hold all `needed` bytes, or else as they are in the end.
    pub(crate) async fn read(agent: &Daemon, report: &pull::Report, needed: u64) -> Result<Self> {
        let counted = async || {
            let metrics = agent.metrics().await?;
            let bytes =
                [names::FROM_PEERS, names::FROM_SEEDER].map(|from| metrics.count(names::AGENT_RECEIVED, &[from]));
            Ok((bytes.iter().sum::<u64>() >= needed).then_some(metrics))
        };
        let metrics = match wait::until("the agent's count", COUNT_LATE_MAX, counted).await {
            Ok(metrics) => metrics,
            Err(_) => agent.metrics().await?,
        };
        Ok(Self {
            name: agent.name().to_owned(),
            seconds: report.elapsed.as_secs_f64(),
            first_byte_seconds: report.first_bytes.iter().min().map_or(0.0, Duration::as_secs_f64),
            from_peers: metrics.count(names::AGENT_RECEIVED, &[names::FROM_PEERS]),
            from_seeder: metrics.count(names::AGENT_RECEIVED, &[names::FROM_SEEDER]),
            rss_peak: agent.rss_peak()?,
            waited: metrics.waited_for_first_byte(),
        })
    }
}

/// All that the demo tells.
pub(crate) struct Figures {
    image_bytes: u64,
    seeder_sent: u64,
    max_rss: u64,
    seeder_rss: u64,
    pub(crate) agents: Vec<AgentFigures>,
    pub(crate) docker: Option<String>,
    pub(crate) failures: Vec<String>,
}

/// Payload bytes that the seeder has written to sockets so far.
pub(crate) async fn sent_by(seeder: &Daemon) -> Result<u64> {
    let metrics = seeder.metrics().await?;
    anyhow::ensure!(metrics.has(names::SEEDER_SENT), "the seeder does not export {}", names::SEEDER_SENT);
    Ok(metrics.count(names::SEEDER_SENT, &[]))
}

/// Payload bytes that an agent must have received to have an image.
pub(crate) fn needed(image: &Image) -> u64 {
    image.blobs().map(|blob| blob.size).sum()
}

impl Figures {
    pub(crate) fn new(image_bytes: u64, seeder_sent: u64) -> Self {
        Self {
            image_bytes,
            seeder_sent,
            max_rss: 0,
            seeder_rss: 0,
            agents: Vec::new(),
            docker: None,
            failures: Vec::new(),
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "a ratio")]
    fn origin_copies(&self) -> f64 {
        self.seeder_sent as f64 / self.image_bytes as f64
    }

    /// The median and the longest of the agents' times, in seconds.
    fn times(&self) -> (f64, f64) {
        let mut seconds: Vec<f64> = self.agents.iter().map(|agent| agent.seconds).collect();
        seconds.sort_unstable_by(f64::total_cmp);
        let median = seconds.get(seconds.len() / 2).copied().unwrap_or(0.0);
        (median, seconds.last().copied().unwrap_or(0.0))
    }

    /// Holds the figures against what they must be.
    pub(crate) fn judge(&mut self, cluster: &Cluster, image: &Image) {
        self.max_rss = cluster.rss_peak();
        self.seeder_rss = cluster.seeder.rss_peak().unwrap_or(0);
        let mut wrong = Vec::new();
        if self.agents.len() > 1 && self.origin_copies() > ORIGIN_COPIES_MAX {
            wrong.push(format!("origin copies {:.2} > {ORIGIN_COPIES_MAX}", self.origin_copies()));
        }
        if self.max_rss > RSS_MAX {
            wrong.push(format!("peak memory {} > {}", human(self.max_rss), human(RSS_MAX)));
        }
        let (waited, late) =
            self.agents.iter().fold((0, 0), |all, agent| (all.0 + agent.waited.0, all.1 + agent.waited.1));
        if waited == 0 || late > 0 {
            wrong.push(format!(
                "of {waited} large layers {late} were stored to over 25 % when their first byte went out"
            ));
        }
        let needed = needed(image);
        for agent in &self.agents {
            // Every byte was checked at the client; this checks the agent's own count.
            if agent.from_peers + agent.from_seeder < needed {
                wrong.push(format!("{} counts fewer bytes than the image has", agent.name));
            }
        }
        self.failures.extend(wrong);
    }

    pub(crate) fn print(&self) {
        line("");
        line("agent        time   first byte   from peers  from seeder  peak memory");
        for agent in &self.agents {
            line(&format!(
                "{:<8} {:>6.2} s   {:>8.2} s {:>12} {:>12} {:>12}",
                agent.name,
                agent.seconds,
                agent.first_byte_seconds,
                human(agent.from_peers),
                human(agent.from_seeder),
                human(agent.rss_peak),
            ));
        }
        let (peers, seeder) = self
            .agents
            .iter()
            .fold((0, 0), |(peers, seeder), agent| (peers + agent.from_peers, seeder + agent.from_seeder));
        line(&format!("{:<8} {:>8}   {:>10} {:>12} {:>12}", "all", "", "", human(peers), human(seeder)));
        line(&format!(
            "the seeder sent {} for an image of {}: {:.2} origin copies; its peak memory: {}",
            human(self.seeder_sent),
            human(self.image_bytes),
            self.origin_copies(),
            human(self.seeder_rss),
        ));
        if let Some(docker) = &self.docker {
            line(&format!("docker: {docker}"));
        }
        line("");
    }

    /// The last line.
    pub(crate) fn verdict(&self) -> String {
        let (p50, max) = self.times();
        let (word, why) = match self.failures.as_slice() {
            [] => ("PASS", String::new()),
            failures => ("FAIL", format!(" ({})", failures.join("; "))),
        };
        format!(
            "demo: {word} agents={} image_bytes={} origin_copies={:.3} p50_s={p50:.2} max_s={max:.2} max_rss_bytes={}{why}",
            self.agents.len(),
            self.image_bytes,
            self.origin_copies(),
            self.max_rss,
        )
    }

    /// Writes the same as JSON.
    pub(crate) fn write(&self, path: &Path) -> Result<()> {
        let (p50, max) = self.times();
        let agents = self.agents.iter().map(|agent| {
            json!({
                "name": agent.name,
                "seconds": agent.seconds,
                "first_byte_s": agent.first_byte_seconds,
                "from_peers_bytes": agent.from_peers,
                "from_seeder_bytes": agent.from_seeder,
                "rss_bytes": agent.rss_peak,
            })
        });
        let report = json!({
            "result": if self.failures.is_empty() { "PASS" } else { "FAIL" },
            "failures": self.failures,
            "agents": self.agents.len(),
            "image_bytes": self.image_bytes,
            "origin_copies": self.origin_copies(),
            "p50_s": p50,
            "max_s": max,
            "max_rss_bytes": self.max_rss,
            "seeder_sent_bytes": self.seeder_sent,
            "docker": self.docker,
            "each": agents.collect::<Vec<_>>(),
        });
        std::fs::write(path, serde_json::to_vec_pretty(&report)?).with_context(|| format!("write {}", path.display()))
    }
}
