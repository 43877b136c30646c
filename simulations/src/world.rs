//! The simulated fleet: nodes that drive the agent's policy through its own contract, the seeder, and the network.
//!
//! Everything happens in events on one clock. Performing a node's actions never enters another node's policy: what
//! follows from them is an event of its own, at least as late as the word would take. So the order of events is the only
//! order there is, and the same seed gives the same run.

mod agent;
mod arrivals;
mod baseline;
mod control;
mod faults;
mod links;
mod meter;
mod news;
mod origin;
mod pieces;
mod pipeline;
mod run;
mod slots;
mod tracker;

use std::collections::VecDeque;

use shoal_proto::have::Have;
use shoal_transfer::event::Input;

pub(crate) use self::meter::{Log, Sample};
pub(crate) use self::run::{Ended, Watcher};
use self::{
    agent::Agent,
    arrivals::Arrivals,
    baseline::Baseline,
    control::Records,
    meter::Meter,
    news::{News, Outbox},
    origin::Origin,
    pieces::Ask,
    tracker::{Lists, Tracker},
};
use crate::{
    network::{Network, Reached},
    num::{at, small},
    plan::Plan,
    queue::Queue,
    rng::{Purpose, Stream, mix},
    scenario::spots::Spots,
    slab::{Handle, Slab},
    topology::{End, Topology},
};

/// The seeder among the servers of requests.
const ORIGIN: u32 = u32::MAX;

/// What happens. Small, because millions wait.
#[derive(Debug, Clone, Copy)]
enum Event {
    /// A node's runtime pulls the image.
    Arrive(u32),
    /// A node's policy wanted to be woken.
    Timer(u32),
    /// A request reaches its server.
    Request(Handle),
    /// A server hears that a request is taken back.
    Cancelled(Handle),
    /// A node hears that a request gave nothing.
    Refused(Handle),
    /// A piece is hashed and stored.
    Stored(Handle),
    /// A long transfer may have moved.
    Ping(Handle),
    /// A request has waited for the seeder's turn for long.
    SlotWait(Handle),
    /// A slot of the seeder has been held for long.
    Slots,
    /// Anything rare.
    Word(Handle),
    /// Gained pieces reach some peers.
    News(Handle),
    /// A node tells its peers of others.
    Exchange(u32),
    /// A node has unpacked all layers.
    Ready(u32),
    /// A node crashes.
    Crash(u32),
    /// A node leaves for good.
    Leave(u32),
    /// Something happens to the origin or the lines.
    Fault(u8),
    /// The timeline is sampled.
    Sample,
    /// The watchdog looks.
    Watch,
}

/// Who a flow belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Owner {
    /// A request to a peer or to the seeder.
    Ask(Handle),
    /// A whole layer, to a node that pulls without a swarm.
    Layer { node: u32, layer: u32 },
    /// A whole layer, to a mirror.
    Fill { region: u32, layer: u32 },
}

/// What is said rarely.
#[derive(Debug)]
enum Word {
    /// To a node of that life.
    Input { node: u32, life: u32, input: Box<Input<'static>> },
    /// What a peer holds, over a connection that must still be there.
    Have { to: u32, slot: u32, conn: u32, layer: u32, have: Have },
    /// A dial reaches its target.
    Dial { from: u32, slot: u32, life: u32, to: u32 },
    /// The dialler hears that it is connected.
    Up { node: u32, slot: u32, conn: u32 },
    /// A pull reaches the origin (or, without a swarm, a mirror).
    Pull { node: u32, life: u32, counted: bool },
    /// Its answer.
    Opened { node: u32, life: u32, names: Vec<u32>, lists: Lists },
    /// Others are named, for one blob or for all.
    Names { to: u32, life: u32, blob: Option<u32>, names: Vec<u32> },
    /// The candidate lists that another node knows.
    Lists { to: u32, life: u32, from: u32, lists: Lists },
    /// An announcement has reached the DHT.
    Announced { node: u32, blob: u32 },
    /// A look-up in the DHT has come to its end.
    Found { node: u32, life: u32, blob: u32 },
}

/// The whole simulation.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) plan: Plan,
    pub(crate) topology: Topology,
    pub(crate) network: Network<Owner>,
    queue: Queue<Event>,
    pub(crate) now: u64,
    agents: Vec<Option<Box<Agent>>>,
    /// How often each node has come to life.
    lives: Vec<u32>,
    ranks: Vec<u64>,
    /// Which pieces each node has.
    have: Vec<u64>,
    asks: Slab<Ask>,
    words: Slab<Word>,
    news: Slab<News>,
    outbox: Outbox,
    conns: u32,
    origin: Origin,
    tracker: Tracker,
    records: Records,
    baseline: Baseline,
    arrivals: Arrivals,
    pub(crate) meter: Meter,
    /// Regions without lines to the others until then.
    cut: Option<(u32, u64)>,
    over: Vec<(Owner, Reached)>,
    pub(crate) hash: u64,
    pub(crate) events: u64,
    /// Every transfer, where they are wanted.
    pub(crate) transfers: Option<Vec<Transfer>>,
    tracer: Option<Tracer>,
}

/// One transfer: when it began, from which node ([`u32::MAX`]: the origin) to which, and its bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Transfer {
    pub(crate) start: u64,
    pub(crate) from: u32,
    pub(crate) to: u32,
    pub(crate) bytes: f64,
}

/// What one node is told and does, as text.
#[derive(Debug)]
pub(crate) struct Tracer {
    node: u32,
    /// The last lines: the end of a story matters most.
    pub(crate) lines: VecDeque<String>,
}

/// Lines that are kept of a traced node.
const TRACE_LINES_MAX: usize = 200_000;

impl World {
    /// A fleet that does nothing yet.
    pub(crate) fn new(plan: Plan, spots: Spots) -> Self {
        let mut network = Network::new(plan.rates);
        let topology = Topology::build(&plan.scenario, spots, &mut network);
        let nodes = topology.nodes();
        let regions = topology.spots.regions.len();
        let rank = |node| Stream::new(plan.seed, node, Purpose::Rank).next();
        let ranks = (0..nodes as u64).map(rank).collect();
        let mut world = Self {
            network,
            queue: Queue::new(Queue::<Event>::shift_for(nodes)),
            now: 0,
            agents: (0..nodes).map(|_| None).collect(),
            lives: vec![0; nodes],
            ranks,
            have: vec![0; nodes * plan.words],
            asks: Slab::default(),
            words: Slab::default(),
            news: Slab::default(),
            outbox: Outbox::default(),
            conns: 0,
            origin: Origin::new(&plan, regions, nodes),
            tracker: Tracker::default(),
            records: Records::new(plan.layers.len(), regions),
            baseline: Baseline::new(&plan, regions, nodes),
            arrivals: Arrivals::default(),
            meter: Meter::new(&plan, regions, nodes),
            cut: None,
            over: Vec::new(),
            hash: 0,
            events: 0,
            transfers: None,
            tracer: None,
            topology,
            plan,
        };
        world.begin_slow_links();
        world.begin_faults();
        world.begin_arrivals();
        world
    }

    /// Keeps what node `node` is told and does.
    pub(crate) fn trace(&mut self, node: u32) {
        self.tracer = Some(Tracer { node, lines: VecDeque::new() });
    }

    /// The trace, if one was asked for.
    pub(crate) const fn traced(&self) -> Option<&Tracer> {
        self.tracer.as_ref()
    }

    fn note(&mut self, node: u32, line: impl FnOnce() -> String) {
        let now = self.now;
        if let Some(tracer) = self.tracer.as_mut().filter(|tracer| tracer.node == node) {
            if tracer.lines.len() >= TRACE_LINES_MAX {
                tracer.lines.pop_front();
            }
            tracer.lines.push_back(format!("{:>14.6} s  {}", crate::num::secs(now), line()));
        }
    }

    fn push(&mut self, time: u64, event: Event) {
        self.queue.push(time.max(self.now), event);
    }

    fn say(&mut self, time: u64, word: Word) {
        let handle = self.words.insert(word);
        self.push(time, Event::Word(handle));
    }

    /// The same where it is known how long a word takes.
    fn after(&self, away: u32, from: End, to: End) -> u64 {
        if self.cut.is_some() || away == agent::Peer::FAR { self.reach(from, to) } else { self.now + u64::from(away) }
    }

    /// When a word said now arrives. Between regions that are cut off from each other, it waits until they are not.
    fn reach(&self, from: End, to: End) -> u64 {
        let latency = self.topology.latency(from, to);
        match self.cut {
            Some((region, until)) if (self.topology.region(from) == region) != (self.topology.region(to) == region) => {
                until.max(self.now) + latency
            }
            Some(_) | None => self.now + latency,
        }
    }

    /// Takes an event into the trace hash.
    fn fold(&mut self, time: u64, event: Event) {
        let (kind, a, b): (u64, u32, u32) = match event {
            Event::Arrive(node) => (1, node, 0),
            Event::Timer(node) => (2, node, 0),
            Event::Request(Handle { slot, generation }) => (5, slot, generation),
            Event::Cancelled(Handle { slot, generation }) => (6, slot, generation),
            Event::Refused(Handle { slot, generation }) => (7, slot, generation),
            Event::Stored(Handle { slot, generation }) => (8, slot, generation),
            Event::Ping(Handle { slot, generation }) => (9, slot, generation),
            Event::SlotWait(Handle { slot, generation }) => (10, slot, generation),
            Event::Word(Handle { slot, generation }) => (11, slot, generation),
            Event::News(Handle { slot, generation }) => (12, slot, generation),
            Event::Exchange(node) => (13, node, 0),
            Event::Ready(node) => (14, node, 0),
            Event::Crash(node) => (15, node, 0),
            Event::Leave(node) => (16, node, 0),
            Event::Fault(which) => (17, u32::from(which), 0),
            Event::Slots => (18, 0, 0),
            // Neither changes anything.
            Event::Sample | Event::Watch => return,
        };
        self.fold_word(time, kind, a, b);
    }

    const fn fold_word(&mut self, time: u64, kind: u64, a: u32, b: u32) {
        let word = kind << 56 ^ (a as u64) << 28 ^ b as u64 ^ time.rotate_left(17);
        self.hash = mix(self.hash ^ word);
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Arrive(node) => self.arrive(node),
            Event::Timer(node) => self.timer(node),
            Event::Request(ask) => self.request_arrived(ask),
            Event::Cancelled(ask) => self.cancel_arrived(ask),
            Event::Refused(ask) => self.refused(ask),
            Event::Stored(ask) => self.stored(ask),
            Event::Ping(ask) => self.ping(ask),
            Event::SlotWait(ask) => self.slot_waited(ask),
            Event::Slots => self.look_at_slots(),
            Event::Word(word) => {
                if let Some(word) = self.words.remove(word) {
                    self.heard(word);
                }
            }
            Event::News(news) => self.news_arrived(news),
            Event::Exchange(node) => self.exchange(node),
            Event::Ready(node) => self.ready(node),
            Event::Crash(node) => self.crash(node),
            Event::Leave(node) => self.leave(node),
            Event::Fault(which) => self.fault(which),
            Event::Sample => self.sample(),
            Event::Watch => {}
        }
    }

    fn heard(&mut self, word: Word) {
        match word {
            Word::Input { node, life, input } => {
                if self.lives[at(node)] == life {
                    self.feed(node, *input);
                }
            }
            Word::Have { to, slot, conn, layer, have } => self.heard_have(to, slot, conn, layer, have),
            Word::Dial { from, slot, life, to } => self.dialled(from, slot, life, to),
            Word::Up { node, slot, conn } => self.up(node, slot, conn),
            Word::Pull { node, life, counted } => self.pull_arrived(node, life, counted),
            Word::Opened { node, life, names, lists } => self.opened(node, life, &names, lists),
            Word::Names { to, life, blob, names } => self.named(to, life, blob, &names),
            Word::Lists { to, life, from, lists } => self.heard_lists(to, life, from, lists),
            Word::Announced { node, blob } => self.announced(node, blob),
            Word::Found { node, life, blob } => self.found(node, life, blob),
        }
    }

    /// Flows are over, or about to be.
    fn flows_over(&mut self) {
        let (now, mut over) = (self.now, core::mem::take(&mut self.over));
        self.network.fire(now, &mut over);
        for (owner, reached) in over.drain(..) {
            let (a, b) = match owner {
                Owner::Ask(Handle { slot, generation }) => (slot, generation),
                Owner::Layer { node, layer } => (node, layer),
                Owner::Fill { region, layer } => (region, layer),
            };
            self.fold_word(now, if reached == Reached::Tail { 3 } else { 4 }, a, b);
            match owner {
                Owner::Ask(ask) if reached == Reached::Tail => self.upload_taken(ask),
                Owner::Ask(ask) => self.flow_over(ask),
                Owner::Layer { node, layer } => self.layer_pulled(node, layer),
                Owner::Fill { region, layer } => self.mirror_filled(region, layer),
            }
        }
        self.over = over;
    }

    /// Whether a node has a piece.
    fn has(&self, node: u32, layer: u32, piece: u32) -> bool {
        let word = at(node) * self.plan.words + self.plan.layers[at(layer)].word + at(piece) / 64;
        self.have[word] >> (piece % 64) & 1 == 1
    }

    fn is_complete(&self, node: u32, layer: u32) -> bool {
        let layer = &self.plan.layers[at(layer)];
        let start = at(node) * self.plan.words + layer.word;
        let pieces = layer.layout.pieces();
        let words = &self.have[start..start + at(pieces.div_ceil(64))];
        words.iter().map(|word| word.count_ones()).sum::<u32>() == pieces
    }

    fn nodes(&self) -> u32 {
        small(self.topology.nodes())
    }

    /// Requests that the origin answered.
    pub(crate) const fn requests(&self) -> u64 {
        self.origin.requests
    }
}
