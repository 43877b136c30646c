//! What strangers send: decoding never panics and never over-allocates, and what is encoded decodes to itself.

use std::{net::SocketAddr, path::Path};

use proptest::prelude::*;
use shoal_proto::{
    Digest,
    have::Have,
    message::{CloseReason, HEADER_LEN, Message, PeerInfo, Priority, Question},
    signed::{Labels, NodeId},
};

#[path = "../fuzz/targets.rs"]
mod targets;

/// A target's body.
type Target = fn(&[u8]);

/// Name and body of every fuzz target.
const TARGETS: &[(&str, Target)] = &[
    ("frame", targets::frame),
    ("envelope", targets::envelope),
    ("vendor", targets::vendor),
    ("route", targets::route),
    ("range", targets::range),
    ("have", targets::have),
    ("caller", targets::caller),
    ("token", targets::token),
    ("name", targets::name),
];

fn digest() -> impl Strategy<Value = Digest> {
    prop_oneof![any::<[u8; 32]>().prop_map(Digest::sha256), any::<[u8; 64]>().prop_map(Digest::sha512)]
}

fn peer() -> impl Strategy<Value = PeerInfo> {
    // An IPv6 scope id means something on one host alone, and is not on the wire.
    let address = any::<(std::net::IpAddr, u16)>().prop_map(SocketAddr::from);
    (any::<[u8; 32]>(), prop::collection::vec(address, 0..4)).prop_map(|(node, peer)| PeerInfo {
        node: NodeId(node),
        peer,
        libp2p: Vec::new(),
        labels: Labels::default(),
    })
}

fn message() -> impl Strategy<Value = Message> {
    let have = prop_oneof![
        Just(Have::All),
        Just(Have::Gone),
        any::<Vec<u8>>().prop_map(Have::Set),
        any::<Vec<u32>>().prop_map(Have::Added)
    ];
    prop_oneof![
        (digest(), have).prop_map(|(digest, have)| Message::Have { digest, have }),
        (any::<u32>(), digest(), any::<u32>(), any::<u32>()).prop_map(|(id, digest, piece, offset)| {
            Message::Request { id, digest, piece, offset, priority: Priority::Reader }
        }),
        (digest(), prop::collection::vec(peer(), 0..5)).prop_map(|(image, peers)| Message::Peers { image, peers }),
        (any::<u32>(), digest()).prop_map(|(id, d)| Message::Ask { id, question: Question::Statement(d) }),
        Just(Message::Close { reason: CloseReason::Idle }),
    ]
}

proptest! {
    #[test]
    fn every_message_decodes_to_itself(message in message()) {
        let frame = message.to_frame();
        prop_assert_eq!(Message::from_body(&frame[HEADER_LEN..]).unwrap(), message);
    }

    #[test]
    fn digests_round_trip_as_text(digest in digest()) {
        prop_assert_eq!(digest.to_string().parse::<Digest>().unwrap(), digest);
    }

    #[test]
    fn no_bytes_upset_a_decoder(data in prop::collection::vec(any::<u8>(), 0..300)) {
        TARGETS.iter().for_each(|(_, target)| target(&data));
    }

    #[test]
    fn a_bent_frame_upsets_nobody(message in message(), at: prop::sample::Index, byte: u8) {
        let mut frame = message.to_frame();
        let at = at.index(frame.len());
        frame[at] = byte;
        targets::frame(&frame);
    }
}

#[test]
fn a_claimed_length_allocates_nothing_beyond_the_frame() {
    // Have::Added with a claimed 2^62 entries.
    let mut body = vec![7, 0];
    body.extend([0xab; 32]);
    body.extend([2, 0xfd, 0, 0, 0, 0, 0, 0, 0, 0x40]);
    assert!(Message::from_body(&body).is_err());
}

#[test]
fn the_kept_corpora_replay() {
    let corpora = Path::new("fuzz/corpus");
    for (name, target) in TARGETS {
        let files: Vec<_> = std::fs::read_dir(corpora.join(name)).expect("each target keeps a corpus").collect();
        assert!(!files.is_empty(), "{name}");
        for file in files {
            target(&std::fs::read(file.expect("a listed file").path()).expect("a readable file"));
        }
    }
}
