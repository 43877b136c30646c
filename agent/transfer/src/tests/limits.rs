//! What a node limits for the sake of others: requests across boundaries, dials while nobody answers; and what it does not.

use alloc::{borrow::Cow, collections::BTreeMap, vec, vec::Vec};

use shoal_proto::{
    have::Have,
    message::{Priority, RefuseReason},
    signed::Scope,
};

use crate::{
    config::Config,
    event::{Action, Failure, Goal, Input},
    ids::{BlobId, Id, PeerId, RequestId, UploadId},
    node::Node,
    time::{Span, Time},
};

const PIECE_LEN: u64 = 1 << 18;

fn the_blob() -> BlobId {
    BlobId::new(0, 0)
}

fn at(millis: u64) -> Time {
    Time::ZERO + Span::from_millis(millis)
}

fn open(node: &mut Node, size: u64, have: Have, introduced: &[PeerId]) {
    let goal = Goal::Fetch { background: false };
    let introduced = Cow::Borrowed(introduced);
    let opened =
        Input::BlobOpened { blob: the_blob(), size, piece_len: PIECE_LEN, have, goal, prefix: None, introduced };
    node.handle(opened, at(0));
}

fn actions(node: &mut Node) -> Vec<Action> {
    core::iter::from_fn(|| node.poll_action()).collect()
}

/// The pieces that are asked of peers by an input.
fn fetched(node: &mut Node, input: Input<'_>, now: Time) -> BTreeMap<RequestId, u32> {
    node.handle(input, now);
    let fetch = |action| if let Action::Fetch { request, piece, .. } = action { Some((request, piece)) } else { None };
    actions(node).into_iter().filter_map(fetch).collect()
}

/// A node that alone is to bring 64 pieces into its region, and what it asks of the one holder beyond, connected at 0.
fn owner() -> (Node, BTreeMap<RequestId, u32>) {
    let mut node = Node::new(Config { rank: 1, pipeline_max: 64, ..Config::default() }, 1, at(0));
    let peer = PeerId::new(0, 0);
    node.handle(Input::PeerKnown { peer, scope: Scope::Fleet, rank: 7, fixed: false }, at(0));
    open(&mut node, 64 * PIECE_LEN, Have::Set(vec![0; 8]), &[]);
    let ranks = Cow::Borrowed(&[1_u64][..]);
    node.handle(Input::Candidates { blob: the_blob(), scope: Scope::Region, ranks }, at(0));
    node.handle(Input::Connected { peer }, at(0));
    actions(&mut node);
    let asked = fetched(&mut node, Input::PeerHas { peer, blob: the_blob(), have: Have::All }, at(0));
    (node, asked)
}

/// Lets pieces come `took` after they were asked for, and gives how many are under way after `rounds` of that.
fn under_way_after(rounds: u64, took: u64) -> usize {
    let (mut node, mut asked) = owner();
    assert_eq!(asked.len(), Config::default().cross_requests_base as usize, "few at first");
    for round in 1..=rounds {
        let mut next = BTreeMap::new();
        for (request, piece) in core::mem::take(&mut asked) {
            next.extend(fetched(&mut node, Input::PieceStored { blob: the_blob(), request, piece }, at(round * took)));
        }
        asked = next;
    }
    node.check();
    asked.len()
}

#[test]
fn more_cross_a_boundary_at_once_while_they_come_soon() {
    let usual = Config::default().pipeline_base as usize;
    assert!(under_way_after(4, 50) > usual, "the link has room");
    assert_eq!(under_way_after(4, 1500), usual, "what waits in the link for long has enough beside it");
}

#[test]
fn a_small_piece_takes_no_slot() {
    let config = Config { upload_queue_base: 1, ..Config::default() };
    let small = config.upload_small_bytes;
    for (size, at_once) in [(small, true), (small + 1, false)] {
        let mut node = Node::new(config.clone(), 1, at(0));
        open(&mut node, size, Have::All, &[]);
        let mut served = 0;
        let mut busy = 0;
        for slot in 0..40 {
            let (peer, upload) = (PeerId::new(slot, 0), UploadId::new(slot, 0));
            let rank = u64::from(slot);
            node.handle(Input::PeerKnown { peer, scope: Scope::Fleet, rank, fixed: false }, at(0));
            node.handle(Input::Connected { peer }, at(0));
            let priority = Priority::Normal;
            node.handle(Input::UploadRequested { upload, peer, blob: the_blob(), piece: 0, priority }, at(0));
            for action in actions(&mut node) {
                served += usize::from(matches!(action, Action::Serve { .. }));
                busy += usize::from(matches!(action, Action::Refuse { reason: RefuseReason::Busy, .. }));
            }
        }
        assert_eq!((served == 40, busy == 0), (at_once, at_once), "{size} bytes: {served} served, {busy} refused");
    }
}

#[test]
fn dials_that_nobody_answers_are_not_doubled_at_once() {
    let config = Config::default();
    let peers: Vec<PeerId> = (0..40).map(|slot| PeerId::new(slot, 0)).collect();
    // Dials under way after a wait, where one of the first was answered and where none was.
    let dialled = |answered: bool, wait: Span| {
        let mut node = Node::new(config.clone(), 1, at(0));
        for (rank, &peer) in (0..).zip(&peers) {
            node.handle(Input::PeerKnown { peer, scope: Scope::Fleet, rank, fixed: false }, at(0));
        }
        open(&mut node, PIECE_LEN, Have::Set(vec![0]), &peers);
        let dial = |action: &Action| if let Action::Connect { peer } = action { Some(*peer) } else { None };
        let mut dials: Vec<PeerId> = actions(&mut node).iter().filter_map(dial).collect();
        if answered {
            node.handle(Input::Connected { peer: dials[0] }, at(20));
        }
        node.handle(Input::Timeout, Time::ZERO + wait);
        dials.extend(actions(&mut node).iter().filter_map(dial));
        dials.len()
    };
    let first = config.dials_max as usize;
    assert_eq!(dialled(false, config.dial_hedge), first, "all are late: this node may be too busy itself");
    assert!(dialled(true, config.dial_hedge) > first + 1, "others answer, so these are dead");
    assert!(dialled(false, config.dial_hedge_max) > first, "in the end others are tried");
}

/// A node that holds 64 pieces, and as many peers of it.
fn uploader(piece_len: u64, config: Config) -> Node {
    let mut node = Node::new(config, 1, at(0));
    let goal = Goal::Fetch { background: false };
    let (blob, size, introduced) = (the_blob(), 64 * piece_len, Cow::Borrowed(&[][..]));
    node.handle(Input::BlobOpened { blob, size, piece_len, have: Have::All, goal, prefix: None, introduced }, at(0));
    for slot in 0..64 {
        let peer = PeerId::new(slot, 0);
        node.handle(Input::PeerKnown { peer, scope: Scope::Fleet, rank: u64::from(slot), fixed: false }, at(0));
        node.handle(Input::Connected { peer }, at(0));
    }
    actions(&mut node);
    node
}

/// The uploads that an input begins.
fn served(node: &mut Node, input: Input<'_>, now: Time) -> Vec<UploadId> {
    node.handle(input, now);
    let serve = |action| if let Action::Serve { upload } = action { Some(upload) } else { None };
    actions(node).into_iter().filter_map(serve).collect()
}

/// Serves pieces of 1 MiB one after the other, each whole after `took` for every piece in transmission, and gives how many
/// are in transmission in the end.
fn in_transmission_after(took: &[u64]) -> usize {
    let mut node = uploader(1 << 20, Config::default());
    let (mut sending, mut now) = (Vec::new(), 0);
    for (slot, took) in (0..).zip(took) {
        // Two more than may be in transmission always wait.
        for extra in 0..2 {
            let number = 2 * slot + extra;
            let (upload, peer) = (UploadId::new(number, 0), PeerId::new(number % 64, 0));
            let (piece, priority) = (number % 64, Priority::Normal);
            let asked = Input::UploadRequested { upload, peer, blob: the_blob(), piece, priority };
            sending.extend(served(&mut node, asked, at(now)));
        }
        now += took;
        let upload = sending.remove(0);
        sending.extend(served(&mut node, Input::UploadEnded { upload, bytes: 1 << 20 }, at(now)));
    }
    node.check();
    sending.len()
}

#[test]
fn more_is_in_transmission_at_once_where_one_does_not_fill_the_uplink() {
    let config = Config::default();
    let (least, most) = (config.upload_slots as usize, (config.upload_slots + config.upload_spread_max) as usize);
    assert_eq!(in_transmission_after(&[100; 60]), least, "each gets all of the uplink");
    let slower: Vec<u64> = (0..60).map(|n| if n < 8 { 100 } else { 180 }).collect();
    // Those that last long hold no slot and come on top.
    assert!(in_transmission_after(&slower) >= most, "the receivers have others that send to them");
}

#[test]
fn little_pieces_are_sent_several_at_once() {
    let mut node = uploader(PIECE_LEN, Config { upload_queue_base: 16, ..Config::default() });
    let mut begun = 0;
    for slot in 0..16 {
        let (upload, peer, priority) = (UploadId::new(slot, 0), PeerId::new(slot, 0), Priority::Normal);
        let asked = Input::UploadRequested { upload, peer, blob: the_blob(), piece: slot, priority };
        begun += served(&mut node, asked, at(0)).len();
    }
    assert_eq!(begun as u64, Config::default().upload_bytes / PIECE_LEN);
}

#[test]
fn more_is_asked_for_while_nobody_is_busy_and_less_at_once_when_somebody_is() {
    let config = Config { pipeline_base: 64, pipeline_max: 64, ..Config::default() };
    let (base, spare) = (config.requests_base as usize, config.requests_spare_max as usize);
    let mut node = Node::new(config, 1, at(0));
    let peer = PeerId::new(0, 0);
    node.handle(Input::PeerKnown { peer, scope: Scope::Site, rank: 7, fixed: false }, at(0));
    open(&mut node, 256 * PIECE_LEN, Have::Set(vec![0; 32]), &[]);
    node.handle(Input::Connected { peer }, at(0));
    actions(&mut node);
    let mut asked = fetched(&mut node, Input::PeerHas { peer, blob: the_blob(), have: Have::All }, at(0));
    assert_eq!(asked.len(), base);
    for round in 1..=100 {
        let (request, piece) = asked.pop_first().unwrap();
        let stored = Input::PieceStored { blob: the_blob(), request, piece };
        asked.extend(fetched(&mut node, stored, at(100 * round)));
    }
    assert_eq!(asked.len(), base + spare);
    // One is refused: half of what was beyond the base is not asked for again.
    while asked.len() > base + spare / 2 {
        let (request, _) = asked.pop_first().unwrap();
        let refused = Input::FetchFailed { request, failure: Failure::Refused(RefuseReason::Busy) };
        let next = fetched(&mut node, refused, at(10_001));
        assert!(next.is_empty(), "who is busy is left alone: {next:?}");
    }
    node.check();
}
