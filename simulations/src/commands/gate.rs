//! `shoal-sim gate`: three small rollouts whose figures may not change unseen.

use std::{collections::BTreeMap, fmt::Write as _, fs, path::Path, process::ExitCode};

use anyhow::{Context as _, Result, anyhow};
use serde::{Deserialize, Serialize};

use super::Failure;
use crate::{
    cli::{self, RatesChoice},
    job::{self, Keep},
    out,
    plan::Policy,
    scenario::load::Source,
    setup::Setup,
};

/// What a figure may change by before somebody has to say that it should.
const TOLERANCE: f64 = 0.03;
/// Where the accepted figures stand.
const ACCEPTED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/gate.toml");
const SEED: u64 = 1;

/// Name, scenario and settings of each.
const ROLLOUTS: [(&str, &str, &[&str]); 3] = [
    ("equal-links", "lab", &["nodes.count=63", "image.size=64 MiB"]),
    ("data-centre", "dc-1k", &["nodes.count=120", "image.size=256 MiB", "image.layers=4"]),
    ("three-regions", "multi-region", &["nodes.count=150", "image.size=64 MiB", "image.layers=2", "wan.rate=1 Gb/s"]),
];

/// The figures of one rollout that are watched.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Figures {
    makespan_s: f64,
    origin_copies: f64,
    region_copies: f64,
}

impl Figures {
    const fn named(&self) -> [(&'static str, f64); 3] {
        [("makespan_s", self.makespan_s), ("origin_copies", self.origin_copies), ("region_copies", self.region_copies)]
    }
}

fn measure() -> Result<BTreeMap<String, Figures>> {
    let rounded = |value: f64| (value * 1e4).round() / 1e4;
    let measured = job::spread(ROLLOUTS.len(), job::cores(), |index| {
        let (name, scenario, settings) = ROLLOUTS[index];
        let settings: Vec<String> = settings.iter().map(|setting| (*setting).to_owned()).collect();
        let scenario = Source::find(scenario)?.read(&settings, |_| Ok(()))?;
        let name = name.to_owned();
        let rates = RatesChoice::Exact;
        let setup = Setup { name: name.clone(), scenario, topology: None, seed: SEED, rates, epsilon: cli::EPSILON };
        let summary = job::simulate(&setup, Policy::Shoal, Keep::default(), &mut ())?.summary;
        let makespan_s = summary.arrived.max.ok_or_else(|| anyhow!("{name} did not come to its end"))?;
        let figures = Figures {
            makespan_s: rounded(makespan_s),
            origin_copies: rounded(summary.origin.copies),
            region_copies: rounded(summary.cross_copies),
        };
        Ok((name, figures))
    });
    measured.into_iter().collect()
}

/// What changed by more than the tolerance, one line each.
fn changes(accepted: &BTreeMap<String, Figures>, now: &BTreeMap<String, Figures>) -> Vec<String> {
    let mut lines = Vec::new();
    for (name, figures) in now {
        let Some(old) = accepted.get(name) else {
            lines.push(format!("{name}: nothing accepted yet"));
            continue;
        };
        for ((figure, old), (_, new)) in old.named().into_iter().zip(figures.named()) {
            // A change from nothing counts from a hundredth of a copy on.
            if (new - old).abs() > TOLERANCE * old.max(0.01) {
                let by = 100.0 * (new / old.max(0.01) - 1.0);
                lines.push(format!("{name}: {figure} was {old}, is {new} ({by:+.1} %)"));
            }
        }
    }
    lines
}

/// Measures, and says what changed by more than 3 %.
pub(crate) fn check() -> Result<Vec<String>> {
    let text = fs::read_to_string(ACCEPTED).with_context(|| format!("cannot read {ACCEPTED}"))?;
    let accepted = toml::from_str(&text).with_context(|| format!("{ACCEPTED} is no list of figures"))?;
    Ok(changes(&accepted, &measure()?))
}

pub(super) fn gate(args: &cli::Gate) -> Result<ExitCode, Failure> {
    if args.accept {
        let mut text = "# Figures of three small rollouts (simulations/src/commands/gate.rs). A test fails when one of them\n\
                        # changes by more than 3 %. To accept a change on purpose: cargo run -p shoal-sim -- gate --accept\n"
            .to_owned();
        let _ = write!(text, "\n{}", toml::to_string(&measure()?).context("figures are TOML")?);
        fs::write(Path::new(ACCEPTED), &text).with_context(|| format!("cannot write {ACCEPTED}"))?;
        out::say(text.trim_end());
        return Ok(ExitCode::SUCCESS);
    }
    let changes = check()?;
    if changes.is_empty() {
        out::say("nothing has changed by more than 3 %");
        return Ok(ExitCode::SUCCESS);
    }
    Err(anyhow!("{}\n{}", changes.join("\n"), HOW).into())
}

/// How to accept a change.
pub(crate) const HOW: &str =
    "if that is meant: cargo run -p shoal-sim -- gate --accept, and commit simulations/gate.toml";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_figures_of_three_rollouts_are_those_accepted() {
        let changes = check().unwrap();
        assert!(changes.is_empty(), "{}\n{HOW}", changes.join("\n"));
    }

    #[test]
    fn a_change_of_more_than_three_percent_is_named_with_its_size() {
        let figures = |makespan_s, region_copies| {
            BTreeMap::from([("x".to_owned(), Figures { makespan_s, origin_copies: 1.0, region_copies })])
        };
        assert!(changes(&figures(10.0, 2.0), &figures(10.29, 1.95)).is_empty());
        let told = changes(&figures(10.0, 2.0), &figures(10.31, 1.9));
        assert_eq!(told.len(), 2);
        assert!(told[0].contains("makespan_s was 10, is 10.31 (+3.1 %)") && told[1].contains("(-5.0 %)"), "{told:?}");
    }
}
