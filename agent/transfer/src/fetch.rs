//! Requests: whom to ask for which piece, what becomes of the answers, and when to ask another.

use alloc::vec::Vec;

use shoal_proto::{
    layout::PieceIndex,
    message::{Priority, RefuseReason},
};

use crate::{
    Node,
    event::{Action, Failure},
    fill::Rank,
    ids::{BlobId, PeerId, RequestId},
    time::{Span, Time},
};

/// Least age at which a request is taken from a slow peer: below it, the time for a round trip decides, not the peer.
const STEAL_AGE_MIN: Span = Span::from_millis(100);

/// Least age at which that happens to a piece that a reader waits for: in a crowd pieces wait their turn at their uploaders.
const HEDGE_AGE_MIN: Span = Span::from_secs(1);

/// A node that usually has a piece so many times faster, and not for that long either, lacks progress: whoever should have
/// brought the piece in may follow another list of candidates.
const PROGRESS_FACTOR: u64 = 16;
const PROGRESS_MIN: Span = Span::from_millis(500);

/// How often blobs that wait for their turn are excused for the lack of progress: well within [`PROGRESS_MIN`].
const EXCUSE_EVERY: Span = Span::from_millis(50);

/// Who was asked for what.
#[derive(Debug)]
pub(crate) enum Target {
    /// One piece of a peer.
    Peer { peer: PeerId, piece: PieceIndex },
    /// Pieces that the seeder chose and has not yet delivered.
    Seeder { pieces: Vec<u32> },
}

/// An open request.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) blob: BlobId,
    pub(crate) target: Target,
    pub(crate) issued: Time,
    /// When the last byte came, or the request was made.
    pub(crate) last: Time,
    /// Whether any byte has come.
    pub(crate) started: bool,
    /// Whether a reader waits for it.
    pub(crate) urgent: bool,
    /// Whether it crosses a boundary to a peer.
    pub(crate) crosses: bool,
}

impl Node {
    pub(crate) fn issue(&mut self, id: BlobId, peer: PeerId, piece: PieceIndex, urgent: bool) {
        let blob = self.blobs.get_mut(id).expect("chosen from this blob");
        let crosses =
            blob.holders.find(peer).is_some_and(|at| blob.boundaries.towards(blob.holders[at].scope).is_some());
        self.crossing += u32::from(crosses);
        self.stats.crossings += u64::from(self.now >= blob.cross_at && crosses);
        blob.take(piece);
        blob.urgent_open += u32::from(urgent);
        let priority = match (urgent, blob.background()) {
            (true, _) => Priority::Reader,
            (false, true) => Priority::Background,
            (false, false) => Priority::Normal,
        };
        self.lane(peer).open += 1;
        self.open_to_peers += 1;
        self.stats.fetches += 1;
        let now = self.now;
        let target = Target::Peer { peer, piece };
        let request =
            self.requests.insert(Request { blob: id, target, issued: now, last: now, started: false, urgent, crosses });
        self.wake_at(now + self.patience());
        self.actions.push_back(Action::Fetch { request, peer, blob: id, piece: piece.get(), priority });
    }

    /// When a request counts as starved.
    pub(crate) fn deadline(&self, request: &Request) -> Time {
        let patience = match &request.target {
            Target::Peer { .. } => self.patience(),
            Target::Seeder { .. } => self.config.seeder_patience.max(self.patience()),
        };
        request.last + patience
    }

    /// How long a request may go without a byte.
    pub(crate) fn patience(&self) -> Span {
        self.config.request_timeout.max(self.usual.times(u64::from(self.config.slow_factor)))
    }

    /// A peer that sits on a piece for longer than usual loses it to one that can serve it at once: in the endgame, when
    /// all is asked for, any piece to a peer that is idle; before, one that a reader waits for.
    pub(crate) fn steal(&mut self, id: BlobId) {
        let usual = STEAL_AGE_MIN.max(self.usual);
        let Some(endgame) = self.blobs.get(id).map(|blob| blob.missing.is_empty()) else { return };
        let mut found = None;
        for (request, open) in self.requests.iter().filter(|(_, open)| open.blob == id && (endgame || open.urgent)) {
            let Target::Peer { peer: victim, piece } = open.target else { continue };
            let slow = usual.times(u64::from(self.config.slow_factor));
            let age = match (endgame, open.started) {
                (false, _) => slow.max(HEDGE_AGE_MIN),
                (true, true) => slow,
                (true, false) => usual.times(2),
            };
            if self.now.since(open.issued) < age {
                self.steal_at = self.steal_at.min(open.issued + age);
                continue;
            }
            let Some(blob) = self.blobs.get(id) else { return };
            let idle = |peer: PeerId| {
                let taken = self.askable(peer, blob.layout.piece_len());
                taken.is_some_and(|taken| open.urgent || taken == 0)
            };
            let near = |scope| blob.boundaries.towards(scope).is_none();
            let thief = blob
                .holders
                .iter()
                .find(|(at, h)| h.peer != victim && blob.holders.holds(*at, piece) && near(h.scope) && idle(h.peer));
            if let Some((_, thief)) = thief {
                found = Some((request, thief.peer, piece, open.urgent));
                break;
            }
        }
        self.wake = self.wake.min(self.steal_at);
        if let Some((request, thief, piece, urgent)) = found {
            self.stats.steals += 1;
            self.cancel(request);
            self.issue(id, thief, piece, urgent);
        }
    }

    pub(crate) fn progress(&mut self, id: RequestId) {
        let now = self.now;
        if let Some(request) = self.requests.get_mut(id) {
            request.last = now;
            request.started = true;
        }
    }

    pub(crate) fn piece_stored(&mut self, id: RequestId, blob_id: BlobId, piece: u32) {
        let Some(blob) = self.blobs.get(blob_id) else { return };
        let Some(piece) = blob.layout.piece(piece).filter(|piece| !blob.have.contains(*piece)) else { return };
        let mut from_peer = None;
        let request = self.requests.get_mut(id).filter(|request| request.blob == blob_id);
        match request.map(|request| &mut request.target) {
            Some(Target::Peer { peer, piece: asked }) if *asked == piece => {
                from_peer = Some(*peer);
                self.finished(id, blob_id, piece);
            }
            Some(Target::Seeder { pieces }) if pieces.contains(&piece.get()) => {
                pieces.retain(|given| *given != piece.get());
                self.progress(id);
                self.stats.pieces_from_seeder += 1;
            }
            _ => self.claim_late(blob_id, piece),
        }
        let now = self.now;
        let jittered = self.progress_limit();
        let blob = self.blobs.get_mut(blob_id).expect("looked up above");
        blob.store(piece);
        if blob.readers.iter().any(|id| self.readers.get(*id).is_some_and(|reader| reader.at == piece.get())) {
            self.fill_due |= blob.hold_until > now;
            blob.hold_until = now;
        }
        blob.progress_at = now;
        blob.stalled_told = false;
        let read = Rank::of(blob) == Rank::Read;
        // Once boundaries had to be crossed, only a peer's piece shows that they need not be any more.
        if from_peer.is_some() || now < blob.cross_at {
            blob.cross_at = jittered;
            self.wake_at(jittered);
        }
        if read && now.since(self.excused_at) >= EXCUSE_EVERY {
            self.excuse(jittered);
        }
        self.after_store(blob_id);
        match from_peer {
            Some(peer) => self.fill_after(peer, blob_id, false),
            None => self.fill_due = true,
        }
    }

    /// What yields to a blob that makes progress does not lack any: it has not had its turn.
    fn excuse(&mut self, cross_at: Time) {
        let now = self.now;
        self.excused_at = now;
        for wanted in self.fetching.iter().filter(|wanted| wanted.rank != Rank::Read) {
            if let Some(blob) = self.blobs.get_mut(wanted.id) {
                (blob.progress_at, blob.cross_at) = (now, cross_at);
            }
        }
    }

    /// When the lack of progress will count, drawn anew each time so that not all nodes cross at once.
    pub(crate) fn progress_limit(&mut self) -> Time {
        let usual = self.usual.times(PROGRESS_FACTOR).max(PROGRESS_MIN);
        // Until a piece has come nobody knows how long one takes: the seeder's queue may be long.
        let most = self.config.progress_timeout;
        let timeout = if self.usual == Span::ZERO { most } else { most.min(usual) };
        let jitter = (u128::from(self.rng.next()) * u128::from(most.as_nanos())) >> 64;
        self.now + timeout + Span::from_nanos(u64::try_from(jitter).unwrap_or(0))
    }

    /// A request to a peer is over with its piece.
    fn finished(&mut self, id: RequestId, blob_id: BlobId, piece: PieceIndex) {
        let len = self.blobs.get(blob_id).map_or(0, |blob| blob.layout.len_of(piece));
        let Some(request) = self.requests.remove(id) else { return };
        self.crossed(&request, true);
        let Target::Peer { peer, .. } = request.target else { return };
        self.with_blob(blob_id, |blob| blob.urgent_open -= u32::from(request.urgent));
        let now = self.now;
        self.open_to_peers -= 1;
        self.stats.pieces_from_peers += 1;
        smooth(&mut self.usual, now.since(request.issued));
        let mut rate_now = None;
        if let Some(peer) = self.peers.get_mut(peer) {
            (peer.failures, peer.busy) = (0, 0);
            // The peer served one request after the other: it worked on this one since it finished the last.
            let since = now.since(request.issued.max(peer.finished_at)).as_nanos().max(1);
            let rate = u64::try_from(u128::from(len) * 1_000_000_000 / u128::from(since)).unwrap_or(u64::MAX);
            peer.rate = if peer.rate == 0 { rate } else { peer.rate - peer.rate / 4 + rate / 4 };
            peer.finished_at = now;
            rate_now = Some(peer.rate);
        }
        if let Some(rate) = rate_now {
            let ahead = u32::try_from(self.bytes_ahead(rate)).unwrap_or(u32::MAX);
            let lane = self.lane(peer);
            (lane.open, lane.ahead, lane.busy) = (lane.open - 1, ahead, false);
        }
        let since = now.since(self.stored_at).as_nanos().max(1);
        let rate = u64::try_from(u128::from(len) * 1_000_000_000 / u128::from(since)).unwrap_or(u64::MAX);
        self.rate = self.rate - self.rate / 8 + rate / 8;
        self.spare_requests = (self.spare_requests + 1).min(self.config.requests_spare_max);
        self.limit_requests();
        self.stored_at = now;
    }

    /// Works out how many requests to peers may be open.
    fn limit_requests(&mut self) {
        let ahead = u32::try_from(self.bytes_ahead(self.rate) >> 20).unwrap_or(u32::MAX);
        let limit = self.config.requests_base.saturating_add(self.spare_requests).saturating_add(ahead);
        self.request_limit = limit.min(self.config.requests_max);
    }

    /// A request is over, `stored` with its piece. Learns how many may cross boundaries at once: as many as come in
    /// within `cross_time`, so that the link between is full, and none waits so long in it that it is taken back.
    fn crossed(&mut self, request: &Request, stored: bool) {
        if !request.crosses {
            return;
        }
        self.crossing -= 1;
        // Any peer beyond a boundary may be asked now.
        self.saturated = true;
        let (took, most) = (self.now.since(request.issued), self.config.cross_time);
        let base = self.config.cross_requests_base;
        if stored && took.times(2) < most {
            self.cross_limit = (self.cross_limit + 1).min(self.config.requests_max);
        } else if took > most {
            self.cross_limit = self.cross_limit.saturating_sub(1).max(base);
        }
    }

    /// Whether another request may cross a boundary.
    pub(crate) fn may_cross(&self) -> bool {
        self.crossing < self.cross_limit
    }

    /// A piece came on a request that was taken back: whoever else was asked for it is asked no more.
    fn claim_late(&mut self, blob_id: BlobId, piece: PieceIndex) {
        let mut asked_of_peer = None;
        for (id, request) in self.requests.iter_mut().filter(|(_, request)| request.blob == blob_id) {
            match &mut request.target {
                Target::Peer { piece: asked, .. } if *asked == piece => asked_of_peer = Some(id),
                Target::Seeder { pieces } if pieces.contains(&piece.get()) => {
                    pieces.retain(|given| *given != piece.get());
                    return;
                }
                Target::Peer { .. } | Target::Seeder { .. } => {}
            }
        }
        if let Some(other) = asked_of_peer {
            self.cancel(other);
        }
        self.with_blob(blob_id, |blob| blob.claim(piece));
    }

    pub(crate) fn piece_corrupt(&mut self, id: RequestId, piece: u32, sole_sender: bool) {
        let Some(request) = self.requests.get_mut(id) else { return };
        self.fill_due = true;
        self.stats.corrupt += 1;
        match &mut request.target {
            Target::Peer { peer, .. } => {
                let peer = *peer;
                self.end(id);
                if sole_sender {
                    self.ban(peer);
                }
            }
            Target::Seeder { pieces } => {
                let asked = pieces.iter().position(|given| *given == piece).map(|at| pieces.swap_remove(at));
                let blob = self.blobs.get_mut(request.blob);
                if let (Some(_), Some(blob)) = (asked, blob) {
                    let piece = blob.layout.piece(piece).expect("the seeder gave a piece of this blob");
                    blob.give_back(piece);
                }
            }
        }
    }

    pub(crate) fn fetch_failed(&mut self, id: RequestId, failure: Failure) {
        let Some(request) = self.requests.get(id) else { return };
        let (blob, target) = (request.blob, &request.target);
        let peer = if let Target::Peer { peer, .. } = target { Some(*peer) } else { None };
        self.end(id);
        self.fill_due |= !matches!(failure, Failure::Refused(RefuseReason::Busy));
        match (failure, peer) {
            (Failure::Refused(reason), Some(peer)) => {
                self.stats.refusals += 1;
                match reason {
                    RefuseReason::Busy => {
                        self.spare_requests /= 2;
                        self.limit_requests();
                        if self.rest_briefly(peer) {
                            self.with_blob(blob, |blob| blob.holders.forget(peer));
                        }
                        // Who is busy without end must not keep a piece from the seeder by being asked for it.
                        if self.blobs.get(blob).is_some_and(|blob| self.now >= blob.cross_at) {
                            self.ask_seeder(blob);
                        }
                        self.fill_after(peer, blob, true);
                    }
                    RefuseReason::Failed => self.rest(peer),
                    RefuseReason::NotHeld => {
                        self.rest(peer);
                        self.with_blob(blob, |blob| blob.holders.forget(peer));
                    }
                }
            }
            (Failure::Violation, Some(peer)) => self.ban(peer),
            (Failure::ConnectionLost | Failure::Unreachable, Some(peer)) => self.rest(peer),
            (Failure::WriteFailed | Failure::Busy, _) => {
                self.pause_until = self.now + self.config.backoff_base;
                self.wake_at(self.pause_until);
            }
            (Failure::Refused(_) | Failure::Violation | Failure::ConnectionLost | Failure::Unreachable, None) => {
                self.seeder_failed(blob);
            }
        }
    }

    /// Takes a request back.
    pub(crate) fn cancel(&mut self, id: RequestId) {
        if self.end(id) {
            self.actions.push_back(Action::Cancel { request: id });
        }
    }

    /// Ends a request; its pieces are missing again.
    pub(crate) fn end(&mut self, id: RequestId) -> bool {
        let Some(request) = self.requests.remove(id) else { return false };
        self.crossed(&request, false);
        match request.target {
            Target::Peer { peer, piece } => {
                self.open_to_peers -= 1;
                if self.peers.get(peer).is_some() {
                    self.lane(peer).open -= 1;
                }
                if let Some(blob) = self.blobs.get_mut(request.blob) {
                    blob.urgent_open -= u32::from(request.urgent);
                    blob.give_back(piece);
                }
            }
            Target::Seeder { pieces } => {
                if let Some(blob) = self.blobs.get_mut(request.blob) {
                    blob.seeder.open -= 1;
                    for piece in pieces {
                        blob.give_back(blob.layout.piece(piece).expect("checked when it was given"));
                    }
                }
            }
        }
        true
    }

    pub(crate) fn drop_requests_of(&mut self, peer: PeerId) {
        let of = |r: &Request| matches!(r.target, Target::Peer { peer: asked, .. } if asked == peer);
        let ids: Vec<RequestId> = self.requests.iter().filter(|(_, r)| of(r)).map(|(id, _)| id).collect();
        for id in ids {
            self.end(id);
        }
    }

    /// Takes back what has starved, and asks others.
    pub(crate) fn expire_requests(&mut self) {
        let now = self.now;
        let starved = |r: &Request| now >= self.deadline(r);
        let ids: Vec<RequestId> = self.requests.iter().filter(|(_, r)| starved(r)).map(|(id, _)| id).collect();
        for id in ids {
            let Some(request) = self.requests.get(id) else { continue };
            let (blob, peer) = match request.target {
                Target::Peer { peer, .. } => (request.blob, Some(peer)),
                Target::Seeder { .. } => (request.blob, None),
            };
            self.stats.timeouts += 1;
            self.cancel(id);
            match peer {
                Some(peer) => self.rest(peer),
                None => self.seeder_failed(blob),
            }
        }
    }
}

/// Moves `mean` an eighth of the way to `sample`; the first sample is the mean.
pub(crate) fn smooth(mean: &mut Span, sample: Span) {
    let (old, new) = (mean.as_nanos(), sample.as_nanos());
    *mean = Span::from_nanos(if old == 0 { new } else { old - old / 8 + new / 8 });
}

#[cfg(test)]
impl Request {
    /// The peer that was asked.
    pub(crate) fn peer(&self) -> Option<PeerId> {
        if let Target::Peer { peer, .. } = self.target { Some(peer) } else { None }
    }

    /// The pieces that the request has in flight.
    pub(crate) fn in_flight(&self) -> usize {
        match &self.target {
            Target::Peer { .. } => 1,
            Target::Seeder { pieces } => pieces.len(),
        }
    }
}
