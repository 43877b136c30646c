//! Does it tell the truth? From laws that hold exactly to theory that others have proved; what real agents do is for
//! `make validate`. The large sizes are behind `--ignored`.

mod laws;
mod schedules;

use crate::{
    job::{self, Keep, Outcome},
    plan::Policy,
    scenario::load::Source,
    setup::Setup,
    world::{Ended, Watcher},
};

/// A shipped scenario with settings over it.
fn setup(name: &str, settings: &[&str], seed: u64) -> Setup {
    let settings: Vec<String> = settings.iter().map(|setting| (*setting).to_owned()).collect();
    let scenario = Source::find(name).unwrap().read(&settings, |_| Ok(())).unwrap();
    let rates = crate::cli::RatesChoice::Exact;
    Setup { name: name.to_owned(), scenario, topology: None, seed, rates, epsilon: 1e-3 }
}

fn run(setup: &Setup, policy: Policy) -> Outcome {
    watched(setup, policy, &mut ())
}

fn watched(setup: &Setup, policy: Policy, watcher: &mut impl Watcher) -> Outcome {
    let outcome = job::simulate(setup, policy, Keep::default(), watcher).unwrap();
    assert_eq!(outcome.ended, Ended::Complete, "{} {} seed {}", setup.name, policy.name(), setup.seed);
    outcome
}
