//! The seeder as nodes meet it: it answers so many requests a second, sends as few pieces at once as fill its uplink,
//! tells who waits too long to come again, and picks the pieces itself.

use std::collections::VecDeque;

use shoal_transfer::{
    event::{Failure, Input},
    ids::RequestId,
};

use super::{
    End, Event, Handle, ORIGIN, Word, World,
    pieces::{Ask, Stage},
    slots::Slots,
};
use crate::{
    ledger::{self, Choice, Cut, Ledger},
    num::{at, ceil, secs},
    plan::Plan,
};

/// What the kernel holds unsent of a piece from the seeder when it has all of it: the next piece is then another's.
const UNSENT: f64 = (64 << 10) as f64;
/// What else it holds: what is in flight, and at least this in the queue of the narrowest link.
const QUEUED: f64 = (64 << 10) as f64;

/// What a node wants of the seeder.
#[derive(Debug)]
pub(super) struct Wish {
    pub(super) want: Vec<u8>,
    pub(super) urgent: Option<u32>,
    pub(super) max: u16,
    pub(super) stalled: bool,
}

/// A send under way.
#[derive(Debug)]
struct Send {
    ask: Handle,
    number: u64,
    /// Pieces to come after the one that moves.
    left: VecDeque<u32>,
}

/// The seeder.
#[derive(Debug)]
pub(super) struct Origin {
    pub(super) down: bool,
    /// Nanoseconds for one request.
    service: u64,
    /// When it is done with the requests that it has.
    free_at: u64,
    ledger: Ledger,
    waiting: VecDeque<Handle>,
    sends: Vec<Send>,
    slots: Slots,
    /// When it looks at the slots again, while somebody waits for one.
    look_at: u64,
    pub(super) requests: u64,
    /// When images were pulled, where that is limited.
    pub(super) pulls: VecDeque<u64>,
}

impl Origin {
    pub(super) fn new(plan: &Plan, regions: usize, nodes: usize) -> Self {
        let cut =
            |layer: &crate::plan::Layer| Cut { pieces: layer.layout.pieces(), piece_len: layer.layout.piece_len() };
        let nodes = if plan.policy.swarms() { nodes } else { 0 };
        Self {
            down: false,
            service: ceil(1e9 / plan.scenario.origin.requests),
            free_at: 0,
            ledger: Ledger::new(plan.layers.iter().map(cut).collect(), regions, nodes),
            waiting: VecDeque::new(),
            sends: Vec::new(),
            slots: Slots::new(plan.scenario.origin.slots),
            look_at: u64::MAX,
            requests: 0,
            pulls: VecDeque::new(),
        }
    }

    /// When a request that comes now is answered.
    pub(super) fn turn(&mut self, now: u64) -> u64 {
        self.requests += 1;
        self.free_at = self.free_at.max(now) + self.service;
        self.free_at
    }
}

impl World {
    pub(super) fn ask_seeder(&mut self, node: u32, request: RequestId, layer: u32, wish: Wish) {
        let ask = Ask {
            asker: node,
            life: self.lives[at(node)],
            request,
            server: ORIGIN,
            slot: 0,
            conn: 0,
            away: super::agent::Peer::FAR,
            layer,
            piece: 0,
            priority: shoal_proto::message::Priority::Normal,
            offset: 0.0,
            stage: Stage::Travelling,
            cancelled: false,
            seen: 0.0,
            last: false,
            wish: Some(Box::new(wish)),
        };
        let handle = self.open(ask);
        let when = self.reach(End::Node(node), End::Origin);
        self.push(when, Event::Request(handle));
    }

    pub(super) fn origin_asked(&mut self, handle: Handle) {
        if self.origin.down {
            return self.answer(handle, Stage::Travelling);
        }
        let Some(ask) = self.asks.get_mut(handle) else { return };
        if ask.stage == Stage::Travelling {
            ask.stage = Stage::Accepted;
            let when = self.origin.turn(self.now);
            return self.push(when, Event::Request(handle));
        }
        // The second time round: its turn at the registry has come.
        self.origin.waiting.push_back(handle);
        self.push(self.now + self.plan.scenario.origin.slot_wait.0, Event::SlotWait(handle));
        self.serve_waiting();
    }

    /// Answers a request without pieces: [`Stage::Deferred`], or anything else for an error.
    fn answer(&mut self, handle: Handle, stage: Stage) {
        let Some(ask) = self.asks.get_mut(handle) else { return };
        ask.stage = stage;
        let asker = ask.asker;
        let when = self.reach(End::Origin, End::Node(asker));
        self.push(when, Event::Refused(handle));
    }

    pub(super) fn slot_waited(&mut self, handle: Handle) {
        if let Some(place) = self.origin.waiting.iter().position(|other| *other == handle) {
            self.origin.waiting.remove(place);
            self.answer(handle, Stage::Deferred(self.plan.scenario.origin.slot_wait.0));
        }
    }

    /// A slot may have been held for long enough.
    pub(super) fn look_at_slots(&mut self) {
        if self.origin.look_at <= self.now {
            self.origin.look_at = u64::MAX;
            self.serve_waiting();
        }
    }

    /// Gives pieces to whoever waits, while slots are free.
    fn serve_waiting(&mut self) {
        while !self.origin.waiting.is_empty() {
            if let Err(due) = self.origin.slots.free(self.now) {
                if due < self.origin.look_at {
                    self.origin.look_at = due;
                    self.push(due, Event::Slots);
                }
                return;
            }
            let Some(handle) = self.origin.waiting.pop_front() else { return };
            let Some(ask) = self.asks.get(handle).filter(|ask| !ask.cancelled) else { continue };
            let Some(wish) = ask.wish.as_ref() else { continue };
            let region = if self.plan.scenario.control.labels { self.topology.region(End::Node(ask.asker)) } else { 0 };
            let asked = ledger::Ask {
                node: ask.asker,
                region,
                blob: ask.layer,
                want: &wish.want,
                urgent: wish.urgent,
                max: usize::from(wish.max),
                stalled: wish.stalled,
            };
            let (asker, life, request, layer) = (ask.asker, ask.life, ask.request, ask.layer);
            match self.origin.ledger.choose(&asked, self.now) {
                Choice::Wait(nanos) => self.answer(handle, Stage::Deferred(nanos)),
                Choice::Give(pieces, number) => {
                    let when = self.reach(End::Origin, End::Node(asker));
                    let input = Box::new(Input::SeederGave { request, pieces: pieces.clone().into() });
                    self.say(when, Word::Input { node: asker, life, input });
                    let bytes = pieces.iter().map(|piece| self.plan.piece_bytes(layer, *piece)).sum();
                    let mut left: VecDeque<u32> = pieces.into();
                    let Some(first) = left.pop_front() else { continue };
                    self.origin.slots.take(number, bytes, self.now);
                    self.origin.sends.push(Send { ask: handle, number, left });
                    self.send_piece(handle, first);
                }
            }
        }
    }

    /// Starts the transfer of the next piece of a send. Of the last it is told when the kernel has it.
    fn send_piece(&mut self, handle: Handle, piece: u32) {
        self.move_piece(handle, piece, None);
        let last = self.send_of(handle).is_some_and(|place| self.origin.sends[place].left.is_empty());
        let Some(ask) = self.asks.get(handle).filter(|_| last) else { return };
        if let Stage::Moving { flow, .. } = ask.stage {
            let asker = End::Node(ask.asker);
            let share = self.network.capacity(self.topology.origin_up) / self.origin.sends.len() as f64;
            let round_trip = 2.0 * secs(self.topology.latency(End::Origin, asker));
            let flying = share.min(self.topology.flow_max(End::Origin, asker)) * round_trip;
            self.network.tell_before_end(flow, UNSENT + flying.max(QUEUED));
        }
    }

    /// The seeder's kernel has all of a send.
    pub(super) fn seeder_send_taken(&mut self, handle: Handle) {
        if let Some(place) = self.send_of(handle) {
            let (number, now) = (self.origin.sends[place].number, self.now);
            self.origin.slots.end(number, true, now);
            self.serve_waiting();
        }
    }

    fn send_of(&self, handle: Handle) -> Option<usize> {
        self.origin.sends.iter().position(|send| send.ask == handle)
    }

    fn region_of(&self, node: u32) -> u32 {
        if self.plan.scenario.control.labels { self.topology.region(End::Node(node)) } else { 0 }
    }

    /// A piece has left the seeder whole.
    pub(super) fn seeder_piece_over(&mut self, handle: Handle) {
        let (Some(place), Some(ask)) = (self.send_of(handle), self.asks.get(handle)) else { return };
        let (asker, life, request, layer, piece) = (ask.asker, ask.life, ask.request, ask.layer, ask.piece);
        let (offset, cancelled) = (ask.offset, ask.cancelled);
        let number = self.origin.sends[place].number;
        let region = self.region_of(asker);
        let sent = ledger::Sending { blob: layer, region, node: asker, send: number };
        self.origin.ledger.ended(sent, piece, true, self.now);
        let next = self.origin.sends[place].left.pop_front();
        let arriving = Ask {
            asker,
            life,
            request,
            server: ORIGIN,
            slot: 0,
            conn: 0,
            away: super::agent::Peer::FAR,
            layer,
            piece,
            priority: shoal_proto::message::Priority::Normal,
            offset,
            stage: Stage::Arriving,
            cancelled,
            seen: 0.0,
            last: next.is_none(),
            wish: None,
        };
        let arriving = self.asks.insert(arriving);
        let bytes = self.plan.piece_bytes(layer, piece) as f64 - offset;
        let arrives = self.reach(End::Origin, End::Node(asker));
        let when = self.stored_at(arrives, asker, bytes);
        self.push(when, Event::Stored(arriving));
        match next {
            Some(piece) => self.send_piece(handle, piece),
            None => {
                self.origin.sends.swap_remove(place);
                self.origin.slots.end(number, true, self.now);
                self.asks.remove(handle);
                self.close(handle, asker, request);
                self.serve_waiting();
            }
        }
    }

    /// A node takes its request to the seeder back, or is gone.
    pub(super) fn seeder_cancelled(&mut self, handle: Handle) {
        let Some(ask) = self.asks.get(handle) else { return };
        let (asker, layer, piece, stage) = (ask.asker, ask.layer, ask.piece, ask.stage);
        if let Some(place) = self.send_of(handle) {
            let send = self.origin.sends.swap_remove(place);
            let (region, now) = (self.region_of(asker), self.now);
            self.origin.slots.end(send.number, false, now);
            let sent = ledger::Sending { blob: layer, region, node: asker, send: send.number };
            for piece in core::iter::once(piece).chain(send.left) {
                self.origin.ledger.ended(sent, piece, false, now);
            }
        }
        if matches!(stage, Stage::Refused(_) | Stage::Deferred(_)) {
            return;
        }
        self.origin.waiting.retain(|other| *other != handle);
        self.drop_ask(handle);
        self.serve_waiting();
    }

    /// The origin goes down, or comes back.
    pub(super) fn set_origin_down(&mut self, down: bool) {
        self.origin.down = down;
        if !down {
            return;
        }
        let waiting = core::mem::take(&mut self.origin.waiting);
        waiting.into_iter().for_each(|handle| self.answer(handle, Stage::Travelling));
        let sends: Vec<Handle> = self.origin.sends.iter().map(|send| send.ask).collect();
        for handle in sends {
            let Some(ask) = self.asks.get(handle) else { continue };
            let (asker, request) = (ask.asker, ask.request);
            let when = self.reach(End::Origin, End::Node(asker));
            self.seeder_cancelled(handle);
            self.close(handle, asker, request);
            self.fail(asker, request, Failure::ConnectionLost, when);
        }
    }

    /// Requests to the seeder of a node that is gone.
    pub(super) fn drop_seeder_asks(&mut self, node: u32) {
        let handles: Vec<Handle> = self.agents[at(node)]
            .as_deref()
            .map(|agent| agent.requests.iter().flatten().copied().collect())
            .unwrap_or_default();
        for handle in handles {
            if self.asks.get(handle).is_some_and(|ask| ask.server == ORIGIN) {
                self.seeder_cancelled(handle);
            }
        }
    }
}
