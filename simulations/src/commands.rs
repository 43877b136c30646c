//! What each command does.

mod compare;
mod explain;
mod gate;
mod run;
mod show;
pub(crate) mod sweep;

use std::{path::Path, process::ExitCode};

use anyhow::Context as _;

use crate::{
    cli::{Command, Export},
    job::{self, Keep},
    out,
    plan::Policy,
    progress::Board,
    scenario::load::{SHIPPED, Source},
    setup::Setup,
    world::Ended,
};

pub(crate) use run::figures;

/// What the input was wrong in.
const BAD_INPUT: u8 = 64;
/// Ended by Ctrl-C.
const INTERRUPTED: u8 = 130;

/// Why a command failed, and the exit status that says so.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) error: anyhow::Error,
    pub(crate) code: ExitCode,
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self { error, code: ExitCode::FAILURE }
    }
}

/// An error of what the user wrote.
fn input(error: anyhow::Error) -> Failure {
    Failure { error, code: ExitCode::from(BAD_INPUT) }
}

/// Does what the command line says.
pub(crate) fn dispatch(command: Command) -> Result<ExitCode, Failure> {
    match command {
        Command::Run(args) => run::run(&args),
        Command::Sweep(args) => sweep::sweep(&args),
        Command::Compare(args) => compare::compare(&args),
        Command::Replay(args) => compare::replay(&args),
        Command::List => list(),
        Command::ExplainNode(args) => explain::explain(&args),
        Command::Export(args) => export(&args),
        Command::Gate(args) => gate::gate(&args),
        Command::Bench(args) => crate::bench::bench(&args),
    }
}

fn list() -> Result<ExitCode, Failure> {
    for (name, _) in SHIPPED {
        let scenario = Source::find(name)?.read(&[], |_| Ok(()))?;
        let nodes = scenario.nodes.count;
        out::say(format_args!("{name:<13} {nodes:>7} nodes  {}", scenario.about));
    }
    out::say("\nshoal-sim run NAME; the files are in simulations/scenarios: copy one, edit it, run the copy.");
    Ok(ExitCode::SUCCESS)
}

/// `start_ns,from,to,bytes`; the origin is node -1.
fn export(args: &Export) -> Result<ExitCode, Failure> {
    use std::fmt::Write as _;
    let setup = Setup::read(&args.what).map_err(input)?;
    let board = Board::new(1)?;
    let keep = Keep { transfers: true, ..Keep::default() };
    let outcome = job::simulate(&setup, Policy::Shoal, keep, &mut board.eye(setup.name.as_str())).map_err(input)?;
    board.finish();
    let mut text = "start_ns,from,to,bytes\n".to_owned();
    for transfer in &outcome.transfers {
        let from = if transfer.from == u32::MAX { "-1".to_owned() } else { transfer.from.to_string() };
        let _ = writeln!(text, "{},{from},{},{}", transfer.start, transfer.to, transfer.bytes);
    }
    let write = |path: &Path, text: String| {
        std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
    };
    match &args.out {
        Some(path) => write(path, text)?,
        None => out::say(text.trim_end()),
    }
    if let Some(path) = &args.links {
        let up = setup.scenario.origin.up.0 * setup.scenario.lan.payload.0;
        let mut text = format!("node,up,down\n-1,{up},{up}\n");
        for (node, spot) in outcome.spots.nodes.iter().enumerate() {
            let _ = writeln!(text, "{node},{},{}", spot.up, spot.down);
        }
        write(path, text)?;
    }
    Ok(exit_of(&outcome.ended))
}

/// What a run's end means for the exit status.
fn exit_of(ended: &Ended) -> ExitCode {
    match ended {
        Ended::Complete | Ended::Limit => ExitCode::SUCCESS,
        Ended::Interrupted => ExitCode::from(INTERRUPTED),
        Ended::Deadlock { .. } | Ended::Spinning { .. } | Ended::Stalled => ExitCode::FAILURE,
    }
}

/// What is to be said of a run that did not come to its end; nothing if it did.
fn complaint(setup: &Setup, policy: Policy, ended: &Ended, seconds: f64) -> Option<String> {
    let again = |node: u32| {
        let (name, seed, policy) = (&setup.name, setup.seed, policy.name());
        format!("shoal-sim explain-node {node} {name} --seed {seed} --policy {policy} --trace FILE")
    };
    let at = format!("seed {}, after {seconds:.3} simulated seconds", setup.seed);
    match ended {
        Ended::Complete => None,
        Ended::Deadlock { node, layer } => Some(format!(
            "the policy is deadlocked ({at}): node {node} could ask a peer for a piece of layer {layer}, but sleeps; see {}",
            again(*node)
        )),
        Ended::Spinning { node } => {
            Some(format!("the policy spins ({at}): node {node} wakes again and again; see {}", again(*node)))
        }
        Ended::Stalled => Some(format!("nothing moves any more ({at}), though nodes lack pieces")),
        Ended::Limit => Some(format!("not all were ready when run.limit was over ({at})")),
        Ended::Interrupted => Some(format!("interrupted ({at}): what is written tells of the time until then")),
    }
}
