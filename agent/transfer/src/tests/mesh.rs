//! Many nodes in one test: each with its policy, an uplink that its transmissions share evenly, and messages that take
//! a fixed time. Time is virtual and jumps to the next event.

use alloc::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    string::String,
    vec,
    vec::Vec,
};
use std::{format, println};

use shoal_proto::{
    have::{Have, HaveSet},
    layout::Layout,
    message::{Priority, RefuseReason},
    signed::Scope,
};

use crate::{
    config::Config,
    event::{Action, Failure, Goal, Input},
    ids::{Arena, BlobId, Id, PeerId, ReaderId, RequestId, UploadId},
    node::Node,
    time::{Span, Time},
};

mod links;

use links::{Ask, Sending, Uplink};

pub(super) const MIB: u64 = 1 << 20;
/// Pieces of a small blob for each MiB.
pub(super) const PIECES_PER_MIB: u64 = MIB / shoal_proto::layout::PIECE_LEN_MIN;
/// How long it takes until a dial to nowhere fails.
pub(super) const GIVE_UP: Span = Span::from_secs(3);
/// How long a connection to a flapping node lasts: less than a piece takes.
const FLAP: Span = Span::from_millis(25);
/// Where the seeder's uplink stands among the uplinks.
const SEEDER: usize = usize::MAX;

pub(super) fn blob_id() -> BlobId {
    BlobId::new(0, 0)
}

fn peer_id(node: usize) -> PeerId {
    PeerId::new(u32::try_from(node).unwrap(), 0)
}

/// What a node does besides following its policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Manner {
    #[default]
    Honest,
    /// Every piece it sends is wrong.
    Corrupt,
    /// It takes requests and sends nothing.
    Silent,
    /// It does not answer dials.
    Dead,
    /// Dials of it come to nothing, and that only after this mesh's [`GIVE_UP`].
    BlackHole,
    /// It holds what it says, and ends every connection after a while.
    Flapping,
    /// It says that it holds what it then refuses.
    Refusing(RefuseReason),
}

#[derive(Debug, Clone)]
pub(super) struct Spec {
    pub(super) nodes: usize,
    pub(super) layout: Layout,
    /// Bytes a second.
    pub(super) uplink: Vec<u64>,
    pub(super) seeder_uplink: u64,
    /// Transmissions of the seeder at once.
    pub(super) seeder_slots: usize,
    pub(super) seeder_up: bool,
    pub(super) latency: Span,
    /// Nodes of one region, or one region for all without lists.
    pub(super) region: Vec<usize>,
    pub(super) lists: bool,
    pub(super) manner: Vec<Manner>,
    /// Nodes that hold everything from the start.
    pub(super) complete: BTreeSet<usize>,
    /// Nodes with a client that reads from the start.
    pub(super) readers: BTreeSet<usize>,
    pub(super) config: Config,
    pub(super) seed: u64,
}

impl Spec {
    pub(super) fn equal(nodes: usize, mib: u64, uplink: u64) -> Self {
        Self {
            nodes,
            layout: Layout::new(mib * MIB).unwrap(),
            uplink: vec![uplink; nodes],
            seeder_uplink: uplink,
            seeder_slots: 2,
            seeder_up: true,
            latency: Span::from_millis(1),
            region: vec![0; nodes],
            lists: false,
            manner: vec![Manner::Honest; nodes],
            complete: BTreeSet::new(),
            readers: BTreeSet::new(),
            config: Config::default(),
            seed: 1,
        }
    }

    /// T3 of broadcasting theory: M + ⌊log2 N⌋ rounds of one piece at one uplink.
    pub(super) fn t3_secs(&self) -> f64 {
        let rounds = self.layout.pieces() + self.nodes.ilog2();
        f64::from(rounds) * (self.layout.piece_len() as f64 / self.seeder_uplink as f64)
    }
}

#[derive(Debug)]
struct Sim {
    node: Node,
    have: HaveSet,
    links: BTreeSet<usize>,
    uploads: Arena<UploadId, (usize, RequestId, u32)>,
    timer: Option<Time>,
}

#[derive(Debug)]
enum Event {
    Input(usize, Input<'static>),
    Request { server: usize, asker: usize, request: RequestId, piece: u32, priority: Priority },
    Cancel { server: usize, asker: usize, request: RequestId },
    Dial { from: usize, to: usize },
    Part(usize, usize),
    AskSeeder(Ask),
    Uplink(usize, u64),
    Timer(usize),
    Kill(usize),
}

#[derive(Debug)]
pub(super) struct Mesh {
    pub(super) spec: Spec,
    pub(super) now: Time,
    nodes: Vec<Sim>,
    queue: BTreeMap<(Time, u64), Event>,
    sequence: u64,
    uplinks: BTreeMap<usize, Uplink>,
    /// Who waits for one of the seeder's slots.
    asks: Vec<Ask>,
    /// Pieces that the seeder gave each node.
    given: BTreeMap<usize, u32>,
    sent_to_region: BTreeMap<(usize, u32), u32>,
    pub(super) seeder_pieces: u64,
    pub(super) crossed_pieces: u64,
    pub(super) done: BTreeMap<usize, Time>,
    pub(super) banned: BTreeSet<(usize, usize)>,
    pub(super) transmissions_max: usize,
    pub(super) first_piece_at: BTreeMap<usize, u32>,
    pub(super) actions: BTreeMap<&'static str, u64>,
    pub(super) trace: String,
    pub(super) tracing: bool,
}

impl Mesh {
    pub(super) fn new(spec: Spec) -> Self {
        let mut uplinks: BTreeMap<usize, Uplink> = BTreeMap::new();
        for (at, rate) in spec.uplink.iter().enumerate() {
            uplinks.insert(at, Uplink { rate: *rate as f64, ..Uplink::default() });
        }
        uplinks.insert(SEEDER, Uplink { rate: spec.seeder_uplink as f64, ..Uplink::default() });
        let nodes = (0..spec.nodes)
            .map(|at| {
                let config = Config { rank: at as u64 + 1, ..spec.config.clone() };
                let seed = spec.seed.wrapping_mul(1000) + at as u64;
                let full = spec.complete.contains(&at);
                Sim {
                    node: Node::new(config, seed, Time::ZERO),
                    have: if full { HaveSet::full(&spec.layout) } else { HaveSet::empty(&spec.layout) },
                    links: BTreeSet::new(),
                    uploads: Arena::default(),
                    timer: None,
                }
            })
            .collect();
        Self {
            now: Time::ZERO,
            nodes,
            queue: BTreeMap::new(),
            sequence: 0,
            uplinks,
            asks: Vec::new(),
            given: BTreeMap::new(),
            sent_to_region: BTreeMap::new(),
            seeder_pieces: 0,
            crossed_pieces: 0,
            done: BTreeMap::new(),
            banned: BTreeSet::new(),
            transmissions_max: 0,
            first_piece_at: BTreeMap::new(),
            actions: BTreeMap::new(),
            trace: String::new(),
            tracing: false,
            spec,
        }
    }

    /// Every node wants the blob at the same moment, and is introduced to all others.
    pub(super) fn start(&mut self) {
        for at in 0..self.spec.nodes {
            self.join(at, Time::ZERO);
        }
    }

    pub(super) fn join(&mut self, at: usize, when: Time) {
        if self.is_gone(at) {
            return;
        }
        let (size, piece_len) = (self.spec.layout.size(), self.spec.layout.piece_len());
        let others: Vec<usize> = (0..self.spec.nodes).filter(|other| *other != at).collect();
        others.iter().for_each(|other| self.know(at, *other, when));
        let introduced = Cow::Owned(others.into_iter().map(peer_id).collect());
        let full = self.nodes[at].have.is_complete();
        let (have, goal) = match full {
            true => (Have::All, Goal::Serve),
            false => (Have::Set(self.nodes[at].have.to_bytes()), Goal::Fetch { background: false }),
        };
        let blob = blob_id();
        let opened = Input::BlobOpened { blob, size, piece_len, have, goal, prefix: None, introduced };
        self.push(when, Event::Input(at, opened));
        if self.spec.lists {
            let ranks = (0..self.spec.nodes).filter(|n| self.spec.region[*n] == self.spec.region[at]);
            let ranks: Vec<u64> = ranks.map(|n| n as u64 + 1).collect();
            let list = Input::Candidates { blob: blob_id(), scope: Scope::Region, ranks: Cow::Owned(ranks) };
            self.push(when, Event::Input(at, list));
        }
        if self.spec.readers.contains(&at) {
            let to = self.spec.layout.pieces();
            let reader = Input::ReaderOpened { reader: ReaderId::new(0, 0), blob: blob_id(), from: 0, to };
            self.push(when, Event::Input(at, reader));
        }
    }

    fn know(&mut self, at: usize, other: usize, when: Time) {
        let scope = if self.spec.region[at] == self.spec.region[other] { Scope::Site } else { Scope::Fleet };
        let known = Input::PeerKnown { peer: peer_id(other), scope, rank: other as u64 + 1, fixed: false };
        self.push(when, Event::Input(at, known));
    }

    pub(super) fn kill(&mut self, at: usize, when: Time) {
        self.push(when, Event::Kill(at));
    }

    /// Runs until every living node is complete, or `limit` passes; true if they are.
    pub(super) fn run(&mut self, limit: Span) -> bool {
        let living = |mesh: &Self| (0..mesh.spec.nodes).filter(|at| !mesh.is_gone(*at)).count();
        while let Some(((at, _), event)) = self.queue.pop_first() {
            if at > Time::ZERO + limit || self.done.len() >= living(self) {
                break;
            }
            self.now = at;
            self.step(event);
        }
        self.done.len() >= living(self)
    }

    pub(super) fn secs(&self) -> f64 {
        self.done.values().max().copied().unwrap_or_default().as_nanos() as f64 / 1e9
    }

    pub(super) fn origin_copies(&self) -> f64 {
        self.seeder_pieces as f64 / f64::from(self.spec.layout.pieces())
    }

    pub(super) fn node(&self, at: usize) -> &Node {
        &self.nodes[at].node
    }

    fn push(&mut self, at: Time, event: Event) {
        self.sequence += 1;
        self.queue.insert((at.max(self.now), self.sequence), event);
    }

    fn later(&self) -> Time {
        self.now + self.spec.latency
    }

    fn step(&mut self, event: Event) {
        match event {
            Event::Input(at, input) => self.feed(at, input),
            Event::Timer(at) => {
                if self.nodes[at].timer.take_if(|due| *due <= self.now).is_some() {
                    self.feed(at, Input::Timeout);
                }
            }
            Event::Request { server, asker, request, piece, priority } => {
                if let (true, Manner::Refusing(reason)) =
                    (self.nodes[server].links.contains(&asker), self.spec.manner[server])
                {
                    let failure = Failure::Refused(reason);
                    self.push(self.later(), Event::Input(asker, Input::FetchFailed { request, failure }));
                } else if self.nodes[server].links.contains(&asker) {
                    let upload = self.nodes[server].uploads.insert((asker, request, piece));
                    let peer = peer_id(asker);
                    let input = Input::UploadRequested { upload, peer, blob: blob_id(), piece, priority };
                    self.feed(server, input);
                }
            }
            Event::Cancel { server, asker, request } => self.cancelled(server, asker, request),
            Event::Dial { from, to } => self.dialled(from, to),
            Event::Part(a, b) => self.unlink(a, b),
            Event::AskSeeder(ask) => self.asked(ask),
            Event::Uplink(at, epoch) => self.sent(at, epoch),
            Event::Kill(at) => self.killed(at),
        }
    }

    fn is_gone(&self, at: usize) -> bool {
        matches!(self.spec.manner[at], Manner::Dead | Manner::BlackHole)
    }

    fn feed(&mut self, at: usize, input: Input<'_>) {
        if self.is_gone(at) {
            return;
        }
        if self.tracing {
            self.trace += &format!("{} n{at} {input:?}\n", self.now.as_nanos());
        }
        if let Input::PieceStored { piece, .. } = &input {
            let piece = self.spec.layout.piece(*piece).unwrap();
            self.nodes[at].have.insert(piece);
            if piece.get() == 0 {
                let stored = self.nodes[at].have.len();
                self.first_piece_at.insert(at, stored);
            }
        }
        self.nodes[at].node.handle(input, self.now);
        self.nodes[at].node.check();
        while let Some(action) = self.nodes[at].node.poll_action() {
            if self.tracing {
                self.trace += &format!("{} n{at} -> {action:?}\n", self.now.as_nanos());
            }
            self.perform(at, action);
        }
        if let Some(due) = self.nodes[at].node.poll_timeout()
            && self.nodes[at].timer.is_none_or(|set| due < set)
        {
            self.nodes[at].timer = Some(due);
            self.push(due, Event::Timer(at));
        }
    }

    fn perform(&mut self, at: usize, action: Action) {
        let later = self.later();
        let name = match action {
            Action::Fetch { request, peer, piece, priority, .. } => {
                let server = peer.slot();
                self.push(later, Event::Request { server, asker: at, request, piece, priority });
                "fetch"
            }
            Action::AskSeeder { request, want, urgent, max, stalled, .. } => {
                self.push(later, Event::AskSeeder(Ask { asker: at, request, want, urgent, max, stalled }));
                "ask"
            }
            Action::Cancel { request } => {
                let servers: Vec<usize> = self.nodes[at].links.iter().copied().chain([SEEDER]).collect();
                for server in servers {
                    self.push(later, Event::Cancel { server, asker: at, request });
                }
                "cancel"
            }
            Action::Serve { upload } => {
                let (to, request, piece) = *self.nodes[at].uploads.get(upload).unwrap();
                if self.spec.manner[at] != Manner::Silent {
                    self.send(at, Sending { to, request, piece, upload: Some(upload), left: self.len_of(piece) });
                }
                "serve"
            }
            Action::Refuse { upload, reason } => {
                let (to, request, _) = self.nodes[at].uploads.remove(upload).unwrap();
                let failure = Failure::Refused(reason);
                self.push(later, Event::Input(to, Input::FetchFailed { request, failure }));
                "refuse"
            }
            Action::TellHave { peer, blob, have } => {
                self.tell(at, peer, Input::PeerHas { peer: peer_id(at), blob, have });
                "have"
            }
            Action::TellGained { peer, blob, pieces } => {
                let pieces = Cow::Owned(pieces.as_slice().to_vec());
                self.tell(at, peer, Input::PeerGained { peer: peer_id(at), blob, pieces });
                "gained"
            }
            Action::Connect { peer } => {
                self.push(later, Event::Dial { from: at, to: peer.slot() });
                "connect"
            }
            Action::Ban { peer, .. } => {
                self.banned.insert((at, peer.slot()));
                self.unlink(at, peer.slot());
                "ban"
            }
            Action::Completed { .. } => {
                assert!(self.nodes[at].have.is_complete(), "complete means that all is stored");
                self.done.insert(at, self.now);
                "completed"
            }
            Action::Forget { .. } => "forget",
            Action::FindProviders { .. } => "find",
            Action::Announce { .. } => "announce",
            Action::Stalled { .. } => "stalled",
        };
        *self.actions.entry(name).or_default() += 1;
    }

    fn len_of(&self, piece: u32) -> f64 {
        self.spec.layout.len_of(self.spec.layout.piece(piece).unwrap()) as f64
    }

    fn tell(&mut self, from: usize, to: PeerId, input: Input<'static>) {
        if self.nodes[from].links.contains(&to.slot()) {
            self.push(self.later(), Event::Input(to.slot(), input));
        }
    }

    fn dialled(&mut self, from: usize, to: usize) {
        let later = self.later();
        if self.spec.manner[to] == Manner::BlackHole {
            let failed = Event::Input(from, Input::ConnectFailed { peer: peer_id(to) });
            return self.push(self.now + GIVE_UP, failed);
        }
        if self.spec.manner[to] == Manner::Dead || self.banned.contains(&(to, from)) {
            self.push(later, Event::Input(from, Input::ConnectFailed { peer: peer_id(to) }));
            return;
        }
        if self.spec.manner[to] == Manner::Flapping {
            self.push(self.now + FLAP, Event::Part(from, to));
        }
        if self.nodes[from].links.insert(to) {
            self.nodes[to].links.insert(from);
            self.know(to, from, self.now);
            self.push(self.now, Event::Input(to, Input::Connected { peer: peer_id(from) }));
        }
        self.push(later, Event::Input(from, Input::Connected { peer: peer_id(to) }));
    }

    fn unlink(&mut self, a: usize, b: usize) {
        for (one, other) in [(a, b), (b, a)] {
            if self.nodes[one].links.remove(&other) {
                self.stop(one, |sending| sending.to == other);
                self.push(self.now, Event::Input(one, Input::Disconnected { peer: peer_id(other) }));
            }
        }
    }

    fn killed(&mut self, at: usize) {
        for other in self.nodes[at].links.clone() {
            self.unlink(at, other);
        }
        self.spec.manner[at] = Manner::Dead;
        self.done.remove(&at);
        self.stop(SEEDER, |sending| sending.to == at);
        self.asks.retain(|ask| ask.asker != at);
        self.seed();
    }

    fn cancelled(&mut self, server: usize, asker: usize, request: RequestId) {
        self.stop(server, |sending| sending.to == asker && sending.request == request);
        if server == SEEDER {
            self.asks.retain(|ask| ask.asker != asker || ask.request != request);
            self.seed();
            return;
        }
        let of = |(to, asked, _): &(usize, RequestId, u32)| *to == asker && *asked == request;
        let found = self.nodes[server].uploads.iter().find(|(_, upload)| of(upload)).map(|(id, _)| id);
        if let Some(upload) = found {
            self.nodes[server].uploads.remove(upload);
            self.feed(server, Input::UploadEnded { upload, bytes: 0 });
        }
    }

    pub(super) fn report(&self, name: &str) {
        println!(
            "{name}: {:.2} s, {:.3} of T3, {:.2} origin copies, {:?} timeouts {:?}",
            self.secs(),
            self.secs() / self.spec.t3_secs(),
            self.origin_copies(),
            self.actions,
            self.nodes.iter().map(|sim| sim.node.stats().timeouts).sum::<u64>()
        );
    }
}
