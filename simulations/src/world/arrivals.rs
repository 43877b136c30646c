//! When nodes start: all at once, a few at a time, in stages, at random, or twice as many each time.

use super::{Event, World};
use crate::{
    num::{at, ceil, floor, nanos, small},
    rng::{Purpose, Stream},
    scenario::ArrivalKind,
};

/// Nodes that have not started, in the order in which they will.
#[derive(Debug, Default)]
pub(super) struct Arrivals {
    order: Vec<u32>,
    next: usize,
    /// Of stages: how many nodes have started when this stage is under way.
    goal: usize,
}

impl World {
    pub(super) fn begin_arrivals(&mut self) {
        let nodes = self.nodes();
        let arrival = self.plan.scenario.arrival.clone();
        let draw = |node: u32| Stream::new(self.plan.seed, u64::from(node), Purpose::Arrival);
        if arrival.kind == ArrivalKind::Burst {
            let times: Vec<u64> = (0..nodes).map(|node| floor(draw(node).unit() * arrival.over.0 as f64)).collect();
            return times.into_iter().zip(0..).for_each(|(time, node)| self.push(time, Event::Arrive(node)));
        }
        let mut order: Vec<(u64, u32)> = (0..nodes).map(|node| (draw(node).next(), node)).collect();
        order.sort_unstable();
        self.arrivals.order = order.into_iter().map(|(_, node)| node).collect();
        let mut stream = Stream::new(self.plan.seed, u64::MAX, Purpose::Arrival);
        match arrival.kind {
            ArrivalKind::Burst => {}
            ArrivalKind::Rolling => {
                let first = floor(ceil(f64::from(nodes) * arrival.unavailable.0) as f64).max(1);
                (0..first).for_each(|_| self.next_arrival(0));
            }
            ArrivalKind::Staged => self.next_stage(),
            ArrivalKind::Poisson => {
                let mut time = 0.0;
                for _ in 0..nodes {
                    time += stream.exponential() / arrival.rate;
                    self.next_arrival(nanos(time));
                }
            }
            ArrivalKind::Doubling => {
                let (mut wave, mut count, mut left) = (0, 1, nodes);
                while left > 0 {
                    (0..count.min(left)).for_each(|_| self.next_arrival(wave * arrival.every.0));
                    left -= count.min(left);
                    count = count.saturating_mul(2);
                    wave += 1;
                }
            }
        }
    }

    fn next_arrival(&mut self, time: u64) {
        if let Some(&node) = self.arrivals.order.get(self.arrivals.next) {
            self.arrivals.next += 1;
            self.push(time, Event::Arrive(node));
        }
    }

    fn next_stage(&mut self) {
        let arrival = &self.plan.scenario.arrival;
        let nodes = f64::from(self.nodes());
        let goals = arrival.stages.iter().map(|part| usize::try_from(ceil(nodes * part.0)).unwrap_or(usize::MAX));
        let Some(goal) = goals.clone().find(|goal| *goal > self.arrivals.goal) else { return };
        let (over, now) = (arrival.over.0, self.now);
        self.arrivals.goal = goal;
        let count = goal.saturating_sub(self.arrivals.next);
        for index in 0..count {
            self.next_arrival(now + over * index as u64 / count as u64);
        }
    }

    /// A node is ready: the next ones may start.
    pub(super) fn next_arrivals(&mut self) {
        match self.plan.scenario.arrival.kind {
            ArrivalKind::Rolling => self.next_arrival(self.now),
            ArrivalKind::Staged if at(self.meter.ready) >= self.arrivals.goal => self.next_stage(),
            ArrivalKind::Staged | ArrivalKind::Burst | ArrivalKind::Poisson | ArrivalKind::Doubling => {}
        }
    }

    /// Nodes that are still to start.
    pub(crate) fn to_arrive(&self) -> u32 {
        small(self.arrivals.order.len() - self.arrivals.next)
    }
}
