//! The report's drawings.

use std::fmt::Write as _;

use super::svg::{Axis, Chart, Line, escape, number};
use crate::{
    commands::sweep::{Figure, Point},
    job::Outcome,
    num::{ratio, secs},
};

fn line(class: impl Into<String>, points: Vec<(f64, f64)>) -> Line {
    Line { class: class.into(), points, filled: false, steps: false }
}

/// How many nodes have all bytes, by policy, against the fluid bound.
pub(super) fn completion(outcomes: &[Outcome]) -> String {
    let mut lines = Vec::new();
    let mut ends = Vec::new();
    for outcome in outcomes {
        let mut moments: Vec<u64> =
            outcome.logs.iter().map(|log| log.arrived).filter(|moment| *moment != u64::MAX).collect();
        moments.sort_unstable();
        let nodes = outcome.logs.len() as f64;
        let points: Vec<(f64, f64)> =
            moments.iter().zip(1..).map(|(at, count)| (secs(*at), 100.0 * f64::from(count) / nodes)).collect();
        ends.extend(points.first().map(|p| p.0));
        ends.extend(points.last().map(|p| p.0));
        lines.push(Line { steps: true, ..line(outcome.summary.policy.name(), points) });
    }
    if let Some(main) = outcomes.last() {
        let nodes = main.logs.len() as f64;
        let bound = main.bound.iter().filter(|(_, count)| *count >= 1.0).map(|(t, count)| (*t, 100.0 * count / nodes));
        lines.push(line("bound", bound.collect()));
        let mut ready: Vec<u64> = main.logs.iter().map(|log| log.ready).filter(|at| *at != u64::MAX).collect();
        ready.sort_unstable();
        let ready: Vec<_> = ready.iter().zip(1..).map(|(t, n)| (secs(*t), 100.0 * f64::from(n) / nodes)).collect();
        ends.extend(ready.last().map(|p| p.0));
        lines.push(Line { steps: true, ..line("ready", ready) });
    }
    let x = Axis::over(ends.iter().copied(), true);
    let y = Axis { from: 0.0, to: 100.0, log: false };
    let title = "Part of the nodes that have all bytes, over time, by policy";
    Chart { title, x: (x, "seconds"), y: (y, "% of nodes"), lines, bands: Vec::new() }.draw()
}

/// What leaves the origin over time.
pub(super) fn origin(outcome: &Outcome) -> String {
    let until = outcome.summary.arrived.max.unwrap_or(outcome.summary.ended_s) * 1.02;
    let samples = || outcome.samples.iter().filter(|sample| secs(sample.time) <= until);
    let origin: Vec<_> = samples().map(|s| (secs(s.time), s.origin / 125e6)).collect();
    let cross: Vec<_> = samples().map(|s| (secs(s.time), s.cross / 125e6)).collect();
    let y = Axis::over(origin.iter().chain(&cross).map(|p| p.1), false);
    let mut lines = vec![Line { filled: true, ..line("origin", origin) }];
    if outcome.summary.regions.len() > 1 {
        lines.push(line("cross", cross));
    }
    let x = Axis::over(core::iter::once(until), false);
    let title = "Rate out of the origin, and between regions";
    Chart { title, x: (x, "seconds"), y: (y, "Gb/s"), lines, bands: Vec::new() }.draw()
}

/// Which part of all uploads the nodes that uploaded least have done.
pub(super) fn lorenz(outcome: &Outcome) -> String {
    let mut up: Vec<u64> = outcome.logs.iter().map(|log| log.up).collect();
    up.sort_unstable();
    let total: f64 = up.iter().map(|bytes| *bytes as f64).sum();
    let mut sum = 0.0;
    let mut points = vec![(0.0, 0.0)];
    for (bytes, count) in up.iter().zip(1..) {
        sum += *bytes as f64;
        points.push((100.0 * f64::from(count) / up.len() as f64, 100.0 * ratio(sum, total)));
    }
    let axis = Axis { from: 0.0, to: 100.0, log: false };
    let lines = vec![line("bound", vec![(0.0, 0.0), (100.0, 100.0)]), Line { filled: true, ..line("shoal", points) }];
    let title = "Lorenz curve of uploads: how evenly nodes gave";
    Chart { title, x: (axis, "% of nodes, least first"), y: (axis, "% of bytes sent"), lines, bands: Vec::new() }.draw()
}

/// Bytes from region to region, as a table whose cells are as dark as they are full.
pub(super) fn heat(outcome: &Outcome) -> String {
    let summary = &outcome.summary;
    let most = summary.matrix.iter().flatten().copied().max().unwrap_or(0);
    let mut html = "<table class=\"heat\"><caption>GiB from (rows) to (columns)</caption><tr><th></th>".to_owned();
    for region in &summary.regions {
        let _ = write!(html, "<th scope=\"col\">{}</th>", escape(region));
    }
    html += "</tr>\n";
    let names = summary.regions.iter().map(String::as_str).chain(["origin"]);
    for (name, row) in names.zip(&summary.matrix) {
        let _ = write!(html, "<tr><th scope=\"row\">{}</th>", escape(name));
        for &bytes in row {
            let part = ratio(bytes as f64, most as f64);
            // Square roots show the small beside the large.
            let shade = 100.0 * part.sqrt();
            let text = number(bytes as f64 / 1_073_741_824.0);
            let _ = write!(html, "<td style=\"--heat:{shade:.0}%\">{text}</td>");
        }
        html += "</tr>\n";
    }
    html + "</table>\n"
}

/// A figure over the points of a sweep, a line for each policy with the band of its seeds.
pub(super) fn sweep(figure: &Figure, points: &[Point]) -> Option<String> {
    let (name, of) = figure;
    let mut policies: Vec<_> = points.iter().map(|point| point.policy).collect();
    policies.dedup();
    policies.sort_unstable();
    policies.dedup();
    let (mut lines, mut bands, mut tops) = (Vec::new(), Vec::new(), Vec::new());
    let mut places = Vec::new();
    for policy in policies {
        let of_policy = points.iter().filter(|point| point.policy == policy);
        let (mut mean, mut band) = (Vec::new(), Vec::new());
        for (index, point) in of_policy.enumerate() {
            let Some(found) = point.band(of) else { continue };
            let x = place(point, index);
            places.push(x);
            mean.push((x, found.mean));
            band.push((x, found.least, found.most));
            tops.push(found.most);
        }
        lines.push(line(policy.name(), mean));
        bands.push((policy.name().to_owned(), band));
    }
    if tops.is_empty() || tops.iter().all(|top| *top == 0.0) {
        return None;
    }
    let (x, y) = (Axis::over(places.iter().copied(), true), Axis::over(tops.iter().copied(), false));
    let over = points.first().and_then(|point| point.settings.first()).and_then(|s| s.split_once('='));
    let label = over.map_or("point", |(key, _)| key);
    Some(Chart { title: name, x: (x, label), y: (y, name), lines, bands }.draw())
}

/// Where a point stands: at its first value if that is a number, else in its order.
fn place(point: &Point, index: usize) -> f64 {
    let value = point.settings.first().and_then(|setting| setting.split_once('=')).map(|(_, value)| value);
    let digits = |text: &str| text.chars().take_while(|c| c.is_ascii_digit() || *c == '.').collect::<String>();
    value.and_then(|value| digits(value).parse().ok()).unwrap_or(index as f64 + 1.0)
}
