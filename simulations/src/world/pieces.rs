//! A piece on its way: asked for, served, moved, stored.

use shoal_proto::message::{Priority, RefuseReason};
use shoal_transfer::{
    event::{Failure, Input},
    ids::{Id, PeerId, RequestId, UploadId},
};

use super::{End, Event, Handle, ORIGIN, Owner, World, agent::blob_id, origin::Wish};
use crate::{
    num::{at, ceil, floor},
    topology::Way,
};

/// A transfer that may take longer than this tells how far it is, so often.
const PING: u64 = 1_000_000_000;
/// Flows that are assumed to share a link when it is guessed how long a transfer may take.
const GUESSED_FLOWS: usize = 8;

/// Where a request stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// On its way to the server.
    Travelling,
    /// With the seeder, which has not come to it.
    Accepted,
    /// In a peer's queue.
    Waiting(UploadId),
    /// Bytes move. The upload is known until the server's kernel has all of them.
    Moving { upload: Option<UploadId>, flow: u32 },
    /// All bytes have left.
    Arriving,
    /// Refused, on the way back.
    Refused(RefuseReason),
    /// The seeder gives nothing for so many nanoseconds.
    Deferred(u64),
}

/// One request, as both ends see it.
#[derive(Debug)]
pub(super) struct Ask {
    pub(super) asker: u32,
    pub(super) life: u32,
    pub(super) request: RequestId,
    /// A node, or [`ORIGIN`].
    pub(super) server: u32,
    /// The asker's slot at the server, the connection, and how long a word takes.
    pub(super) slot: u32,
    pub(super) conn: u32,
    pub(super) away: u32,
    pub(super) layer: u32,
    pub(super) piece: u32,
    pub(super) priority: Priority,
    /// Bytes of the piece that the asker had before.
    pub(super) offset: f64,
    pub(super) stage: Stage,
    pub(super) cancelled: bool,
    /// Bytes left when it was last looked at.
    pub(super) seen: f64,
    /// Of a piece from the seeder: whether it is the last of its request.
    pub(super) last: bool,
    /// To the seeder.
    pub(super) wish: Option<Box<Wish>>,
}

impl Ask {
    /// The end that serves.
    pub(super) const fn from(&self) -> End {
        if self.server == ORIGIN { End::Origin } else { End::Node(self.server) }
    }
}

impl World {
    pub(super) fn fetch(
        &mut self,
        node: u32,
        request: RequestId,
        peer: PeerId,
        layer: u32,
        piece: u32,
        priority: Priority,
    ) {
        let Some(agent) = self.agents[at(node)].as_deref() else { return };
        let Some(&peer) = agent.peers.get(peer).filter(|peer| peer.conn != 0) else {
            return self.fail(node, request, Failure::ConnectionLost, self.now);
        };
        let ask = Ask {
            asker: node,
            life: agent.life,
            request,
            server: peer.node,
            slot: peer.theirs,
            conn: peer.conn,
            away: peer.away,
            layer,
            piece,
            priority,
            offset: 0.0,
            stage: Stage::Travelling,
            cancelled: false,
            seen: 0.0,
            last: false,
            wish: None,
        };
        let handle = self.open(ask);
        let when = self.heard_at(node, &peer);
        self.push(when, Event::Request(handle));
    }

    /// Notes a request under its id.
    pub(super) fn open(&mut self, ask: Ask) -> Handle {
        let (node, slot) = (ask.asker, ask.request.slot());
        let handle = self.asks.insert(ask);
        if let Some(agent) = self.agent(node) {
            if agent.requests.len() <= slot {
                agent.requests.resize(slot + 1, None);
            }
            agent.requests[slot] = Some(handle);
        }
        handle
    }

    /// The request is over for the asker.
    pub(super) fn close(&mut self, handle: Handle, node: u32, request: RequestId) {
        if let Some(agent) = self.agent(node)
            && let Some(entry) = agent.requests.get_mut(request.slot())
            && *entry == Some(handle)
        {
            *entry = None;
        }
    }

    pub(super) fn request_arrived(&mut self, handle: Handle) {
        let Some(ask) = self.asks.get(handle) else { return };
        if ask.server == ORIGIN {
            return self.origin_asked(handle);
        }
        let Ask { server, slot, conn, layer, piece, priority, .. } = *ask;
        let linked = |agent: &&mut Box<super::Agent>| agent.peers.is_linked(slot, conn);
        let Some(agent) = self.agents[at(server)].as_mut().filter(linked) else {
            // Whoever asked hears that the connection is gone.
            self.asks.remove(handle);
            return;
        };
        let upload = agent.uploads.insert(handle);
        let peer = agent.peers.id(slot);
        self.asks.get_mut(handle).expect("looked up above").stage = Stage::Waiting(upload);
        self.feed(server, Input::UploadRequested { upload, peer, blob: blob_id(layer), piece, priority });
    }

    pub(super) fn refuse(&mut self, node: u32, upload: UploadId, reason: RefuseReason) {
        let Some(handle) = self.agent(node).and_then(|agent| agent.uploads.remove(upload)) else { return };
        let Some(ask) = self.asks.get_mut(handle) else { return };
        ask.stage = Stage::Refused(reason);
        let (asker, away) = (ask.asker, ask.away);
        let when = self.after(away, End::Node(node), End::Node(asker));
        self.push(when, Event::Refused(handle));
    }

    pub(super) fn refused(&mut self, handle: Handle) {
        let Some(ask) = self.asks.remove(handle) else { return };
        self.close(handle, ask.asker, ask.request);
        if self.lives[at(ask.asker)] != ask.life || ask.cancelled {
            return;
        }
        let request = ask.request;
        match ask.stage {
            Stage::Refused(reason) => {
                self.feed(ask.asker, Input::FetchFailed { request, failure: Failure::Refused(reason) });
            }
            Stage::Deferred(nanos) => {
                let retry_after = shoal_transfer::time::Span::from_nanos(nanos);
                self.feed(ask.asker, Input::SeederDeferred { request, retry_after });
            }
            Stage::Travelling | Stage::Accepted | Stage::Waiting(_) | Stage::Moving { .. } | Stage::Arriving => {
                self.feed(ask.asker, Input::FetchFailed { request, failure: Failure::Unreachable });
            }
        }
    }

    pub(super) fn serve(&mut self, node: u32, upload: UploadId) {
        let Some(agent) = self.agents[at(node)].as_deref() else { return };
        let Some(&handle) = agent.uploads.get(upload) else { return };
        let piece = self.asks.get(handle).map(|ask| (ask.layer, ask.piece));
        let Some((layer, piece)) = piece else { return };
        assert!(self.has(node, layer, piece), "node {node} serves a piece that it does not have");
        self.move_piece(handle, piece, Some(upload));
    }

    /// Starts the transfer of `piece` for a request.
    pub(super) fn move_piece(&mut self, handle: Handle, piece: u32, upload: Option<UploadId>) {
        let Some(ask) = self.asks.get(handle) else { return };
        let (asker, layer, from) = (ask.asker, ask.layer, ask.from());
        let len = self.plan.piece_bytes(layer, piece) as f64;
        let offset = self.take_partial(asker, layer, piece).min(len - 1.0).max(0.0);
        let to = End::Node(asker);
        let way = self.topology.way(from, to);
        let cap = self.topology.flow_max(from, to);
        let flow = self.network.start(self.now, way.links(), len - offset, cap, Owner::Ask(handle));
        if upload.is_some() {
            self.network.tell_before_end(flow, self.plan.scenario.nodes.unsent.0 as f64);
        }
        if let Some(transfers) = &mut self.transfers {
            let from = if let End::Node(node) = from { node } else { u32::MAX };
            transfers.push(super::Transfer { start: self.now, from, to: asker, bytes: len - offset });
        }
        let ask = self.asks.get_mut(handle).expect("looked up above");
        (ask.offset, ask.piece, ask.seen) = (offset, piece, len - offset);
        ask.stage = Stage::Moving { upload, flow };
        let (request, life) = (ask.request, ask.life);
        if self.may_be_slow(&way, len - offset) {
            self.push(self.now + PING, Event::Ping(handle));
        }
        self.progress(asker, life, request, floor(offset) + 1);
    }

    /// Tells a node that bytes have come. It changes no decision now, so nothing is to be done for it.
    fn progress(&mut self, node: u32, life: u32, request: RequestId, bytes: u64) {
        let now = shoal_transfer::time::Time::from_nanos(self.now);
        if self.lives[at(node)] == life
            && let Some(agent) = self.agent(node)
        {
            agent.core.handle(Input::Progress { request, bytes }, now);
        }
    }

    fn may_be_slow(&self, way: &Way, bytes: f64) -> bool {
        let share = |link: &u32| self.network.capacity(*link) / self.network.count(*link).max(GUESSED_FLOWS) as f64;
        let least = way.links().iter().map(share).fold(f64::INFINITY, f64::min);
        bytes > least * crate::num::secs(PING)
    }

    pub(super) fn ping(&mut self, handle: Handle) {
        let now = self.now;
        let Some(ask) = self.asks.get_mut(handle) else { return };
        let Stage::Moving { flow, .. } = ask.stage else { return };
        let left = self.network.left(now, flow);
        let moved = core::mem::replace(&mut ask.seen, left) > left;
        let (asker, life, request) = (ask.asker, ask.life, ask.request);
        if moved && !ask.cancelled {
            self.progress(asker, life, request, 1);
        }
        self.push(now + PING, Event::Ping(handle));
    }

    /// All bytes of a request's piece have left.
    pub(super) fn flow_over(&mut self, handle: Handle) {
        let Some(ask) = self.asks.get_mut(handle) else { return };
        let Stage::Moving { upload, .. } = ask.stage else { return };
        let (asker, server, layer, piece, from) = (ask.asker, ask.server, ask.layer, ask.piece, ask.from());
        let bytes = self.plan.piece_bytes(layer, piece) as f64 - ask.offset;
        self.moved(from, asker, bytes);
        if server == ORIGIN {
            return self.seeder_piece_over(handle);
        }
        let ask = self.asks.get_mut(handle).expect("looked up above");
        ask.stage = Stage::Arriving;
        let away = ask.away;
        let arrives = self.after(away, from, End::Node(asker));
        let when = self.stored_at(arrives, asker, bytes);
        self.push(when, Event::Stored(handle));
        match upload {
            Some(upload) => self.end_upload(server, upload, bytes),
            None => self.drained(server, handle),
        }
    }

    /// The server's kernel has all of a piece: its policy may start the next.
    pub(super) fn upload_taken(&mut self, handle: Handle) {
        let Some(ask) = self.asks.get_mut(handle) else { return };
        if ask.server == ORIGIN {
            return self.seeder_send_taken(handle);
        }
        let Stage::Moving { upload: Some(upload), flow } = ask.stage else { return };
        ask.stage = Stage::Moving { upload: None, flow };
        let server = ask.server;
        let bytes = self.plan.piece_bytes(ask.layer, ask.piece) as f64 - ask.offset;
        if let Some(agent) = self.agent(server) {
            agent.draining.push(handle);
        }
        self.end_upload(server, upload, bytes);
    }

    fn end_upload(&mut self, server: u32, upload: UploadId, bytes: f64) {
        if let Some(agent) = self.agent(server) {
            agent.uploads.remove(upload);
        }
        self.feed(server, Input::UploadEnded { upload, bytes: floor(bytes) });
    }

    fn drained(&mut self, server: u32, handle: Handle) {
        if let Some(agent) = self.agent(server) {
            agent.draining.retain(|other| *other != handle);
        }
    }

    /// When bytes that arrive at a moment are hashed and written at their receiver.
    pub(super) fn stored_at(&mut self, arrives: u64, to: u32, bytes: f64) -> u64 {
        let takes = ceil(bytes / self.plan.scenario.nodes.disk.0 * 1e9);
        match self.agent(to) {
            Some(agent) => {
                agent.disk_free = agent.disk_free.max(arrives) + takes;
                agent.disk_free
            }
            None => arrives,
        }
    }

    pub(super) fn stored(&mut self, handle: Handle) {
        let Some(ask) = self.asks.remove(handle) else { return };
        let Ask { asker, request, layer, piece, server, .. } = ask;
        if server != ORIGIN {
            self.close(handle, asker, request);
        }
        if self.lives[at(asker)] != ask.life {
            return;
        }
        let chance = self.plan.scenario.faults.corrupt.0;
        let Some(agent) = self.agent(asker) else { return };
        if server != ORIGIN && agent.corrupt.happens(chance) {
            self.meter.corrupt += 1;
            let sole_sender = ask.offset <= 0.0;
            return self.feed(asker, Input::PieceCorrupt { request, piece, sole_sender });
        }
        if self.has(asker, layer, piece) {
            self.meter.duplicates += 1;
        } else {
            let word = at(asker) * self.plan.words + self.plan.layers[at(layer)].word + at(piece) / 64;
            self.have[word] |= 1 << (piece % 64);
            let bytes = self.plan.piece_bytes(layer, piece);
            self.meter.gained(asker, layer, piece, bytes, server == ORIGIN, self.now);
        }
        self.feed(asker, Input::PieceStored { request, blob: blob_id(layer), piece });
        if ask.last {
            self.feed(asker, Input::SeederDone { request });
        }
        self.move_reader(asker, layer, piece);
    }

    pub(super) fn cancel(&mut self, node: u32, request: RequestId) {
        let entry = self.agent(node).and_then(|agent| agent.requests.get(request.slot()).copied().flatten());
        let Some(handle) = entry else { return };
        let Some(ask) = self.asks.get_mut(handle).filter(|ask| ask.request == request && !ask.cancelled) else {
            return;
        };
        ask.cancelled = true;
        let server = ask.from();
        self.close(handle, node, request);
        let when = self.reach(End::Node(node), server);
        self.push(when, Event::Cancelled(handle));
    }

    pub(super) fn cancel_arrived(&mut self, handle: Handle) {
        let Some(ask) = self.asks.get(handle) else { return };
        let (server, stage) = (ask.server, ask.stage);
        if server == ORIGIN {
            return self.seeder_cancelled(handle);
        }
        match stage {
            Stage::Waiting(upload) => {
                self.drop_ask(handle);
                self.feed(server, Input::UploadEnded { upload, bytes: 0 });
            }
            Stage::Moving { upload: Some(upload), .. } => {
                let bytes = self.drop_ask(handle);
                self.feed(server, Input::UploadEnded { upload, bytes });
            }
            // What has left will arrive, or its refusal.
            Stage::Travelling
            | Stage::Accepted
            | Stage::Moving { upload: None, .. }
            | Stage::Arriving
            | Stage::Refused(_)
            | Stage::Deferred(_) => {}
        }
    }

    /// Ends a request where it stands; the bytes that it has moved.
    pub(super) fn drop_ask(&mut self, handle: Handle) -> u64 {
        let Some(ask) = self.asks.remove(handle) else { return 0 };
        let (mut bytes, from) = (0.0, ask.from());
        if let Stage::Moving { flow, .. } = ask.stage {
            let whole = self.plan.piece_bytes(ask.layer, ask.piece) as f64 - ask.offset;
            bytes = whole - self.network.stop(self.now, flow);
            self.moved(from, ask.asker, bytes);
            self.keep_partial(&ask, ask.offset + bytes);
        }
        if ask.server == ORIGIN {
            return floor(bytes);
        }
        if let Stage::Waiting(upload) | Stage::Moving { upload: Some(upload), .. } = ask.stage
            && let Some(agent) = self.agent(ask.server)
        {
            agent.uploads.remove(upload);
        }
        self.drained(ask.server, handle);
        floor(bytes)
    }

    /// Ends all requests of `asker` that `server` has.
    pub(super) fn drop_asks(&mut self, asker: u32, server: u32) {
        let Some(agent) = self.agents[at(server)].as_deref() else { return };
        let of = |handle: &Handle| self.asks.get(*handle).is_some_and(|ask| ask.asker == asker);
        let served = agent.uploads.iter().map(|(_, handle)| handle).chain(&agent.draining);
        let handles: Vec<Handle> = served.copied().filter(of).collect();
        for handle in handles {
            self.drop_ask(handle);
        }
    }

    fn keep_partial(&mut self, ask: &Ask, bytes: f64) {
        let alive = self.lives[at(ask.asker)] == ask.life;
        let (layer, piece) = (ask.layer, ask.piece);
        if let Some(agent) = self.agent(ask.asker).filter(|_| alive && bytes >= 1.0) {
            agent.partial.retain(|(l, p, _)| (*l, *p) != (layer, piece));
            agent.partial.push((layer, piece, bytes));
        }
    }

    fn take_partial(&mut self, node: u32, layer: u32, piece: u32) -> f64 {
        let Some(agent) = self.agent(node) else { return 0.0 };
        let found = agent.partial.iter().position(|(l, p, _)| (*l, *p) == (layer, piece));
        found.map_or(0.0, |index| agent.partial.swap_remove(index).2)
    }

    /// Bytes have passed from one end to a node.
    pub(super) fn moved(&mut self, from: End, to: u32, bytes: f64) {
        let (there, here) = (self.topology.region(from), self.topology.region(End::Node(to)));
        self.meter.moved(from, to, there, here, floor(bytes));
    }
}
