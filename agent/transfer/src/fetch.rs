//! Requests: whom to ask for which piece, what becomes of the answers, and when to ask another.

use alloc::vec::Vec;

use shoal_proto::{
    layout::PieceIndex,
    message::{Priority, RefuseReason},
    signed::Scope,
};

use crate::{
    Node,
    blob::Blob,
    event::{Action, Failure},
    ids::{BlobId, PeerId, RequestId},
    peers::{Link, Peer},
    picker,
    time::{Span, Time},
};

/// Least age at which a request is taken from a slow peer: below it, the time for a round trip decides, not the peer.
const STEAL_AGE_MIN: Span = Span::from_millis(100);

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
}

impl Node {
    /// Asks for what is missing, while there is room.
    pub(crate) fn fill(&mut self) {
        if !self.writable || self.pause_until > self.now {
            return;
        }
        for step in 0..self.fetching.len() {
            let at = (self.turn + step) % self.fetching.len();
            let Some(&id) = self.fetching.get(at) else { break };
            let background = self.blobs.get(id).is_none_or(Blob::background);
            let others = self.fetching.iter().any(|other| self.blobs.get(*other).is_some_and(|b| !b.background()));
            if background && others {
                continue;
            }
            self.fill_blob(id);
            self.ask_seeder(id);
            self.find(id);
        }
        self.turn = self.turn.wrapping_add(1);
    }

    fn fill_blob(&mut self, id: BlobId) {
        while self.open_to_peers < self.request_limit() {
            let Some((peer, piece, urgent)) = self.choose(id) else { break };
            self.issue(id, peer, piece, urgent);
        }
        let endgame = self.blobs.get(id).is_some_and(|blob| blob.missing.is_empty() && blob.in_flight > 0);
        if endgame && self.open_to_peers < self.config.requests_max {
            self.steal(id);
        }
    }

    /// Pieces asked for at once: more where measured rates need it.
    fn request_limit(&self) -> u32 {
        let ahead = u32::try_from(self.pieces_ahead(self.rate, 1 << 20)).unwrap_or(u32::MAX);
        self.config.requests_base.saturating_add(ahead).min(self.config.requests_max)
    }

    fn pieces_ahead(&self, rate: u64, piece_len: u64) -> u64 {
        let millis = self.config.pipeline_ahead.as_nanos() / 1_000_000;
        rate.saturating_mul(millis) / 1000 / piece_len.max(1)
    }

    fn pipeline(&self, peer: &Peer, piece_len: u64) -> u32 {
        let ahead = u32::try_from(self.pieces_ahead(peer.rate, piece_len)).unwrap_or(u32::MAX);
        self.config.pipeline_base.saturating_add(ahead).min(self.config.pipeline_max)
    }

    /// Whether some piece of the blob could be asked of a peer now.
    pub(crate) fn has_choice(&mut self, id: BlobId) -> bool {
        let rng = self.rng.clone();
        let choice = self.choose(id);
        self.rng = rng;
        choice.is_some()
    }

    fn askable(&self, peer: PeerId, piece_len: u64) -> Option<&Peer> {
        let known = self.peers.get(peer)?;
        let free = known.link == Link::Up && known.rest_until <= self.now;
        (free && known.open < self.pipeline(known, piece_len)).then_some(known)
    }

    /// The next peer to ask and the piece to ask it for: near peers first, then those with the shortest queue.
    fn choose(&mut self, id: BlobId) -> Option<(PeerId, PieceIndex, bool)> {
        let blob = self.blobs.get(id)?;
        if blob.missing.is_empty() || blob.holders.is_empty() {
            return None;
        }
        let stalled = self.now >= blob.cross_at;
        if let Some(found) = self.choose_urgent(blob, stalled) {
            return Some(found);
        }
        if blob.holds_back(self.now) {
            return None;
        }
        let words = blob.missing.words().len();
        let mut best: Option<((Scope, u32, u32), usize)> = None;
        for (at, holder) in blob.holders.iter().enumerate() {
            let Some(peer) = self.askable(holder.peer, blob.layout.piece_len()) else { continue };
            let key = (holder.scope, peer.open, (self.rng.next() >> 32) as u32);
            if best.is_none_or(|(least, _)| key < least)
                && (0..words).any(|word| takeable(blob, at, word, stalled) != 0)
            {
                best = Some((key, at));
            }
        }
        let (_, at) = best?;
        let word = |word| takeable(blob, at, word, stalled);
        let piece = picker::rarest(words, word, &blob.rarity, &mut self.rng)?;
        Some((blob.holders[at].peer, blob.layout.piece(piece)?, false))
    }

    /// The piece that a reader waits for, if none of the kind is under way: at most one slot goes to reading order.
    fn choose_urgent(&self, blob: &Blob, stalled: bool) -> Option<(PeerId, PieceIndex, bool)> {
        let piece = self.urgent(blob)?;
        let (word, bit) = (piece.as_usize() / 64, 1u64 << (piece.get() % 64));
        let able = |at: &usize| takeable(blob, *at, word, stalled) & bit != 0;
        let key = |at: &usize| {
            let holder = &blob.holders[*at];
            self.askable(holder.peer, blob.layout.piece_len()).map(|peer| (holder.scope, peer.open, *at))
        };
        let (_, _, at) = (0..blob.holders.len()).filter(able).filter_map(|at| key(&at)).min()?;
        Some((blob.holders[at].peer, piece, true))
    }

    /// The first missing piece that any reader will need, if no request for such a piece is open.
    pub(crate) fn urgent(&self, blob: &Blob) -> Option<PieceIndex> {
        if blob.readers.is_empty() || blob.urgent_open > 0 {
            return None;
        }
        let spans = blob.readers.iter().filter_map(|id| self.readers.get(*id)).map(|reader| (reader.at, reader.to));
        spans.filter_map(|(at, to)| next_missing(blob, at, to)).min()
    }

    fn issue(&mut self, id: BlobId, peer: PeerId, piece: PieceIndex, urgent: bool) {
        let blob = self.blobs.get_mut(id).expect("chosen from this blob");
        let stalled = self.now >= blob.cross_at;
        let crosses = blob.holder(peer).is_some_and(|at| blob.boundaries.towards(blob.holders[at].scope).is_some());
        self.stats.crossings += u64::from(stalled && crosses);
        blob.take(piece);
        blob.urgent_open += u32::from(urgent);
        let priority = match (urgent, blob.background()) {
            (true, _) => Priority::Reader,
            (false, true) => Priority::Background,
            (false, false) => Priority::Normal,
        };
        self.peers.get_mut(peer).expect("chosen as askable").open += 1;
        self.open_to_peers += 1;
        self.stats.fetches += 1;
        let now = self.now;
        let target = Target::Peer { peer, piece };
        let request =
            self.requests.insert(Request { blob: id, target, issued: now, last: now, started: false, urgent });
        self.wake_at(now + self.patience());
        self.actions.push_back(Action::Fetch { request, peer, blob: id, piece: piece.get(), priority });
    }

    /// When a request counts as starved.
    pub(crate) fn deadline(&self, request: &Request) -> Time {
        let waits = matches!(&request.target, Target::Seeder { pieces } if pieces.is_empty());
        request.last + if waits { self.config.seeder_patience.max(self.patience()) } else { self.patience() }
    }

    /// How long a request may go without a byte.
    pub(crate) fn patience(&self) -> Span {
        self.config.request_timeout.max(self.usual.times(u64::from(self.config.slow_factor)))
    }

    /// Endgame: all is asked for, and peers are idle. One that sits on a piece for longer than usual loses it to one
    /// that can serve it at once.
    fn steal(&mut self, id: BlobId) {
        let usual = STEAL_AGE_MIN.max(self.usual);
        let mut found = None;
        for (request, open) in self.requests.iter().filter(|(_, open)| open.blob == id) {
            let Target::Peer { peer: victim, piece } = open.target else { continue };
            let age = if open.started { usual.times(u64::from(self.config.slow_factor)) } else { usual.times(2) };
            if self.now.since(open.issued) < age {
                self.wake = self.wake.min(open.issued + age);
                continue;
            }
            let Some(blob) = self.blobs.get(id) else { return };
            let idle = |peer: PeerId| self.askable(peer, blob.layout.piece_len()).is_some_and(|p| p.open == 0);
            let near = |scope| blob.boundaries.towards(scope).is_none();
            let thief =
                blob.holders.iter().find(|h| h.peer != victim && h.holds(piece) && near(h.scope) && idle(h.peer));
            if let Some(thief) = thief {
                found = Some((request, thief.peer, piece, open.urgent));
                break;
            }
        }
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
        let mut from_peer = false;
        let request = self.requests.get_mut(id).filter(|request| request.blob == blob_id);
        match request.map(|request| &mut request.target) {
            Some(Target::Peer { piece: asked, .. }) if *asked == piece => {
                from_peer = true;
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
            blob.hold_until = now;
        }
        blob.progress_at = now;
        blob.stalled_told = false;
        // Once boundaries had to be crossed, only a peer's piece shows that they need not be any more.
        if from_peer || now < blob.cross_at {
            blob.cross_at = jittered;
            self.wake_at(jittered);
        }
        self.after_store(blob_id);
    }

    /// When the lack of progress will count, drawn anew each time so that not all nodes cross at once.
    pub(crate) fn progress_limit(&mut self) -> Time {
        let timeout = self.config.progress_timeout;
        let jitter = (u128::from(self.rng.next()) * u128::from(timeout.as_nanos())) >> 64;
        self.now + timeout + Span::from_nanos(u64::try_from(jitter).unwrap_or(0))
    }

    /// A request to a peer is over with its piece.
    fn finished(&mut self, id: RequestId, blob_id: BlobId, piece: PieceIndex) {
        let len = self.blobs.get(blob_id).map_or(0, |blob| blob.layout.len_of(piece));
        let Some(request) = self.requests.remove(id) else { return };
        let Target::Peer { peer, .. } = request.target else { return };
        self.with_blob(blob_id, |blob| blob.urgent_open -= u32::from(request.urgent));
        let now = self.now;
        self.open_to_peers -= 1;
        self.stats.pieces_from_peers += 1;
        smooth(&mut self.usual, now.since(request.issued));
        if let Some(peer) = self.peers.get_mut(peer) {
            peer.open -= 1;
            peer.failures = 0;
            // The peer served one request after the other: it worked on this one since it finished the last.
            let since = now.since(request.issued.max(peer.finished_at)).as_nanos().max(1);
            let rate = u64::try_from(u128::from(len) * 1_000_000_000 / u128::from(since)).unwrap_or(u64::MAX);
            peer.rate = if peer.rate == 0 { rate } else { peer.rate - peer.rate / 4 + rate / 4 };
            peer.finished_at = now;
        }
        let since = now.since(self.stored_at).as_nanos().max(1);
        let rate = u64::try_from(u128::from(len) * 1_000_000_000 / u128::from(since)).unwrap_or(u64::MAX);
        self.rate = self.rate - self.rate / 8 + rate / 8;
        self.stored_at = now;
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
        match (failure, peer) {
            (Failure::Refused(reason), Some(peer)) => {
                self.stats.refusals += 1;
                match reason {
                    RefuseReason::Busy => self.rest_briefly(peer),
                    RefuseReason::Failed => self.rest(peer),
                    RefuseReason::NotHeld => {
                        self.rest(peer);
                        self.with_blob(blob, |blob| blob.forget_holder(peer));
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
        let blob = self.blobs.get_mut(request.blob);
        match request.target {
            Target::Peer { peer, piece } => {
                self.open_to_peers -= 1;
                if let Some(peer) = self.peers.get_mut(peer) {
                    peer.open -= 1;
                }
                if let Some(blob) = blob {
                    blob.urgent_open -= u32::from(request.urgent);
                    blob.give_back(piece);
                }
            }
            Target::Seeder { pieces } => {
                if let Some(blob) = blob {
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

/// The missing pieces of word `word` that may be taken from the holder at `at`.
fn takeable(blob: &Blob, at: usize, word: usize, stalled: bool) -> u64 {
    let holder = &blob.holders[at];
    let useful = holder.word(word) & blob.missing.words()[word];
    if useful == 0 || stalled {
        return useful;
    }
    match blob.boundaries.towards(holder.scope) {
        None => useful,
        Some(crossing) => useful & crossing.word(word, &blob.holders),
    }
}

/// The first missing piece in `at..to`.
fn next_missing(blob: &Blob, at: u32, to: u32) -> Option<PieceIndex> {
    let words = blob.missing.words();
    let mut from = at;
    while from < to.min(blob.layout.pieces()) {
        let word = words[from as usize / 64] >> (from % 64);
        if word != 0 {
            return blob.layout.piece(from + word.trailing_zeros()).filter(|piece| piece.get() < to);
        }
        from = (from / 64 + 1) * 64;
    }
    None
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
