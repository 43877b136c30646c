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

use super::{Alarm, Network, OVER, Rates, Reached, flow::NONE, moved};
use crate::num::{at, ceil, secs};

#[derive(Debug, Clone, Copy)]
struct Finish {
    end: f64,
    flow: u32,
    generation: u32,
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
        other.end.total_cmp(&self.end).then_with(|| (other.flow, other.generation).cmp(&(self.flow, self.generation)))
    }
}

/// What a hot link has besides.
#[derive(Debug, Default)]
pub(crate) struct Hot {
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
    due: u64,
    /// Not sorted yet.
    unsorted: bool,
}

impl Hot {
    /// Virtual time at `now` while the level is `level`.
    pub(super) fn virtual_at(&self, now: u64, level: f64) -> f64 {
        let moves = self.inside > 0 && now > self.since;
        if moves { self.virtual_time + level * secs(now - self.since) } else { self.virtual_time }
    }
}

impl<T: Copy> Network<T> {
    /// Makes a link hot; its flows stay outside until it is looked at.
    pub(super) fn heat(&mut self, link: u32) {
        let outside = self.links[at(link)].flows.iter().map(|(flow, _)| self.flows[at(*flow)].rate).sum();
        let hot = Hot { outside, since: self.now, unsorted: true, due: u64::MAX, ..Hot::default() };
        self.links[at(link)].hot = Some(Box::new(hot));
    }

    fn hot_mut(&mut self, link: u32) -> &mut Hot {
        self.links[at(link)].hot.as_mut().expect("only asked of hot links")
    }

    fn advance(&mut self, link: u32) {
        let now = self.now;
        let level = self.links[at(link)].level;
        let hot = self.hot_mut(link);
        hot.virtual_time = hot.virtual_at(now, level);
        hot.since = now;
    }

    /// The flow is held back by hot link `home`, at `rate`.
    pub(super) fn settle_in_bucket(&mut self, id: u32, home: u32, rate: f64) {
        let elsewhere = self.elsewhere(id, home);
        if self.flows[at(id)].bucket != home {
            self.bring_up(id);
            self.leave_bucket(id);
            self.advance(home);
            let before = self.flows[at(id)].rate;
            let hot = self.links[at(home)].hot.as_mut().expect("the home of a bucket is hot");
            let flow = &mut self.flows[at(id)];
            hot.outside -= before;
            hot.inside += 1;
            flow.left += hot.virtual_time;
            flow.bucket = home;
            flow.due = u64::MAX;
            hot.heap.push(Finish { end: flow.left, flow: id, generation: flow.generation });
            self.mark(home);
        }
        let hot = self.hot_mut(home);
        hot.high = hot.high.min(elsewhere);
        let before = self.flows[at(id)].rate;
        if moved(before, rate, self.epsilon()) {
            self.flows[at(id)].rate = rate;
            self.change_outside(id, before, rate, home);
        }
    }

    /// Tells the hot links that a flow crosses, other than `by` and its home, that its rate has changed.
    pub(super) fn change_outside(&mut self, id: u32, before: f64, rate: f64, by: u32) {
        let flow = self.flows[at(id)];
        for &link in flow.links() {
            if link == flow.bucket {
                continue;
            }
            if let Some(hot) = &mut self.links[at(link)].hot {
                hot.outside += rate - before;
                hot.low = hot.low.max(rate);
                if link != by || flow.bucket == NONE {
                    self.mark(link);
                }
            } else {
                self.links[at(link)].load += rate - before;
            }
        }
    }

    /// Takes a flow out of its bucket; it is outside then, with the rate that it had.
    pub(super) fn leave_bucket(&mut self, id: u32) {
        let home = self.flows[at(id)].bucket;
        if home == NONE {
            return;
        }
        self.advance(home);
        let level = self.links[at(home)].level;
        let now = self.now;
        let hot = self.links[at(home)].hot.as_mut().expect("the home of a bucket is hot");
        let flow = &mut self.flows[at(id)];
        flow.left -= hot.virtual_time;
        flow.bucket = NONE;
        flow.since = now;
        // While its link is being sorted the level may already be that of a link that is not full.
        let level = if level.is_finite() { level } else { flow.rate };
        let before = core::mem::replace(&mut flow.rate, level);
        hot.inside -= 1;
        hot.outside += level;
        hot.low = hot.low.max(level);
        self.mark(home);
        self.change_outside_but(id, before, level, home);
        self.touch(id);
    }

    fn change_outside_but(&mut self, id: u32, before: f64, rate: f64, home: u32) {
        let flow = self.flows[at(id)];
        for &link in flow.links().iter().filter(|link| **link != home) {
            match &mut self.links[at(link)].hot {
                Some(hot) => hot.outside += rate - before,
                None => self.links[at(link)].load += rate - before,
            }
        }
    }

    /// Looks at a hot link after changes: a new level, and only if it must be, all flows anew.
    pub(super) fn relax_hot(&mut self, link: u32) {
        self.advance(link);
        let (capacity, count) = (self.links[at(link)].capacity, self.links[at(link)].flows.len());
        let (fast, epsilon, drift) = (self.rates == Rates::Fast, self.epsilon(), self.drift);
        let hot = self.hot_mut(link);
        let fresh = core::mem::take(&mut hot.fresh);
        let unsorted = core::mem::take(&mut hot.unsorted);
        if hot.inside == 0 {
            // What has cancelled out leaves no trace of rounding.
            hot.outside = hot.outside.max(0.0);
        }
        let level = if fast {
            capacity / count.max(1) as f64
        } else if hot.inside > 0 {
            (capacity - hot.outside).max(0.0) / f64::from(hot.inside)
        } else {
            f64::INFINITY
        };
        let fits = fast || hot.inside > 0 || hot.outside <= capacity * (1.0 + 1e-9);
        let slack = 1.0 + 1e-9 + epsilon;
        let sorted = fits && hot.low <= level * slack && (level <= hot.high * slack || hot.inside == 0);
        let known = hot.inside == 0 || !moved(hot.told, level, drift);
        let open = hot.outside;
        let takes = |flow: &u32| self.elsewhere(*flow, link);
        // On a link that is not full a newcomer is let in as long as it stays so.
        let room = level.is_finite() || fresh.iter().map(takes).sum::<f64>() + open <= capacity;
        if sorted && known && room && !unsorted {
            self.links[at(link)].level = level;
            fresh.iter().for_each(|flow| self.assign(*flow, link));
        } else {
            self.sort(link);
        }
        let mut spare = fresh;
        spare.clear();
        let hot = self.hot_mut(link);
        if hot.fresh.is_empty() {
            hot.fresh = spare;
        }
        self.schedule_hot(link);
    }

    /// Fills the link anew and sorts its flows into those inside and those outside.
    fn sort(&mut self, link: u32) {
        let level = self.filled(link);
        self.links[at(link)].level = level;
        let hot = self.hot_mut(link);
        (hot.low, hot.high, hot.told) = (0.0, f64::INFINITY, level);
        for index in 0..self.links[at(link)].flows.len() {
            let (flow, _) = self.links[at(link)].flows[index];
            self.assign(flow, link);
        }
        let (mut low, mut outside) = (0.0f64, 0.0);
        for (flow, _) in &self.links[at(link)].flows {
            let flow = &self.flows[at(*flow)];
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
        flow.generation == entry.generation && flow.bucket == link && flow.left.total_cmp(&entry.end).is_eq()
    }

    /// Sets the link's alarm for the first flow that will end.
    fn schedule_hot(&mut self, link: u32) {
        loop {
            let level = self.links[at(link)].level;
            let now = self.now;
            let hot = self.links[at(link)].hot.as_ref().expect("only asked of hot links");
            let Some(first) = hot.heap.peek().copied() else { return };
            if !self.is_inside(link, &first) {
                self.hot_mut(link).heap.pop();
                continue;
            }
            if level > 0.0 && level.is_finite() {
                let due = now.saturating_add(ceil((first.end - hot.virtual_time).max(0.0) / level * 1e9));
                if due < hot.due {
                    self.hot_mut(link).due = due;
                    self.alarms.push((due, Alarm::Link(link)));
                }
            }
            return;
        }
    }

    /// The link's alarm has gone off.
    pub(super) fn fire_hot(&mut self, link: u32, over: &mut Vec<(T, Reached)>) {
        let now = self.now;
        let Some(hot) = &mut self.links[at(link)].hot else { return };
        if hot.due != now {
            return;
        }
        hot.due = u64::MAX;
        self.advance(link);
        let level = self.links[at(link)].level;
        loop {
            let hot = self.links[at(link)].hot.as_ref().expect("checked above");
            let Some(first) = hot.heap.peek().copied() else { break };
            let inside = self.is_inside(link, &first);
            // Virtual time is large after a while, and so is the rounding of it.
            let close = OVER.max(level * 1e-9).max(hot.virtual_time * 1e-14);
            if inside && first.end - hot.virtual_time > close {
                break;
            }
            self.hot_mut(link).heap.pop();
            if !inside {
                continue;
            }
            let owner = self.owners[at(first.flow)].expect("a flow under way has an owner");
            if self.flows[at(first.flow)].rest > 0.0 {
                self.enter_tail(first.flow);
                let end = self.flows[at(first.flow)].left;
                self.hot_mut(link).heap.push(Finish { end, ..first });
                over.push((owner, Reached::Tail));
            } else {
                self.leave_bucket(first.flow);
                self.remove(first.flow);
                over.push((owner, Reached::End));
            }
        }
        self.mark(link);
    }
}
