//! The network: fluid flows over links, each flow as fast as max-min fairness lets it be.
//!
//! **Exact** rates come from local relaxation. Each link keeps a *level*: the most that a flow gets there. A link that
//! has become too full, or is full and has got another flow or one less, fills its capacity anew. Only those of its flows
//! move whose rate depends on its level, and of their other links only those have to be looked at that are full, or have
//! become too full. Where no rate moves by more than ε any more, every flow has a link that is full and on which none is
//! faster, which is what max-min fair means. The work depends on the neighbourhood, not on the network.
//!
//! **Fast** rates take the least of capacity ÷ flows over a flow's links. What one flow leaves is given to none: right
//! where all links are equal, too slow elsewhere.
//!
//! **Hot** links (the origin, lines between regions) carry so many flows that none may be touched when another comes or
//! goes. There, flows that the link itself holds back progress in the link's *virtual time*, at the same rate each, and
//! wait in one heap; see [`hot`].
//!
//! What is left of a flow is brought up to date only when its rate moves. One link of each flow keeps its time, mostly
//! the sender's: links, not flows, are due at some moment, and a flow that slows down costs nothing until then.
//!
//! The owner of the clock calls [`Network::settle`] after every change, and [`Network::fire`] when [`Network::due`] has
//! come; that says which flows are over.

mod dues;
mod fill;
mod flow;
mod hot;
mod relax;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;

use dues::Dues;
pub(crate) use flow::LINKS_MAX;
use flow::{Flow, NONE, Path};
use hot::Hot;
use relax::least;

use crate::num::{at, ceil, small, span};

/// Flows on a link from which on it is hot.
const HOT_FROM: usize = 64;
/// How far the level of a hot link may move before the other links of its flows hear of it. They lose at most this part
/// of the share that one hot flow has of them, which is small: many share the hot link.
const DRIFT: f64 = 0.1;
/// Bytes that may be left of a flow that counts as over: less than a nanosecond's worth at any rate.
const OVER: f64 = 1e-3;
/// Seconds that may be left of a flow that counts as over: half of what the clock can tell apart.
const NOW: f64 = 5e-10;
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

/// A flow on a link.
#[derive(Debug, Clone, Copy)]
struct Member {
    flow: u32,
    /// The other link of a flow that crosses two.
    other: u32,
    cap: f64,
    /// Which of its links this is to the flow.
    index: u8,
}

/// A link.
#[derive(Debug)]
struct Link {
    capacity: f64,
    /// Sum of the rates of its flows, kept where the link is not hot.
    load: f64,
    members: Vec<Member>,
    dirty: bool,
    /// When it is due has to be worked out.
    touched: bool,
    /// Flows whose time it keeps.
    timed: u32,
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

/// All links and flows.
#[derive(Debug)]
pub(crate) struct Network<T> {
    exact: bool,
    epsilon: f64,
    hot_from: usize,
    drift: f64,
    links: Vec<Link>,
    /// By link: the most that a flow gets there; its capacity where it is not full. Apart from the rest, because each
    /// look at a link reads those of its neighbours.
    levels: Vec<f64>,
    flows: Vec<Flow>,
    paths: Vec<Path>,
    owners: Vec<Option<T>>,
    free: Vec<u32>,
    now: u64,
    dirty: VecDeque<u32>,
    touched: Vec<u32>,
    limits: Vec<f64>,
    fired: Vec<u32>,
    ripe: Vec<u32>,
    dues: Dues,
    /// Links filled anew, in all.
    pub(crate) relaxations: u64,
    /// Times that they were too many at once.
    pub(crate) unsettled: u64,
}

impl<T: Copy> Network<T> {
    /// A network without links.
    pub(crate) fn new(rates: Rates) -> Self {
        let (exact, epsilon) = match rates {
            Rates::Exact { epsilon } => (true, epsilon),
            Rates::Fast => (false, 0.0),
        };
        Self {
            exact,
            epsilon,
            hot_from: HOT_FROM,
            drift: DRIFT,
            links: Vec::new(),
            levels: Vec::new(),
            flows: Vec::new(),
            paths: Vec::new(),
            owners: Vec::new(),
            free: Vec::new(),
            now: 0,
            dirty: VecDeque::new(),
            touched: Vec::new(),
            limits: Vec::new(),
            fired: Vec::new(),
            ripe: Vec::new(),
            dues: Dues::default(),
            relaxations: 0,
            unsettled: 0,
        }
    }

    /// Adds a link of so many bytes a second.
    pub(crate) fn add_link(&mut self, capacity: f64) -> u32 {
        self.links.push(Link {
            capacity,
            load: 0.0,
            members: Vec::new(),
            dirty: false,
            touched: false,
            timed: 0,
            hot: None,
        });
        self.levels.push(capacity);
        self.dues.add_link();
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
        self.links[at(link)].members.len()
    }

    /// Bytes a second that pass a link now.
    pub(crate) fn used(&self, link: u32) -> f64 {
        self.links[at(link)].members.iter().map(|member| self.rate(member.flow)).sum()
    }

    /// Flows under way.
    pub(crate) const fn live(&self) -> usize {
        self.flows.len() - self.free.len()
    }

    /// When the network has something to say; `u64::MAX` if nothing is under way. To be asked after [`Self::settle`].
    #[inline]
    pub(crate) fn due(&self) -> u64 {
        self.dues.first()
    }

    /// Starts a flow of `bytes` over `links`, never faster than `cap` bytes a second.
    ///
    /// # Panics
    /// Over more than [`LINKS_MAX`] links, or none.
    pub(crate) fn start(&mut self, now: u64, links: &[u32], bytes: f64, cap: f64, owner: T) -> u32 {
        self.now = now;
        let path = Path::over(links);
        let id = self.free.pop().unwrap_or_else(|| {
            self.flows.push(Flow::GONE);
            self.paths.push(Path::NONE);
            self.owners.push(None);
            small(self.flows.len() - 1)
        });
        self.paths[at(id)] = path;
        self.owners[at(id)] = Some(owner);
        let (mut warm, mut rate) = (false, cap);
        for (index, &link) in links.iter().enumerate() {
            let entry = &mut self.links[at(link)];
            self.paths[at(id)].place[index] = small(entry.members.len());
            let index_small = u8::try_from(index).expect("few links");
            entry.members.push(Member { flow: id, other: path.other(index), cap, index: index_small });
            if let Some(hot) = &mut entry.hot {
                hot.fresh.push(id);
                warm = true;
            }
            rate = rate.min(self.levels[at(link)]);
        }
        let timer = self.time_keeper(links);
        self.links[at(timer)].timed += 1;
        // On a hot link it gets its rate when that is looked at; else it begins with what all links would let it have.
        let rate = if warm { 0.0 } else { rate };
        self.flows[at(id)] = Flow { left: bytes, rate, cap, since: now, timer, warm, ..Flow::GONE };
        self.touch(timer);
        for &link in links {
            let entry = &mut self.links[at(link)];
            entry.load += rate;
            if entry.hot.is_some() || !self.exact || self.is_strained(link) {
                self.mark(link);
            }
            let entry = &self.links[at(link)];
            if entry.hot.is_none() && entry.members.len() > self.hot_from {
                self.heat(link);
            }
        }
        id
    }

    /// The link that keeps the time of a flow over `links`: the sender's, or else the first that is not hot.
    fn time_keeper(&self, links: &[u32]) -> u32 {
        let cold = links.iter().find(|link| self.links[at(**link)].hot.is_none());
        *cold.unwrap_or(&links[0])
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
        self.leave_bucket(flow);
        let entry = &self.flows[at(flow)];
        let left = entry.left_at(now).max(0.0) + entry.rest;
        self.remove(flow);
        left
    }

    /// Takes a flow off its links. It is in no bucket.
    fn remove(&mut self, id: u32) {
        let path = self.paths[at(id)];
        let Flow { rate, timer, .. } = self.flows[at(id)];
        for (&link, place) in path.links().iter().zip(path.place) {
            let entry = &mut self.links[at(link)];
            entry.members.swap_remove(at(place));
            entry.load = if entry.members.is_empty() { 0.0 } else { entry.load - rate };
            if let Some(moved) = entry.members.get(at(place)) {
                self.paths[at(moved.flow)].place[usize::from(moved.index)] = place;
            }
            let full = self.levels[at(link)] < entry.capacity;
            if let Some(hot) = &mut entry.hot {
                hot.outside -= rate;
                hot.fresh.retain(|fresh| *fresh != id);
                self.mark(link);
            } else if full || !self.exact {
                self.mark(link);
            }
        }
        self.links[at(timer)].timed -= 1;
        self.flows[at(id)] = Flow::GONE;
        self.paths[at(id)] = Path::NONE;
        self.owners[at(id)] = None;
        self.free.push(id);
    }

    /// Bytes a second that a flow moves now.
    pub(crate) fn rate(&self, flow: u32) -> f64 {
        let flow = &self.flows[at(flow)];
        if flow.bucket == NONE { flow.rate } else { self.levels[at(flow.bucket)] }
    }

    /// Bytes that are left of a flow.
    pub(crate) fn left(&self, now: u64, flow: u32) -> f64 {
        let entry = &self.flows[at(flow)];
        if entry.bucket == NONE {
            return entry.left_at(now).max(0.0) + entry.rest;
        }
        let hot = self.links[at(entry.bucket)].hot.as_ref().expect("buckets belong to hot links");
        (entry.left - hot.virtual_at(now, self.levels[at(entry.bucket)])).max(0.0) + entry.rest
    }

    fn mark(&mut self, link: u32) {
        if !core::mem::replace(&mut self.links[at(link)].dirty, true) {
            self.dirty.push_back(link);
        }
    }

    /// Has a link asked anew when its flows are over: one of them may be sooner than it knows.
    fn touch(&mut self, link: u32) {
        if !core::mem::replace(&mut self.links[at(link)].touched, true) {
            self.touched.push(link);
        }
    }

    /// Works out all rates after changes, and when to look again. To be called after every event.
    #[inline]
    pub(crate) fn settle(&mut self, now: u64) {
        if !self.dirty.is_empty() || !self.touched.is_empty() {
            self.now = now;
            self.relax_all();
            self.schedule();
        }
    }

    /// Works out when the touched links are due.
    fn schedule(&mut self) {
        let mut touched = core::mem::take(&mut self.touched);
        for link in touched.drain(..) {
            self.links[at(link)].touched = false;
            let entry = &self.links[at(link)];
            let mut due = entry.hot.as_ref().map_or(u64::MAX, |hot| hot.due);
            if entry.timed > 0 {
                let of = |member: &Member| self.lasts(link, member.flow);
                let first = entry.members.iter().map(of).fold(f64::INFINITY, least);
                due = due.min(self.now.saturating_add(ceil(first.max(0.0) * 1e9)));
            }
            self.dues.set(link, due);
        }
        self.touched = touched;
    }

    /// How many seconds a flow lasts, if `link` keeps its time and nothing changes.
    fn lasts(&self, link: u32, id: u32) -> f64 {
        let flow = &self.flows[at(id)];
        if flow.timer != link || flow.bucket != NONE || flow.rate <= 0.0 {
            return f64::INFINITY;
        }
        flow.left / flow.rate - span(self.now - flow.since)
    }

    /// Something is due: which flows have come to what. Those that are over are taken off the network.
    pub(crate) fn fire(&mut self, now: u64, over: &mut Vec<(T, Reached)>) {
        self.now = now;
        let (mut due, mut ripe) = (core::mem::take(&mut self.fired), core::mem::take(&mut self.ripe));
        self.dues.until(now, &mut due);
        for link in due.drain(..) {
            self.touch(link);
            if self.links[at(link)].hot.is_some() {
                self.fire_hot(link, over);
            }
            let members = self.links[at(link)].members.iter().map(|member| member.flow);
            ripe.extend(members.filter(|flow| self.lasts(link, *flow) <= NOW));
            for flow in ripe.drain(..) {
                self.come(flow, over);
            }
        }
        (self.fired, self.ripe) = (due, ripe);
    }

    fn owner(&self, id: u32) -> T {
        self.owners[at(id)].expect("a flow under way has an owner")
    }

    /// A flow has come to its tail, or to its end.
    fn come(&mut self, id: u32, over: &mut Vec<(T, Reached)>) {
        let owner = self.owner(id);
        let flow = &mut self.flows[at(id)];
        if flow.rest > 0.0 {
            flow.bring_up(self.now);
            // The tail is what is left of it now.
            flow.left += core::mem::take(&mut flow.rest);
            over.push((owner, Reached::Tail));
        } else {
            self.remove(id);
            over.push((owner, Reached::End));
        }
    }
}
