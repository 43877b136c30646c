//! Who may read what: the capabilities that a peer has shown on its connection.

use std::collections::{BTreeMap, HashMap};

use shoal_proto::{
    Digest, merkle,
    message::Proof,
    signed::{Capability, Covered, NodeId, UnixSeconds},
};

/// Capabilities kept for one connection: one for each image that the peer pulls or serves these days. The oldest goes.
pub const CAPABILITIES_MAX: usize = 64;

/// Digests that may be read by one connection's capabilities: 64 images of the size that is listed, and large ones besides.
const COVERED_MAX: usize = 64 << 10;

/// What one peer may read.
#[derive(Debug)]
pub struct Rights {
    node: NodeId,
    /// By when they were shown.
    shown: BTreeMap<u64, Shown>,
    /// Which of them cover a digest, the newest last: they are looked up at every piece.
    covering: HashMap<Digest, Vec<u64>>,
    next: u64,
}

/// A capability, and the digests that it covers as far as it lists them or they were proven.
#[derive(Debug)]
struct Shown {
    capability: Capability,
    digests: Vec<Digest>,
}

impl Rights {
    /// Nothing yet, for a node that has shown who it is.
    #[must_use]
    pub fn new(node: NodeId) -> Self {
        Self { node, shown: BTreeMap::new(), covering: HashMap::new(), next: 0 }
    }

    /// The peer has shown a capability, whose signature was checked, and proofs of what it covers, which were not.
    pub fn add(&mut self, capability: Capability, proofs: &[Proof]) {
        let digests = proven(&capability, proofs);
        let same = |known: &Capability| known.covered == capability.covered && known.subject == capability.subject;
        let known = self.shown.iter().find(|(_, known)| same(&known.capability)).map(|(number, _)| *number);
        if let Some(number) = known
            && self.shown.get(&number).is_some_and(|known| known.capability == capability)
        {
            return self.cover(number, digests);
        }
        let full = self.shown.len() >= CAPABILITIES_MAX;
        let gone = known.or_else(|| self.shown.keys().next().copied().filter(|_| full));
        if let Some(gone) = gone {
            self.remove(gone);
        }
        let number = self.next;
        self.next += 1;
        self.shown.insert(number, Shown { capability, digests: Vec::new() });
        self.cover(number, digests);
    }

    fn cover(&mut self, number: u64, digests: Vec<Digest>) {
        let Some(shown) = self.shown.get_mut(&number) else { return };
        for digest in digests {
            if self.covering.len() >= COVERED_MAX && !self.covering.contains_key(&digest) {
                continue;
            }
            let covering = self.covering.entry(digest).or_default();
            if !covering.contains(&number) {
                covering.push(number);
                shown.digests.push(digest);
            }
        }
    }

    fn remove(&mut self, number: u64) {
        let Some(shown) = self.shown.remove(&number) else { return };
        for digest in &shown.digests {
            if let Some(covering) = self.covering.get_mut(digest) {
                covering.retain(|other| *other != number);
                if covering.is_empty() {
                    self.covering.remove(digest);
                }
            }
        }
    }

    /// Whether the peer may read `digest` now. Every answer about a blob passes here: what it holds, its hashes, its
    /// statement, its bytes.
    #[must_use]
    pub fn may_read(&self, digest: &Digest, now: UnixSeconds) -> bool {
        let covering = self.covering.get(digest).into_iter().flatten().rev();
        covering.filter_map(|number| self.shown.get(number)).any(|shown| shown.capability.is_for(&self.node, now))
    }
}

/// The digests that a capability lists, or of which a proof shows that they are under its root.
fn proven(capability: &Capability, proofs: &[Proof]) -> Vec<Digest> {
    match &capability.covered {
        Covered::List(digests) => digests.clone(),
        Covered::Root { root, leaves } => {
            let good = proofs.iter().filter(|(digest, proof)| merkle::holds(root, *leaves, digest, proof));
            good.map(|(digest, _)| *digest).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use shoal_proto::{merkle::MerkleTree, signed::Subject};

    use super::*;

    fn capability(subject: Subject, digests: Vec<Digest>, not_after: UnixSeconds) -> Capability {
        Capability { subject, covered: Covered::List(digests), discovery: [0; 32], not_before: 100, not_after }
    }

    #[test]
    fn a_peer_reads_what_a_live_capability_for_it_covers_and_nothing_else() {
        let (me, other) = (NodeId([1; 32]), NodeId([2; 32]));
        let (a, b, c) = (Digest::of(b"a"), Digest::of(b"b"), Digest::of(b"c"));
        let mut rights = Rights::new(me);
        assert!(!rights.may_read(&a, 150));
        rights.add(capability(Subject::Node(me), vec![a], 200), &[]);
        rights.add(capability(Subject::Node(other), vec![b], 200), &[]);
        rights.add(capability(Subject::AnyMember, vec![c], 200), &[]);
        assert!(rights.may_read(&a, 150) && !rights.may_read(&b, 150) && rights.may_read(&c, 150));
        assert!(!rights.may_read(&a, 99) && !rights.may_read(&a, 200), "outside its time");
        rights.add(capability(Subject::Node(me), vec![a], 300), &[]);
        assert!(rights.may_read(&a, 250), "a newer one for the same replaces the old");
        assert_eq!(rights.shown.len(), 3);
    }

    #[test]
    fn capabilities_do_not_pile_up() {
        let mut rights = Rights::new(NodeId([1; 32]));
        for n in 0..CAPABILITIES_MAX + 10 {
            rights.add(capability(Subject::AnyMember, vec![Digest::of(&n.to_le_bytes())], 200), &[]);
        }
        assert_eq!((rights.shown.len(), rights.covering.len()), (CAPABILITIES_MAX, CAPABILITIES_MAX));
        assert!(!rights.may_read(&Digest::of(&0usize.to_le_bytes()), 150));
    }

    #[test]
    fn under_a_root_a_peer_reads_what_it_proves_to_be_there_and_nothing_else() {
        let (me, other) = (NodeId([1; 32]), NodeId([2; 32]));
        let digests: Vec<Digest> = (0..1000u32).map(|n| Digest::of(&n.to_le_bytes())).collect();
        let tree = MerkleTree::of(digests.clone());
        let covered = Covered::Root { root: tree.root(), leaves: 1000 };
        let of = |subject, not_after| {
            let covered = covered.clone();
            Capability { subject, covered, discovery: [0; 32], not_before: 100, not_after }
        };
        let proof = |digest: &Digest| (*digest, tree.proof(digest).unwrap());
        let (a, b, c) = (digests[0], digests[1], Digest::of(b"not there"));
        let mut rights = Rights::new(me);
        rights.add(of(Subject::Node(me), 200), &[]);
        assert!(!rights.may_read(&a, 150), "covered, and not proven");
        rights.add(of(Subject::Node(me), 200), &[proof(&a), (c, tree.proof(&a).unwrap()), (b, Vec::new())]);
        assert!(rights.may_read(&a, 150) && !rights.may_read(&b, 150) && !rights.may_read(&c, 150));
        rights.add(of(Subject::Node(me), 200), &[proof(&b)]);
        assert!(rights.may_read(&a, 150) && rights.may_read(&b, 150), "proofs add up");
        assert_eq!(rights.shown.len(), 1);
        rights.add(of(Subject::Node(me), 300), &[proof(&b)]);
        assert!(!rights.may_read(&a, 150) && rights.may_read(&b, 250), "a newer one replaces it with its proofs");
        let mut thief = Rights::new(other);
        thief.add(of(Subject::Node(me), 200), &[proof(&a)]);
        assert!(!thief.may_read(&a, 150), "another's");
    }
}
