//! Prometheus text, read into numbers.

use std::collections::BTreeMap;

use anyhow::{Context, Result};

use crate::http::Client;

/// The names that the tests rely on.
pub mod names {
    /// Seeder: payload bytes (blobs, pieces, manifests) written to sockets.
    pub const SEEDER_SENT: &str = "shoal_seeder_payload_bytes_total";
    /// Agent: verified payload bytes received, by where they came from.
    pub const AGENT_RECEIVED: &str = "shoal_agent_received_bytes_total";
    /// Agent: clients that read a blob now.
    pub const AGENT_READERS: &str = "shoal_agent_readers";
    /// Agent: large layers whose first byte a client waited for from before their first piece.
    pub const FIRST_BYTE_COUNT: &str = "shoal_agent_first_byte_stored_ratio_count";
    /// Of those: how much was stored when the first byte went out.
    pub const FIRST_BYTE_BUCKET: &str = "shoal_agent_first_byte_stored_ratio_bucket";
    /// Of [`FIRST_BYTE_BUCKET`]: at most a quarter.
    pub const A_QUARTER: &str = "le=\"0.25\"";
    /// Of [`AGENT_RECEIVED`]: from other agents.
    pub const FROM_PEERS: &str = "from=\"peer\"";
    /// Of [`AGENT_RECEIVED`]: from the seeder.
    pub const FROM_SEEDER: &str = "from=\"seeder\"";
}

/// One reading of a process's metrics: each sample under its name with its labels as they stand.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    samples: BTreeMap<String, f64>,
}

impl Metrics {
    /// Reads the page of the status server that `client` speaks to.
    ///
    /// # Errors
    /// There is no such page, or it cannot be read.
    pub async fn scrape(client: &Client) -> Result<Self> {
        Self::parse(&client.get("/metrics").await?.text())
    }

    /// Reads the text format.
    ///
    /// # Errors
    /// A sample has no number.
    pub fn parse(text: &str) -> Result<Self> {
        let mut samples = BTreeMap::new();
        for line in text.lines().filter(|line| !line.starts_with('#') && !line.trim().is_empty()) {
            let (name, value) = line.rsplit_once(' ').with_context(|| format!("no value in {line:?}"))?;
            samples.insert(name.to_owned(), value.parse().with_context(|| format!("no number in {line:?}"))?);
        }
        Ok(Self { samples })
    }

    /// The sum over all samples of a family whose labels hold every one of `labels` (`from="peer"`); 0 where there is
    /// none.
    #[must_use]
    pub fn sum(&self, family: &str, labels: &[&str]) -> f64 {
        let fits = |name: &str| {
            let (base, rest) = name.split_once('{').unwrap_or((name, ""));
            base == family && labels.iter().all(|label| rest.contains(label))
        };
        self.samples.iter().filter(|(name, _)| fits(name)).map(|(_, value)| value).sum()
    }

    /// [`Metrics::sum`] of a family that counts whole things.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "counters are whole and below 2^53")]
    pub fn count(&self, family: &str, labels: &[&str]) -> u64 {
        self.sum(family, labels) as u64
    }

    /// Of an agent: large layers that a client waited for from before their first piece, and how many of them were stored
    /// to more than a quarter when their first byte went out.
    #[must_use]
    pub fn waited_for_first_byte(&self) -> (u64, u64) {
        let all = self.count(names::FIRST_BYTE_COUNT, &[]);
        (all, all - self.count(names::FIRST_BYTE_BUCKET, &[names::A_QUARTER]).min(all))
    }

    /// The names of all families.
    pub fn families(&self) -> impl Iterator<Item = &str> {
        self.samples.keys().map(|name| name.split_once('{').map_or(name.as_str(), |(base, _)| base))
    }

    /// Whether the family is exported at all: a misspelt name would read as 0 for ever.
    #[must_use]
    pub fn has(&self, family: &str) -> bool {
        self.families().any(|name| name == family)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_summed_over_the_labels_that_are_not_asked_for() {
        let text = "# HELP a b\n# TYPE a counter\na_total{from=\"peer\",x=\"1\"} 3\na_total{from=\"seeder\",x=\"1\"} 4\nb 1e3\n# EOF\n";
        let metrics = Metrics::parse(text).unwrap();
        assert_eq!(metrics.count("a_total", &[]), 7);
        assert_eq!(metrics.count("a_total", &["from=\"peer\""]), 3);
        assert_eq!(metrics.count("b", &[]), 1000);
        assert_eq!(metrics.count("missing", &[]), 0);
        assert!(metrics.has("b") && !metrics.has("missing"));
    }
}
