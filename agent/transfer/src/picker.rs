//! Which piece next: the rarest among those that may be taken, ties broken at random.
//!
//! Rarest-first keeps pieces diverse (Legout, Urvoy-Keller, Michiardi, IMC 2006); random ties keep nodes with the same
//! view from choosing alike.

use crate::rng::SplitMix;

/// The rarest piece in the mask that `word` gives, word by word.
pub(crate) fn rarest(words: usize, word: impl Fn(usize) -> u64, rarity: &[u16], rng: &mut SplitMix) -> Option<u32> {
    let (mut best, mut least, mut ties) = (None, u16::MAX, 0u32);
    for at in 0..words {
        let mut bits = word(at);
        while bits != 0 {
            let index = at * 64 + bits.trailing_zeros() as usize;
            bits &= bits - 1;
            let count = rarity[index];
            if count < least || best.is_none() {
                (best, least, ties) = (Some(index), count, 1);
            } else if count == least {
                ties += 1;
                if rng.below(ties) == 0 {
                    best = Some(index);
                }
            }
        }
    }
    best.and_then(|index| u32::try_from(index).ok())
}

#[cfg(test)]
mod tests {
    use alloc::{vec, vec::Vec};

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn picks_a_rarest_of_the_mask(mask: [u64; 3], rarity in prop::collection::vec(0u16..4, 192), seed: u64) {
            let picked = rarest(3, |at| mask[at], &rarity, &mut SplitMix::new(seed));
            let allowed: Vec<usize> = (0..192).filter(|i| mask[i / 64] >> (i % 64) & 1 == 1).collect();
            let least = allowed.iter().map(|&i| rarity[i]).min();
            prop_assert_eq!(picked.map(|i| rarity[i as usize]), least);
            prop_assert!(picked.is_none_or(|i| allowed.contains(&(i as usize))));
        }
    }

    #[test]
    fn ties_fall_on_every_piece() {
        let mut rng = SplitMix::new(7);
        let mut hits = vec![0u32; 64];
        for _ in 0..6400 {
            hits[rarest(1, |_| !0, &[0; 64], &mut rng).unwrap() as usize] += 1;
        }
        assert!(hits.iter().all(|&n| (50..200).contains(&n)), "{hits:?}");
    }
}
