//! How a blob is cut into pieces. All piece arithmetic lives here, and only here is a [`PieceIndex`] made.

use std::ops::Range;

/// Smallest piece length in bytes. A power of two and a multiple of BLAKE3's 1024-byte chunk, so that a piece is a
/// whole subtree. Small, because each generation of a swarm waits for whole pieces: sixteen nodes on links of 50 Mbit/s
/// share 64 MiB in 1.2 times the optimum with pieces of this length, and in 1.5 times with pieces of four times as much;
/// over loopback the difference is not to be seen.
pub const PIECE_LEN_MIN: u64 = 1 << 18;
/// A blob is cut into at most this many pieces: it bounds have-sets (512 bytes) and piece hashes (128 KiB). Part of the
/// protocol version.
pub const PIECES_MAX: u32 = 4096;
/// Largest blob that has a layout: 16 TiB, at which a piece is 4 GiB and its length still fits 32 bits and one.
pub const BLOB_SIZE_MAX: u64 = 1 << 44;

/// The index of a piece that exists in some layout.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PieceIndex(u32);

impl PieceIndex {
    /// As a number, `0..layout.pieces()`.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0
    }

    /// As an index into a slice.
    #[must_use]
    pub const fn as_usize(self) -> usize {
        self.0 as usize
    }
}

/// The cut of one blob: a fixed function of its size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Layout {
    size: u64,
    piece_len: u64,
    pieces: u32,
}

/// A size that no layout is made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a blob of {0} bytes is over the limit of {BLOB_SIZE_MAX}")]
pub struct TooLarge(pub u64);

impl Layout {
    /// The layout of a blob of `size` bytes: pieces of [`PIECE_LEN_MIN`], doubled until at most [`PIECES_MAX`] remain. An empty
    /// blob has no pieces.
    ///
    /// # Errors
    /// Over [`BLOB_SIZE_MAX`].
    pub fn new(size: u64) -> Result<Self, TooLarge> {
        if size > BLOB_SIZE_MAX {
            return Err(TooLarge(size));
        }
        let mut piece_len = PIECE_LEN_MIN;
        while size.div_ceil(piece_len) > u64::from(PIECES_MAX) {
            piece_len *= 2;
        }
        Ok(Self::cut(size, piece_len))
    }

    /// A layout with a piece length of its own. Only simulations that study the piece length ask for one: on the wire
    /// the length is fixed by [`Layout::new`].
    ///
    /// # Panics
    /// If `piece_len` is no power of two, or would give over `u32::MAX` pieces.
    #[must_use]
    pub fn with_piece_len(size: u64, piece_len: u64) -> Self {
        assert!(piece_len.is_power_of_two(), "a piece is a whole subtree of BLAKE3");
        Self::cut(size, piece_len)
    }

    fn cut(size: u64, piece_len: u64) -> Self {
        let pieces = u32::try_from(size.div_ceil(piece_len)).expect("the piece length bounds the count");
        Self { size, piece_len, pieces }
    }

    /// Bytes in the blob.
    #[must_use]
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// Bytes in every piece but the last.
    #[must_use]
    pub const fn piece_len(&self) -> u64 {
        self.piece_len
    }

    /// Number of pieces; 0 for an empty blob.
    #[must_use]
    pub const fn pieces(&self) -> u32 {
        self.pieces
    }

    /// The piece of that number, if the blob has it.
    #[must_use]
    pub const fn piece(&self, index: u32) -> Option<PieceIndex> {
        if index < self.pieces { Some(PieceIndex(index)) } else { None }
    }

    /// The piece that holds byte `offset`, if the blob reaches that far.
    #[must_use]
    pub fn piece_at(&self, offset: u64) -> Option<PieceIndex> {
        u32::try_from(offset / self.piece_len).ok().and_then(|index| self.piece(index)).filter(|_| offset < self.size)
    }

    /// All pieces in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = PieceIndex> + use<> {
        (0..self.pieces).map(PieceIndex)
    }

    /// Where `piece` starts, in bytes.
    #[must_use]
    pub const fn offset(&self, piece: PieceIndex) -> u64 {
        piece.0 as u64 * self.piece_len
    }

    /// Bytes in `piece`.
    #[must_use]
    pub fn len_of(&self, piece: PieceIndex) -> u64 {
        self.piece_len.min(self.size - self.offset(piece))
    }

    /// The bytes of `piece`.
    #[must_use]
    pub fn range(&self, piece: PieceIndex) -> Range<u64> {
        let start = self.offset(piece);
        start..start + self.len_of(piece)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sizes_at_the_edges_have_the_expected_pieces() {
        let (least, mib) = (PIECE_LEN_MIN, 1u64 << 20);
        let cases = [
            (0, least, 0),
            (1, least, 1),
            (least - 1, least, 1),
            (least, least, 1),
            (least + 1, least, 2),
            (4096 * least, least, 4096),
            (4096 * least + 1, 2 * least, 2049),
            (BLOB_SIZE_MAX, 4096 * mib, 4096),
        ];
        for (size, piece_len, pieces) in cases {
            let layout = Layout::new(size).unwrap();
            assert_eq!((layout.piece_len(), layout.pieces()), (piece_len, pieces), "{size}");
        }
        assert_eq!(Layout::new(BLOB_SIZE_MAX + 1), Err(TooLarge(BLOB_SIZE_MAX + 1)));
    }

    proptest! {
        #[test]
        fn pieces_tile_the_blob(size in 0..=(1u64 << 36)) {
            let layout = Layout::new(size).unwrap();
            let mut end = 0;
            for piece in layout.iter() {
                let range = layout.range(piece);
                prop_assert_eq!(range.start, end);
                prop_assert!(range.end > range.start);
                prop_assert_eq!(layout.piece_at(range.start), Some(piece));
                prop_assert_eq!(layout.piece_at(range.end - 1), Some(piece));
                end = range.end;
            }
            prop_assert_eq!(end, size);
            prop_assert_eq!(layout.piece_at(size), None);
        }
    }
}
