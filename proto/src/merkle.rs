//! Digests under one hash: how a capability covers thousands of them in a few bytes.
//!
//! A binary tree over the sorted digests: a leaf is BLAKE3 of `0 ‖ digest`, a node BLAKE3 of `1 ‖ the smaller child ‖ the
//! larger`; what has no neighbour goes up as it is. A proof is what stands beside the way from a leaf to the root.

use crate::{codec, digest::Digest, signed::Blake3};

/// Longest proof in hashes: no tree of as many leaves as a `u32` counts is higher.
const PROOF_LEN_MAX: usize = 32;

/// All of a tree, for whoever proves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MerkleTree {
    /// Sorted, each once.
    digests: Vec<Digest>,
    /// From the leaves up; the last one has one hash, or none.
    levels: Vec<Vec<Blake3>>,
}

fn leaf(digest: &Digest) -> Blake3 {
    let mut hasher = blake3::Hasher::new();
    *hasher.update(&[0]).update(&codec::encode(digest)).finalize().as_bytes()
}

fn node(one: &Blake3, other: &Blake3) -> Blake3 {
    let mut hasher = blake3::Hasher::new();
    *hasher.update(&[1]).update(one.min(other)).update(one.max(other)).finalize().as_bytes()
}

impl MerkleTree {
    /// The tree over `digests`.
    #[must_use]
    pub fn of(mut digests: Vec<Digest>) -> Self {
        digests.sort_unstable();
        digests.dedup();
        let mut levels = vec![digests.iter().map(leaf).collect::<Vec<_>>()];
        while let Some(below) = levels.last().filter(|level| level.len() > 1) {
            let above = below.chunks(2).map(|pair| if let [one, other] = pair { node(one, other) } else { pair[0] });
            levels.push(above.collect());
        }
        Self { digests, levels }
    }

    /// The hash that stands for all; zeros for none.
    #[must_use]
    pub fn root(&self) -> Blake3 {
        self.levels.last().and_then(|level| level.first()).copied().unwrap_or_default()
    }

    /// How many digests there are.
    #[must_use]
    pub const fn leaves(&self) -> usize {
        self.digests.len()
    }

    /// What proves that `digest` is among them; none if it is not.
    #[must_use]
    pub fn proof(&self, digest: &Digest) -> Option<Vec<Blake3>> {
        let mut at = self.digests.binary_search(digest).ok()?;
        let mut proof = Vec::new();
        for level in &self.levels {
            proof.extend(level.get(at ^ 1));
            at /= 2;
        }
        Some(proof)
    }
}

/// Whether `proof` shows that `digest` is one of the `leaves` digests under `root`.
#[must_use]
pub fn holds(root: &Blake3, leaves: u32, digest: &Digest, proof: &[Blake3]) -> bool {
    leaves > 0
        && proof.len() <= PROOF_LEN_MAX
        && proof.iter().fold(leaf(digest), |hash, beside| node(&hash, beside)) == *root
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digests(n: u32) -> Vec<Digest> {
        (0..n).map(|n| Digest::of(&n.to_le_bytes())).collect()
    }

    #[test]
    fn each_digest_is_proven_and_no_other_is() {
        for n in [1, 2, 3, 4, 5, 7, 8, 9, 100, 1000] {
            let tree = MerkleTree::of(digests(n));
            let (root, other) = (tree.root(), Digest::of(b"other"));
            assert_eq!(tree.leaves(), n as usize);
            for digest in digests(n) {
                let proof = tree.proof(&digest).unwrap();
                assert!(holds(&root, n, &digest, &proof), "{n}");
                assert!(!holds(&root, n, &other, &proof), "another digest with a good proof");
                assert!(!holds(&[7; 32], n, &digest, &proof), "under another root");
                for at in 0..proof.len() {
                    let mut bent = proof.clone();
                    bent[at][0] ^= 1;
                    assert!(!holds(&root, n, &digest, &bent));
                    assert!(!holds(&root, n, &digest, &proof[..at]), "cut off");
                }
                assert!(!holds(&root, n, &digest, &[proof, vec![[0; 32]]].concat()), "and too long");
            }
            assert_eq!(tree.proof(&other), None);
        }
    }

    #[test]
    fn order_and_repetition_do_not_count_and_nothing_proves_nothing() {
        let (mut twice, once) = ([digests(9), digests(9)].concat(), MerkleTree::of(digests(9)));
        twice.reverse();
        assert_eq!(MerkleTree::of(twice), once);
        let empty = MerkleTree::of(Vec::new());
        assert_eq!((empty.root(), empty.leaves()), ([0; 32], 0));
        assert!(!holds(&empty.root(), 0, &digests(1)[0], &[]));
        assert!(!holds(&once.root(), 9, &digests(1)[0], &vec![[0; 32]; PROOF_LEN_MAX + 1]));
    }
}
