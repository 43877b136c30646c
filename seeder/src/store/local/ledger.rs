//! Which content may be collected: condemnations, and what takes them back. Pure: time is an argument, and nothing here
//! touches the disk.
//!
//! A blob of a repository that no manifest names is *condemned* once nobody has touched it for the grace, and may be
//! *expired* when it was condemned for longer than a request may take. Whoever relies on it meanwhile (a HEAD, a mount, a
//! manifest that names it, a push of the same bytes) *touches* it before the answer: that takes the condemnation back,
//! and keeps the next one away for another grace.
//!
//! All of it is in memory: a process that starts has forgotten every condemnation, and condemns nothing before a grace
//! has passed. A key is a hash of repository and digest; two blobs that share one are kept for longer, never for less.

use std::collections::{HashMap, HashSet};

/// Blobs that are remembered as touched in one grace. Beyond, all count as touched: nothing is collected in so busy a
/// time, rather than something wrong.
pub(crate) const TOUCHED_MAX: usize = 1 << 20;
/// Condemnations at a time; the rest waits for the next pass.
pub(crate) const CONDEMNED_MAX: usize = 1 << 16;

/// How long things are left alone, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Times {
    /// From the last touch to the condemnation.
    pub grace_ms: u64,
    /// From the condemnation to the end: longer than any request takes.
    pub deadline_ms: u64,
}

impl Default for Times {
    /// A day and a quarter of an hour.
    fn default() -> Self {
        Self { grace_ms: 86_400_000, deadline_ms: 900_000 }
    }
}

/// What was touched in a span of time.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Generation {
    keys: HashSet<u64>,
    /// Too many to remember: all of them.
    all: bool,
}

impl Generation {
    fn insert(&mut self, key: u64) {
        if self.keys.len() < TOUCHED_MAX {
            self.keys.insert(key);
        } else {
            self.all = true;
        }
    }

    fn holds(&self, key: u64) -> bool {
        self.all || self.keys.contains(&key)
    }
}

/// The condemned, and the recently touched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ledger {
    times: Times,
    /// Touched since `turned_ms`.
    young: Generation,
    /// Touched in the grace before.
    old: Generation,
    turned_ms: u64,
    /// When each was condemned.
    condemned: HashMap<u64, u64>,
    taken_back: u64,
}

impl Ledger {
    /// Everything counts as touched at `now_ms`.
    pub(crate) fn new(times: Times, now_ms: u64) -> Self {
        let young = Generation { all: true, ..Generation::default() };
        let (old, condemned) = (Generation::default(), HashMap::new());
        Self { times, young, old, turned_ms: now_ms, condemned, taken_back: 0 }
    }

    fn turn(&mut self, now_ms: u64) {
        let age = now_ms.saturating_sub(self.turned_ms);
        if age > self.times.grace_ms {
            self.old = std::mem::take(&mut self.young);
            if age > 2 * self.times.grace_ms {
                self.old = Generation::default();
            }
            self.turned_ms = now_ms;
        }
    }

    /// Somebody relies on it: to be called before it is looked up.
    pub(crate) fn touch(&mut self, key: u64, now_ms: u64) {
        self.turn(now_ms);
        self.young.insert(key);
        if self.condemned.remove(&key).is_some() {
            self.taken_back += 1;
        }
    }

    /// Condemns what was not touched for the grace; false if it was, or was condemned before, or there is no room.
    pub(crate) fn condemn(&mut self, key: u64, now_ms: u64) -> bool {
        self.turn(now_ms);
        let kept = self.young.holds(key) || self.old.holds(key) || self.condemned.len() >= CONDEMNED_MAX;
        if kept || self.condemned.contains_key(&key) {
            return false;
        }
        self.condemned.insert(key, now_ms);
        true
    }

    /// Ends a condemnation that has stood for the deadline: true exactly once, and only if nobody took it back. The
    /// caller keeps everybody from touching the blob until it is gone.
    pub(crate) fn expire(&mut self, key: u64, now_ms: u64) -> bool {
        self.is_due(key, now_ms) && self.condemned.remove(&key).is_some()
    }

    /// Whether its condemnation has stood for the deadline.
    pub(crate) fn is_due(&self, key: u64, now_ms: u64) -> bool {
        self.condemned.get(&key).is_some_and(|at| now_ms.saturating_sub(*at) > self.times.deadline_ms)
    }

    /// Takes a condemnation back without a touch: a manifest names the blob after all.
    pub(crate) fn pardon(&mut self, key: u64) {
        self.condemned.remove(&key);
    }

    /// What tells two ledgers apart, counters aside.
    #[cfg(test)]
    pub(crate) fn fingerprint(&self) -> impl std::hash::Hash + use<> {
        let sorted = |keys: &HashSet<u64>| keys.iter().copied().collect::<std::collections::BTreeSet<_>>();
        let touched = (sorted(&self.young.keys), self.young.all, sorted(&self.old.keys), self.old.all);
        let condemned: std::collections::BTreeMap<_, _> = self.condemned.iter().map(|(key, at)| (*key, *at)).collect();
        (self.turned_ms, touched, condemned)
    }

    /// How many are condemned now.
    pub(crate) fn condemned(&self) -> usize {
        self.condemned.len()
    }

    /// How many condemnations were taken back by a touch.
    pub(crate) const fn taken_back(&self) -> u64 {
        self.taken_back
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMES: Times = Times { grace_ms: 100, deadline_ms: 50 };

    #[test]
    fn only_what_was_left_alone_is_condemned_and_only_after_the_deadline_it_ends() {
        let mut ledger = Ledger::new(TIMES, 0);
        assert!(!ledger.condemn(1, 99), "a process that has just started condemns nothing");
        ledger.touch(1, 150);
        assert!(!ledger.condemn(1, 240) && ledger.condemn(2, 302));
        assert!(!ledger.expire(2, 352) && ledger.expire(2, 353) && !ledger.expire(2, 400));
        assert!(ledger.condemn(1, 600));
        ledger.touch(1, 601);
        assert!(!ledger.expire(1, 9000) && ledger.taken_back() == 1);
    }

    #[test]
    fn a_touch_holds_for_at_least_the_grace() {
        for touched in 0..300 {
            let mut ledger = Ledger::new(TIMES, 0);
            ledger.touch(1, touched);
            for now in touched..=touched + TIMES.grace_ms {
                assert!(!ledger.condemn(1, now), "touched at {touched}, condemned at {now}");
            }
        }
    }

    #[test]
    fn what_is_too_much_to_remember_is_kept() {
        let mut ledger = Ledger::new(TIMES, 0);
        (0..=TOUCHED_MAX as u64).for_each(|key| ledger.touch(key, 250));
        assert!(!ledger.condemn(u64::MAX, 300));
    }
}
