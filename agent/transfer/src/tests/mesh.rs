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
    message::Priority,
    signed::Scope,
};

use crate::{
    config::Config,
    event::{Action, Failure, Goal, Input},
    ids::{Arena, BlobId, Id, PeerId, ReaderId, RequestId, UploadId},
    node::Node,
    time::{Span, Time},
};

pub(super) const MIB: u64 = 1 << 20;
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
    pub(super) fn equal(nodes: usize, pieces: u64, uplink: u64) -> Self {
        Self {
            nodes,
            layout: Layout::new(pieces * MIB).unwrap(),
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
struct Sending {
    to: usize,
    request: RequestId,
    piece: u32,
    upload: Option<UploadId>,
    left: f64,
}

#[derive(Debug, Default)]
struct Uplink {
    rate: f64,
    active: Vec<Sending>,
    since: Time,
    epoch: u64,
}

#[derive(Debug)]
enum Event {
    Input(usize, Input<'static>),
    Request { server: usize, asker: usize, request: RequestId, piece: u32, priority: Priority },
    Cancel { server: usize, asker: usize, request: RequestId },
    Dial { from: usize, to: usize },
    AskSeeder { asker: usize, request: RequestId, want: Vec<u8>, urgent: Option<u32>, max: u16, stalled: bool },
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
    /// What waits for one of the seeder's slots.
    seeder_queue: Vec<Sending>,
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
            seeder_queue: Vec::new(),
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
        if self.spec.manner[at] == Manner::Dead {
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
        let living = |mesh: &Self| mesh.spec.manner.iter().filter(|m| **m != Manner::Dead).count();
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
                if self.nodes[server].links.contains(&asker) {
                    let upload = self.nodes[server].uploads.insert((asker, request, piece));
                    let peer = peer_id(asker);
                    let input = Input::UploadRequested { upload, peer, blob: blob_id(), piece, priority };
                    self.feed(server, input);
                }
            }
            Event::Cancel { server, asker, request } => self.cancelled(server, asker, request),
            Event::Dial { from, to } => self.dialled(from, to),
            Event::AskSeeder { asker, request, want, urgent, max, stalled } => {
                self.asked(asker, request, &want, urgent, max, stalled);
            }
            Event::Uplink(at, epoch) => self.sent(at, epoch),
            Event::Kill(at) => self.killed(at),
        }
    }

    fn feed(&mut self, at: usize, input: Input<'_>) {
        if self.spec.manner[at] == Manner::Dead {
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
                self.push(later, Event::AskSeeder { asker: at, request, want, urgent, max, stalled });
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
        if self.spec.manner[to] == Manner::Dead || self.banned.contains(&(to, from)) {
            self.push(later, Event::Input(from, Input::ConnectFailed { peer: peer_id(to) }));
            return;
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
        self.seeder_queue.retain(|sending| sending.to != at);
    }

    fn cancelled(&mut self, server: usize, asker: usize, request: RequestId) {
        self.stop(server, |sending| sending.to == asker && sending.request == request);
        if server == SEEDER {
            self.seeder_queue.retain(|sending| sending.to != asker || sending.request != request);
            return;
        }
        let of = |(to, asked, _): &(usize, RequestId, u32)| *to == asker && *asked == request;
        let found = self.nodes[server].uploads.iter().find(|(_, upload)| of(upload)).map(|(id, _)| id);
        if let Some(upload) = found {
            self.nodes[server].uploads.remove(upload);
            self.feed(server, Input::UploadEnded { upload, bytes: 0 });
        }
    }

    /// The seeder's choice: the urgent piece first, then those least sent to the asker's region.
    fn asked(&mut self, asker: usize, request: RequestId, want: &[u8], urgent: Option<u32>, max: u16, stalled: bool) {
        let later = self.later();
        if !self.spec.seeder_up {
            let failed = Input::FetchFailed { request, failure: Failure::Unreachable };
            self.push(later, Event::Input(asker, failed));
            return;
        }
        let region = self.spec.region[asker];
        let want = HaveSet::from_bytes(&self.spec.layout, want).unwrap();
        let sent = |piece: u32| self.sent_to_region.get(&(region, piece)).copied().unwrap_or(0);
        let turn = (self.sequence % u64::from(self.spec.layout.pieces())) as u32;
        let spread = |piece: u32| (piece + self.spec.layout.pieces() - turn) % self.spec.layout.pieces();
        let mut pieces: Vec<u32> = want.iter().map(|p| p.get()).filter(|p| stalled || sent(*p) == 0).collect();
        pieces.sort_by_key(|piece| (sent(*piece), urgent != Some(*piece), spread(*piece)));
        pieces.truncate(usize::from(max));
        if pieces.is_empty() || self.seeder_queue.len() >= 2 * self.spec.seeder_slots {
            let deferred = Input::SeederDeferred { request, retry_after: Span::from_millis(200) };
            self.push(later, Event::Input(asker, deferred));
            return;
        }
        for piece in &pieces {
            *self.sent_to_region.entry((region, *piece)).or_default() += 1;
            let left = self.len_of(*piece);
            self.seeder_queue.push(Sending { to: asker, request, piece: *piece, upload: None, left });
        }
        let pieces = Cow::Owned(pieces);
        self.push(later, Event::Input(asker, Input::SeederGave { request, pieces }));
        self.seed();
    }

    fn seed(&mut self) {
        while self.uplinks[&SEEDER].active.len() < self.spec.seeder_slots && !self.seeder_queue.is_empty() {
            let next = self.seeder_queue.remove(0);
            self.send(SEEDER, next);
        }
    }

    /// Brings an uplink's transmissions up to now.
    fn settle(&mut self, at: usize) {
        let now = self.now;
        let uplink = self.uplinks.get_mut(&at).unwrap();
        let share = uplink.rate / uplink.active.len().max(1) as f64;
        let moved = share * now.since(uplink.since).as_nanos() as f64 / 1e9;
        uplink.active.iter_mut().for_each(|sending| sending.left -= moved);
        uplink.since = now;
        uplink.epoch += 1;
    }

    fn schedule(&mut self, at: usize) {
        let uplink = &self.uplinks[&at];
        let (epoch, share) = (uplink.epoch, uplink.rate / uplink.active.len().max(1) as f64);
        if let Some(least) = uplink.active.iter().map(|s| s.left.max(0.0)).min_by(f64::total_cmp) {
            let nanos = (least / share * 1e9) as u64 + 1;
            self.push(self.now + Span::from_nanos(nanos), Event::Uplink(at, epoch));
        }
    }

    fn send(&mut self, at: usize, sending: Sending) {
        self.settle(at);
        let active = &mut self.uplinks.get_mut(&at).unwrap().active;
        active.push(sending);
        if at != SEEDER {
            self.transmissions_max = self.transmissions_max.max(active.len());
        }
        self.schedule(at);
    }

    fn stop(&mut self, at: usize, which: impl Fn(&Sending) -> bool) {
        self.settle(at);
        self.uplinks.get_mut(&at).unwrap().active.retain(|sending| !which(sending));
        self.schedule(at);
    }

    fn sent(&mut self, at: usize, epoch: u64) {
        if self.uplinks[&at].epoch != epoch {
            return;
        }
        self.settle(at);
        let later = self.later();
        let active = &mut self.uplinks.get_mut(&at).unwrap().active;
        let (over, left): (Vec<_>, Vec<_>) = core::mem::take(active).into_iter().partition(|s| s.left < 1.0);
        *active = left;
        for Sending { to, request, piece, upload, .. } in over {
            let corrupt = at != SEEDER && self.spec.manner[at] == Manner::Corrupt;
            let stored = Input::PieceStored { request, blob: blob_id(), piece };
            let bad = Input::PieceCorrupt { request, piece, sole_sender: true };
            self.push(later, Event::Input(to, if corrupt { bad } else { stored }));
            match upload {
                Some(upload) => {
                    self.crossed_pieces += u64::from(self.spec.region[at] != self.spec.region[to]);
                    self.nodes[at].uploads.remove(upload);
                    let bytes = self.len_of(piece) as u64;
                    self.feed(at, Input::UploadEnded { upload, bytes });
                }
                None => {
                    self.seeder_pieces += 1;
                    let more = |s: &Sending| s.to == to && s.request == request;
                    if !self.uplinks[&SEEDER].active.iter().chain(&self.seeder_queue).any(more) {
                        self.push(later, Event::Input(to, Input::SeederDone { request }));
                    }
                }
            }
        }
        if at == SEEDER {
            self.seed();
        }
        self.schedule(at);
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
