//! The shell around one node's policy: the same loop as the agent's, with numbers for bytes.

use shoal_proto::have::Have;
use shoal_transfer::{
    Node,
    event::{Action, Failure, Input},
    ids::{Arena, BlobId, Id, PeerId, ReaderId, UploadId},
    time::Time,
};

use super::{End, Event, Handle, Word, World};
use crate::{
    num::{at, small},
    rng::{Purpose, Stream},
};

/// Another node as one node knows it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Peer {
    /// Which node; [`Peers::FREE`] where the slot is free.
    pub(super) node: u32,
    pub(super) generation: u32,
    /// The connection; 0 without one.
    pub(super) conn: u32,
    /// The slot under which the other end knows this node, while connected.
    pub(super) theirs: u32,
    /// How long a word takes to it, in nanoseconds; [`Peer::FAR`] if that is more than fits.
    pub(super) away: u32,
    /// The connection on which it was last sent candidate lists.
    pub(super) listed: u32,
}

impl Peer {
    pub(super) const FAR: u32 = u32::MAX;
}

/// The nodes that one node knows, by the slots of their ids.
#[derive(Debug, Default)]
pub(super) struct Peers {
    pub(super) list: Vec<Peer>,
    free: Vec<u32>,
    /// Banned nodes, and until when.
    pub(super) bans: Vec<(u32, u64)>,
}

impl Peers {
    pub(super) const FREE: u32 = u32::MAX;

    pub(super) fn find(&self, node: u32) -> Option<u32> {
        self.list.iter().position(|peer| peer.node == node).map(small)
    }

    pub(super) fn add(&mut self, node: u32, away: u32) -> u32 {
        if let Some(slot) = self.free.pop() {
            let peer = &mut self.list[at(slot)];
            (peer.node, peer.away) = (node, away);
            return slot;
        }
        self.list.push(Peer { node, generation: 0, conn: 0, theirs: 0, away, listed: 0 });
        small(self.list.len() - 1)
    }

    pub(super) fn remove(&mut self, slot: u32) {
        let peer = &mut self.list[at(slot)];
        peer.node = Self::FREE;
        peer.generation += 1;
        peer.conn = 0;
        self.free.push(slot);
    }

    /// The peer of an id, if it is still that one.
    pub(super) fn get(&self, id: PeerId) -> Option<&Peer> {
        let peer = self.list.get(id.slot())?;
        (peer.generation == id.generation() && peer.node != Self::FREE).then_some(peer)
    }

    pub(super) fn id(&self, slot: u32) -> PeerId {
        PeerId::new(slot, self.list[at(slot)].generation)
    }

    /// Whether the connection of a slot is still the one meant.
    pub(super) fn is_linked(&self, slot: u32, conn: u32) -> bool {
        conn != 0 && self.list.get(at(slot)).is_some_and(|peer| peer.conn == conn)
    }

    pub(super) fn connected(&self) -> impl Iterator<Item = (u32, &Peer)> {
        (0..).zip(&self.list).filter(|(_, peer)| peer.conn != 0)
    }
}

/// One node that is up.
#[derive(Debug)]
pub(super) struct Agent {
    pub(super) core: Node,
    pub(super) life: u32,
    pub(super) peers: Peers,
    /// Open requests by the slots of their ids.
    pub(super) requests: Vec<Option<Handle>>,
    pub(super) uploads: Arena<UploadId, Handle>,
    /// Uploads that are over for the policy and still on their way out of the kernel.
    pub(super) draining: Vec<Handle>,
    /// When its timer event comes.
    pub(super) timer: u64,
    /// What was received of pieces that came to nothing.
    pub(super) partial: Vec<(u32, u32, f64)>,
    /// Layers that a client reads, and the piece that it waits for.
    pub(super) readers: Vec<(u32, u32)>,
    /// When the disk is done with what it has.
    pub(super) disk_free: u64,
    /// Connected since peers were told last.
    pub(super) fresh: Vec<u32>,
    pub(super) exchanges: bool,
    pub(super) lists: super::tracker::Lists,
    pub(super) corrupt: Stream,
    pub(super) names: Stream,
}

/// The id of a layer; both sides number them alike.
pub(super) fn blob_id(layer: u32) -> BlobId {
    BlobId::new(layer, 0)
}

/// The id of a layer's reader.
pub(super) fn reader_id(layer: u32) -> ReaderId {
    ReaderId::new(layer, 0)
}

fn layer_of(blob: BlobId) -> u32 {
    small(blob.slot())
}

impl World {
    /// Brings a node up.
    pub(super) fn start_agent(&mut self, node: u32) {
        let life = self.lives[at(node)];
        let mut config = self.plan.core.clone();
        config.rank = self.ranks[at(node)];
        let stream = |purpose| Stream::new(self.plan.seed, u64::from(node) | u64::from(life) << 32, purpose);
        let core = Node::new(config, stream(Purpose::Core).next(), Time::from_nanos(self.now));
        self.agents[at(node)] = Some(Box::new(Agent {
            core,
            life,
            peers: Peers::default(),
            requests: Vec::new(),
            uploads: Arena::default(),
            draining: Vec::new(),
            timer: u64::MAX,
            partial: Vec::new(),
            readers: Vec::new(),
            disk_free: 0,
            fresh: Vec::new(),
            exchanges: false,
            lists: super::tracker::Lists::default(),
            corrupt: stream(Purpose::Corrupt),
            names: stream(Purpose::Names),
        }));
    }

    pub(super) fn agent(&mut self, node: u32) -> Option<&mut Agent> {
        self.agents[at(node)].as_deref_mut()
    }

    /// Tells a node something, and does what it then wants done.
    pub(super) fn feed(&mut self, node: u32, input: Input<'_>) {
        if self.tracer.is_some() {
            self.note(node, || format!("<- {}", text(&input)));
        }
        let now = Time::from_nanos(self.now);
        let Some(agent) = self.agents[at(node)].as_deref_mut() else { return };
        agent.core.handle(input, now);
        self.meter.decisions += 1;
        while let Some(action) = self.agents[at(node)].as_deref_mut().and_then(|agent| agent.core.poll_action()) {
            self.perform(node, action);
        }
        self.send_news();
        let Some(agent) = self.agents[at(node)].as_deref_mut() else { return };
        if let Some(due) = agent.core.poll_timeout() {
            let due = due.as_nanos();
            if due < agent.timer {
                agent.timer = due;
                self.push(due, Event::Timer(node));
            }
        }
    }

    pub(super) fn timer(&mut self, node: u32) {
        let now = self.now;
        let Some(agent) = self.agent(node) else { return };
        if agent.timer > now {
            return;
        }
        agent.timer = u64::MAX;
        self.meter.spin(node, now);
        self.feed(node, Input::Timeout);
    }

    /// Kept apart from [`Self::feed`]: most inputs are followed by no action.
    #[inline(never)]
    fn perform(&mut self, node: u32, action: Action) {
        if self.tracer.is_some() {
            self.note(node, || format!("   -> {}", text(&action)));
        }
        match action {
            Action::Fetch { request, peer, blob, piece, priority } => {
                self.fetch(node, request, peer, layer_of(blob), piece, priority);
            }
            Action::AskSeeder { request, blob, want, urgent, max, stalled } => {
                self.ask_seeder(node, request, layer_of(blob), super::origin::Wish { want, urgent, max, stalled });
            }
            Action::Cancel { request } => self.cancel(node, request),
            Action::Serve { upload } => self.serve(node, upload),
            Action::Refuse { upload, reason } => self.refuse(node, upload, reason),
            Action::TellGained { peer, blob, pieces } => self.tell_gained(node, peer, layer_of(blob), pieces),
            Action::TellHave { peer, blob, have } => {
                self.send_news();
                self.tell_have(node, peer, layer_of(blob), have);
            }
            Action::Connect { peer } => self.connect(node, peer),
            Action::Ban { peer, span } => self.ban(node, peer, span.as_nanos()),
            Action::Forget { peer } => self.forget(node, peer),
            Action::FindProviders { blob } => self.find(node, layer_of(blob)),
            Action::Announce { blob } => self.announce(node, layer_of(blob)),
            Action::Completed { blob } => self.completed(node, layer_of(blob)),
            Action::Stalled { .. } => self.meter.stalled += 1,
        }
    }

    /// When a peer hears what a node says now.
    pub(super) fn heard_at(&self, node: u32, peer: &Peer) -> u64 {
        self.after(peer.away, End::Node(node), End::Node(peer.node))
    }

    /// Tells a connected peer what a node holds.
    fn tell_have(&mut self, node: u32, peer: PeerId, layer: u32, have: Have) {
        let Some(agent) = self.agents[at(node)].as_deref() else { return };
        let Some(&peer) = agent.peers.get(peer).filter(|peer| peer.conn != 0) else { return };
        let when = self.heard_at(node, &peer);
        self.say(when, Word::Have { to: peer.node, slot: peer.theirs, conn: peer.conn, layer, have });
    }

    pub(super) fn heard_have(&mut self, to: u32, slot: u32, conn: u32, layer: u32, have: Have) {
        if self.is_linked(to, slot, conn)
            && let Some(agent) = self.agent(to)
        {
            let peer = agent.peers.id(slot);
            self.send_lists(to, slot);
            self.feed(to, Input::PeerHas { peer, blob: blob_id(layer), have });
        }
    }

    /// Whether a node's connection is still the one meant.
    pub(super) fn is_linked(&self, node: u32, slot: u32, conn: u32) -> bool {
        self.agents[at(node)].as_deref().is_some_and(|agent| agent.peers.is_linked(slot, conn))
    }

    /// Tells a node that a request to a peer that is not there came to nothing.
    pub(super) fn fail(&mut self, node: u32, request: shoal_transfer::ids::RequestId, failure: Failure, when: u64) {
        let life = self.lives[at(node)];
        let input = Box::new(Input::FetchFailed { request, failure });
        self.say(when, Word::Input { node, life, input });
    }
}

fn text<T: serde::Serialize>(value: &T) -> String {
    serde_json::to_string(value).unwrap_or_else(|error| error.to_string())
}
