//! What goes wrong: slow links, crashes, nodes that leave, an origin that is down, a region that is cut off.

use super::{Event, World};
use crate::{
    num::{at, floor},
    rng::{Purpose, Stream},
};

const ORIGIN_DOWN: u8 = 0;
const ORIGIN_UP: u8 = 1;
const CUT_OFF: u8 = 2;
const HEALED: u8 = 3;

impl World {
    fn dice(&self, node: u32) -> Stream {
        Stream::new(self.plan.seed, u64::from(node), Purpose::Fault)
    }

    pub(super) fn begin_slow_links(&mut self) {
        let (part, factor) = (self.plan.scenario.faults.slow.0, self.plan.scenario.faults.slow_factor);
        for node in 0..self.nodes() {
            if self.dice(node).happens(part) {
                for link in [2 * node, 2 * node + 1] {
                    let capacity = self.network.capacity(link);
                    self.network.set_capacity(link, capacity / factor);
                }
                self.meter.logs[at(node)].slow = true;
            }
        }
    }

    pub(super) fn begin_faults(&mut self) {
        let faults = self.plan.scenario.faults.clone();
        if let Some(from) = faults.origin_down_at {
            self.push(from.0, Event::Fault(ORIGIN_DOWN));
            self.push(from.0 + faults.origin_down_for.0, Event::Fault(ORIGIN_UP));
        }
        if faults.cut_off.is_some() {
            self.push(faults.cut_off_at.0, Event::Fault(CUT_OFF));
            self.push(faults.cut_off_at.0 + faults.cut_off_for.0, Event::Fault(HEALED));
        }
    }

    /// A node has come up for the first time: whether and when it crashes.
    pub(super) fn begin_crash(&mut self, node: u32) {
        let faults = &self.plan.scenario.faults;
        if self.lives[at(node)] > 1 {
            return;
        }
        let (part, within) = (faults.crash.0, faults.crash_within.0);
        let mut dice = self.dice(node);
        dice.next();
        if dice.happens(part) {
            let after = floor(dice.unit() * within as f64);
            self.push(self.now + after, Event::Crash(node));
        }
    }

    pub(super) fn fault(&mut self, which: u8) {
        match which {
            ORIGIN_DOWN | ORIGIN_UP => {
                let down = which == ORIGIN_DOWN;
                if self.plan.policy.swarms() {
                    self.set_origin_down(down);
                } else {
                    self.origin.down = down;
                    let rate = self.plan.scenario.origin.up.0 * self.plan.scenario.lan.payload.0;
                    self.network.set_capacity(self.topology.origin_up, if down { 0.0 } else { rate });
                }
            }
            _ => self.cut_off(which == CUT_OFF),
        }
    }

    fn cut_off(&mut self, off: bool) {
        let faults = &self.plan.scenario.faults;
        let name = faults.cut_off.as_deref().unwrap_or_default();
        let Some(region) = self.topology.spots.regions.iter().position(|region| region == name) else { return };
        let region = crate::num::small(region);
        let until = faults.cut_off_at.0 + faults.cut_off_for.0;
        self.cut = off.then_some((region, until));
        let rate = self.plan.scenario.wan.rate.0 * self.plan.scenario.lan.payload.0;
        for other in 0..crate::num::small(self.topology.spots.regions.len()) {
            for link in [self.topology.wan(region, other), self.topology.wan(other, region)].into_iter().flatten() {
                self.network.set_capacity(link, if off { 0.0 } else { rate });
            }
        }
    }

    /// Takes a node down; its peers notice as soon as word reaches them.
    fn take_down(&mut self, node: u32) -> bool {
        let Some(agent) = self.agents[at(node)].as_deref() else { return false };
        let slots: Vec<u32> = agent.peers.connected().map(|(slot, _)| slot).collect();
        self.meter.note_stats(node, agent.core.stats());
        self.drop_seeder_asks(node);
        slots.into_iter().for_each(|slot| self.unlink(node, slot));
        self.agents[at(node)] = None;
        self.lives[at(node)] += 1;
        true
    }

    pub(super) fn crash(&mut self, node: u32) {
        if self.take_down(node) {
            self.meter.logs[at(node)].crashes += 1;
            let back = self.now + self.plan.scenario.faults.restart.0;
            self.push(back, Event::Arrive(node));
        }
    }

    /// A node has all bytes: when it leaves, if nodes leave.
    pub(super) fn plan_leave(&mut self, node: u32) {
        if let Some(within) = self.plan.scenario.faults.leave_within {
            let mut dice = self.dice(node);
            dice.next();
            dice.next();
            let after = floor(dice.unit() * within.0 as f64);
            self.push(self.now + after, Event::Leave(node));
        }
    }

    pub(super) fn leave(&mut self, node: u32) {
        if self.take_down(node) {
            self.meter.logs[at(node)].left = true;
        }
    }
}
