//! Figures for the terminal.

use crate::{
    num::{at, floor, ratio},
    summary::Summary,
    world::Sample,
};

/// Heights of a sparkline's columns.
const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
/// Columns of it.
const COLUMNS: u32 = 60;

/// Seconds, or that it did not come.
pub(super) fn seconds(value: Option<f64>) -> String {
    value.map_or_else(
        || "—".to_owned(),
        |value| if value < 100.0 { format!("{value:.2}") } else { format!("{value:.0}") },
    )
}

/// Values of a curve over equal steps of time, as one line.
pub(super) fn sparkline(samples: &[Sample], value: impl Fn(&Sample) -> f64) -> String {
    let end = samples.last().map_or(0, |sample| sample.time);
    let most = samples.iter().map(&value).fold(0.0, f64::max);
    let mut line = String::new();
    for column in 0..COLUMNS {
        let (from, to) =
            (end * u64::from(column) / u64::from(COLUMNS), end * u64::from(column + 1) / u64::from(COLUMNS));
        let here = samples.iter().filter(|sample| (from..=to).contains(&sample.time)).map(&value);
        let before = samples.iter().take_while(|sample| sample.time <= to).last().map_or(0.0, &value);
        let height = floor(8.0 * ratio(here.fold(before, f64::max), most) - 1e-9).min(7);
        line.push(BARS[usize::try_from(height).unwrap_or(0)]);
    }
    line
}

/// A table of the runs, one line each.
pub(super) fn table(runs: &[&Summary]) -> Vec<String> {
    let mut lines = vec![format!(
        "{:<18} {:>9} {:>9} {:>9} {:>9} {:>8} {:>8} {:>8}",
        "", "p50 s", "p99 s", "last s", "ready s", "÷ bound", "origin", "regions"
    )];
    for run in runs {
        let ratio = run.ratio_to_bound.map_or_else(|| "—".to_owned(), |ratio| format!("{ratio:.2}"));
        lines.push(format!(
            "{:<18} {:>9} {:>9} {:>9} {:>9} {ratio:>8} {:>8} {:>8}",
            run.policy.name(),
            seconds(run.arrived.p50),
            seconds(run.arrived.p99),
            seconds(run.arrived.max),
            seconds(run.ready.max),
            copies(run.origin.copies),
            if run.regions.len() > 1 { copies(run.cross_copies) } else { "—".to_owned() },
        ));
    }
    lines
}

/// Copies of the image.
pub(super) fn copies(copies: f64) -> String {
    if copies < 10.0 { format!("{copies:.2}×") } else { format!("{copies:.0}×") }
}

/// The name of a region for people.
pub(super) fn region(summary: &Summary, region: u32) -> &str {
    summary.regions.get(at(region)).map_or("?", String::as_str)
}
