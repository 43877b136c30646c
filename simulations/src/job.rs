//! One run, from a setup to what came of it.

use std::{
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};

use anyhow::Result;

use crate::{
    bounds::Fluid,
    plan::{Plan, Policy},
    scenario::spots::Spots,
    setup::Setup,
    summary::Summary,
    world::{Ended, Log, Sample, Transfer, Watcher, World},
};

/// What is kept besides the figures.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Keep {
    /// All that this node is told and does.
    pub(crate) trace: Option<u32>,
    /// Every transfer.
    pub(crate) transfers: bool,
}

/// What came of a run.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) summary: Summary,
    pub(crate) ended: Ended,
    pub(crate) logs: Vec<Log>,
    pub(crate) samples: Vec<Sample>,
    pub(crate) spots: Spots,
    /// How many nodes could have all at a moment.
    pub(crate) bound: Vec<(f64, f64)>,
    pub(crate) trace: Vec<String>,
    pub(crate) transfers: Vec<Transfer>,
}

/// Runs it.
pub(crate) fn simulate(setup: &Setup, policy: Policy, keep: Keep, watcher: &mut impl Watcher) -> Result<Outcome> {
    let plan = Plan::new(&setup.scenario, setup.seed, policy, setup.rates.with(setup.epsilon))?;
    let mut world = World::new(plan, setup.spots()?);
    if let Some(node) = keep.trace {
        world.trace(node);
    }
    if keep.transfers {
        world.transfers = Some(Vec::new());
    }
    let start = Instant::now();
    let ended = world.run(watcher);
    let summary = Summary::of(setup, &world, &ended, start.elapsed().as_secs_f64());
    let until = summary.arrived.max.unwrap_or(summary.ended_s);
    let bound = Fluid::of(&world.plan, &world.topology.spots).curve(&world.topology.spots, &world.meter.logs, until);
    let trace = world.traced().map(|tracer| tracer.lines.iter().cloned().collect()).unwrap_or_default();
    Ok(Outcome {
        summary,
        ended,
        logs: world.meter.logs,
        samples: world.meter.samples,
        spots: world.topology.spots,
        bound,
        trace,
        transfers: world.transfers.unwrap_or_default(),
    })
}

/// Does `count` jobs on at most `threads` threads; the results in order.
pub(crate) fn spread<T: Send>(count: usize, threads: usize, job: impl Fn(usize) -> T + Sync) -> Vec<T> {
    let next = AtomicUsize::new(0);
    let results: Vec<Mutex<Option<T>>> = (0..count).map(|_| Mutex::new(None)).collect();
    std::thread::scope(|scope| {
        for _ in 0..threads.clamp(1, count.max(1)) {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let Some(place) = results.get(index) else { break };
                    let result = job(index);
                    *place.lock().expect("a job that panics ends the process") = Some(result);
                }
            });
        }
    });
    let taken = results.into_iter().map(|place| place.into_inner().expect("all threads have ended"));
    taken.map(|result| result.expect("every job was done")).collect()
}

/// Threads that the machine has.
pub(crate) fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, Into::into)
}
