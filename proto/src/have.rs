//! The have-set: which pieces of a blob a node holds, verified.

use bincode::{Decode, Encode};

use crate::layout::{Layout, PIECES_MAX, PieceIndex};

/// A set of pieces of one blob, one bit each. Bits past the blob's last piece are zero.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HaveSet {
    words: Box<[u64]>,
    pieces: u32,
    count: u32,
}

impl HaveSet {
    /// No piece of a blob with `layout`.
    #[must_use]
    pub fn empty(layout: &Layout) -> Self {
        Self::none_of(layout.pieces())
    }

    /// All pieces of a blob with `layout`.
    #[must_use]
    pub fn full(layout: &Layout) -> Self {
        let mut set = Self::empty(layout);
        for piece in layout.iter() {
            set.insert(piece);
        }
        set
    }

    fn none_of(pieces: u32) -> Self {
        Self { words: vec![0; pieces.div_ceil(64) as usize].into(), pieces, count: 0 }
    }

    /// How many pieces the blob has.
    #[inline]
    #[must_use]
    pub const fn pieces(&self) -> u32 {
        self.pieces
    }

    /// How many pieces are in the set.
    #[inline]
    #[must_use]
    pub const fn len(&self) -> u32 {
        self.count
    }

    /// Whether no piece is in the set.
    #[inline]
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Whether every piece is in the set (true for an empty blob).
    #[inline]
    #[must_use]
    pub const fn is_complete(&self) -> bool {
        self.count == self.pieces
    }

    /// Whether `piece` is in the set. A piece of a longer blob is not.
    #[inline]
    #[must_use]
    pub fn contains(&self, piece: PieceIndex) -> bool {
        let (word, bit) = place(piece);
        self.words.get(word).is_some_and(|w| w & bit != 0)
    }

    /// Adds `piece`; true if it is new. A piece past the end is not added.
    #[inline]
    pub fn insert(&mut self, piece: PieceIndex) -> bool {
        let (word, bit) = place(piece);
        if piece.get() >= self.pieces || self.words[word] & bit != 0 {
            return false;
        }
        self.words[word] |= bit;
        self.count += 1;
        true
    }

    /// Takes `piece` out; true if it was there.
    #[inline]
    pub fn remove(&mut self, piece: PieceIndex) -> bool {
        let (word, bit) = place(piece);
        if !self.contains(piece) {
            return false;
        }
        self.words[word] &= !bit;
        self.count -= 1;
        true
    }

    /// The pieces in the set, in order.
    pub fn iter(&self) -> impl Iterator<Item = PieceIndex> + '_ {
        let layout = Layout::with_piece_len(u64::from(self.pieces), 1);
        self.words.iter().enumerate().flat_map(move |(at, &word)| {
            let base = u32::try_from(at * 64).expect("pieces are counted in u32");
            Ones(word).filter_map(move |bit| layout.piece(base + bit))
        })
    }

    /// The words that hold the bits, piece 0 in the lowest bit of the first. For scans that count many sets at once.
    #[inline]
    #[must_use]
    pub fn words(&self) -> &[u64] {
        &self.words
    }

    /// The set as bytes: piece 0 is the lowest bit of the first byte. `⌈pieces / 8⌉` bytes.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes: Vec<u8> = self.words.iter().flat_map(|word| word.to_le_bytes()).collect();
        bytes.truncate(self.pieces.div_ceil(8) as usize);
        bytes
    }

    /// The reverse of [`HaveSet::to_bytes`] for a blob with `layout`.
    ///
    /// # Errors
    /// The length is not that of the blob's set, or a bit past the last piece is set.
    pub fn from_bytes(layout: &Layout, bytes: &[u8]) -> Result<Self, HaveSetError> {
        let mut set = Self::empty(layout);
        let expected = layout.pieces().div_ceil(8) as usize;
        if bytes.len() != expected {
            return Err(HaveSetError::Length { expected, found: bytes.len() });
        }
        for (at, chunk) in bytes.chunks(8).enumerate() {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            set.words[at] = u64::from_le_bytes(word);
        }
        let spare = layout.pieces() % 64;
        if spare != 0 && set.words.last().is_some_and(|last| last >> spare != 0) {
            return Err(HaveSetError::PastEnd);
        }
        set.count = set.words.iter().map(|word| word.count_ones()).sum();
        Ok(set)
    }
}

fn place(piece: PieceIndex) -> (usize, u64) {
    (piece.as_usize() / 64, 1 << (piece.get() % 64))
}

/// The set bits of a word, lowest first.
struct Ones(u64);

impl Iterator for Ones {
    type Item = u32;

    fn next(&mut self) -> Option<u32> {
        let bit = (self.0 != 0).then(|| self.0.trailing_zeros())?;
        self.0 &= self.0 - 1;
        Some(bit)
    }
}

/// Why bytes are no have-set of a blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HaveSetError {
    /// Wrong number of bytes.
    #[error("a have-set of this blob is {expected} bytes, not {found}")]
    Length {
        /// Bytes that the layout asks for.
        expected: usize,
        /// Bytes that came.
        found: usize,
    },
    /// A piece that the blob does not have.
    #[error("the have-set names a piece past the blob's end")]
    PastEnd,
}

/// What a node says of the pieces it holds. Sent first with a whole set, then with batches of new indexes.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum Have {
    /// Every piece: a complete node is a flag, not a bitmap.
    All,
    /// The set as bytes ([`HaveSet::to_bytes`]).
    Set(Vec<u8>),
    /// Pieces that are new since the last word.
    Added(Vec<u32>),
    /// The blob is gone, or no longer of interest: forget me for it.
    Gone,
}

/// Most indexes in one [`Have::Added`]: a node that has gained more says [`Have::Set`] instead.
pub const HAVE_BATCH_MAX: usize = (PIECES_MAX / 8) as usize;

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn behaves_like_a_set(pieces in 1u32..300, ops in prop::collection::vec((any::<bool>(), 0u32..400), 0..400)) {
            let layout = Layout::with_piece_len(u64::from(pieces), 1);
            let wide = Layout::with_piece_len(400, 1);
            let (mut set, mut oracle) = (HaveSet::empty(&layout), BTreeSet::new());
            for (insert, index) in ops {
                let piece = wide.piece(index).unwrap();
                if insert {
                    prop_assert_eq!(set.insert(piece), index < pieces && oracle.insert(index));
                } else {
                    prop_assert_eq!(set.remove(piece), oracle.remove(&index));
                }
                oracle.retain(|&i| i < pieces);
                prop_assert_eq!(set.contains(piece), oracle.contains(&index));
            }
            prop_assert_eq!(set.len() as usize, oracle.len());
            prop_assert!(set.iter().map(PieceIndex::get).eq(oracle.iter().copied()));
            prop_assert_eq!(HaveSet::from_bytes(&layout, &set.to_bytes()).unwrap(), set);
        }

        #[test]
        fn any_bytes_decode_or_are_refused(pieces in 0u64..200, bytes in prop::collection::vec(any::<u8>(), 0..40)) {
            let layout = Layout::with_piece_len(pieces, 1);
            if let Ok(set) = HaveSet::from_bytes(&layout, &bytes) {
                prop_assert_eq!(set.to_bytes(), bytes);
                prop_assert!(set.iter().all(|p| u64::from(p.get()) < pieces));
            }
        }
    }
}
