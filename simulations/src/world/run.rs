//! The clock: takes events until all nodes are ready, or until it is clear that they will not be.

use shoal_transfer::time::Time;

use super::{Event, World, agent::blob_id};
use crate::{num::at, scenario::ArrivalKind};

/// Events between two looks at the outside.
const LOOK_EVERY: u64 = 1 << 14;
/// First pause of the watchdog; later it looks after each twentieth of the time that has passed.
const WATCH_EVERY: u64 = 1_000_000_000;
/// A swarm in which nobody gains a piece for so long gains none any more: every pause of the policy and of the runtime is
/// shorter.
const NO_GAIN_MAX: u64 = 900_000_000_000;

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Ended {
    /// All nodes are ready.
    Complete,
    /// A node could ask a peer for a piece, but sleeps.
    Deadlock {
        /// The node and the layer.
        node: u32,
        layer: u32,
    },
    /// A node's timer goes off again and again without end.
    Spinning {
        /// The node.
        node: u32,
    },
    /// Nobody has gained anything for long, or nothing happens any more.
    Stalled,
    /// The time is over.
    Limit,
    /// From outside.
    Interrupted,
}

impl Ended {
    /// In a word, for files.
    pub(crate) const fn name(&self) -> &'static str {
        match self {
            Self::Complete => "complete",
            Self::Deadlock { .. } => "deadlock",
            Self::Spinning { .. } => "spinning",
            Self::Stalled => "stalled",
            Self::Limit => "limit",
            Self::Interrupted => "interrupted",
        }
    }
}

/// Looks at a run from outside.
pub(crate) trait Watcher {
    /// Called now and then; false ends the run.
    fn look(&mut self, world: &World) -> bool;
}

/// Nobody looks.
impl Watcher for () {
    fn look(&mut self, _: &World) -> bool {
        true
    }
}

impl World {
    /// Runs until the end.
    pub(crate) fn run(&mut self, watcher: &mut impl Watcher) -> Ended {
        let limit = self.plan.scenario.run.limit.0;
        self.push(0, Event::Sample);
        self.push(WATCH_EVERY, Event::Watch);
        self.network.settle(self.now);
        let ended = loop {
            // Of what happens at the same moment the network comes first.
            let due = self.network.due();
            let next = self.queue.pop_before(due);
            let time = next.map_or(due, |next| next.0);
            if time == u64::MAX {
                break Ended::Stalled;
            }
            if time > limit {
                self.now = limit;
                break Ended::Limit;
            }
            debug_assert!(time >= self.now, "time does not go back");
            self.now = time;
            self.events += 1;
            match next {
                None => self.flows_over(),
                Some((_, Event::Watch)) => {
                    if let Some(ended) = self.watch() {
                        break ended;
                    }
                    self.push(self.now + WATCH_EVERY.max(self.now / 20), Event::Watch);
                }
                Some((_, event)) => {
                    self.fold(time, event);
                    self.handle(event);
                }
            }
            self.network.settle(self.now);
            if self.meter.ready == self.nodes() {
                break Ended::Complete;
            }
            if let Some(node) = self.meter.spinning {
                break Ended::Spinning { node };
            }
            if self.events.is_multiple_of(LOOK_EVERY) && !watcher.look(self) {
                break Ended::Interrupted;
            }
        };
        let last = self.sampled();
        self.meter.samples.push(last);
        for node in 0..self.nodes() {
            if let Some(agent) = self.agents[at(node)].as_deref() {
                self.meter.note_stats(node, agent.core.stats());
            }
        }
        ended
    }

    /// Looks for nodes that sleep though they could go on, and for a swarm in which nothing moves.
    fn watch(&mut self) -> Option<Ended> {
        if !self.plan.policy.swarms() {
            return None;
        }
        let soon = self.now + WATCH_EVERY;
        let now = Time::from_nanos(self.now);
        for node in 0..self.nodes() {
            if self.meter.logs[at(node)].arrived != u64::MAX {
                continue;
            }
            for &layer in &self.plan.wanted {
                let complete = self.is_complete(node, layer);
                let Some(agent) = self.agents[at(node)].as_deref_mut() else { break };
                if !complete && agent.timer > soon && agent.core.is_deadlocked(blob_id(layer), now) {
                    return Some(Ended::Deadlock { node, layer });
                }
            }
        }
        let all_started = match self.plan.scenario.arrival.kind {
            ArrivalKind::Burst => self.now > self.plan.scenario.arrival.over.0,
            ArrivalKind::Rolling | ArrivalKind::Staged | ArrivalKind::Poisson | ArrivalKind::Doubling => {
                self.to_arrive() == 0
            }
        };
        let idle = self.now - self.meter.last_gain > NO_GAIN_MAX && self.network.live() == 0;
        (idle && all_started && self.meter.arrived < self.nodes()).then_some(Ended::Stalled)
    }
}
