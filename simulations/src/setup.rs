//! From the command line to a rollout that can be simulated.

use std::{fs, io::Read as _, path::Path};

use anyhow::{Context as _, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use crate::{
    cli::{RatesChoice, What},
    scenario::{Region, Scenario, check, image, load::Source, spots::Spots},
};

/// A rollout: all that a run depends on besides the policy.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Setup {
    /// Short name, for folders and headings.
    pub(crate) name: String,
    /// The scenario with all settings in it.
    pub(crate) scenario: Scenario,
    /// A user's own nodes, as they stand in the file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) topology: Option<String>,
    pub(crate) seed: u64,
    pub(crate) rates: RatesChoice,
    pub(crate) epsilon: f64,
}

impl Setup {
    /// Reads what the command line names.
    pub(crate) fn read(what: &What) -> Result<Self> {
        Self::with(what, &[])
    }

    /// The same, with more settings put over it.
    pub(crate) fn with(what: &What, more: &[String]) -> Result<Self> {
        let epsilon = what.epsilon;
        ensure!((0.0..=0.5).contains(&epsilon), "--epsilon {epsilon}: within 0 and 0.5");
        let source = Source::find(&what.scenario)?;
        let topology = what.topology.as_deref().map(read).transpose()?;
        let sizes = match &what.image {
            Some(path) => {
                let (text, place) = (read(path)?, shown(path));
                Some(image::from_manifest(&text, &place)?)
            }
            None => None,
        };
        let mut settings = what.set.clone();
        settings.extend(what.nodes.map(|nodes| format!("nodes.count={nodes}")));
        settings.extend(more.iter().cloned());
        ensure!(
            topology.is_none() || !settings.iter().any(|setting| setting.starts_with("nodes.count=")),
            "--topology says how many nodes there are: leave --nodes out"
        );
        let scenario = source.read(&settings, |scenario| {
            if let Some(sizes) = sizes {
                scenario.image.layer_sizes = sizes;
            }
            match (&topology, &what.topology) {
                (Some(text), Some(path)) => take_topology(scenario, &Spots::from_csv(text, &shown(path), scenario)?),
                _ => Ok(()),
            }
        })?;
        Ok(Self { name: source.name, scenario, topology, seed: what.seed, rates: what.rates, epsilon })
    }

    /// What an earlier run wrote down.
    pub(crate) fn recorded(mut self) -> Result<Self> {
        if let Some(text) = &self.topology {
            let spots = Spots::from_csv(text, "the recorded topology", &self.scenario)?;
            take_topology(&mut self.scenario, &spots)?;
        }
        if let Err(wrong) = check::scenario(&self.scenario) {
            bail!("the recorded scenario: {}: {}", wrong.key, wrong.message);
        }
        Ok(self)
    }

    /// Where the nodes stand.
    pub(crate) fn spots(&self) -> Result<Spots> {
        match &self.topology {
            Some(text) => Spots::from_csv(text, "the topology", &self.scenario),
            None => Ok(Spots::of(&self.scenario)),
        }
    }
}

/// The regions of a table are those of the scenario, and its sites and links come before the scenario's own.
fn take_topology(scenario: &mut Scenario, spots: &Spots) -> Result<()> {
    scenario.nodes.count = u32::try_from(spots.nodes.len()).context("more than 2^32 nodes")?;
    let count = |region: usize| spots.nodes.iter().filter(|node| node.region as usize == region).count();
    let regions = spots.regions.iter().enumerate();
    scenario.regions =
        regions.map(|(at, name)| Region { name: name.clone(), share: count(at) as f64, zones: 1 }).collect();
    (scenario.sites, scenario.racks) = (None, None);
    scenario.kinds.clear();
    Ok(())
}

fn shown(path: &Path) -> String {
    if path == Path::new("-") { "standard input".to_owned() } else { path.display().to_string() }
}

fn read(path: &Path) -> Result<String> {
    let mut text = String::new();
    if path == Path::new("-") {
        std::io::stdin().read_to_string(&mut text).context("cannot read standard input")?;
    } else {
        text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    }
    Ok(text)
}
