//! Whatever comes in, in whatever order: no panic, no broken invariant, and the text of a trace says it all.

use alloc::{borrow::Cow, string::String, vec, vec::Vec};

use proptest::prelude::*;
use shoal_proto::{
    have::Have,
    message::{Priority, RefuseReason},
    signed::Scope,
};

use crate::{
    config::Config,
    event::{Action, Failure, Goal, Input},
    ids::{BlobId, Id, PeerId, ReaderId, RequestId, UploadId},
    node::Node,
    time::{Span, Time},
};

fn id<I: Id + 'static>() -> impl Strategy<Value = I> {
    (0u32..4, 0u32..2).prop_map(|(slot, generation)| I::new(slot, generation))
}

fn have() -> impl Strategy<Value = Have> {
    prop_oneof![
        Just(Have::All),
        any::<u8>().prop_map(|byte| Have::Set(vec![byte])),
        prop::collection::vec(any::<u8>(), 0..3).prop_map(Have::Set),
        prop::collection::vec(0u32..9, 0..4).prop_map(Have::Added),
        Just(Have::Gone),
    ]
}

fn pieces() -> impl Strategy<Value = Cow<'static, [u32]>> {
    prop::collection::vec(0u32..9, 0..4).prop_map(Cow::Owned)
}

fn input() -> impl Strategy<Value = Input<'static>> {
    let blob = id::<BlobId>;
    let peer = id::<PeerId>;
    let request = id::<RequestId>;
    let goal =
        prop_oneof![Just(Goal::Serve), Just(Goal::Fetch { background: false }), Just(Goal::Fetch { background: true })];
    let scope = || prop_oneof![Just(Scope::Site), Just(Scope::Region), Just(Scope::Fleet)];
    let failure = prop_oneof![
        Just(Failure::Refused(RefuseReason::Busy)),
        Just(Failure::Refused(RefuseReason::NotHeld)),
        Just(Failure::ConnectionLost),
        Just(Failure::Unreachable),
        Just(Failure::WriteFailed),
        Just(Failure::Violation)
    ];
    let introduced = prop::collection::vec(peer(), 0..3);
    let open = (blob(), have(), goal.clone(), prop::option::of(0u32..9), introduced).prop_map(
        |(blob, have, goal, prefix, introduced)| {
            let introduced = Cow::Owned(introduced);
            Input::BlobOpened { blob, size: 8 << 20, piece_len: 1 << 20, have, goal, prefix, introduced }
        },
    );
    prop_oneof![
        4 => open,
        1 => (blob(), goal).prop_map(|(blob, goal)| Input::GoalChanged { blob, goal }),
        1 => (blob(), 0u32..9).prop_map(|(blob, prefix)| Input::PrefixGrown { blob, prefix }),
        1 => blob().prop_map(|blob| Input::Finalised { blob }),
        1 => blob().prop_map(|blob| Input::BlobClosed { blob }),
        2 => (id(), blob(), 0u32..9).prop_map(|(reader, blob, from)| Input::ReaderOpened { reader, blob, from, to: 8 }),
        1 => (id::<ReaderId>(), 0u32..9).prop_map(|(reader, piece)| Input::ReaderMoved { reader, piece }),
        1 => id::<ReaderId>().prop_map(|reader| Input::ReaderClosed { reader }),
        4 => (peer(), scope(), any::<bool>()).prop_map(|(peer, scope, fixed)| Input::PeerKnown { peer, scope, rank: 1, fixed }),
        4 => (peer(), blob()).prop_map(|(peer, blob)| Input::PeerIntroduced { peer, blob }),
        6 => peer().prop_map(|peer| Input::Connected { peer }),
        1 => peer().prop_map(|peer| Input::ConnectFailed { peer }),
        1 => peer().prop_map(|peer| Input::Disconnected { peer }),
        8 => (peer(), blob(), have()).prop_map(|(peer, blob, have)| Input::PeerHas { peer, blob, have }),
        4 => (peer(), blob(), pieces()).prop_map(|(peer, blob, pieces)| Input::PeerGained { peer, blob, pieces }),
        2 => request().prop_map(|request| Input::Progress { request, bytes: 1 }),
        8 => (request(), blob(), 0u32..9).prop_map(|(request, blob, piece)| Input::PieceStored { request, blob, piece }),
        1 => (request(), 0u32..9, any::<bool>())
            .prop_map(|(request, piece, sole_sender)| Input::PieceCorrupt { request, piece, sole_sender }),
        2 => (request(), failure).prop_map(|(request, failure)| Input::FetchFailed { request, failure }),
        4 => (request(), pieces()).prop_map(|(request, pieces)| Input::SeederGave { request, pieces }),
        1 => request().prop_map(|request| Input::SeederDeferred { request, retry_after: Span::from_millis(5) }),
        1 => request().prop_map(|request| Input::SeederBusy { request, retry_after: Span::from_millis(5) }),
        2 => request().prop_map(|request| Input::SeederDone { request }),
        4 => (id(), peer(), blob(), 0u32..9).prop_map(|(upload, peer, blob, piece)| Input::UploadRequested {
            upload, peer, blob, piece, priority: Priority::Normal
        }),
        2 => id::<UploadId>().prop_map(|upload| Input::UploadEnded { upload, bytes: 1 }),
        1 => (blob(), scope(), prop::collection::vec(0u64..4, 0..4))
            .prop_map(|(blob, scope, ranks)| Input::Candidates { blob, scope, ranks: Cow::Owned(ranks) }),
        1 => any::<bool>().prop_map(|writable| Input::Disk { writable }),
        4 => Just(Input::Timeout),
    ]
}

fn small() -> Config {
    Config { known_peers_max: 4, upload_queue_max: 3, ..Config::default() }
}

fn drive(node: &mut Node, inputs: &[(u64, Input<'static>)]) -> Vec<Action> {
    let mut now = Time::ZERO;
    let mut actions = Vec::new();
    for (step, input) in inputs {
        now = now + Span::from_millis(*step);
        node.handle(input.clone(), now);
        node.check();
        while let Some(action) = node.poll_action() {
            actions.push(action);
        }
    }
    actions
}

proptest! {
    #[test]
    fn any_inputs_keep_the_invariants(inputs in prop::collection::vec((0u64..4000, input()), 0..200), seed: u64) {
        drive(&mut Node::new(small(), seed, Time::ZERO), &inputs);
    }

    #[test]
    fn a_trace_read_back_from_its_text_replays_action_for_action(
        inputs in prop::collection::vec((0u64..4000, input()), 0..60), seed: u64
    ) {
        let actions = drive(&mut Node::new(small(), seed, Time::ZERO), &inputs);
        let text: Vec<String> = inputs.iter().map(|line| serde_json::to_string(line).unwrap()).collect();
        let read: Vec<(u64, Input<'static>)> = text.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
        prop_assert_eq!(&read, &inputs);
        let written: Vec<String> = actions.iter().map(|action| serde_json::to_string(action).unwrap()).collect();
        let again = drive(&mut Node::new(small(), seed, Time::ZERO), &read);
        let rewritten: Vec<String> = again.iter().map(|action| serde_json::to_string(action).unwrap()).collect();
        prop_assert_eq!(written, rewritten);
        for (line, action) in text_of(&again).iter().zip(&again) {
            prop_assert_eq!(&serde_json::from_str::<Action>(line).unwrap(), action);
        }
    }
}

fn text_of(actions: &[Action]) -> Vec<String> {
    actions.iter().map(|action| serde_json::to_string(action).unwrap()).collect()
}
