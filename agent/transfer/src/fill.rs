//! What to ask for next, and of whom. After a change nothing is looked at that it cannot have affected: most inputs are
//! news of one piece at one peer.

use shoal_proto::{layout::PieceIndex, signed::Scope};

use crate::{
    Node,
    blob::Blob,
    boundary::Crossing,
    ids::{BlobId, Id as _, PeerId},
};

/// How much a blob is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rank {
    /// Clients read it.
    Read,
    /// A pull will come to it.
    Next,
    /// Only where nothing else is fetched.
    Background,
}

impl Rank {
    const ALL: [Self; 3] = [Self::Read, Self::Next, Self::Background];

    pub(crate) fn of(blob: &Blob) -> Self {
        match (blob.readers.is_empty(), blob.background()) {
            (false, _) => Self::Read,
            (true, false) => Self::Next,
            (true, true) => Self::Background,
        }
    }
}

/// A blob that is fetched.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wanted {
    pub(crate) id: BlobId,
    /// [`Rank::of`] it, kept here because each look for more to ask for goes through all blobs.
    pub(crate) rank: Rank,
}

impl Node {
    /// Notes how much a blob is wanted after its readers have changed.
    pub(crate) fn rank_anew(&mut self, id: BlobId) {
        let Some(rank) = self.blobs.get(id).map(Rank::of) else { return };
        if let Some(wanted) = self.fetching.iter_mut().find(|wanted| wanted.id == id) {
            wanted.rank = rank;
        }
    }

    /// Asks for what is missing, while there is room: first of the blobs that clients read, which are wanted now, then of
    /// the others, in turns within each kind. What is in the background yields to all else.
    pub(crate) fn fill(&mut self) {
        if !self.may_ask() {
            return;
        }
        self.saturated = false;
        let mut asked = false;
        for rank in self.ranks() {
            let mut any = false;
            for step in 0..self.fetching.len() {
                let Some(id) = self.in_turn(rank, step) else { continue };
                any = true;
                self.fill_blob(id);
                // The seeder's turns go to what is wanted now too.
                if !asked || self.blobs.get(id).is_some_and(|blob| self.now >= blob.cross_at) {
                    self.ask_seeder(id);
                }
                self.find(id);
            }
            let open = |wanted: &Wanted| self.blobs.get(wanted.id).is_some_and(|blob| blob.seeder.open > 0);
            asked |= any && self.fetching.iter().any(open);
            if any && rank != Rank::Read {
                break;
            }
        }
        self.turn = self.turn.wrapping_add(1);
    }

    /// The ranks that have their turn now: the background only where nothing else is fetched.
    fn ranks(&self) -> impl Iterator<Item = Rank> + use<> {
        let foreground = self.fetching.iter().any(|wanted| wanted.rank != Rank::Background);
        let ranks = if foreground { &Rank::ALL[..2] } else { &Rank::ALL[..] };
        ranks.iter().copied()
    }

    /// The blob that stands at `step` of this turn, if it is of that rank.
    fn in_turn(&self, rank: Rank, step: usize) -> Option<BlobId> {
        let wanted = self.fetching.get((self.turn + step) % self.fetching.len().max(1))?;
        (wanted.rank == rank).then_some(wanted.id)
    }

    /// Asks for what is missing after one request has come to an end, `failed` without its piece. If there was room
    /// before, nothing could be asked for then, and what is new is this: `peer` has room, and what `blob` got back may be
    /// asked of another.
    pub(crate) fn fill_after(&mut self, peer: PeerId, blob: BlobId, failed: bool) {
        if !self.may_ask() {
            return;
        }
        let saturated = core::mem::take(&mut self.saturated);
        let idle = self.lanes.get(peer.slot()).is_some_and(|lane| lane.ready);
        for rank in self.ranks().filter(|_| saturated || idle) {
            for step in 0..self.fetching.len() {
                if self.saturated {
                    break;
                }
                match self.in_turn(rank, step) {
                    Some(id) if saturated => self.fill_blob(id),
                    Some(id) => self.fill_from(peer, id),
                    None => {}
                }
            }
        }
        self.turn = self.turn.wrapping_add(1);
        let ends = || self.blobs.get(blob).is_some_and(|blob| blob.missing.is_empty());
        if !saturated && (failed || ends()) {
            self.fill_blob(blob);
        }
    }

    /// Asks one peer for what it holds of a blob: to be called when that is the only news.
    pub(crate) fn fill_from(&mut self, peer: PeerId, id: BlobId) {
        if !self.may_ask() || self.open_to_peers >= self.request_limit {
            self.saturated = true;
            return;
        }
        let Some(blob) = self.blobs.get(id) else { return };
        if blob.missing.is_empty() || !blob.fetching() {
            return;
        }
        if blob.background() && self.fetching.len() > 1 {
            self.fill_due = true;
            return;
        }
        while self.open_to_peers < self.request_limit {
            let Some((piece, urgent)) = self.choose_of(peer, id) else { return };
            self.issue(id, peer, piece, urgent);
        }
        self.saturated = true;
    }

    /// The piece to ask one peer for.
    fn choose_of(&mut self, peer: PeerId, id: BlobId) -> Option<(PieceIndex, bool)> {
        let blob = self.blobs.get(id)?;
        self.askable(peer, blob.layout.piece_len())?;
        let (at, stalled) = (blob.holders.find(peer)?, self.now >= blob.cross_at);
        if !self.in_reach(blob, blob.holders[at].scope) {
            return None;
        }
        let crossing = if stalled { None } else { blob.boundaries.towards(blob.holders[at].scope) };
        let word = |word| takeable(blob, at, word, crossing);
        if let Some(piece) = self.urgent(blob)
            && word(piece.as_usize() / 64) >> (piece.get() % 64) & 1 == 1
        {
            return Some((piece, true));
        }
        if blob.holds_back(self.now) {
            return None;
        }
        let piece = blob.holders.rarity.rarest(blob.missing.words().len(), word, &mut self.rng)?;
        Some((blob.layout.piece(piece)?, false))
    }

    fn may_ask(&self) -> bool {
        self.writable && self.pause_until <= self.now
    }

    /// Asks for what is missing of one blob.
    pub(crate) fn fill_blob(&mut self, id: BlobId) {
        while self.may_ask() && self.open_to_peers < self.request_limit {
            let Some((peer, piece, urgent)) = self.choose(id) else { break };
            self.issue(id, peer, piece, urgent);
        }
        self.saturated |= self.open_to_peers >= self.request_limit;
        let waits = |blob: &Blob| (blob.missing.is_empty() && blob.in_flight > 0) || blob.urgent_open > 0;
        if self.blobs.get(id).is_some_and(waits) && self.open_to_peers < self.config.requests_max {
            self.steal(id);
        }
    }

    /// Bytes that come in `pipeline_ahead` at a rate.
    pub(crate) fn bytes_ahead(&self, rate: u64) -> u64 {
        let millis = self.config.pipeline_ahead.as_nanos() / 1_000_000;
        rate.saturating_mul(millis) / 1000
    }

    /// Whether some piece of the blob could be asked of a peer now.
    pub(crate) fn has_choice(&mut self, id: BlobId) -> bool {
        let rng = self.rng.clone();
        let choice = self.choose(id);
        self.rng = rng;
        choice.is_some()
    }

    /// Open requests to a peer, if one more may be made.
    pub(crate) fn askable(&self, peer: PeerId, piece_len: u64) -> Option<u32> {
        let lane = self.lanes.get(peer.slot()).filter(|lane| lane.ready)?;
        let (base, max) = (self.config.pipeline_base, self.config.pipeline_max);
        if lane.busy && lane.open > 0 {
            return None;
        }
        let beyond = |ahead: u32| u64::from(ahead + 1).saturating_mul(piece_len) <= u64::from(lane.ahead);
        (lane.open < max && lane.open.checked_sub(base).is_none_or(beyond)).then_some(lane.open)
    }

    /// Whether a peer that shares `scope` with this node may be asked: no boundary lies between, or there is room for one
    /// more request across it.
    fn in_reach(&self, blob: &Blob, scope: Scope) -> bool {
        self.may_cross() || blob.boundaries.towards(scope).is_none()
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
        // A random one comes first, and of equals the first is taken.
        let start = self.rng.below(u32::try_from(blob.holders.len()).unwrap_or(u32::MAX)) as usize;
        let mut best: Option<((Scope, u32), usize)> = None;
        for (at, holder) in blob.holders.iter_from(start).filter(|(_, holder)| self.in_reach(blob, holder.scope)) {
            let Some(open) = self.askable(holder.peer, blob.layout.piece_len()) else { continue };
            let key = (holder.scope, open);
            if best.is_none_or(|(least, _)| key < least) && useful(blob, at, stalled) {
                best = Some((key, at));
                if open == 0 && blob.holders.is_nearest(holder.scope) {
                    break;
                }
            }
        }
        let (_, at) = best?;
        let crossing = if stalled { None } else { blob.boundaries.towards(blob.holders[at].scope) };
        let word = |word| takeable(blob, at, word, crossing);
        let piece = blob.holders.rarity.rarest(words, word, &mut self.rng)?;
        Some((blob.holders[at].peer, blob.layout.piece(piece)?, false))
    }

    /// The piece that a reader waits for, if none of the kind is under way: at most one slot goes to reading order.
    fn choose_urgent(&self, blob: &Blob, stalled: bool) -> Option<(PeerId, PieceIndex, bool)> {
        let piece = self.urgent(blob)?;
        let (word, bit) = (piece.as_usize() / 64, 1u64 << (piece.get() % 64));
        let able = |at: &usize| {
            if !self.in_reach(blob, blob.holders[*at].scope) {
                return false;
            }
            let crossing = if stalled { None } else { blob.boundaries.towards(blob.holders[*at].scope) };
            blob.holders.word(*at, word) & bit != 0 && takeable(blob, *at, word, crossing) & bit != 0
        };
        let key = |at: &usize| {
            let holder = &blob.holders[*at];
            self.askable(holder.peer, blob.layout.piece_len()).map(|open| (holder.scope, open, *at))
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
}

/// The missing pieces of word `word` that may be taken from the holder at `at`.
fn takeable(blob: &Blob, at: usize, word: usize, crossing: Option<Crossing<'_>>) -> u64 {
    let useful = blob.holders.word(at, word) & blob.missing.words()[word];
    match crossing {
        Some(crossing) if useful != 0 => useful & crossing.word(word, &blob.holders),
        Some(_) | None => useful,
    }
}

/// Whether anything may be taken from the holder at `at`.
fn useful(blob: &Blob, at: usize, stalled: bool) -> bool {
    let crossing = if stalled { None } else { blob.boundaries.towards(blob.holders[at].scope) };
    (0..blob.missing.words().len()).any(|word| takeable(blob, at, word, crossing) != 0)
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
