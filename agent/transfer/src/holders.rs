//! Who holds what of one blob. Sets of pieces stand row by row in one array, and a peer's row is found by its slot:
//! news of gained pieces come far more often than anything else, and each must touch little memory.

use alloc::vec::Vec;
use core::ops::Index;

use shoal_proto::{
    have::HaveSet,
    layout::{Layout, PieceIndex},
    signed::Scope,
};

use crate::{
    ids::{Id, PeerId},
    rarity::Rarity,
};

/// A peer that has spoken of the blob.
#[derive(Debug)]
pub(crate) struct Holder {
    pub(crate) peer: PeerId,
    /// Pieces that it holds.
    count: u32,
    pub(crate) scope: Scope,
    /// Whether this node has told the peer what it holds.
    pub(crate) told: bool,
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
    /// How many peers that lack some piece hold each.
    pub(crate) rarity: Rarity,
    /// Peers that hold all.
    complete: u16,
    /// Peers by scope.
    near: [u16; 4],
    /// What all within site, zone and region hold, one row each; empty as long as nobody is that near.
    inside: Vec<u64>,
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
            rarity: Rarity::new(words),
            complete: 0,
            near: [0; 4],
            inside: Vec::new(),
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

    /// The holders from place `start` on, all of them once.
    pub(crate) fn iter_from(&self, start: usize) -> impl Iterator<Item = (usize, &Holder)> {
        let (before, after) = self.list.split_at(start.min(self.list.len()));
        (start..).zip(after).chain(before.iter().enumerate())
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

    /// What the peer at `at` holds.
    pub(crate) fn row(&self, at: usize) -> &[u64] {
        &self.rows[at * self.words..(at + 1) * self.words]
    }

    pub(crate) fn holds(&self, at: usize, piece: PieceIndex) -> bool {
        self.word(at, piece.as_usize() / 64) >> (piece.get() % 64) & 1 == 1
    }

    pub(crate) fn is_complete(&self, at: usize) -> bool {
        self.list[at].count == self.layout.pieces()
    }

    /// Whether anybody is within `scope`.
    pub(crate) fn any_inside(&self, scope: Scope) -> bool {
        self.near[..=scope as usize].iter().any(|count| *count > 0)
    }

    /// Whether nobody is nearer than `scope`.
    pub(crate) fn is_nearest(&self, scope: Scope) -> bool {
        self.near[..scope as usize].iter().all(|count| *count == 0)
    }

    /// What all within `scope`, a site, zone or region, hold of word `word`.
    pub(crate) fn inside(&self, scope: Scope, word: usize) -> u64 {
        self.inside.get(scope as usize * self.words + word).copied().unwrap_or(0)
    }

    /// Pieces of word `word` that no connected peer is known to hold.
    pub(crate) fn held_by_none(&self, word: usize) -> u64 {
        if self.complete == 0 { !self.rarity.held(word) } else { 0 }
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
                self.near[scope as usize] += 1;
                self.list.len() - 1
            }
        };
        let pieces = self.layout.pieces() as usize;
        let mut lost = false;
        for word in 0..self.words {
            let all = if pieces >= 64 * (word + 1) { !0 } else { (1 << (pieces % 64)) - 1 };
            let new = set.map_or(all, |set| set.words()[word]);
            let old = core::mem::replace(&mut self.rows[at * self.words + word], new);
            lost |= old & !new != 0;
        }
        self.list[at].count = self.row(at).iter().map(|word| word.count_ones()).sum();
        self.count(at);
        if lost {
            self.unite();
        } else {
            (0..self.words).for_each(|word| self.note_inside(at, word, self.word(at, word)));
        }
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
            self.complete += 1;
        } else {
            *entry |= bit;
            self.list[at].count += 1;
            self.rarity.add(word, bit);
        }
        self.note_inside(at, word, bit);
    }

    pub(crate) fn forget(&mut self, peer: PeerId) {
        let Some(at) = self.find(peer) else { return };
        self.uncount(at);
        let last = self.list.len() - 1;
        self.near[self.list[at].scope as usize] -= 1;
        self.list.swap_remove(at);
        self.rows.copy_within(last * self.words.., at * self.words);
        self.rows.truncate(last * self.words);
        self.places[peer.slot()] = 0;
        if at < last {
            self.set_place(at);
        }
        self.unite();
    }

    fn set_place(&mut self, at: usize) {
        let slot = self.list[at].peer.slot();
        if self.places.len() <= slot {
            self.places.resize(slot + 1, 0);
        }
        self.places[slot] = u16::try_from(at + 1).expect("connections_max bounds the holders");
    }

    /// The peer at `at` holds `bits` of a word: so do all scopes that it is in.
    fn note_inside(&mut self, at: usize, word: usize, bits: u64) {
        let scope = self.list[at].scope;
        if scope == Scope::Fleet {
            return;
        }
        if self.inside.is_empty() {
            self.inside.resize(3 * self.words, 0);
        }
        for wider in scope as usize..Scope::Fleet as usize {
            self.inside[wider * self.words + word] |= bits;
        }
    }

    /// Works out anew what the scopes hold: somebody holds less.
    fn unite(&mut self) {
        if self.inside.is_empty() {
            return;
        }
        self.inside.fill(0);
        for at in 0..self.list.len() {
            (0..self.words).for_each(|word| self.note_inside(at, word, self.word(at, word)));
        }
    }

    fn count(&mut self, at: usize) {
        if self.is_complete(at) {
            self.complete += 1;
            return;
        }
        for word in 0..self.words {
            self.rarity.add(word, self.rows[at * self.words + word]);
        }
    }

    fn uncount(&mut self, at: usize) {
        if self.is_complete(at) {
            self.complete -= 1;
            return;
        }
        for word in 0..self.words {
            self.rarity.sub(word, self.rows[at * self.words + word]);
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
            assert_eq!((0..self.len()).filter(some).count(), self.rarity.count(piece.as_usize()));
        }
        for (at, holder) in self.iter() {
            assert_eq!(self.find(holder.peer), Some(at), "a holder is found by its id");
        }
        for scope in [Scope::Site, Scope::Zone, Scope::Region] {
            let within = |(_, holder): &(usize, &Holder)| holder.scope <= scope;
            assert_eq!(self.iter().any(|entry| within(&entry)), self.any_inside(scope));
            for word in 0..self.words {
                let held = self.iter().filter(within).fold(0, |held, (at, _)| held | self.word(at, word));
                assert_eq!(held, self.inside(scope, word), "what is held inside {scope:?}");
            }
        }
    }
}
