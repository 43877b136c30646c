//! One blob: which pieces are stored, in flight and missing.

use alloc::{boxed::Box, vec, vec::Vec};

use shoal_proto::{
    have::{Have, HaveSet},
    layout::{Layout, PieceIndex},
    signed::Scope,
};

use crate::{
    boundary::Boundaries,
    event::Goal,
    holders::Holders,
    ids::{PeerId, ReaderId},
    time::Time,
};

/// Most peers that are remembered as interested in one blob: several times the degree, so that the dead can be
/// replaced, and bounded whatever is introduced.
pub(crate) const CANDIDATES_MAX: usize = 128;

/// How the blob stands with the seeder.
#[derive(Debug, Default)]
pub(crate) struct SeederLink {
    /// Requests under way.
    pub(crate) open: u32,
    /// Not to be asked before.
    pub(crate) next_at: Time,
    /// Failures in a row.
    pub(crate) failures: u32,
}

/// A blob that is fetched or served.
///
/// A piece is in exactly one of `have`, `missing`, and the open requests: `in_flight` counts the last.
#[derive(Debug)]
pub(crate) struct Blob {
    pub(crate) layout: Layout,
    pub(crate) goal: Goal,
    pub(crate) have: HaveSet,
    /// Neither stored nor in flight, and allowed by the prefix.
    pub(crate) missing: HaveSet,
    pub(crate) in_flight: u32,
    /// Open requests to peers for a piece that a reader waits for.
    pub(crate) urgent_open: u32,
    /// Pieces whose hash is known; all but the last under a provisional statement that has come to its end.
    prefix: u32,
    provisional: bool,
    /// How often this node has served each piece, up to 255.
    pub(crate) served: Box<[u8]>,
    pub(crate) holders: Holders,
    /// Peers said to be interested.
    pub(crate) candidates: Vec<PeerId>,
    /// How many of them are connected or dialled.
    pub(crate) linked: u32,
    pub(crate) readers: Vec<ReaderId>,
    pub(crate) boundaries: Boundaries,
    pub(crate) seeder: SeederLink,
    /// Gained since the peers were told.
    pub(crate) news: Vec<u32>,
    pub(crate) told_at: Time,
    /// Last piece stored, or opened.
    pub(crate) progress_at: Time,
    /// From then on boundaries are crossed that others should cross.
    pub(crate) cross_at: Time,
    /// Before then a client waits for the first byte of a blob of which nothing had come.
    pub(crate) hold_until: Time,
    /// Before then the seeder is not asked, while introduced peers have not spoken.
    pub(crate) grace_until: Time,
    pub(crate) find_at: Time,
    pub(crate) announced: bool,
    pub(crate) stalled_told: bool,
}

impl Blob {
    pub(crate) fn new(layout: Layout, have: HaveSet, goal: Goal, prefix: Option<u32>, now: Time) -> Self {
        let mut blob = Self {
            layout,
            goal,
            missing: HaveSet::empty(&layout),
            in_flight: 0,
            urgent_open: 0,
            prefix: 0,
            provisional: prefix.is_some(),
            served: vec![0; layout.pieces() as usize].into(),
            holders: Holders::new(layout),
            candidates: Vec::new(),
            linked: 0,
            readers: Vec::new(),
            boundaries: Boundaries::default(),
            seeder: SeederLink::default(),
            news: Vec::new(),
            told_at: Time::ZERO,
            progress_at: now,
            cross_at: now,
            hold_until: now,
            grace_until: now,
            find_at: now,
            announced: !have.is_empty(),
            stalled_told: false,
            have,
        };
        blob.grow_prefix(prefix.unwrap_or_else(|| layout.pieces()));
        blob
    }

    pub(crate) fn fetching(&self) -> bool {
        matches!(self.goal, Goal::Fetch { .. }) && !self.have.is_complete()
    }

    pub(crate) fn background(&self) -> bool {
        self.goal == Goal::Fetch { background: true } && self.readers.is_empty()
    }

    /// Whether enough is stored and asked for until a waiting client has its first byte.
    pub(crate) fn holds_back(&self, now: Time) -> bool {
        // What the seeder brings unasked for comes on top: with it, it must stay under a quarter.
        let enough = (self.layout.pieces() * 3 / 16).max(1);
        now < self.hold_until && self.have.len() + self.in_flight + self.seeder.open >= enough
    }

    /// Lets pieces below `prefix` be asked for. The last one waits for the final statement.
    pub(crate) fn grow_prefix(&mut self, prefix: u32) {
        let limit = self.layout.pieces().saturating_sub(u32::from(self.provisional));
        for index in self.prefix..prefix.min(limit) {
            if let Some(piece) = self.layout.piece(index).filter(|piece| !self.have.contains(*piece)) {
                self.missing.insert(piece);
            }
            self.prefix = index + 1;
        }
    }

    pub(crate) fn finalise(&mut self) {
        self.provisional = false;
        self.grow_prefix(self.layout.pieces());
    }

    /// Takes a missing piece into flight.
    pub(crate) fn take(&mut self, piece: PieceIndex) {
        assert!(self.missing.remove(piece), "a piece is asked for once at a time");
        self.in_flight += 1;
    }

    /// Takes a piece into flight that is stored already, though nobody was asked for it.
    pub(crate) fn claim(&mut self, piece: PieceIndex) {
        self.missing.remove(piece);
        self.in_flight += 1;
    }

    /// Gives a piece in flight back.
    pub(crate) fn give_back(&mut self, piece: PieceIndex) {
        assert!(!self.have.contains(piece) && self.missing.insert(piece), "only a piece in flight is given back");
        self.in_flight -= 1;
    }

    /// A piece in flight is stored.
    pub(crate) fn store(&mut self, piece: PieceIndex) {
        assert!(self.have.insert(piece) && !self.missing.contains(piece), "only a piece in flight is stored");
        self.in_flight -= 1;
        self.news.push(piece.get());
    }

    /// What this node says of itself.
    pub(crate) fn own_have(&self) -> Have {
        if self.have.is_complete() { Have::All } else { Have::Set(self.have.to_bytes()) }
    }

    /// Replaces what a peer holds; false if the set is not one of this blob.
    pub(crate) fn set_holding(&mut self, peer: PeerId, scope: Scope, have: &Have) -> bool {
        match have {
            Have::All => self.holders.set(peer, scope, None),
            Have::Set(bytes) => match HaveSet::from_bytes(&self.layout, bytes) {
                Ok(set) => self.holders.set(peer, scope, Some(&set)),
                Err(_) => return false,
            },
            Have::Added(pieces) => return self.add_holding(peer, pieces),
            Have::Gone => self.holders.forget(peer),
        }
        true
    }

    /// Adds pieces to what a peer holds; false if it never told its set or names a piece that the blob lacks.
    pub(crate) fn add_holding(&mut self, peer: PeerId, pieces: &[u32]) -> bool {
        let Some(at) = self.holders.find(peer) else { return false };
        for &index in pieces {
            let Some(piece) = self.layout.piece(index) else { return false };
            self.holders.add(at, piece);
        }
        true
    }
}
