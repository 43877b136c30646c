//! The simulator: what a rollout will take, before it runs.
//!
//! It drives the agent's own policy, `shoal-transfer`, over a fluid network: the same loop as the agent's, with numbers in
//! place of bytes, and no branch in the policy that knows of it. One clock of integer nanoseconds, one order of events,
//! one stream of chance for each seed, node and purpose: the same seed gives the same run on every machine.
//!
//! **What is left out.** Packets: a transfer has a rate, not a window. Chance in latencies. Hash and disk are one rate.
//! `docs/simulator.md` says where its answers have been checked against real agents, and where they extrapolate.
mod bench;
mod bounds;
mod cause;
mod cli;
mod commands;
mod files;
mod job;
mod ledger;
mod math;
mod network;
mod num;
mod out;
mod plan;
mod progress;
mod queue;
mod report;
mod rng;
mod scenario;
mod setup;
mod slab;
mod summary;
mod topology;
#[cfg(test)]
mod validation;
mod world;

use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    match commands::dispatch(cli::Cli::parse().command) {
        Ok(code) => code,
        Err(failure) => {
            out::warn(format_args!("{:#}", failure.error));
            failure.code
        }
    }
}
