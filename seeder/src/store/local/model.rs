//! An exhaustive model of the collector against its clients: every order of their steps, with the real [`Ledger`].
//!
//! Two repositories share one blob. The collector condemns and expires in the first; two clients are at work, of any two
//! kinds: one asks whether the blob is there and then pushes a manifest that names it, one mounts it into the second
//! repository and names it there, one pushes it again and names it; and time passes at any moment. Each step is one of those of `gc.rs`, `records.rs` and
//! `uploads.rs` between which others may run: taking a lock, saying that one relies on the blob, one look into a table, one
//! write. What guards the blob are [`Rules`] of the model: without any one of them it finds a loss.

use std::{
    collections::{BTreeSet, HashSet, VecDeque},
    hash::{BuildHasher as _, RandomState},
};

use super::ledger::{Ledger, Times};

const TIMES: Times = Times { grace_ms: 1, deadline_ms: 1 };
/// The last moment that is looked at: long enough for two condemnations.
const END: u64 = 7;

/// What guards the blob.
#[derive(Debug, Clone, Copy)]
struct Rules {
    /// Clients share the digest's lock, the collector holds it alone.
    locked: bool,
    /// Who relies on the blob says so.
    touched: bool,
    /// Under the lock the collector looks again whether content is held.
    held_again: bool,
    /// Under the lock the collector looks again whether a manifest names the blob.
    named_again: bool,
    /// The link and what follows from it are written while the client holds the lock.
    written_inside: bool,
}

const ALL: Rules = Rules { locked: true, touched: true, held_again: true, named_again: true, written_inside: true };

/// One who runs steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Client {
    /// HEAD in `a`, then a manifest in `a`.
    Asks,
    /// Mounts from `a` into `b`, then a manifest in `b`.
    Mounts,
    /// Pushes the bytes into `a`, then a manifest.
    Pushes,
}

/// Any two kinds.
const PAIRS: [[Client; 2]; 6] = [
    [Client::Asks, Client::Asks],
    [Client::Asks, Client::Mounts],
    [Client::Asks, Client::Pushes],
    [Client::Mounts, Client::Mounts],
    [Client::Mounts, Client::Pushes],
    [Client::Pushes, Client::Pushes],
];

/// What a client does next: each twice, for the blob and for the manifest that names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Step {
    Lock,
    Touch,
    Look,
    Write,
    /// Lets go of the lock, and answers.
    Answer,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum At {
    Blob(Step),
    Manifest(Step),
    Done,
}

/// Where the collector is in its pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Collector {
    Between,
    /// No manifest names the link.
    Unnamed,
    /// The condemnation has stood for long enough.
    Due,
    /// Holds the lock, to take the link.
    Alone,
    /// Has ended the condemnation.
    Expired,
    /// Nothing names it still.
    TakesLink,
    /// Nobody holds the content.
    Unheld,
    /// Holds the lock, to take the content.
    AloneWithContent,
    TakesContent,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct World {
    kinds: [Client; 2],
    ledger: Ledger,
    now: u64,
    /// Repositories that hold the blob, by number.
    links: BTreeSet<u64>,
    /// Repositories in which an acknowledged manifest names it.
    named: BTreeSet<u64>,
    content: bool,
    readers: u8,
    writer: bool,
    /// Where each client is, and when it asked for the blob.
    clients: [(At, u64); 2],
    found: [bool; 2],
    collector: Collector,
    lost: bool,
}

impl World {
    fn new(kinds: [Client; 2]) -> Self {
        Self {
            kinds,
            ledger: Ledger::new(TIMES, 0),
            now: 0,
            links: [0].into(),
            named: BTreeSet::new(),
            content: true,
            readers: 0,
            writer: false,
            clients: [(At::Blob(Step::Lock), 0); 2],
            found: [false; 2],
            collector: Collector::Between,
            lost: false,
        }
    }

    /// What identifies it among all.
    fn key(&self, hashing: &RandomState) -> u64 {
        let Self { ledger, now, links, named, content, readers, writer, clients, found, collector, lost, .. } = self;
        let who = (readers, writer, clients, found, collector, lost);
        hashing.hash_one((ledger.fingerprint(), now, links, named, content, who))
    }

    fn is_lost(&self) -> bool {
        self.lost || self.named.iter().any(|repository| !self.links.contains(repository) || !self.content)
    }

    fn lock(&mut self, rules: Rules) -> bool {
        let free = !rules.locked || !self.writer;
        self.readers += u8::from(free);
        free
    }

    /// The next step of a client; none if it must wait or is done.
    fn client(&self, at: usize, rules: Rules) -> Option<Self> {
        let (client, (place, relied)) = (self.kinds[at], self.clients[at]);
        let home = u64::from(client == Client::Mounts);
        let mut next = self.clone();
        let (step, manifest) = match place {
            At::Blob(step) => (step, false),
            At::Manifest(step) => (step, true),
            At::Done => return None,
        };
        let on = |step| if manifest { At::Manifest(step) } else { At::Blob(step) };
        next.clients[at].0 = match step {
            Step::Lock if !next.lock(rules) => return None,
            Step::Lock => on(Step::Touch),
            Step::Touch => {
                if rules.touched {
                    next.ledger.touch(0, self.now);
                    next.ledger.touch(home, self.now);
                }
                if !manifest {
                    next.clients[at].1 = self.now;
                }
                on(Step::Look)
            }
            Step::Look => {
                let from = if manifest { home } else { 0 };
                let there = self.links.contains(&from) && self.content;
                next.found[at] = there || (client == Client::Pushes && !manifest);
                // Refused although it was told of it less than the grace ago.
                next.lost |= manifest && !there && self.now - relied <= TIMES.grace_ms;
                on(Step::Write)
            }
            Step::Write if !rules.written_inside && self.readers > 0 && !manifest => {
                next.readers -= 1;
                on(Step::Answer)
            }
            Step::Write => {
                next.write(at, home, manifest);
                on(Step::Answer)
            }
            Step::Answer => {
                if rules.written_inside || manifest {
                    next.readers -= 1;
                } else {
                    next.write(at, home, manifest);
                }
                if manifest || !self.found[at] { At::Done } else { At::Manifest(Step::Lock) }
            }
        };
        Some(next)
    }

    /// Makes what the client found, or brings, reachable.
    fn write(&mut self, at: usize, home: u64, manifest: bool) {
        match self.kinds[at] {
            _ if !self.found[at] => {}
            _ if manifest => drop(self.named.insert(home)),
            Client::Mounts => drop(self.links.insert(1)),
            Client::Pushes => {
                self.links.insert(0);
                self.content = true;
            }
            Client::Asks => {}
        }
    }

    fn collect(&self, rules: Rules) -> Option<Self> {
        let mut next = self.clone();
        let free = !rules.locked || (self.readers == 0 && !self.writer);
        let give_up = |world: &mut Self| {
            world.writer = false;
            Collector::Between
        };
        next.collector = match self.collector {
            Collector::Between if self.links.is_empty() && self.content => Collector::Unheld,
            Collector::Between if self.links.contains(&0) && !self.named.contains(&0) => Collector::Unnamed,
            Collector::Between => return None,
            Collector::Unnamed if next.ledger.condemn(0, self.now) => Collector::Between,
            Collector::Unnamed if self.ledger.is_due(0, self.now) => Collector::Due,
            Collector::Unnamed => Collector::Between,
            Collector::Due | Collector::Unheld if !free => return None,
            Collector::Due => {
                next.writer = true;
                Collector::Alone
            }
            Collector::Alone if next.ledger.expire(0, self.now) => Collector::Expired,
            Collector::Expired if !rules.named_again || !self.named.contains(&0) => Collector::TakesLink,
            Collector::Alone | Collector::Expired => give_up(&mut next),
            Collector::TakesLink => {
                next.links.remove(&0);
                give_up(&mut next)
            }
            Collector::Unheld => {
                next.writer = true;
                Collector::AloneWithContent
            }
            Collector::AloneWithContent if !rules.held_again || self.links.is_empty() => Collector::TakesContent,
            Collector::AloneWithContent => give_up(&mut next),
            Collector::TakesContent => {
                next.content = false;
                give_up(&mut next)
            }
        };
        Some(next)
    }
}

/// What there is to see.
#[derive(Debug, Default)]
struct Seen {
    worlds: usize,
    deletions: usize,
    /// Condemnations that a client took back when they were due.
    near: usize,
    loss: Option<World>,
}

/// Goes through every world that can be reached, until one has lost something.
fn explore(rules: Rules) -> Seen {
    let hashing = RandomState::new();
    let mut seen = Seen::default();
    for kinds in PAIRS {
        let (mut known, mut open) = (HashSet::new(), VecDeque::from([World::new(kinds)]));
        while let Some(world) = open.pop_front() {
            seen.worlds += 1;
            if world.is_lost() {
                seen.loss = Some(world);
                return seen;
            }
            seen.near += usize::from(world.collector == Collector::Alone && !world.ledger.is_due(0, world.now));
            let clients = (0..kinds.len()).filter_map(|at| world.client(at, rules));
            let later = (world.now < END).then(|| World { now: world.now + 1, ..world.clone() });
            let nexts: Vec<_> = clients.chain(world.collect(rules)).chain(later).collect();
            for next in nexts {
                seen.deletions += usize::from(world.content && !next.content);
                if known.insert(next.key(&hashing)) {
                    open.push_back(next);
                }
            }
        }
    }
    seen
}

#[test]
fn no_order_of_steps_loses_what_was_acknowledged() {
    let seen = explore(ALL);
    assert!(seen.loss.is_none(), "{:#?}", seen.loss);
    assert!(seen.worlds > 100_000 && seen.deletions > 100 && seen.near > 100, "{seen:?}");
}

#[test]
fn without_any_one_of_its_guards_the_model_finds_a_loss() {
    let guards = [
        ("the lock", Rules { locked: false, ..ALL }),
        ("the touch", Rules { touched: false, ..ALL }),
        ("the second look for holders", Rules { held_again: false, ..ALL }),
        ("the second look for manifests", Rules { named_again: false, ..ALL }),
        ("the write under the lock", Rules { written_inside: false, ..ALL }),
    ];
    for (what, rules) in guards {
        assert!(explore(rules).loss.is_some(), "without {what} nothing is lost: the model does not see it");
    }
}
