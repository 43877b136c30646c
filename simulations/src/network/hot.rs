//! Links with many flows.
//!
//! Of a hot link's flows those *inside* are held back by the link itself: all have its level as their rate, so they end
//! in the order of `bytes left + virtual time at entry`, where virtual time is what one of them has moved so far. They
//! wait in a heap under that number, and nothing is touched when the level changes. The others, *outside*, are slower
//! because of another link or their own cap; only the sum of their rates matters here.
//!
//! When the level falls below the rate of one outside, or rises above what one inside can take elsewhere, or has moved
//! far since the neighbours last heard of it, all flows are sorted anew. That costs a look at each, and happens once in
//! many changes.

use std::{cmp::Ordering, collections::BinaryHeap};

use super::{
    Network, OVER, Reached,
    flow::{Flow, NONE},
    relax::{ROUNDING, least, moved},
};
use crate::num::{at, ceil, span};

/// A flow inside, and the virtual time of its end. One that has left does not have that time any more.
#[derive(Debug, Clone, Copy)]
struct Finish {
    end: f64,
    flow: u32,
}

impl PartialEq for Finish {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Finish {}

impl PartialOrd for Finish {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Finish {
    /// Reversed: the heap of the standard library gives the greatest first.
    fn cmp(&self, other: &Self) -> Ordering {
        other.end.total_cmp(&self.end).then_with(|| other.flow.cmp(&self.flow))
    }
}

/// What a hot link has besides.
#[derive(Debug, Default)]
pub(super) struct Hot {
    /// Bytes that a flow inside has moved since the link got hot, as of `since`.
    virtual_time: f64,
    since: u64,
    heap: BinaryHeap<Finish>,
    inside: u32,
    /// Sum of the rates of flows outside.
    pub(super) outside: f64,
    /// Started since the link was looked at.
    pub(super) fresh: Vec<u32>,
    /// At or above the fastest outside.
    low: f64,
    /// At or below what any inside can take elsewhere.
    high: f64,
    /// The level that the neighbours know.
    told: f64,
    /// When the first inside is over.
    pub(super) due: u64,
    /// Not sorted yet.
    unsorted: bool,
}

impl Hot {
    /// Virtual time at `now` while the level is `level`.
    pub(super) fn virtual_at(&self, now: u64, level: f64) -> f64 {
        let moves = self.inside > 0 && now > self.since;
        if moves { self.virtual_time + level * span(now - self.since) } else { self.virtual_time }
    }
}

impl<T: Copy> Network<T> {
    /// Makes a link hot; its flows stay outside until it is looked at, and others keep their time.
    pub(super) fn heat(&mut self, link: u32) {
        self.links[at(link)].hot = Some(Box::default());
        let mut outside = 0.0;
        for index in 0..self.links[at(link)].members.len() {
            let id = self.links[at(link)].members[index].flow;
            let timer = self.time_keeper(self.paths[at(id)].links());
            let flow = &mut self.flows[at(id)];
            outside += flow.rate;
            flow.warm = true;
            let old = core::mem::replace(&mut flow.timer, timer);
            self.links[at(old)].timed -= 1;
            self.links[at(timer)].timed += 1;
            self.touch(timer);
        }
        let since = self.now;
        *self.hot_mut(link) = Hot { outside, since, unsorted: true, due: u64::MAX, ..Hot::default() };
        self.mark(link);
    }

    fn hot_mut(&mut self, link: u32) -> &mut Hot {
        self.links[at(link)].hot.as_mut().expect("only asked of hot links")
    }

    fn advance(&mut self, link: u32) {
        let (now, level) = (self.now, self.levels[at(link)]);
        let hot = self.hot_mut(link);
        hot.virtual_time = hot.virtual_at(now, level);
        hot.since = now;
    }

    /// Gives a flow that crosses a hot link the rate that its links' levels allow, after a change of `by`.
    pub(super) fn assign(&mut self, id: u32, by: u32) {
        let Flow { cap, rate: old, bucket, .. } = self.flows[at(id)];
        let (mut rate, mut home) = (cap, NONE);
        for &link in self.paths[at(id)].links() {
            let (level, hot) = (self.levels[at(link)], self.links[at(link)].hot.is_some());
            if level < rate || (level <= rate && home == NONE && hot) {
                rate = level;
                home = if hot { link } else { NONE };
            }
        }
        if home != NONE {
            self.settle_in_bucket(id, home);
        } else if bucket != NONE {
            self.leave_bucket(id);
        }
        let now = self.now;
        let flow = &mut self.flows[at(id)];
        if !moved(old, rate, self.epsilon) && bucket == flow.bucket {
            return;
        }
        if flow.bucket == NONE {
            flow.bring_up(now);
            let timer = flow.timer;
            self.touch(timer);
        }
        self.flows[at(id)].rate = rate;
        self.tell(id, rate - old, by);
    }

    /// The flow is held back by hot link `home`. The neighbours' rate of it stays for the time being.
    fn settle_in_bucket(&mut self, id: u32, home: u32) {
        if self.flows[at(id)].bucket != home {
            self.leave_bucket(id);
            self.advance(home);
            let now = self.now;
            let hot = self.links[at(home)].hot.as_mut().expect("the home of a bucket is hot");
            let flow = &mut self.flows[at(id)];
            flow.bring_up(now);
            hot.outside -= flow.rate;
            hot.inside += 1;
            flow.left += hot.virtual_time;
            flow.bucket = home;
            hot.heap.push(Finish { end: flow.left, flow: id });
            self.mark(home);
        }
        let elsewhere = self.most(id, home);
        let hot = self.hot_mut(home);
        hot.high = hot.high.min(elsewhere);
    }

    /// Takes a flow out of its bucket, if it is in one; it is outside then, with the rate that the neighbours know.
    pub(super) fn leave_bucket(&mut self, id: u32) {
        let home = self.flows[at(id)].bucket;
        if home == NONE {
            return;
        }
        self.advance(home);
        let now = self.now;
        let hot = self.links[at(home)].hot.as_mut().expect("the home of a bucket is hot");
        let flow = &mut self.flows[at(id)];
        flow.left -= hot.virtual_time;
        flow.bucket = NONE;
        flow.since = now;
        hot.inside -= 1;
        hot.outside += flow.rate;
        hot.low = hot.low.max(flow.rate);
        self.mark(home);
    }

    /// A hot link hears that one of its flows, which is not inside, is faster by `change`. Whether it has to be looked at.
    pub(super) fn hear(&mut self, link: u32, id: u32, change: f64) {
        let Flow { rate, bucket, .. } = self.flows[at(id)];
        if bucket != link {
            let hot = self.hot_mut(link);
            hot.outside += change;
            hot.low = hot.low.max(rate);
            self.mark(link);
        }
    }

    /// Looks at a hot link after changes: a new level, and only if it must be, all flows anew.
    pub(super) fn relax_hot(&mut self, link: u32) {
        self.advance(link);
        let (capacity, count) = (self.links[at(link)].capacity, self.links[at(link)].members.len());
        let (exact, epsilon, drift) = (self.exact, self.epsilon, self.drift);
        let hot = self.hot_mut(link);
        let mut fresh = core::mem::take(&mut hot.fresh);
        let unsorted = core::mem::take(&mut hot.unsorted);
        if hot.inside == 0 {
            // What has cancelled out leaves no trace of rounding.
            hot.outside = hot.outside.max(0.0);
        }
        let level = if !exact {
            capacity / count.max(1) as f64
        } else if hot.inside > 0 {
            (capacity - hot.outside).max(0.0) / f64::from(hot.inside)
        } else {
            capacity
        };
        let full = !exact || hot.inside > 0;
        let fits = full || hot.outside <= capacity * (1.0 + ROUNDING);
        let slack = 1.0 + ROUNDING + epsilon;
        let sorted = fits && hot.low <= level * slack && (level <= hot.high * slack || hot.inside == 0);
        let known = hot.inside == 0 || !moved(hot.told, level, drift);
        let open = hot.outside;
        // On a link that is not full a newcomer is let in as long as it stays so.
        let room = full || fresh.iter().map(|id| self.most(*id, link)).sum::<f64>() + open <= capacity;
        if sorted && known && room && !unsorted {
            self.levels[at(link)] = level;
            fresh.iter().for_each(|flow| self.assign(*flow, link));
        } else {
            self.sort(link);
        }
        fresh.clear();
        let hot = self.hot_mut(link);
        if hot.fresh.is_empty() {
            hot.fresh = fresh;
        }
        self.time(link);
    }

    /// What a flow gets on its links other than `link`.
    fn most(&self, id: u32, link: u32) -> f64 {
        let others = self.paths[at(id)].links().iter().filter(|other| **other != link);
        others.fold(self.flows[at(id)].cap, |most, other| least(most, self.levels[at(*other)]))
    }

    /// Fills the link anew and sorts its flows into those inside and those outside.
    fn sort(&mut self, link: u32) {
        let level = self.filled(link);
        self.levels[at(link)] = level;
        let hot = self.hot_mut(link);
        (hot.low, hot.high, hot.told) = (0.0, f64::INFINITY, level);
        for index in 0..self.links[at(link)].members.len() {
            let flow = self.links[at(link)].members[index].flow;
            self.assign(flow, link);
        }
        let (mut low, mut outside) = (0.0f64, 0.0);
        for member in &self.links[at(link)].members {
            let flow = &self.flows[at(member.flow)];
            if flow.bucket != link {
                low = low.max(flow.rate);
                outside += flow.rate;
            }
        }
        let hot = self.hot_mut(link);
        (hot.low, hot.outside) = (low, outside);
        // Entries of flows that have left would pile up.
        if hot.heap.len() > 2 * hot.inside as usize + 64 {
            let heap = core::mem::take(&mut hot.heap);
            let live = heap.into_iter().filter(|entry| self.is_inside(link, entry)).collect();
            self.hot_mut(link).heap = live;
        }
    }

    fn is_inside(&self, link: u32, entry: &Finish) -> bool {
        let flow = &self.flows[at(entry.flow)];
        flow.bucket == link && flow.left.total_cmp(&entry.end).is_eq()
    }

    /// Works out when the first of the flows inside is over.
    fn time(&mut self, link: u32) {
        let (now, level) = (self.now, self.levels[at(link)]);
        let due = loop {
            let hot = self.links[at(link)].hot.as_ref().expect("only asked of hot links");
            let Some(first) = hot.heap.peek().copied() else { break u64::MAX };
            if !self.is_inside(link, &first) {
                self.hot_mut(link).heap.pop();
            } else if level > 0.0 {
                break now.saturating_add(ceil((first.end - hot.virtual_time).max(0.0) / level * 1e9));
            } else {
                break u64::MAX;
            }
        };
        self.hot_mut(link).due = due;
        self.touch(link);
    }

    /// The flows inside that are over, or about to be.
    pub(super) fn fire_hot(&mut self, link: u32, over: &mut Vec<(T, Reached)>) {
        if self.hot_mut(link).due > self.now {
            return;
        }
        self.advance(link);
        let level = self.levels[at(link)];
        loop {
            let hot = self.links[at(link)].hot.as_ref().expect("only asked of hot links");
            let Some(first) = hot.heap.peek().copied() else { break };
            let inside = self.is_inside(link, &first);
            // Virtual time is large after a while, and so is the rounding of it.
            let close = OVER.max(level * 1e-9).max(hot.virtual_time * 1e-14);
            if inside && first.end - hot.virtual_time > close {
                break;
            }
            self.hot_mut(link).heap.pop();
            if inside && self.flows[at(first.flow)].rest > 0.0 {
                let flow = &mut self.flows[at(first.flow)];
                flow.left += core::mem::take(&mut flow.rest);
                let end = flow.left;
                self.hot_mut(link).heap.push(Finish { end, flow: first.flow });
                over.push((self.owner(first.flow), Reached::Tail));
            } else if inside {
                over.push((self.owner(first.flow), Reached::End));
                self.leave_bucket(first.flow);
                self.remove(first.flow);
            }
        }
        self.mark(link);
    }
}
