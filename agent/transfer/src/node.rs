//! The node: inputs in, actions out. Each input changes the state of one thing; what follows from it for all others is
//! worked out once, at the end of [`Node::handle`].

use alloc::{collections::VecDeque, vec::Vec};

use shoal_proto::{
    have::{Have, HaveSet},
    layout::Layout,
};

use crate::{
    blob::Blob,
    config::Config,
    event::{Action, Goal, Input},
    fetch::Request,
    fill::{Rank, Wanted},
    ids::{Arena, BlobId, PeerId, ReaderId, RequestId, UploadId},
    peers::{Lane, Link, Peer},
    rng::SplitMix,
    stats::Stats,
    time::{Span, Time},
    uploads::Upload,
};

/// A moment that never comes.
pub(crate) const NEVER: Time = Time::from_nanos(u64::MAX);

/// A client that reads.
#[derive(Debug)]
pub(crate) struct Reader {
    pub(crate) blob: BlobId,
    pub(crate) at: u32,
    pub(crate) to: u32,
}

/// One node's policy. See the crate's documentation for the contract.
#[derive(Debug)]
pub struct Node {
    pub(crate) config: Config,
    pub(crate) rng: SplitMix,
    pub(crate) now: Time,
    pub(crate) blobs: Arena<BlobId, Blob>,
    pub(crate) peers: Arena<PeerId, Peer>,
    /// By the slot of a peer.
    pub(crate) lanes: Vec<Lane>,
    pub(crate) readers: Arena<ReaderId, Reader>,
    /// Open requests to peers that cross a boundary, and how many there may be.
    pub(crate) crossing: u32,
    pub(crate) cross_limit: u32,
    /// When the latest dial that was answered had begun.
    pub(crate) answered: Option<Time>,
    pub(crate) requests: Arena<RequestId, Request>,
    pub(crate) uploads: Arena<UploadId, Upload>,
    /// Uploads that wait for a slot.
    pub(crate) waiting: Vec<UploadId>,
    /// Uploads in transmission.
    pub(crate) sending: Vec<UploadId>,
    /// How many uploads may wait.
    pub(crate) queue_limit: usize,
    /// Time between two uploads' ends while they follow one another, smoothed.
    pub(crate) upload_pace: Span,
    /// How long the fastest upload of late took.
    pub(crate) upload_best: Span,
    pub(crate) uploaded_at: Time,
    /// Time that a MiB takes on the uplink, smoothed, and the least of late.
    pub(crate) upload_cost: Span,
    pub(crate) upload_cost_best: Span,
    /// Slots beyond those of the configuration, in eighths.
    pub(crate) upload_spread: u32,
    /// Order of arrival of uploads.
    pub(crate) sequence: u64,
    /// Blobs with a goal to fetch that are not complete.
    pub(crate) fetching: Vec<Wanted>,
    /// Which of them comes first next time.
    pub(crate) turn: usize,
    /// Open requests to peers.
    pub(crate) open_to_peers: u32,
    /// Bytes a second from peers, smoothed.
    pub(crate) rate: u64,
    /// Requests to peers that may be open at that rate.
    pub(crate) request_limit: u32,
    /// How many of them because others have room: one more with each piece, half as many when one is refused.
    pub(crate) spare_requests: u32,
    /// When blobs that wait for their turn were last excused.
    pub(crate) excused_at: Time,
    pub(crate) stored_at: Time,
    /// Time from asking for a piece to having it, smoothed.
    pub(crate) usual: Span,
    pub(crate) writable: bool,
    /// Nothing is asked for before then: a write failed.
    pub(crate) pause_until: Time,
    /// Peers that are dialled, and peers that are dialled or connected.
    pub(crate) dialling: u32,
    pub(crate) links: u32,
    pub(crate) dial_due: bool,
    /// Uploads have come or gone, or a slot may be free.
    pub(crate) upload_due: bool,
    /// Something has changed that may let any blob go on.
    pub(crate) fill_due: bool,
    /// The last look for something to ask for ended because enough was asked for: any blob may have more.
    pub(crate) saturated: bool,
    /// When the next timeout is due; some are found void when they come.
    pub(crate) wake: Time,
    /// When it was last looked at what is due.
    pub(crate) looked_at: Time,
    /// When a request may be taken from its peer.
    pub(crate) steal_at: Time,
    /// When news are to be told.
    pub(crate) news_wake: Time,
    pub(crate) actions: VecDeque<Action>,
    pub(crate) stats: Stats,
}

impl Node {
    /// A node that knows nothing yet. All its randomness comes from `seed`.
    #[must_use]
    pub fn new(config: Config, seed: u64, now: Time) -> Self {
        let queue_limit = config.upload_queue_max.min(config.upload_queue_base) as usize;
        let cross_limit = config.cross_requests_base;
        Self {
            request_limit: config.requests_base.min(config.requests_max),
            spare_requests: 0,
            excused_at: now,
            config,
            queue_limit,
            upload_pace: Span::ZERO,
            upload_best: Span::ZERO,
            uploaded_at: now,
            upload_cost: Span::ZERO,
            upload_cost_best: Span::ZERO,
            upload_spread: 0,
            rng: SplitMix::new(seed),
            now,
            blobs: Arena::default(),
            peers: Arena::default(),
            lanes: Vec::new(),
            readers: Arena::default(),
            crossing: 0,
            cross_limit,
            answered: None,
            requests: Arena::default(),
            uploads: Arena::default(),
            waiting: Vec::new(),
            sending: Vec::new(),
            sequence: 0,
            fetching: Vec::new(),
            turn: 0,
            open_to_peers: 0,
            rate: 0,
            stored_at: now,
            usual: Span::ZERO,
            writable: true,
            pause_until: now,
            dialling: 0,
            links: 0,
            dial_due: false,
            upload_due: false,
            fill_due: false,
            saturated: false,
            wake: NEVER,
            looked_at: now,
            steal_at: NEVER,
            news_wake: NEVER,
            actions: VecDeque::new(),
            stats: Stats::default(),
        }
    }

    /// Takes what has happened at `now`, which must not be earlier than before; if it is, it counts as before.
    pub fn handle(&mut self, input: Input<'_>, now: Time) {
        self.now = now.max(self.now);
        self.fill_due = is_wide(&input);
        self.apply(input);
        if core::mem::take(&mut self.upload_due) {
            self.upload();
        }
        self.dial();
        if core::mem::take(&mut self.fill_due) {
            self.fill();
        }
    }

    /// The next thing to do; to be drained after every [`Node::handle`].
    #[inline]
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// When [`Input::Timeout`] is due; to be asked for after the actions are drained.
    #[inline]
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Time> {
        let next = self.wake.min(self.news_wake);
        (next < NEVER).then_some(next)
    }

    /// What the node has done so far.
    #[must_use]
    pub const fn stats(&self) -> &Stats {
        &self.stats
    }

    /// Whether nothing happens with a blob: no reader, no peer that lacks pieces, nothing to fetch. It may be closed.
    #[must_use]
    pub fn is_idle(&self, blob: BlobId) -> bool {
        self.blobs.get(blob).is_none_or(|blob| !blob.fetching() && blob.readers.is_empty() && blob.holders.is_empty())
    }

    /// Whether a blob that is fetched could go on at `now` but does not: pieces are missing, a connected peer that is
    /// neither busy nor resting holds one that may be taken, and nothing is asked for. Watchdogs of simulations look for
    /// it. Nothing changes by it: a wake-up that was lost is seen, not made up for.
    #[must_use]
    pub fn is_deadlocked(&mut self, blob: BlobId, now: Time) -> bool {
        if !self.writable || self.open_to_peers > 0 {
            return false;
        }
        let (then, lanes) = (self.now, self.lanes.clone());
        self.now = now.max(then);
        self.wake_rested();
        let found = self.pause_until <= self.now && self.has_choice(blob);
        (self.now, self.lanes) = (then, lanes);
        found
    }

    fn apply(&mut self, input: Input<'_>) {
        match input {
            Input::BlobOpened { blob, size, piece_len, have, goal, prefix, introduced } => {
                if let Some(old) = self.blobs.occupant(blob) {
                    self.blob_closed(old);
                }
                let layout = Layout::with_piece_len(size, piece_len);
                self.blob_opened(blob, layout, &have, goal, prefix);
                introduced.iter().for_each(|peer| self.introduced(*peer, blob));
            }
            Input::GoalChanged { blob, goal } => self.goal_changed(blob, goal),
            Input::PrefixGrown { blob, prefix } => self.with_blob(blob, |b| b.grow_prefix(prefix)),
            Input::Finalised { blob } => self.with_blob(blob, Blob::finalise),
            Input::BlobClosed { blob } => self.blob_closed(blob),
            Input::ReaderOpened { reader, blob, from, to } => {
                if let Some(old) = self.readers.occupant(reader) {
                    self.reader_closed(old);
                }
                if let Some(opened) = self.blobs.get_mut(blob) {
                    opened.readers.push(reader);
                    if opened.have.is_empty() {
                        opened.hold_until = self.now + self.config.first_byte_hold;
                        self.wake = self.wake.min(opened.hold_until);
                    }
                    self.readers.place(reader, Reader { blob, at: from, to });
                    self.rank_anew(blob);
                }
            }
            Input::ReaderMoved { reader, piece } => {
                if let Some(reader) = self.readers.get_mut(reader) {
                    reader.at = piece;
                }
            }
            Input::ReaderClosed { reader } => self.reader_closed(reader),
            Input::Disk { writable } => self.writable = writable,
            Input::Timeout => self.timeout(),
            Input::PeerKnown { peer, scope, rank, fixed } => self.peer_known(peer, scope, rank, fixed),
            Input::PeerIntroduced { peer, blob } => self.introduced(peer, blob),
            Input::Connected { peer } => self.connected(peer),
            Input::ConnectFailed { peer } => self.connect_failed(peer),
            Input::Disconnected { peer } => self.disconnected(peer),
            Input::PeerHas { peer, blob, have } => self.peer_has(peer, blob, &have),
            Input::PeerGained { peer, blob, pieces } => self.peer_gained(peer, blob, &pieces),
            Input::Candidates { blob, scope, ranks } => {
                // Where a boundary goes, anything may be taken.
                let gone = self.blobs.get_mut(blob).is_some_and(|b| b.boundaries.set(scope, &ranks));
                self.fill_due |= gone;
                self.elect(blob);
            }
            Input::Progress { request, bytes: _ } => self.progress(request),
            Input::PieceStored { request, blob, piece } => self.piece_stored(request, blob, piece),
            Input::PieceCorrupt { request, piece, sole_sender } => self.piece_corrupt(request, piece, sole_sender),
            Input::FetchFailed { request, failure } => self.fetch_failed(request, failure),
            Input::SeederGave { request, pieces } => self.seeder_gave(request, &pieces),
            Input::SeederDeferred { request, retry_after } => self.seeder_deferred(request, retry_after),
            Input::SeederBusy { request, retry_after } => self.seeder_busy(request, retry_after),
            Input::SeederDone { request } => {
                self.end(request);
            }
            Input::UploadRequested { upload, peer, blob, piece, priority } => {
                self.upload_requested(upload, peer, blob, piece, priority);
            }
            Input::UploadEnded { upload, bytes } => self.upload_ended(upload, bytes),
        }
    }

    fn reader_closed(&mut self, reader: ReaderId) {
        if let Some(closed) = self.readers.remove(reader) {
            self.with_blob(closed.blob, |blob| blob.readers.retain(|other| *other != reader));
            self.rank_anew(closed.blob);
        }
    }

    pub(crate) fn with_blob(&mut self, id: BlobId, change: impl FnOnce(&mut Blob)) {
        if let Some(blob) = self.blobs.get_mut(id) {
            change(blob);
        }
    }

    fn blob_opened(&mut self, id: BlobId, layout: Layout, have: &Have, goal: Goal, prefix: Option<u32>) {
        let have = match have {
            Have::All => HaveSet::full(&layout),
            Have::Set(bytes) => HaveSet::from_bytes(&layout, bytes).unwrap_or_else(|_| HaveSet::empty(&layout)),
            Have::Added(_) | Have::Gone => HaveSet::empty(&layout),
        };
        let mut blob = Blob::new(layout, have, goal, prefix, self.now);
        blob.cross_at = self.progress_limit();
        blob.find_at = self.now + self.config.introduction_grace;
        let (cross_at, find_at, complete) = (blob.cross_at, blob.find_at, blob.have.is_complete());
        self.blobs.place(id, blob);
        if let (Goal::Fetch { .. }, true) = (goal, complete) {
            self.actions.push_back(Action::Completed { blob: id });
        }
        self.goal_changed(id, goal);
        self.wake_at(cross_at);
        self.wake_at(find_at);
    }

    fn goal_changed(&mut self, id: BlobId, goal: Goal) {
        let Some(blob) = self.blobs.get_mut(id) else { return };
        blob.goal = goal;
        let fetching = blob.fetching();
        let rank = Rank::of(blob);
        self.fetching.retain(|other| other.id != id);
        if fetching {
            self.fetching.push(Wanted { id, rank });
            self.dial_due = true;
            let up: Vec<PeerId> = self.peers.iter().filter(|(_, p)| p.link == Link::Up).map(|(id, _)| id).collect();
            for peer in up {
                self.introduce_self(peer, id);
            }
        } else {
            self.cancel_all(id);
        }
    }

    fn cancel_all(&mut self, blob: BlobId) {
        let ids: Vec<RequestId> = self.requests.iter().filter(|(_, r)| r.blob == blob).map(|(id, _)| id).collect();
        for id in ids {
            self.cancel(id);
        }
    }

    fn blob_closed(&mut self, id: BlobId) {
        self.cancel_all(id);
        self.fetching.retain(|other| other.id != id);
        let Some(blob) = self.blobs.remove(id) else { return };
        for reader in &blob.readers {
            self.readers.remove(*reader);
        }
        self.tell_gone(id, &blob);
    }

    fn peer_has(&mut self, peer: PeerId, id: BlobId, have: &Have) {
        let Some(scope) = self.peers.get(peer).filter(|p| p.link == Link::Up).map(|p| p.scope) else { return };
        let Some(blob) = self.blobs.get_mut(id) else { return };
        let told = blob.holders.find(peer).is_some_and(|at| blob.holders[at].told);
        if !blob.set_holding(peer, scope, have) {
            self.ban(peer);
            return;
        }
        if !told && *have != Have::Gone {
            self.introduce_self(peer, id);
        }
        // A peer that holds less than it said may leave pieces to nobody but the seeder.
        self.fill_from(peer, id);
        self.ask_seeder(id);
    }

    fn peer_gained(&mut self, peer: PeerId, id: BlobId, pieces: &[u32]) {
        let Some(blob) = self.blobs.get_mut(id) else { return };
        // News may overtake the end of a subscription; only a piece that cannot be is a lie.
        let place = blob.holders.find(peer);
        let mut useful = false;
        for index in pieces {
            let Some(piece) = blob.layout.piece(*index) else { return self.ban(peer) };
            if let Some(at) = place {
                blob.holders.add(at, piece);
                useful |= blob.missing.contains(piece);
            }
        }
        if useful {
            self.fill_from(peer, id);
        } else if place.is_some() && blob.missing.is_empty() && blob.in_flight > 0 {
            self.steal(id);
        }
    }

    /// Makes sure that a timeout comes at `at` or before.
    pub(crate) fn wake_at(&mut self, at: Time) {
        self.wake = self.wake.min(at);
    }

    fn timeout(&mut self) {
        if self.now >= self.news_wake {
            self.tell_due();
        }
        if self.now < self.wake {
            return;
        }
        self.upload_due = true;
        self.wake_rested();
        self.tell_stalled();
        let since = core::mem::replace(&mut self.looked_at, self.now);
        let steal_at = core::mem::replace(&mut self.steal_at, NEVER);
        let (now, mut wake, mut due) = (self.now, NEVER, steal_at <= self.now);
        // Most wake-ups are void by now: what was due then has been put off, and nothing is looked for.
        let mut look = |at: Time| {
            if at > now {
                wake = wake.min(at);
            } else {
                due |= at > since;
            }
        };
        look(if steal_at > now { steal_at } else { NEVER });
        // A deadline may also have come nearer.
        let starved = self.requests.iter().fold(false, |starved, (_, request)| {
            let deadline = self.deadline(request);
            look(deadline);
            starved || deadline <= now
        });
        for blob in self.fetching.iter().filter_map(|wanted| self.blobs.get(wanted.id)) {
            let stalled = blob.progress_at + self.config.stalled_after;
            let dues = [blob.cross_at, blob.find_at, blob.grace_until, blob.hold_until, blob.seeder.next_at, stalled];
            dues.into_iter().for_each(&mut look);
        }
        for (_, peer) in self.peers.iter() {
            look(peer.rest_until);
            self.hedged_at(peer).into_iter().for_each(&mut look);
        }
        look(self.pause_until);
        if steal_at > now {
            self.steal_at = steal_at;
        }
        self.wake = wake;
        if due || starved {
            (self.dial_due, self.fill_due) = (true, true);
            self.expire_requests();
        }
    }
}

/// Whether an input may let any blob go on. What the others may let go on is looked for where they are taken.
const fn is_wide(input: &Input<'_>) -> bool {
    matches!(
        input,
        Input::BlobOpened { .. }
            | Input::GoalChanged { .. }
            | Input::PrefixGrown { .. }
            | Input::Finalised { .. }
            | Input::BlobClosed { .. }
            | Input::ReaderOpened { .. }
            | Input::ReaderClosed { .. }
            | Input::Disk { .. }
            | Input::Disconnected { .. }
            | Input::SeederDone { .. }
    )
}

#[cfg(test)]
use crate::ids::Id as _;

#[cfg(test)]
impl Node {
    /// Checks the crate's invariants from outside the code that keeps them.
    pub(crate) fn check(&self) {
        for (id, blob) in self.blobs.iter() {
            let open: usize = self.requests.iter().filter(|(_, r)| r.blob == id).map(|(_, r)| r.in_flight()).sum();
            assert_eq!(open, blob.in_flight as usize, "pieces in flight are those of open requests");
            assert!(blob.missing.iter().all(|piece| !blob.have.contains(piece)), "a missing piece is not stored");
            let known = blob.have.len() + blob.missing.len() + blob.in_flight;
            assert!(known <= blob.layout.pieces(), "a piece is in one state");
            blob.holders.check();
        }
        for (id, peer) in self.peers.iter() {
            let of = |r: &&Request| r.peer() == Some(id);
            let lane = self.lanes[id.slot()];
            assert_eq!(self.requests.iter().map(|(_, r)| r).filter(of).count(), lane.open as usize);
            assert!(!lane.ready || peer.link == Link::Up, "only who is connected can be asked");
        }
    }
}
