//! The network: fluid flows over links, each flow as fast as max-min fairness lets it be.
//!
//! **Exact** rates come from local relaxation. Each link keeps a *level*: what a flow gets there that nothing else holds
//! back. A link whose flows or their other levels have changed fills its capacity anew and wakes the other links of
//! those flows whose rate moved by more than ε; where no rate moves any more, every flow has a link that is full and on
//! which none is faster, which is what max-min fair means. The work depends on the neighbourhood, not on the network.
//!
//! **Fast** rates take the least of capacity ÷ flows over a flow's links. What one flow leaves is given to none: right
//! where all links are equal, too slow elsewhere.
//!
//! **Hot** links (the origin, lines between regions) carry so many flows that none may be touched when another comes or
//! goes. There, flows that the link itself holds back progress in the link's *virtual time*, at the same rate each, and
//! wait in one heap; see [`hot`].
//!
//! The owner of the clock calls [`Network::settle`] after every change and takes the alarms; [`Network::fire`] says
//! which flows are over.

mod fill;
mod flow;
pub(crate) mod hot;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;

use fill::fill;
pub(crate) use flow::LINKS_MAX;
use flow::{Flow, NONE};
use hot::Hot;

use crate::num::{at, ceil, small};

/// Flows on a link from which on it is hot.
const HOT_FROM: usize = 64;
/// How far the level of a hot link may move before the other links of its flows hear of it. They lose at most this part
/// of the share that one hot flow has of them, which is small: many share the hot link.
const DRIFT: f64 = 0.1;
/// Relaxations for each change, at most: far more than ever needed, so that a fault of the arithmetic cannot hang a run.
const RELAXATIONS_MAX: u64 = 20_000;
/// Bytes that may be left of a flow that counts as over: less than a nanosecond's worth at any rate.
const OVER: f64 = 1e-3;

/// How rates are worked out.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Rates {
    /// Max-min fair up to a relative ε.
    Exact {
        /// How far a rate may be off.
        epsilon: f64,
    },
    /// The least of capacity ÷ flows.
    Fast,
}

/// A link.
#[derive(Debug)]
struct Link {
    capacity: f64,
    /// What a flow gets here that nothing else holds back; infinite where the link is not full.
    level: f64,
    /// Flows, and which of its links this is to the flow.
    flows: Vec<(u32, u8)>,
    /// Sum of the rates of its flows, kept where the link is not hot.
    load: f64,
    dirty: bool,
    /// Flows have come that no link has given a rate.
    fresh: bool,
    hot: Option<Box<Hot>>,
}

/// What a flow has come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reached {
    /// Only what was asked for in [`Network::tell_before_end`] is left.
    Tail,
    /// Its end; it is gone.
    End,
}

/// When something should be looked at again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Alarm {
    /// A flow may be over.
    Flow {
        /// Which.
        flow: u32,
        /// Its generation: a flow that is gone gives no alarm.
        generation: u32,
    },
    /// A flow of a hot link may be over.
    Link(u32),
}

/// All links and flows.
#[derive(Debug)]
pub(crate) struct Network<T> {
    rates: Rates,
    hot_from: usize,
    drift: f64,
    links: Vec<Link>,
    flows: Vec<Flow>,
    owners: Vec<Option<T>>,
    free: Vec<u32>,
    live: usize,
    now: u64,
    dirty: VecDeque<u32>,
    touched: Vec<u32>,
    scratch: Vec<f64>,
    alarms: Vec<(u64, Alarm)>,
    /// Links filled anew, in all.
    pub(crate) relaxations: u64,
    /// Times that [`RELAXATIONS_MAX`] was hit.
    pub(crate) unsettled: u64,
}

impl<T: Copy> Network<T> {
    /// A network without links.
    pub(crate) const fn new(rates: Rates) -> Self {
        Self {
            rates,
            hot_from: HOT_FROM,
            drift: DRIFT,
            links: Vec::new(),
            flows: Vec::new(),
            owners: Vec::new(),
            free: Vec::new(),
            live: 0,
            now: 0,
            dirty: VecDeque::new(),
            touched: Vec::new(),
            scratch: Vec::new(),
            alarms: Vec::new(),
            relaxations: 0,
            unsettled: 0,
        }
    }

    /// Adds a link of so many bytes a second.
    pub(crate) fn add_link(&mut self, capacity: f64) -> u32 {
        self.links.push(Link {
            capacity,
            level: f64::INFINITY,
            flows: Vec::new(),
            load: 0.0,
            dirty: false,
            fresh: false,
            hot: None,
        });
        small(self.links.len() - 1)
    }

    /// Changes a link's capacity; 0 lets nothing pass.
    pub(crate) fn set_capacity(&mut self, link: u32, capacity: f64) {
        self.links[at(link)].capacity = capacity;
        self.mark(link);
    }

    /// A link's capacity in bytes a second.
    pub(crate) fn capacity(&self, link: u32) -> f64 {
        self.links[at(link)].capacity
    }

    /// Flows on a link.
    pub(crate) fn count(&self, link: u32) -> usize {
        self.links[at(link)].flows.len()
    }

    /// Bytes a second that pass a link now.
    pub(crate) fn used(&self, link: u32) -> f64 {
        self.links[at(link)].flows.iter().map(|(flow, _)| self.rate(*flow)).sum()
    }

    /// Flows under way.
    pub(crate) const fn live(&self) -> usize {
        self.live
    }

    /// Starts a flow of `bytes` over `links`, never faster than `cap` bytes a second.
    ///
    /// # Panics
    /// Over more than [`LINKS_MAX`] links, or none.
    pub(crate) fn start(&mut self, now: u64, links: &[u32], bytes: f64, cap: f64, owner: T) -> u32 {
        assert!(!links.is_empty() && links.len() <= LINKS_MAX, "a flow passes 1 to {LINKS_MAX} links");
        self.now = now;
        let id = self.free.pop().unwrap_or_else(|| {
            self.flows.push(Flow::default());
            self.owners.push(None);
            small(self.flows.len() - 1)
        });
        self.flows[at(id)].begin(links, bytes, cap, now);
        self.owners[at(id)] = Some(owner);
        self.live += 1;
        for (index, &link) in links.iter().enumerate() {
            let entry = &mut self.links[at(link)];
            self.flows[at(id)].place[index] = small(entry.flows.len());
            entry.flows.push((id, u8::try_from(index).expect("few links")));
            entry.fresh = true;
            if let Some(hot) = &mut entry.hot {
                hot.fresh.push(id);
            } else if entry.flows.len() > self.hot_from {
                self.heat(link);
            }
            self.mark(link);
        }
        id
    }

    /// Has the owner of a flow that has just begun told when no more than `tail` bytes of it are left.
    pub(crate) fn tell_before_end(&mut self, flow: u32, tail: f64) {
        let flow = &mut self.flows[at(flow)];
        flow.rest = tail.min(flow.left);
        flow.left -= flow.rest;
    }

    /// Stops a flow; the bytes that were left of it.
    pub(crate) fn stop(&mut self, now: u64, flow: u32) -> f64 {
        self.now = now;
        self.bring_up(flow);
        self.leave_bucket(flow);
        let left = self.flows[at(flow)].left.max(0.0) + self.flows[at(flow)].rest;
        self.remove(flow);
        left
    }

    /// Takes a flow off its links. It is in no bucket.
    fn remove(&mut self, id: u32) {
        let flow = self.flows[at(id)];
        for index in 0..flow.len() {
            let link = flow.links[index];
            let place = at(flow.place[index]);
            let entry = &mut self.links[at(link)];
            entry.flows.swap_remove(place);
            entry.load = if entry.flows.is_empty() { 0.0 } else { entry.load - flow.rate };
            if let Some(&(moved, its)) = entry.flows.get(place) {
                self.flows[at(moved)].place[usize::from(its)] = small(place);
            }
            if let Some(hot) = &mut entry.hot {
                hot.outside -= flow.rate;
                hot.fresh.retain(|fresh| *fresh != id);
            }
            self.mark(link);
        }
        self.flows[at(id)].end();
        self.owners[at(id)] = None;
        self.free.push(id);
        self.live -= 1;
    }

    /// Bytes a second that a flow moves now.
    pub(crate) fn rate(&self, flow: u32) -> f64 {
        let flow = &self.flows[at(flow)];
        if flow.bucket == NONE { flow.rate } else { self.links[at(flow.bucket)].level }
    }

    /// Bytes that are left of a flow.
    pub(crate) fn left(&self, now: u64, flow: u32) -> f64 {
        let entry = &self.flows[at(flow)];
        if entry.bucket == NONE {
            return (entry.left - entry.rate * crate::num::secs(now - entry.since)).max(0.0) + entry.rest;
        }
        let link = &self.links[at(entry.bucket)];
        let hot = link.hot.as_ref().expect("buckets belong to hot links");
        (entry.left - hot.virtual_at(now, link.level)).max(0.0) + entry.rest
    }

    fn mark(&mut self, link: u32) {
        if !core::mem::replace(&mut self.links[at(link)].dirty, true) {
            self.dirty.push_back(link);
        }
    }

    /// Works out all rates after changes, and when to look again. To be called after every event.
    pub(crate) fn settle(&mut self, now: u64) -> &mut Vec<(u64, Alarm)> {
        self.now = now;
        let limit = RELAXATIONS_MAX + 4 * self.dirty.len() as u64;
        let mut count = 0;
        while let Some(link) = self.dirty.pop_front() {
            self.links[at(link)].dirty = false;
            if count == limit {
                self.unsettled += 1;
                continue;
            }
            count += 1;
            if self.links[at(link)].hot.is_some() {
                self.relax_hot(link);
            } else {
                self.relax(link);
            }
        }
        self.relaxations += count;
        self.schedule();
        &mut self.alarms
    }

    /// What the flow gets on its links other than `link`.
    fn elsewhere(&self, flow: u32, link: u32) -> f64 {
        let flow = &self.flows[at(flow)];
        let others = flow.links().iter().filter(|other| **other != link);
        others.fold(flow.cap, |least, other| least.min(self.links[at(*other)].level))
    }

    /// The level at which a link's capacity is used up.
    fn filled(&mut self, link: u32) -> f64 {
        let entry = &self.links[at(link)];
        if self.rates == Rates::Fast {
            return entry.capacity / entry.flows.len().max(1) as f64;
        }
        let mut scratch = core::mem::take(&mut self.scratch);
        scratch.clear();
        scratch.extend(entry.flows.iter().map(|(flow, _)| self.elsewhere(*flow, link)));
        let level = fill(entry.capacity, &mut scratch);
        self.scratch = scratch;
        level
    }

    /// Of a link that was not full and carries no more than it can: its flows are held back elsewhere, and only those
    /// that are new get a rate.
    fn relax_open(&mut self, link: u32) -> bool {
        let entry = &self.links[at(link)];
        let (open, fresh) = (entry.level.is_infinite() && self.rates != Rates::Fast, entry.fresh);
        if !open || entry.load > entry.capacity {
            return false;
        }
        if !fresh {
            return true;
        }
        let new = |(flow, _): &&(u32, u8)| self.flows[at(*flow)].rate <= 0.0;
        let more: f64 = entry.flows.iter().filter(new).map(|(flow, _)| self.elsewhere(*flow, link)).sum();
        if entry.load + more > entry.capacity {
            return false;
        }
        for index in 0..self.links[at(link)].flows.len() {
            let (flow, _) = self.links[at(link)].flows[index];
            if self.flows[at(flow)].rate <= 0.0 {
                self.assign(flow, link);
            }
        }
        self.links[at(link)].fresh = false;
        true
    }

    fn relax(&mut self, link: u32) {
        if self.relax_open(link) {
            return;
        }
        self.links[at(link)].fresh = false;
        let level = self.filled(link);
        let old = core::mem::replace(&mut self.links[at(link)].level, level);
        // Whom another link holds back well below both levels gets what it got.
        let below = old.min(level) * (1.0 - 3.0 * self.epsilon()).max(0.5);
        for index in 0..self.links[at(link)].flows.len() {
            let (id, _) = self.links[at(link)].flows[index];
            let flow = &self.flows[at(id)];
            if flow.bucket == NONE && flow.rate > 0.0 && flow.rate < below {
                continue;
            }
            self.assign(id, link);
        }
    }

    /// Gives a flow the rate that its links' levels allow; the links other than `by` are woken if it moved.
    fn assign(&mut self, id: u32, by: u32) {
        let flow = &self.flows[at(id)];
        let (mut rate, mut home) = (flow.cap, NONE);
        for &link in flow.links() {
            let entry = &self.links[at(link)];
            if entry.level < rate || (entry.level <= rate && home == NONE && entry.hot.is_some()) {
                rate = entry.level;
                home = if entry.hot.is_some() { link } else { NONE };
            }
        }
        let (old, bucket) = (flow.rate, flow.bucket);
        if rate.is_infinite() {
            // Nothing holds it back yet: a link of its that has not been looked at will.
            return;
        }
        if home != NONE {
            self.settle_in_bucket(id, home, rate);
        } else if bucket != NONE || moved(old, rate, self.epsilon()) {
            self.bring_up(id);
            self.leave_bucket(id);
            self.touch(id);
            let before = core::mem::replace(&mut self.flows[at(id)].rate, rate);
            self.change_outside(id, before, rate, by);
        } else {
            return;
        }
        if self.rates != Rates::Fast && moved(old, rate, self.epsilon()) {
            let flow = self.flows[at(id)];
            flow.links().iter().filter(|other| **other != by).for_each(|other| self.mark(*other));
        }
    }

    const fn epsilon(&self) -> f64 {
        match self.rates {
            Rates::Exact { epsilon } => epsilon,
            Rates::Fast => 0.0,
        }
    }

    /// Brings what is left of a flow up to now.
    fn bring_up(&mut self, id: u32) {
        let now = self.now;
        let flow = &mut self.flows[at(id)];
        if flow.bucket == NONE && flow.since != now {
            flow.left -= flow.rate * crate::num::secs(now - flow.since);
            flow.since = now;
        }
    }

    /// The tail is what is left of a flow now.
    fn enter_tail(&mut self, id: u32) {
        let flow = &mut self.flows[at(id)];
        flow.left += core::mem::take(&mut flow.rest);
    }

    fn touch(&mut self, id: u32) {
        let flow = &mut self.flows[at(id)];
        if !core::mem::replace(&mut flow.touched, true) {
            self.touched.push(id);
        }
    }

    /// Sets the alarms of all flows whose rate has moved. One that is set for an earlier moment stays: it will find the
    /// flow unfinished and be set anew.
    fn schedule(&mut self) {
        let touched = core::mem::take(&mut self.touched);
        for &id in &touched {
            let now = self.now;
            let flow = &mut self.flows[at(id)];
            flow.touched = false;
            if flow.bucket != NONE || flow.rate <= 0.0 || flow.links().is_empty() {
                continue;
            }
            let due = now.saturating_add(ceil(flow.left.max(0.0) / flow.rate * 1e9));
            if due < flow.due {
                flow.due = due;
                self.alarms.push((due, Alarm::Flow { flow: id, generation: flow.generation }));
            }
        }
        self.touched = touched;
        self.touched.clear();
    }

    /// An alarm has gone off: what has become of flows. Those that are over are taken off the network.
    pub(crate) fn fire(&mut self, now: u64, alarm: Alarm, over: &mut Vec<(T, Reached)>) {
        self.now = now;
        match alarm {
            Alarm::Flow { flow, generation } => {
                let entry = &mut self.flows[at(flow)];
                if entry.generation != generation || entry.due != now {
                    return;
                }
                entry.due = u64::MAX;
                if entry.bucket != NONE {
                    return;
                }
                self.bring_up(flow);
                let entry = &self.flows[at(flow)];
                if entry.left > OVER.max(entry.rate * 1e-9) {
                    self.touch(flow);
                    return;
                }
                let owner = self.owners[at(flow)].expect("a flow under way has an owner");
                if entry.rest > 0.0 {
                    self.enter_tail(flow);
                    self.touch(flow);
                    over.push((owner, Reached::Tail));
                } else {
                    self.remove(flow);
                    over.push((owner, Reached::End));
                }
            }
            Alarm::Link(link) => self.fire_hot(link, over),
        }
    }
}

/// Whether a rate moved by more than a fraction `epsilon` of the greater of both.
fn moved(old: f64, new: f64, epsilon: f64) -> bool {
    (old - new).abs() > epsilon * old.max(new)
}
