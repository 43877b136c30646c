//! Runs and figures as people read them.

use std::{collections::BTreeMap, fmt::Write};

use super::{
    figures::{Bound, Figure},
    record::Run,
    stats::Spread,
};

/// One line about one run.
#[must_use]
pub fn line(run: &Run) -> String {
    let Run { case, variant, contender, round, seconds, failed, .. } = run;
    let mut text = format!("{case} {variant} {contender} #{round}: {seconds:.2} s, {:.3} GiB/s", run.gib_per_s());
    if let (Some(cpu), Some((server, clients))) = (run.cpu_s_per_gib(), run.cpu_s) {
        let of = |part: f64| part / run.gib();
        let _ = write!(text, ", CPU {cpu:.2} s/GiB ({:.2} + {:.2})", of(server), of(clients));
    }
    if let (Some(machine), Some((server, clients))) = (run.machine_cpu_s, run.cpu_s) {
        let _ = write!(text, ", others {:.0} %", 100.0 * (1.0 - (server + clients) / machine).max(0.0));
    }
    if let Some(peak) = run.rss_peak {
        let _ = write!(text, ", RSS {:.0} MiB", peak as f64 / 1_048_576.0);
    }
    if let Some(copies) = run.origin_copies {
        let _ = write!(text, ", origin copies {copies:.3}");
    }
    for (name, value) in &run.more {
        let _ = write!(text, ", {name} {value:.3}");
    }
    if *failed > 0 {
        let _ = write!(text, ", FAILED {failed}");
    }
    text
}

/// One column of a table: its head, decimals, and where it comes from.
type Column = (String, usize, Box<dyn Fn(&Run) -> Option<f64>>);

/// Tables of all runs in Markdown, one a case, medians with the whole range.
#[must_use]
pub fn cases(runs: &[Run]) -> String {
    let mut by_case: Vec<(&str, Vec<&Run>)> = Vec::new();
    for run in runs {
        match by_case.iter_mut().find(|(case, _)| *case == run.case) {
            Some((_, runs)) => runs.push(run),
            None => by_case.push((&run.case, vec![run])),
        }
    }
    by_case.into_iter().map(|(case, runs)| format!("### {case}\n\n{}\n", table(&runs))).collect()
}

fn table(runs: &[&Run]) -> String {
    let columns = columns(runs);
    let mut text = "| variant | contender |".to_owned();
    for (head, ..) in &columns {
        let _ = write!(text, " {head} |");
    }
    let _ = writeln!(text, "\n|{}", "---|".repeat(columns.len() + 2));
    let mut rows: Vec<((&str, &str), Vec<&Run>)> = Vec::new();
    for run in runs {
        let key = (run.variant.as_str(), run.contender.as_str());
        match rows.iter_mut().find(|(row, _)| *row == key) {
            Some((_, runs)) => runs.push(run),
            None => rows.push((key, vec![run])),
        }
    }
    for ((variant, contender), runs) in rows {
        let _ = write!(text, "| {variant} | {contender} |");
        for (_, decimals, of) in &columns {
            let spread = Spread::of(runs.iter().filter_map(|run| of(run)));
            let _ = write!(text, " {} |", spread.map_or_else(String::new, |spread| spread.text(*decimals)));
        }
        text.push('\n');
    }
    text
}

fn columns(runs: &[&Run]) -> Vec<Column> {
    let mut columns: Vec<Column> = vec![
        ("seconds".into(), 2, Box::new(|run| Some(run.seconds))),
        ("GiB/s".into(), 3, Box::new(|run| Some(run.gib_per_s()).filter(|_| run.bytes > 0))),
        ("CPU s/GiB".into(), 2, Box::new(Run::cpu_s_per_gib)),
        ("RSS MiB".into(), 0, Box::new(|run| run.rss_peak.map(|peak| peak as f64 / 1_048_576.0))),
        ("origin copies".into(), 3, Box::new(|run| run.origin_copies)),
    ];
    let names: BTreeMap<&String, ()> = runs.iter().flat_map(|run| run.more.keys()).map(|name| (name, ())).collect();
    for (name, ()) in names {
        let of = name.clone();
        columns.push((name.replace('_', " "), 2, Box::new(move |run| run.more.get(&of).copied())));
    }
    columns.push(("failed".into(), 0, Box::new(|run| Some(run.failed as f64))));
    columns.retain(|(_, _, of)| runs.iter().any(|run| of(run).is_some()));
    columns
}

/// The table of figures in Markdown.
#[must_use]
pub fn figures(figures: &[Figure]) -> String {
    let mut text = "| figure | value | bar | stretch | |\n|---|---|---|---|---|\n".to_owned();
    for figure in figures {
        let Figure { key, value, bound, bar, stretch } = figure;
        let sign = match bound {
            Bound::AtLeast => "≥",
            Bound::AtMost => "≤",
            Bound::Told => "",
        };
        let decimals = if value.median.abs() >= 100.0 { 0 } else { 3 };
        let (bar, stretch) = match bound {
            Bound::Told => (String::new(), String::new()),
            Bound::AtLeast | Bound::AtMost => (format!("{sign} {bar}"), format!("{stretch}")),
        };
        let word = match figure.reached() {
            Some(true) => "reached",
            Some(false) => "**missed**",
            None => "",
        };
        let _ = writeln!(text, "| `{key}` | {} | {bar} | {stretch} | {word} |", value.text(decimals));
    }
    text
}
