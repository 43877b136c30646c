//! Max-min fair rates by local relaxation: a link that has changed fills its capacity anew, and wakes those of its
//! neighbours whose own filling depends on it.

use super::{Link, Member, Network, fill::fill, flow::NONE};
use crate::num::at;

/// Relaxations for each change, at most: far more than ever needed, so that a fault of the arithmetic cannot hang a run.
const RELAXATIONS_MAX: u64 = 20_000;
/// What sums of rates may be off by: they are kept, not added up each time.
pub(super) const ROUNDING: f64 = 1e-9;

impl<T: Copy> Network<T> {
    pub(super) fn relax_all(&mut self) {
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
    }

    /// What a flow gets on its links other than `link`.
    #[inline]
    fn elsewhere(&self, member: &Member, link: u32) -> f64 {
        if member.other != NONE {
            return least(member.cap, self.levels[at(member.other)]);
        }
        let others = self.paths[at(member.flow)].links().iter().filter(|other| **other != link);
        others.fold(member.cap, |most, other| least(most, self.levels[at(*other)]))
    }

    /// The level at which a link's capacity is used up; its capacity where its flows do not. With exact rates, what the
    /// flows get elsewhere is left in `limits`, in their order.
    pub(super) fn filled(&mut self, link: u32) -> f64 {
        let entry = &self.links[at(link)];
        if !self.exact {
            return entry.capacity / entry.members.len().max(1) as f64;
        }
        let mut limits = core::mem::take(&mut self.limits);
        limits.clear();
        let (mut sum, mut lowest) = (0.0, f64::INFINITY);
        for member in &entry.members {
            let limit = self.elsewhere(member, link);
            sum += limit;
            lowest = least(lowest, limit);
            limits.push(limit);
        }
        let equal = entry.capacity / limits.len() as f64;
        let level = match sum <= entry.capacity {
            true => entry.capacity,
            false if lowest >= equal => equal,
            false => fill(entry.capacity, &limits),
        };
        self.limits = limits;
        level
    }

    /// Looks at a link after changes.
    fn relax(&mut self, link: u32) {
        let (old, entry) = (self.levels[at(link)], &self.links[at(link)]);
        let capacity = entry.capacity;
        // Of a link that is not full all flows are held back elsewhere.
        if self.exact && old >= capacity && entry.load <= capacity * (1.0 + ROUNDING) {
            self.levels[at(link)] = capacity;
            return;
        }
        let level = self.filled(link);
        if !moved(old, level, self.epsilon) {
            return;
        }
        self.levels[at(link)] = level;
        // Whom another link holds back below both levels gets what it got.
        let below = old.min(level);
        let members = core::mem::take(&mut self.links[at(link)].members);
        for (index, member) in members.iter().enumerate() {
            let limit = if self.exact { self.limits[index] } else { self.elsewhere(member, link) };
            if limit > below {
                self.give(member.flow, least(level, limit), link);
            }
        }
        self.links[at(link)].members = members;
    }

    /// Gives a flow the rate that its links' levels allow, `by` having moved.
    fn give(&mut self, id: u32, rate: f64, by: u32) {
        let (now, epsilon) = (self.now, self.epsilon);
        let flow = &mut self.flows[at(id)];
        if flow.warm {
            return self.assign(id, by);
        }
        let old = flow.rate;
        if !moved(old, rate, epsilon) {
            return;
        }
        flow.bring_up(now);
        flow.rate = rate;
        let timer = flow.timer;
        if rate > old {
            self.touch(timer);
        }
        if self.exact {
            self.tell(id, rate - old, by);
        }
    }

    /// The links of a flow whose rate has moved have another load; those other than `by` that are full, or too full now,
    /// have to be looked at.
    pub(super) fn tell(&mut self, id: u32, change: f64, by: u32) {
        let path = self.paths[at(id)];
        for &link in path.links() {
            let entry = &mut self.links[at(link)];
            entry.load += change;
            if entry.hot.is_some() {
                self.hear(link, id, change);
                continue;
            }
            if link == by || !self.exact {
                continue;
            }
            if self.is_strained(link) {
                self.mark(link);
            }
        }
    }

    /// Whether a link is full, or too full: whatever changes there has to be looked at.
    pub(super) fn is_strained(&self, link: u32) -> bool {
        let Link { capacity, load, .. } = self.links[at(link)];
        self.levels[at(link)] < capacity || load > capacity * (1.0 + ROUNDING)
    }
}

/// The lesser of two that are numbers.
pub(super) const fn least(a: f64, b: f64) -> f64 {
    if b < a { b } else { a }
}

/// Whether a rate moved by more than a fraction `epsilon` of the greater of both.
pub(super) fn moved(old: f64, new: f64, epsilon: f64) -> bool {
    (old - new).abs() > epsilon * if old > new { old } else { new }
}
