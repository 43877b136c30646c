//! `shoal-sim sweep`: many rollouts over the values of some keys, each with several seeds.

use std::{fmt::Write as _, path::Path, process::ExitCode};

use anyhow::{Result, anyhow, ensure};

use super::{Failure, input, show};
use crate::{
    cli, files,
    job::{self, Keep},
    out,
    plan::Policy,
    progress::Board,
    report,
    setup::Setup,
    summary::Summary,
};

/// Most runs of one sweep: a slip of the pen multiplies fast.
const RUNS_MAX: usize = 10_000;

/// One point of the sweep: settings and a policy, over all seeds.
#[derive(Debug)]
pub(crate) struct Point {
    pub(crate) settings: Vec<String>,
    pub(crate) policy: Policy,
    pub(crate) runs: Vec<Summary>,
}

/// Mean, least and most over the seeds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Band {
    pub(crate) mean: f64,
    pub(crate) least: f64,
    pub(crate) most: f64,
}

impl Point {
    /// A figure over the seeds; none if a run has none.
    pub(crate) fn band(&self, of: impl Fn(&Summary) -> Option<f64>) -> Option<Band> {
        let values: Vec<f64> = self.runs.iter().map(of).collect::<Option<_>>()?;
        let (least, most) = values.iter().fold((f64::INFINITY, 0.0f64), |(l, m), v| (l.min(*v), m.max(*v)));
        Some(Band { mean: values.iter().sum::<f64>() / values.len() as f64, least, most })
    }

    pub(crate) fn label(&self) -> String {
        let values: Vec<_> =
            self.settings.iter().filter_map(|setting| setting.split_once('=')).map(|(_, v)| v).collect();
        values.join(" ")
    }
}

/// A figure of a run, and what it is called.
pub(crate) type Figure = (&'static str, fn(&Summary) -> Option<f64>);

/// What a sweep shows.
pub(crate) const FIGURES: [Figure; 6] = [
    ("p50 s", |s| s.arrived.p50),
    ("p99 s", |s| s.arrived.p99),
    ("last s", |s| s.arrived.max),
    ("ready s", |s| s.ready.max),
    ("origin copies", |s| Some(s.origin.copies)),
    ("region copies", |s| Some(s.cross_copies)),
];

pub(super) fn sweep(args: &cli::Sweep) -> Result<ExitCode, Failure> {
    let grid = grid(&args.over).map_err(input)?;
    let seeds = args.seeds.max(1);
    let mut setups = Vec::new();
    for settings in &grid {
        setups.push(Setup::with(&args.what, settings).map_err(input)?);
    }
    let keys = || grid.iter().zip(&setups).flat_map(|entry| args.policy.iter().map(move |policy| (entry, *policy)));
    let jobs: Vec<_> = keys().flat_map(|(entry, policy)| (0..seeds).map(move |seed| (entry, policy, seed))).collect();
    if jobs.len() > RUNS_MAX {
        return Err(input(anyhow!("{} runs; at most {RUNS_MAX}", jobs.len())));
    }
    let board = Board::new(jobs.len())?;
    let summaries = job::spread(jobs.len(), args.threads.unwrap_or_else(job::cores), |index| {
        let ((settings, setup), policy, seed) = jobs[index];
        if board.stopped() {
            return Ok(None);
        }
        let setup = Setup { seed: setup.seed.wrapping_add(u64::from(seed)), ..setup.clone() };
        let mut eye = board.eye(settings.join(" "));
        job::simulate(&setup, policy, Keep::default(), &mut eye).map(|outcome| Some(outcome.summary))
    });
    board.finish();
    let mut summaries = summaries.into_iter().collect::<Result<Vec<_>>>().map_err(input)?.into_iter();
    let points: Vec<Point> = keys()
        .map(|((settings, _), policy)| {
            let runs = summaries.by_ref().take(seeds as usize).flatten().collect();
            Point { settings: settings.clone(), policy, runs }
        })
        .filter(|point| !point.runs.is_empty())
        .collect();
    let name = &setups[0].name;
    let default = Path::new(super::run::RESULTS).join(format!("{name}-sweep"));
    let folder = args.out.clone().unwrap_or(default);
    files::write(&folder, "sweep.csv", &csv(&points))?;
    files::write(&folder, "sweep.html", &report::sweep_page(name, &points))?;
    print(&points, seeds);
    out::say(format_args!("\n{}", folder.join("sweep.html").display()));
    Ok(if board.stopped() { ExitCode::from(super::INTERRUPTED) } else { ExitCode::SUCCESS })
}

/// All combinations of the values.
fn grid(over: &[String]) -> Result<Vec<Vec<String>>> {
    let mut grid = vec![Vec::new()];
    for axis in over {
        let (key, values) =
            axis.split_once('=').ok_or_else(|| anyhow!("--over {axis}: write it as key=value,value"))?;
        let key = if key == "nodes" { "nodes.count" } else { key };
        let values: Vec<&str> = values.split(',').map(str::trim).filter(|value| !value.is_empty()).collect();
        ensure!(!values.is_empty(), "--over {axis}: no values");
        grid = grid
            .iter()
            .flat_map(|point: &Vec<String>| {
                values.iter().map(|value| {
                    let mut next = point.clone();
                    next.push(format!("{key}={value}"));
                    next
                })
            })
            .collect();
        ensure!(grid.len() <= RUNS_MAX, "--over: more than {RUNS_MAX} points");
    }
    Ok(grid)
}

fn csv(points: &[Point]) -> String {
    let mut text = "settings,policy,seed,ended,p50_s,p99_s,last_s,ready_s,origin_copies,cross_copies,ratio_to_bound,\
                    ratio_to_rounds,wall_s,rss_mib,trace_hash\n"
        .to_owned();
    let cell = |value: Option<f64>| value.map_or_else(String::new, |value| format!("{value:.6}"));
    for point in points {
        for run in &point.runs {
            let figures: Vec<String> = FIGURES.iter().map(|(_, of)| cell(of(run))).collect();
            let _ = writeln!(
                text,
                "{},{},{},{},{},{},{},{:.3},{},{}",
                point.settings.join(" "),
                point.policy.name(),
                run.setup.seed,
                run.ended,
                figures.join(","),
                cell(run.ratio_to_bound),
                cell(run.ratio_to_rounds),
                run.cost.wall_s,
                run.cost.rss_mib,
                run.trace_hash
            );
        }
    }
    text
}

fn print(points: &[Point], seeds: u32) {
    let names: Vec<String> = FIGURES.iter().map(|(name, _)| format!("{name:>21}")).collect();
    let label = |point: &Point| format!("{} {}", point.settings.join(" "), point.policy.name());
    let width = points.iter().map(|point| label(point).chars().count()).max().unwrap_or(0);
    out::say(format_args!("mean (least–most) over {seeds} seeds\n{:<width$}{}", "", names.join("")));
    for point in points {
        let cells: Vec<String> = FIGURES
            .iter()
            .map(|(_, of)| {
                let band = point.band(of);
                let text = band.map_or_else(
                    || "—".to_owned(),
                    |band| match seeds {
                        1 => show::seconds(Some(band.mean)),
                        _ => format!(
                            "{} ({}–{})",
                            show::seconds(Some(band.mean)),
                            show::seconds(Some(band.least)),
                            show::seconds(Some(band.most))
                        ),
                    },
                );
                format!("{text:>21}")
            })
            .collect();
        out::say(format_args!("{:<width$}{}", label(point), cells.join("")));
    }
}
