//! The figures that Shoal is held to, computed from the runs.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{
    record::{Run, contender},
    stats::Spread,
};

/// Bytes of a MiB.
const MIB: f64 = 1_048_576.0;

/// Which way is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Bound {
    /// The value must be no less than the bar.
    AtLeast,
    /// The value must be no more than the bar.
    AtMost,
    /// Told, not judged.
    Told,
}

/// A figure beside its bar.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Figure {
    /// Its name.
    pub key: String,
    /// The value with what surrounds it.
    pub value: Spread,
    /// Which way is better.
    pub bound: Bound,
    /// What it must reach.
    pub bar: f64,
    /// What would be better still.
    pub stretch: f64,
}

impl Figure {
    /// Whether the bar is reached; none where there is no bar.
    #[must_use]
    pub fn reached(&self) -> Option<bool> {
        match self.bound {
            Bound::AtLeast => Some(self.value.median >= self.bar),
            Bound::AtMost => Some(self.value.median <= self.bar),
            Bound::Told => None,
        }
    }
}

/// Key, bound, bar, stretch.
const BARS: [(&str, Bound, f64, f64); 19] = [
    ("plain_1x8_vs_libtorrent", Bound::AtLeast, 3.0, 4.0),
    ("tls_1x8_vs_libtorrent", Bound::AtLeast, 2.0, 2.5),
    ("plain_1x8_cpu_vs_libtorrent", Bound::AtMost, 0.33, 0.2),
    ("plain_1x8_cpu_s_per_gib", Bound::Told, 0.0, 0.0),
    ("plain_1x1_vs_nginx", Bound::AtLeast, 0.85, 1.0),
    ("local_vs_nginx", Bound::AtLeast, 0.85, 1.0),
    ("links16_makespan_over_t3", Bound::AtMost, 1.25, 1.12),
    ("links32_makespan_over_t3", Bound::AtMost, 1.25, 1.12),
    ("links32_origin_copies", Bound::AtMost, 1.15, 1.05),
    ("links32_killed_origin_copies", Bound::AtMost, 1.4, 1.2),
    ("links_failed", Bound::AtMost, 0.0, 0.0),
    ("regions_cross_copies_max", Bound::AtMost, 1.15, 1.05),
    ("edge_uplink_copies", Bound::AtMost, 1.10, 1.03),
    ("crowd200_origin_copies", Bound::AtMost, 2.0, 1.3),
    ("crowd200_failed", Bound::AtMost, 0.0, 0.0),
    ("rss_full_mib", Bound::AtMost, 100.0, 64.0),
    ("rss_idle_mib", Bound::AtMost, 40.0, 25.0),
    ("idle_bytes_per_s", Bound::AtMost, 4000.0, 1000.0),
    ("links8_delay_makespan_over_t3", Bound::Told, 0.0, 0.0),
];

/// All figures that these runs give.
#[must_use]
pub fn judge(runs: &[Run]) -> Vec<Figure> {
    let judged = BARS.iter().filter_map(|&(key, bound, bar, stretch)| {
        Some(Figure { key: key.to_owned(), value: value(key, runs)?, bound, bar, stretch })
    });
    judged.collect()
}

fn value(key: &str, runs: &[Run]) -> Option<Spread> {
    let speed = |run: &Run| Some(run.gib_per_s());
    let loopback = |what, ours, theirs, of: &dyn Fn(&Run) -> Option<f64>| {
        // Each size by itself; what counts is where we look worst.
        ratios(runs, ("loopback", what), ours, theirs, of)
    };
    match key {
        "plain_1x8_vs_libtorrent" => lowest(loopback("1x8", contender::PLAIN, contender::LIBTORRENT, &speed)),
        "tls_1x8_vs_libtorrent" => lowest(loopback("1x8", contender::TLS, contender::LIBTORRENT, &speed)),
        "plain_1x8_cpu_vs_libtorrent" => {
            highest(loopback("1x8", contender::PLAIN, contender::LIBTORRENT, &Run::cpu_s_per_gib))
        }
        "plain_1x8_cpu_s_per_gib" => highest(groups(runs, ("loopback", "1x8"), contender::PLAIN, &Run::cpu_s_per_gib)),
        "plain_1x1_vs_nginx" => lowest(loopback("1x1", contender::PLAIN, contender::NGINX, &speed)),
        "local_vs_nginx" => lowest(ratios(runs, ("local", "to a file"), contender::PLAIN, contender::NGINX, &speed)),
        "links16_makespan_over_t3" => links(runs, "16", &more("over_t3")),
        "links32_makespan_over_t3" => links(runs, "32", &more("over_t3")),
        "links8_delay_makespan_over_t3" => links(runs, "8 delay", &more("over_t3")),
        "links32_origin_copies" => links(runs, "32", &|run| run.origin_copies),
        "links32_killed_origin_copies" => links(runs, "32 killed", &|run| run.origin_copies),
        "links_failed" => failed(runs, "links"),
        "regions_cross_copies_max" => shoal(runs, "regions", &more("cross_copies_max")),
        "edge_uplink_copies" => shoal(runs, "edge", &more("uplink_copies")),
        "crowd200_origin_copies" => shoal(runs, "crowd", &|run| run.origin_copies.filter(|_| run.receivers >= 200)),
        "crowd200_failed" => shoal(runs, "crowd", &|run| Some(run.failed as f64).filter(|_| run.receivers >= 200)),
        "rss_full_mib" => rss_full(runs),
        "rss_idle_mib" => shoal(runs, "idle", &|run| run.rss_peak.map(|peak| peak as f64 / MIB)),
        "idle_bytes_per_s" => shoal(runs, "idle", &more("bytes_per_s")),
        _ => None,
    }
}

fn more(name: &'static str) -> impl Fn(&Run) -> Option<f64> {
    move |run| run.more.get(name).copied()
}

fn is_shoal(run: &Run) -> bool {
    run.contender.starts_with("shoal")
}

fn shoal(runs: &[Run], case: &str, of: &dyn Fn(&Run) -> Option<f64>) -> Option<Spread> {
    Spread::of(runs.iter().filter(|run| is_shoal(run) && run.case == case).filter_map(of))
}

fn links(runs: &[Run], variant: &str, of: &dyn Fn(&Run) -> Option<f64>) -> Option<Spread> {
    let fits = |run: &&Run| is_shoal(run) && run.case == "links" && run.variant == variant;
    Spread::of(runs.iter().filter(fits).filter_map(of))
}

/// All that failed, not the middle of it.
fn failed(runs: &[Run], case: &str) -> Option<Spread> {
    let counts: Vec<usize> =
        runs.iter().filter(|run| is_shoal(run) && run.case == case).map(|run| run.failed).collect();
    let runs = counts.len();
    let sum = counts.into_iter().sum::<usize>() as f64;
    (runs > 0).then_some(Spread { median: sum, low: sum, high: sum, runs })
}

/// The worst of all, not the middle: it is a limit.
fn rss_full(runs: &[Run]) -> Option<Spread> {
    let full = runs.iter().filter(|run| is_shoal(run) && matches!(run.case.as_str(), "loopback" | "links"));
    let mut spread = Spread::of(full.filter_map(|run| run.rss_peak).map(|peak| peak as f64 / MIB))?;
    spread.median = spread.high;
    Some(spread)
}

/// One spread a variant that begins with `what`.
fn groups(runs: &[Run], (case, what): (&str, &str), who: &str, of: &dyn Fn(&Run) -> Option<f64>) -> Vec<Spread> {
    let mut values: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    for run in runs.iter().filter(|run| run.case == case && run.contender == who && begins(&run.variant, what)) {
        values.entry(&run.variant).or_default().extend(of(run));
    }
    values.into_values().filter_map(Spread::of).collect()
}

/// The same of ratios between two contenders of one round.
fn ratios(
    runs: &[Run],
    (case, what): (&str, &str),
    ours: &str,
    theirs: &str,
    of: &dyn Fn(&Run) -> Option<f64>,
) -> Vec<Spread> {
    let mut values: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    for our in runs.iter().filter(|run| run.case == case && run.contender == ours && begins(&run.variant, what)) {
        let pair = |their: &&Run| {
            their.case == case
                && their.contender == theirs
                && (&their.variant, their.round) == (&our.variant, our.round)
        };
        if let (Some(our_value), Some(their_value)) = (of(our), runs.iter().find(pair).and_then(of)) {
            values.entry(&our.variant).or_default().push(our_value / their_value);
        }
    }
    values.into_values().filter_map(Spread::of).collect()
}

fn begins(variant: &str, what: &str) -> bool {
    variant == what || variant.strip_prefix(what).is_some_and(|rest| rest.starts_with(' '))
}

fn lowest(spreads: Vec<Spread>) -> Option<Spread> {
    spreads.into_iter().min_by(|a, b| a.median.total_cmp(&b.median))
}

fn highest(spreads: Vec<Spread>) -> Option<Spread> {
    spreads.into_iter().max_by(|a, b| a.median.total_cmp(&b.median))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(variant: &str, contender: &str, round: usize, seconds: f64) -> Run {
        let (case, variant, contender) = ("loopback".into(), variant.into(), contender.into());
        Run { case, variant, contender, round, receivers: 8, bytes: 1 << 30, seconds, ..Run::default() }
    }

    fn key(runs: &[Run], key: &str) -> Option<f64> {
        judge(runs).into_iter().find(|figure| figure.key == key).map(|figure| figure.value.median)
    }

    #[test]
    fn a_ratio_is_taken_within_rounds_and_the_worst_size_counts() {
        let runs = [
            run("1x8 256 MiB", contender::PLAIN, 0, 1.0),
            run("1x8 256 MiB", contender::LIBTORRENT, 0, 4.0),
            run("1x8 256 MiB", contender::PLAIN, 1, 2.0),
            run("1x8 256 MiB", contender::LIBTORRENT, 1, 8.0),
            run("1x8 1024 MiB", contender::PLAIN, 0, 1.0),
            run("1x8 1024 MiB", contender::LIBTORRENT, 0, 3.0),
            run("1x16 256 MiB", contender::PLAIN, 0, 1.0),
            run("1x16 256 MiB", contender::LIBTORRENT, 0, 1.0),
        ];
        assert_eq!(key(&runs, "plain_1x8_vs_libtorrent"), Some(3.0));
        assert_eq!(key(&runs[..4], "plain_1x8_vs_libtorrent"), Some(4.0));
        assert_eq!(key(&runs[..1], "plain_1x8_vs_libtorrent"), None);
        assert_eq!(key(&runs, "tls_1x8_vs_libtorrent"), None);
    }

    #[test]
    fn a_figure_beyond_its_bar_is_not_reached() {
        let mut one = run("32", contender::TLS, 0, 1.0);
        (one.case, one.origin_copies) = ("links".into(), Some(1.2));
        let figures = judge(&[one]);
        let figure = figures.iter().find(|figure| figure.key == "links32_origin_copies").unwrap();
        assert_eq!(figure.reached(), Some(false));
        assert!(figures.iter().any(|figure| figure.key == "links_failed" && figure.reached() == Some(true)));
    }
}
