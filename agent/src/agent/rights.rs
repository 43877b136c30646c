//! Who may read what: the capabilities that a peer has shown on its connection.

use std::collections::{BTreeMap, HashMap};

use shoal_proto::{
    Digest,
    signed::{Capability, Covered, NodeId, UnixSeconds},
};

/// Capabilities kept for one connection: one for each image that the peer pulls or serves these days. The oldest goes.
pub const CAPABILITIES_MAX: usize = 64;

/// What one peer may read.
#[derive(Debug)]
pub struct Rights {
    node: NodeId,
    /// By when they were shown.
    shown: BTreeMap<u64, Capability>,
    /// Which of them cover a digest, the newest last: they are looked up at every piece.
    covering: HashMap<Digest, Vec<u64>>,
    next: u64,
}

impl Rights {
    /// Nothing yet, for a node that has shown who it is.
    #[must_use]
    pub fn new(node: NodeId) -> Self {
        Self { node, shown: BTreeMap::new(), covering: HashMap::new(), next: 0 }
    }

    /// The peer has shown a capability; its signature was checked.
    pub fn add(&mut self, capability: Capability) {
        let same = |known: &Capability| known.covered == capability.covered && known.subject == capability.subject;
        let replaced = self.shown.iter().find(|(_, known)| same(known)).map(|(number, _)| *number);
        let full = self.shown.len() >= CAPABILITIES_MAX;
        let gone = replaced.or_else(|| self.shown.keys().next().copied().filter(|_| full));
        if let Some(gone) = gone {
            self.remove(gone);
        }
        let number = self.next;
        self.next += 1;
        for digest in listed(&capability) {
            self.covering.entry(*digest).or_default().push(number);
        }
        self.shown.insert(number, capability);
    }

    fn remove(&mut self, number: u64) {
        let Some(capability) = self.shown.remove(&number) else { return };
        for digest in listed(&capability) {
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
        covering.filter_map(|number| self.shown.get(number)).any(|capability| capability.is_for(&self.node, now))
    }
}

/// The digests that a capability names. By Merkle root they would be shown with proofs, of which none is taken yet.
fn listed(capability: &Capability) -> &[Digest] {
    match &capability.covered {
        Covered::List(digests) => digests,
        Covered::Root { .. } => &[],
    }
}

#[cfg(test)]
mod tests {
    use shoal_proto::signed::Subject;

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
        rights.add(capability(Subject::Node(me), vec![a], 200));
        rights.add(capability(Subject::Node(other), vec![b], 200));
        rights.add(capability(Subject::AnyMember, vec![c], 200));
        assert!(rights.may_read(&a, 150) && !rights.may_read(&b, 150) && rights.may_read(&c, 150));
        assert!(!rights.may_read(&a, 99) && !rights.may_read(&a, 200), "outside its time");
        rights.add(capability(Subject::Node(me), vec![a], 300));
        assert!(rights.may_read(&a, 250), "a newer one for the same replaces the old");
        assert_eq!(rights.shown.len(), 3);
    }

    #[test]
    fn capabilities_do_not_pile_up() {
        let mut rights = Rights::new(NodeId([1; 32]));
        for n in 0..CAPABILITIES_MAX + 10 {
            rights.add(capability(Subject::AnyMember, vec![Digest::of(&n.to_le_bytes())], 200));
        }
        assert_eq!((rights.shown.len(), rights.covering.len()), (CAPABILITIES_MAX, CAPABILITIES_MAX));
        assert!(!rights.may_read(&Digest::of(&0usize.to_le_bytes()), 150));
    }
}
