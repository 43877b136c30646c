//! How many peers hold each piece, and which piece next: the rarest among those that may be taken, ties broken at random.
//!
//! Rarest-first keeps pieces diverse (Legout, Urvoy-Keller, Michiardi, IMC 2006); random ties keep nodes with the same
//! view from choosing alike. The counts stand in bit planes: of 64 pieces, plane `k` has bit `k` of each count. So a peer
//! is counted, and the rarest is found, in a few operations on words whatever the number of pieces in them.

use alloc::{vec, vec::Vec};

use crate::rng::SplitMix;

/// Planes at first: few swarms have more holders than these count, and each further one doubles that.
const PLANES: usize = 4;

/// The counts of all pieces of one blob.
#[derive(Debug)]
pub(crate) struct Rarity {
    /// Planes of a word.
    depth: usize,
    /// Word by word, the lowest plane first.
    planes: Vec<u64>,
}

impl Rarity {
    /// No peer holds any of `64 * words` pieces.
    pub(crate) fn new(words: usize) -> Self {
        Self { depth: PLANES, planes: vec![0; words * PLANES] }
    }

    fn word(&self, at: usize) -> &[u64] {
        &self.planes[at * self.depth..(at + 1) * self.depth]
    }

    /// One peer more holds these pieces of word `at`.
    pub(crate) fn add(&mut self, at: usize, pieces: u64) {
        let mut carry = pieces;
        for plane in &mut self.planes[at * self.depth..(at + 1) * self.depth] {
            let both = *plane & carry;
            *plane ^= carry;
            carry = both;
            if carry == 0 {
                return;
            }
        }
        self.deepen();
        self.planes[(at + 1) * self.depth - 1] = carry;
    }

    /// One peer less holds these pieces of word `at`; each was counted.
    pub(crate) fn sub(&mut self, at: usize, pieces: u64) {
        let mut borrow = pieces;
        for plane in &mut self.planes[at * self.depth..(at + 1) * self.depth] {
            let lacks = !*plane & borrow;
            *plane ^= borrow;
            borrow = lacks;
            if borrow == 0 {
                return;
            }
        }
        debug_assert!(borrow == 0, "no count falls below zero");
    }

    /// Makes room for counts twice as large.
    fn deepen(&mut self) {
        let depth = self.depth + 1;
        let mut planes = Vec::with_capacity(self.planes.len() / self.depth * depth);
        for word in self.planes.chunks_exact(self.depth) {
            planes.extend_from_slice(word);
            planes.push(0);
        }
        (self.depth, self.planes) = (depth, planes);
    }

    /// Pieces of word `at` that some peer holds.
    pub(crate) fn held(&self, at: usize) -> u64 {
        self.word(at).iter().fold(0, |held, plane| held | plane)
    }

    /// The pieces of `mask` in word `at` that fewest hold, and how many that is.
    fn least(&self, at: usize, mut mask: u64) -> (u32, u64) {
        let mut count = 0;
        for plane in self.word(at).iter().rev() {
            let without = mask & !plane;
            count = 2 * count + u32::from(without == 0);
            mask = if without == 0 { mask } else { without };
        }
        (count, mask)
    }

    /// The rarest piece in the mask that `word` gives, word by word.
    pub(crate) fn rarest(&self, words: usize, word: impl Fn(usize) -> u64, rng: &mut SplitMix) -> Option<u32> {
        let (mut fewest, mut ties, mut best) = (u32::MAX, 0, None);
        for at in 0..words {
            let mask = word(at);
            if mask == 0 {
                continue;
            }
            let (count, rarest) = self.least(at, mask);
            if count > fewest {
                continue;
            }
            let here = rarest.count_ones();
            ties = if count < fewest { here } else { ties + here };
            fewest = count;
            if ties == here || rng.below(ties) < here {
                best = Some((at, rarest));
            }
        }
        let (at, mut rarest) = best?;
        for _ in 0..rng.below(rarest.count_ones()) {
            rarest &= rarest - 1;
        }
        u32::try_from(at * 64).ok().map(|base| base + rarest.trailing_zeros())
    }

    /// How many peers hold a piece.
    #[cfg(test)]
    pub(crate) fn count(&self, piece: usize) -> usize {
        let planes = self.word(piece / 64).iter().enumerate();
        planes.map(|(k, plane)| usize::from(plane >> (piece % 64) & 1 == 1) << k).sum()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn counts_what_is_added_and_taken_away(rows: Vec<[u64; 2]>, gone in prop::collection::vec(any::<bool>(), 0..100)) {
            let mut rarity = Rarity::new(2);
            let mut counts = vec![0usize; 128];
            let mut count = |row: &[u64; 2], up: bool| {
                for (piece, count) in counts.iter_mut().enumerate() {
                    let held = usize::from(row[piece / 64] >> (piece % 64) & 1 == 1);
                    *count = if up { *count + held } else { *count - held };
                }
            };
            for row in &rows {
                (0..2).for_each(|at| rarity.add(at, row[at]));
                count(row, true);
            }
            for (row, _) in rows.iter().zip(gone).filter(|(_, gone)| *gone) {
                (0..2).for_each(|at| rarity.sub(at, row[at]));
                count(row, false);
            }
            for (piece, expected) in counts.iter().enumerate() {
                prop_assert_eq!(rarity.count(piece), *expected);
                prop_assert_eq!(rarity.held(piece / 64) >> (piece % 64) & 1 == 1, *expected > 0);
            }
        }

        #[test]
        fn picks_a_rarest_of_the_mask(mask: [u64; 3], rows in prop::collection::vec(any::<[u64; 3]>(), 0..40), seed: u64) {
            let mut rarity = Rarity::new(3);
            rows.iter().for_each(|row| (0..3).for_each(|at| rarity.add(at, row[at])));
            let picked = rarity.rarest(3, |at| mask[at], &mut SplitMix::new(seed));
            let allowed: Vec<usize> = (0..192).filter(|i| mask[i / 64] >> (i % 64) & 1 == 1).collect();
            let least = allowed.iter().map(|&i| rarity.count(i)).min();
            prop_assert_eq!(picked.map(|i| rarity.count(i as usize)), least);
            prop_assert!(picked.is_none_or(|i| allowed.contains(&(i as usize))));
        }
    }

    #[test]
    fn ties_fall_on_every_piece() {
        let mut rng = SplitMix::new(7);
        let mut hits = vec![0u32; 128];
        let rarity = Rarity::new(2);
        for _ in 0..12800 {
            hits[rarity.rarest(2, |_| !0, &mut rng).unwrap() as usize] += 1;
        }
        assert!(hits.iter().all(|&n| (50..200).contains(&n)), "{hits:?}");
    }
}
