//! Who holds what of one blob. Sets of pieces stand row by row in one array, and a peer's row is found by its slot:
//! news of gained pieces come far more often than anything else, and each must touch little memory.

use alloc::{boxed::Box, vec, vec::Vec};
use core::ops::Index;

use shoal_proto::{
    have::HaveSet,
    layout::{Layout, PieceIndex},
    signed::Scope,
};

use crate::ids::{Id, PeerId};

/// A peer that has spoken of the blob.
#[derive(Debug)]
pub(crate) struct Holder {
    pub(crate) peer: PeerId,
    pub(crate) scope: Scope,
    /// Whether this node has told the peer what it holds.
    pub(crate) told: bool,
    /// Pieces that it holds.
    count: u32,
}

/// All that have spoken of the blob.
#[derive(Debug)]
pub(crate) struct Holders {
    layout: Layout,
    /// Words of a row.
    words: usize,
    list: Vec<Holder>,
    rows: Vec<u64>,
    /// By a peer's slot: its place in the list and one more, 0 where it is none.
    places: Vec<u16>,
    /// How many peers that lack some piece hold this one.
    pub(crate) rarity: Box<[u16]>,
    /// Pieces whose `rarity` is not 0.
    held: Box<[u64]>,
    /// Peers that hold all.
    complete: u16,
}

impl Index<usize> for Holders {
    type Output = Holder;

    fn index(&self, at: usize) -> &Holder {
        &self.list[at]
    }
}

impl Holders {
    pub(crate) fn new(layout: Layout) -> Self {
        let words = layout.pieces().div_ceil(64) as usize;
        Self {
            layout,
            words,
            list: Vec::new(),
            rows: Vec::new(),
            places: Vec::new(),
            rarity: vec![0; layout.pieces() as usize].into(),
            held: vec![0; words].into(),
            complete: 0,
        }
    }

    pub(crate) const fn len(&self) -> usize {
        self.list.len()
    }

    pub(crate) const fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (usize, &Holder)> {
        self.list.iter().enumerate()
    }

    /// Where a peer stands.
    pub(crate) fn find(&self, peer: PeerId) -> Option<usize> {
        let at = usize::from(self.places.get(peer.slot()).copied()?).checked_sub(1)?;
        (self.list[at].peer == peer).then_some(at)
    }

    /// Notes that the peer at `at` is told what this node holds; whether it was before.
    pub(crate) fn tell(&mut self, at: usize) -> bool {
        core::mem::replace(&mut self.list[at].told, true)
    }

    /// Word `word` of what the peer at `at` holds.
    pub(crate) fn word(&self, at: usize, word: usize) -> u64 {
        self.rows[at * self.words + word]
    }

    pub(crate) fn holds(&self, at: usize, piece: PieceIndex) -> bool {
        self.word(at, piece.as_usize() / 64) >> (piece.get() % 64) & 1 == 1
    }

    pub(crate) fn is_complete(&self, at: usize) -> bool {
        self.list[at].count == self.layout.pieces()
    }

    /// What all within `scope` hold of word `word`.
    pub(crate) fn inside(&self, scope: Scope, word: usize) -> u64 {
        let near = self.list.iter().enumerate().filter(|(_, holder)| holder.scope <= scope);
        near.fold(0, |held, (at, _)| held | self.word(at, word))
    }

    /// Pieces of word `word` that no connected peer is known to hold.
    pub(crate) fn held_by_none(&self, word: usize) -> u64 {
        if self.complete == 0 { !self.held[word] } else { 0 }
    }

    /// Replaces what a peer holds: `set`, or everything.
    pub(crate) fn set(&mut self, peer: PeerId, scope: Scope, set: Option<&HaveSet>) {
        let at = match self.find(peer) {
            Some(at) => {
                self.uncount(at);
                at
            }
            None => {
                self.list.push(Holder { peer, scope, told: false, count: 0 });
                self.rows.resize(self.rows.len() + self.words, 0);
                self.set_place(self.list.len() - 1);
                self.list.len() - 1
            }
        };
        let row = &mut self.rows[at * self.words..(at + 1) * self.words];
        match set {
            Some(set) => row.copy_from_slice(set.words()),
            None => self.layout.iter().for_each(|piece| row[piece.as_usize() / 64] |= 1 << (piece.get() % 64)),
        }
        self.list[at].count = row.iter().map(|word| word.count_ones()).sum();
        self.count(at);
    }

    /// Adds a piece to what the peer at `at` holds.
    pub(crate) fn add(&mut self, at: usize, piece: PieceIndex) {
        let (word, bit) = (piece.as_usize() / 64, 1 << (piece.get() % 64));
        let entry = &mut self.rows[at * self.words + word];
        if *entry & bit != 0 {
            return;
        }
        if self.list[at].count + 1 == self.layout.pieces() {
            self.uncount(at);
            self.rows[at * self.words + word] |= bit;
            self.list[at].count += 1;
            return self.count(at);
        }
        *entry |= bit;
        self.list[at].count += 1;
        self.rarity[piece.as_usize()] += 1;
        self.held[word] |= bit;
    }

    pub(crate) fn forget(&mut self, peer: PeerId) {
        let Some(at) = self.find(peer) else { return };
        self.uncount(at);
        let last = self.list.len() - 1;
        self.list.swap_remove(at);
        self.rows.copy_within(last * self.words.., at * self.words);
        self.rows.truncate(last * self.words);
        self.places[peer.slot()] = 0;
        if at < last {
            self.set_place(at);
        }
    }

    fn set_place(&mut self, at: usize) {
        let slot = self.list[at].peer.slot();
        if self.places.len() <= slot {
            self.places.resize(slot + 1, 0);
        }
        self.places[slot] = u16::try_from(at + 1).expect("connections_max bounds the holders");
    }

    fn pieces_of(&self, at: usize) -> impl Iterator<Item = usize> + use<> {
        let row: Vec<u64> = self.rows[at * self.words..(at + 1) * self.words].into();
        row.into_iter().enumerate().flat_map(|(word, mut bits)| {
            core::iter::from_fn(move || {
                let bit = (bits != 0).then(|| bits.trailing_zeros() as usize)?;
                bits &= bits - 1;
                Some(64 * word + bit)
            })
        })
    }

    fn count(&mut self, at: usize) {
        if self.is_complete(at) {
            self.complete += 1;
            return;
        }
        for piece in self.pieces_of(at) {
            self.rarity[piece] += 1;
            self.held[piece / 64] |= 1 << (piece % 64);
        }
    }

    fn uncount(&mut self, at: usize) {
        if self.is_complete(at) {
            self.complete -= 1;
            return;
        }
        for piece in self.pieces_of(at) {
            self.rarity[piece] -= 1;
            if self.rarity[piece] == 0 {
                self.held[piece / 64] &= !(1 << (piece % 64));
            }
        }
    }
}

#[cfg(test)]
impl Holders {
    /// Checks the counts against the rows.
    pub(crate) fn check(&self) {
        let complete = (0..self.len()).filter(|at| self.is_complete(*at)).count();
        assert_eq!(complete, usize::from(self.complete));
        for piece in self.layout.iter() {
            let some = |at: &usize| !self.is_complete(*at) && self.holds(*at, piece);
            assert_eq!((0..self.len()).filter(some).count(), usize::from(self.rarity[piece.as_usize()]));
        }
        for (at, holder) in self.iter() {
            assert_eq!(self.find(holder.peer), Some(at), "a holder is found by its id");
        }
    }
}
