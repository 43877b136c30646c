//! An exhaustive model of the collector against its clients: every order of their steps, with the real [`Ledger`].
//!
//! Two repositories share one blob. The collector condemns and expires in the first; one client asks whether the blob is
//! there and then pushes a manifest that names it, one mounts it into the second repository and names it there, one pushes
//! it again and names it, and time passes at any moment. Each step is what the store does between two points where
//! others may run; the digest's lock is part of the model, so that what depends on it fails without it.

use std::{
    collections::{BTreeSet, HashSet, VecDeque},
    hash::{BuildHasher as _, RandomState},
};

use super::ledger::{Ledger, Times};

const TIMES: Times = Times { grace_ms: 1, deadline_ms: 1 };
/// The last moment that is looked at: long enough for two condemnations.
const END: u64 = 7;

/// Whether the steps hold the digest's lock, and whether those who rely on the blob say so.
#[derive(Debug, Clone, Copy)]
struct Rules {
    locked: bool,
    touched: bool,
}

/// One who runs steps, and how far it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Client {
    /// HEAD in `a`, then a manifest in `a`.
    Asks,
    /// Mounts from `a` into `b`, then a manifest in `b`.
    Mounts,
    /// Pushes the bytes into `a`, then a manifest.
    Pushes,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct World {
    ledger: Ledger,
    now: u64,
    /// Repositories that hold the blob, by number.
    links: BTreeSet<u64>,
    /// Repositories in which an acknowledged manifest names it.
    named: BTreeSet<u64>,
    content: bool,
    readers: u8,
    writer: bool,
    /// Steps done by each client, and when it asked for the blob.
    steps: [(u8, u64); 3],
    found: [bool; 3],
    /// 0: between passes; 1: the link was found to be due; 2: the links were looked at; 3: the content has no holder.
    collector: u8,
    lost: bool,
}

const CLIENTS: [Client; 3] = [Client::Asks, Client::Mounts, Client::Pushes];
/// Steps of a client after which it is done.
const DONE: u8 = 99;

impl World {
    fn new() -> Self {
        Self {
            ledger: Ledger::new(TIMES, 0),
            now: 0,
            links: [0].into(),
            named: BTreeSet::new(),
            content: true,
            readers: 0,
            writer: false,
            steps: [(0, 0); 3],
            found: [false; 3],
            collector: 0,
            lost: false,
        }
    }

    /// What identifies it among all.
    fn key(&self, hashing: &RandomState) -> u64 {
        let Self { ledger, now, links, named, content, readers, writer, steps, found, collector, lost } = self;
        let who = (readers, writer, steps, found, collector, lost);
        hashing.hash_one((ledger.fingerprint(), now, links, named, content, who))
    }

    fn is_lost(&self) -> bool {
        self.lost || self.named.iter().any(|repository| !self.links.contains(repository) || !self.content)
    }

    fn touch(&mut self, rules: Rules, repository: u64) {
        if rules.touched {
            self.ledger.touch(repository, self.now);
        }
    }

    /// The next step of a client; none if it must wait or is done.
    fn client(&self, at: usize, rules: Rules) -> Option<Self> {
        let (step, told) = self.steps[at];
        let mut next = self.clone();
        let home = u64::from(CLIENTS[at] == Client::Mounts);
        match step {
            // Takes the lock for sharing and says that it relies on the blob.
            0 | 3 => {
                if rules.locked && self.writer {
                    return None;
                }
                next.readers += 1;
                next.touch(rules, 0);
                next.touch(rules, home);
            }
            // Looks.
            1 => next.found[at] = CLIENTS[at] == Client::Pushes || (self.links.contains(&0) && self.content),
            // Makes it reachable, lets go, and tells the client.
            2 => {
                next.readers -= 1;
                match CLIENTS[at] {
                    Client::Mounts if self.found[at] => drop(next.links.insert(1)),
                    Client::Pushes => {
                        next.links.insert(0);
                        next.content = true;
                    }
                    Client::Asks | Client::Mounts => {}
                }
                next.steps[at] = (if self.found[at] { 3 } else { DONE }, told);
                return Some(next);
            }
            // The manifest: is the blob there?
            4 => {
                next.found[at] = self.links.contains(&home) && self.content;
                // Refused although the client was told of it less than the grace ago.
                next.lost |= !next.found[at] && self.now - told <= TIMES.grace_ms;
            }
            5 => {
                next.readers -= 1;
                if self.found[at] {
                    next.named.insert(home);
                }
                next.steps[at] = (DONE, told);
                return Some(next);
            }
            _ => return None,
        }
        next.steps[at] = (step + 1, if step == 0 { self.now } else { told });
        Some(next)
    }

    fn collect(&self, rules: Rules) -> Option<Self> {
        let mut next = self.clone();
        let free = !rules.locked || (self.readers == 0 && !self.writer);
        match self.collector {
            0 if !self.links.contains(&0) && self.links.is_empty() && self.content => {
                if !free {
                    return None;
                }
                (next.writer, next.collector) = (true, 3);
            }
            0 if self.links.contains(&0) && !self.named.contains(&0) => {
                if !next.ledger.condemn(0, self.now) {
                    if !free || !next.ledger.expire(0, self.now) {
                        return None;
                    }
                    (next.writer, next.collector) = (true, 1);
                }
            }
            1 if self.named.contains(&0) => (next.writer, next.collector) = (false, 0),
            1 => next.collector = 2,
            2 => {
                next.links.remove(&0);
                (next.writer, next.collector) = (false, 0);
            }
            3 => {
                next.content = !self.links.is_empty();
                (next.writer, next.collector) = (false, 0);
            }
            _ => return None,
        }
        Some(next)
    }
}

/// Goes through every world that can be reached; how many there are, how many deletions, and the first loss.
fn explore(rules: Rules) -> (usize, usize, Option<World>) {
    let (mut seen, hashing) = (HashSet::new(), RandomState::new());
    let mut open = VecDeque::from([World::new()]);
    let mut deletions = 0;
    while let Some(world) = open.pop_front() {
        if world.is_lost() {
            return (seen.len(), deletions, Some(world));
        }
        let clients = (0..CLIENTS.len()).filter_map(|at| world.client(at, rules));
        let later = (world.now < END).then(|| World { now: world.now + 1, ..world.clone() });
        let nexts: Vec<_> = clients.chain(world.collect(rules)).chain(later).collect();
        for next in nexts {
            deletions += usize::from(world.content && !next.content);
            if seen.insert(next.key(&hashing)) {
                open.push_back(next);
            }
        }
    }
    (seen.len(), deletions, None)
}

#[test]
fn no_order_of_steps_loses_what_was_acknowledged() {
    let (worlds, deletions, loss) = explore(Rules { locked: true, touched: true });
    assert!(loss.is_none(), "{loss:#?}");
    assert!(worlds > 10_000 && deletions > 100, "{worlds} worlds, {deletions} deletions");
}

#[test]
fn without_the_lock_or_the_touch_the_model_finds_a_loss() {
    assert!(explore(Rules { locked: false, touched: true }).2.is_some());
    assert!(explore(Rules { locked: true, touched: false }).2.is_some());
}
