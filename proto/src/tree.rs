//! Piece hashes: the chaining values of BLAKE3's own tree at piece boundaries (BLAKE3 specification, §2.1 and §2.4).
//!
//! A piece is a power of two of 1024-byte chunks, so every full piece is a complete subtree, and the tree above the
//! pieces is the same as the tree over the whole blob. Whoever holds the signed root can therefore check piece hashes
//! from anyone. A blob of one piece, or none, has the root itself as its only hash.

use blake3::{
    Hasher,
    hazmat::{HasherExt, Mode, left_subtree_len, merge_subtrees_non_root, merge_subtrees_root},
};

use crate::{
    layout::{Layout, PieceIndex},
    signed::Blake3,
};

/// Hashes one piece as its bytes arrive.
#[derive(Debug, Clone)]
pub struct PieceHasher {
    hasher: Hasher,
    is_root: bool,
}

impl PieceHasher {
    /// Starts at the first byte of `piece`.
    #[must_use]
    pub fn new(layout: &Layout, piece: PieceIndex) -> Self {
        let mut hasher = Hasher::new();
        let is_root = layout.pieces() <= 1;
        if !is_root {
            hasher.set_input_offset(layout.offset(piece));
        }
        Self { hasher, is_root }
    }

    /// Adds the next bytes.
    pub fn update(&mut self, data: &[u8]) {
        self.hasher.update(data);
    }

    /// The piece's hash.
    #[must_use]
    pub fn finish(&self) -> Blake3 {
        if self.is_root { *self.hasher.finalize().as_bytes() } else { self.hasher.finalize_non_root() }
    }
}

/// The hash of a whole `piece`.
#[must_use]
pub fn piece_hash(layout: &Layout, piece: PieceIndex, data: &[u8]) -> Blake3 {
    let mut hasher = PieceHasher::new(layout, piece);
    hasher.update(data);
    hasher.finish()
}

/// The root over the hashes of all pieces of a blob.
#[must_use]
pub fn root(layout: &Layout, hashes: &[Blake3]) -> Option<Blake3> {
    match hashes {
        [] if layout.pieces() == 0 => Some(*blake3::hash(b"").as_bytes()),
        [only] if layout.pieces() == 1 => Some(*only),
        _ if hashes.len() != layout.pieces() as usize || hashes.len() < 2 => None,
        _ => {
            let (left, right) = split(layout, layout.size(), hashes);
            Some(*merge_subtrees_root(&left, &right, Mode::Hash).as_bytes())
        }
    }
}

/// The chaining values of the two children of the node over `len` bytes. Depth is log2 of the number of pieces.
fn split(layout: &Layout, len: u64, hashes: &[Blake3]) -> (Blake3, Blake3) {
    let left_len = left_subtree_len(len);
    let at = usize::try_from(left_len / layout.piece_len()).expect("fewer pieces than hashes");
    let (left, right) = hashes.split_at(at);
    (subtree(layout, left_len, left), subtree(layout, len - left_len, right))
}

fn subtree(layout: &Layout, len: u64, hashes: &[Blake3]) -> Blake3 {
    if let [only] = hashes {
        return *only;
    }
    let (left, right) = split(layout, len, hashes);
    merge_subtrees_non_root(&left, &right, Mode::Hash)
}

/// Piece hashes that were checked against a signed root: the only form in which pieces are verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PieceHashes {
    layout: Layout,
    hashes: Box<[Blake3]>,
}

/// Piece hashes that do not lead to the signed root: whoever sent them lied or erred.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the piece hashes do not lead to the signed root")]
pub struct WrongRoot;

impl PieceHashes {
    /// Checks `hashes` of a blob with `layout` against its signed `root`.
    ///
    /// # Errors
    /// They do not lead to it, or are not one for each piece.
    pub fn check(layout: Layout, hashes: Vec<Blake3>, root: &Blake3) -> Result<Self, WrongRoot> {
        if self::root(&layout, &hashes).as_ref() == Some(root) {
            Ok(Self { layout, hashes: hashes.into() })
        } else {
            Err(WrongRoot)
        }
    }

    /// The blob's cut.
    #[must_use]
    pub const fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The hash that `piece` must have.
    #[must_use]
    pub fn of(&self, piece: PieceIndex) -> &Blake3 {
        &self.hashes[piece.as_usize()]
    }

    /// All hashes in order.
    #[must_use]
    pub fn as_slice(&self) -> &[Blake3] {
        &self.hashes
    }
}

/// Hashes a blob whose length is not known until it ends, in one pass: piece hashes at the smallest piece length, from
/// which those of any longer layout follow.
#[derive(Debug, Clone)]
pub struct BlobHasher {
    /// Chaining values of full smallest pieces, as if none were the root.
    done: Vec<Blake3>,
    current: Hasher,
    in_current: u64,
}

impl Default for BlobHasher {
    fn default() -> Self {
        Self::new()
    }
}

impl BlobHasher {
    /// Starts empty.
    #[must_use]
    pub fn new() -> Self {
        Self { done: Vec::new(), current: Hasher::new(), in_current: 0 }
    }

    /// Bytes added so far.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.done.len() as u64 * crate::layout::PIECE_LEN_MIN + self.in_current
    }

    /// Whether no byte was added.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Adds the next bytes.
    pub fn update(&mut self, mut data: &[u8]) {
        let piece_len = crate::layout::PIECE_LEN_MIN;
        while !data.is_empty() {
            // A full piece is closed only when more follows: until then it may be the root.
            if self.in_current == piece_len {
                self.done.push(self.current.finalize_non_root());
                self.current = Hasher::new();
                self.current.set_input_offset(self.done.len() as u64 * piece_len);
                self.in_current = 0;
            }
            let room = usize::try_from(piece_len - self.in_current).expect("a smallest piece fits memory");
            let (now, rest) = data.split_at(room.min(data.len()));
            self.current.update(now);
            self.in_current += now.len() as u64;
            data = rest;
        }
    }

    /// Root and piece hashes of all bytes added.
    ///
    /// # Errors
    /// The blob is larger than any layout.
    pub fn finish(self) -> Result<(Blake3, PieceHashes), crate::layout::TooLarge> {
        let size = self.len();
        let layout = Layout::new(size)?;
        if self.done.is_empty() {
            let root = *self.current.finalize().as_bytes();
            let hashes = vec![root; layout.pieces() as usize].into();
            return Ok((root, PieceHashes { layout, hashes }));
        }
        let mut smallest = self.done;
        smallest.push(self.current.finalize_non_root());
        let small = Layout::with_piece_len(size, crate::layout::PIECE_LEN_MIN);
        let per_piece = usize::try_from(layout.piece_len() / small.piece_len()).expect("at most 4096");
        let hashes: Vec<Blake3> = layout
            .iter()
            .zip(smallest.chunks(per_piece))
            .map(|(piece, part)| subtree(&small, layout.len_of(piece), part))
            .collect();
        let root = root(&layout, &hashes).expect("one hash for each piece");
        Ok((root, PieceHashes { layout, hashes: hashes.into() }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(len: usize) -> Vec<u8> {
        (0..len).map(|i| u8::try_from((i * 31 + i / 251) % 256).unwrap()).collect()
    }

    #[test]
    fn root_over_pieces_is_the_blobs_blake3_hash() {
        let mib = 1 << 20;
        for len in [0, 1, 1024, mib - 1, mib, mib + 1, 2 * mib, 3 * mib, 5 * mib + 17] {
            let data = bytes(len);
            let layout = Layout::new(len as u64).unwrap();
            let hashes: Vec<_> = layout
                .iter()
                .map(|p| {
                    let range = layout.range(p);
                    piece_hash(
                        &layout,
                        p,
                        &data[usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap()],
                    )
                })
                .collect();
            let expected = *blake3::hash(&data).as_bytes();
            assert_eq!(root(&layout, &hashes), Some(expected), "{len}");
            let checked = PieceHashes::check(layout, hashes.clone(), &expected).unwrap();

            let mut hasher = BlobHasher::new();
            for part in data.chunks(70_001) {
                hasher.update(part);
            }
            assert_eq!(hasher.finish().unwrap(), (expected, checked), "{len}");

            if !hashes.is_empty() {
                let mut wrong = hashes.clone();
                wrong[0][0] ^= 1;
                assert_eq!(PieceHashes::check(layout, wrong, &expected), Err(WrongRoot));
                assert_eq!(PieceHashes::check(layout, hashes[1..].to_vec(), &expected), Err(WrongRoot));
            }
        }
    }

    #[test]
    fn longer_pieces_follow_from_the_smallest() {
        let data = bytes((5 << 20) + 3);
        let small: Vec<_> = {
            let layout = Layout::with_piece_len(data.len() as u64, 1 << 20);
            layout.iter().zip(data.chunks(1 << 20)).map(|(p, d)| piece_hash(&layout, p, d)).collect()
        };
        let layout = Layout::with_piece_len(data.len() as u64, 2 << 20);
        let small_layout = Layout::with_piece_len(data.len() as u64, 1 << 20);
        for ((piece, data), part) in layout.iter().zip(data.chunks(2 << 20)).zip(small.chunks(2)) {
            assert_eq!(piece_hash(&layout, piece, data), subtree(&small_layout, layout.len_of(piece), part));
        }
    }
}
