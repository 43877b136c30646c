//! What goes on by itself: what a watchdog sees that looks at a node from outside, and dials that follow one another.

use alloc::{borrow::Cow, vec, vec::Vec};

use shoal_proto::{have::Have, message::RefuseReason, signed::Scope};

use crate::{
    config::Config,
    event::{Action, Failure, Goal, Input},
    ids::{BlobId, Id, PeerId, RequestId},
    node::Node,
    time::{Span, Time},
};

fn at(millis: u64) -> Time {
    Time::ZERO + Span::from_millis(millis)
}

/// The requests to peers that an input leads to.
fn asked(node: &mut Node, input: Input<'_>, now: Time) -> Vec<RequestId> {
    node.handle(input, now);
    core::iter::from_fn(|| node.poll_action())
        .filter_map(|action| if let Action::Fetch { request, .. } = action { Some(request) } else { None })
        .collect()
}

#[test]
fn a_wake_up_that_is_lost_is_seen_and_not_made_up_for() {
    let mut node = Node::new(Config::default(), 1, at(0));
    let (peer, blob) = (PeerId::new(0, 0), BlobId::new(0, 0));
    let opened = Input::BlobOpened {
        blob,
        size: 1 << 20,
        piece_len: 1 << 20,
        have: Have::Set(vec![0]),
        goal: Goal::Fetch { background: false },
        prefix: None,
        introduced: Cow::Borrowed(&[]),
    };
    node.handle(opened, at(0));
    node.handle(Input::PeerKnown { peer, scope: Scope::Fleet, rank: 7, fixed: false }, at(0));
    node.handle(Input::Connected { peer }, at(0));
    let requests = asked(&mut node, Input::PeerHas { peer, blob, have: Have::All }, at(0));
    assert_eq!(requests.len(), 1);
    assert!(!node.is_deadlocked(blob, at(1)), "it has asked");
    let refused = Input::FetchFailed { request: requests[0], failure: Failure::Refused(RefuseReason::Busy) };
    assert!(asked(&mut node, refused, at(10)).is_empty());
    assert!(!node.is_deadlocked(blob, at(10)), "the peer rests, and a timeout is due after that");
    assert!(node.poll_timeout().is_some_and(|due| due < at(400)));
    for _ in 0..2 {
        assert!(node.is_deadlocked(blob, at(400)), "the timeout never came");
    }
    assert_eq!(asked(&mut node, Input::Timeout, at(401)).len(), 1);
    assert!(!node.is_deadlocked(blob, at(402)));
}

#[test]
fn dials_follow_one_another_until_there_are_enough() {
    let config = Config { degree: 10, dials_max: 3, ..Config::default() };
    let mut node = Node::new(config, 1, at(0));
    let peers: Vec<PeerId> = (0..20).map(|slot| PeerId::new(slot, 0)).collect();
    for (rank, &peer) in (0..).zip(&peers) {
        node.handle(Input::PeerKnown { peer, scope: Scope::Fleet, rank, fixed: false }, at(0));
    }
    let opened = Input::BlobOpened {
        blob: BlobId::new(0, 0),
        size: 1 << 20,
        piece_len: 1 << 20,
        have: Have::Set(vec![0]),
        goal: Goal::Fetch { background: false },
        prefix: None,
        introduced: Cow::Borrowed(&peers),
    };
    node.handle(opened, at(0));
    let mut dialled = 0;
    while let Some(action) = node.poll_action() {
        if let Action::Connect { peer } = action {
            dialled += 1;
            node.handle(Input::Connected { peer }, at(1));
        }
    }
    assert_eq!(dialled, 10, "without a wake-up in between");
}
