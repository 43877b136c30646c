//! Who may read what: the capabilities that a peer has shown on its connection.

use std::collections::VecDeque;

use shoal_proto::{
    Digest,
    signed::{Capability, NodeId, UnixSeconds},
};

/// Capabilities kept for one connection: one for each image that the peer pulls or serves these days. The oldest goes.
const CAPABILITIES_MAX: usize = 64;

/// What one peer may read.
#[derive(Debug)]
pub(super) struct Rights {
    node: NodeId,
    shown: VecDeque<Capability>,
}

impl Rights {
    pub(super) const fn new(node: NodeId) -> Self {
        Self { node, shown: VecDeque::new() }
    }

    /// The peer has shown a capability; its signature was checked.
    pub(super) fn add(&mut self, capability: Capability) {
        self.shown.retain(|known| known.covered != capability.covered || known.subject != capability.subject);
        if self.shown.len() == CAPABILITIES_MAX {
            self.shown.pop_front();
        }
        self.shown.push_back(capability);
    }

    /// Whether the peer may read `digest` now. Every answer about a blob passes here: what it holds, its hashes, its
    /// statement, its bytes.
    pub(super) fn may_read(&self, digest: &Digest, now: UnixSeconds) -> bool {
        self.shown.iter().rev().any(|capability| capability.covers(&self.node, digest, now))
    }
}

#[cfg(test)]
mod tests {
    use shoal_proto::signed::{Covered, Subject};

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
        assert_eq!(rights.shown.len(), CAPABILITIES_MAX);
        assert!(!rights.may_read(&Digest::of(&0usize.to_le_bytes()), 150));
    }
}
