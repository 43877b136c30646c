//! Golden vectors: the bytes on the wire, pinned. A change here is a change of the protocol: raise
//! [`shoal_proto::PROTOCOL`] and keep reading what older nodes send.

use std::net::SocketAddr;

use ed25519_dalek::SigningKey;
use expect_test::{Expect, expect};
use shoal_proto::{
    Digest, PROTOCOL, ProtocolVersion,
    api::{Join, Shown, TokenId, TokenShown},
    codec,
    envelope::{Envelope, EnvelopeError, Payload, PayloadType},
    have::{Have, HaveSet},
    layout::Layout,
    message::{self, Answer, CloseReason, Message, PeerInfo, Priority, Question, RefuseReason},
    signed::{
        Candidates, Capability, Covered, KeySet, Labels, Membership, NodeId, ProvisionalStatement, Purpose,
        RevocationList, Scope, Statement, Subject, TagRecord, Version,
    },
};

fn digest() -> Digest {
    Digest::sha256([0xab; 32])
}

fn labels() -> Labels {
    Labels { region: "eu".parse().ok(), zone: "a".parse().ok(), site: None }
}

fn key() -> SigningKey {
    SigningKey::from_bytes(&[7; 32])
}

fn check_bytes(bytes: &[u8], expected: &Expect) {
    expected.assert_eq(&hex::encode(bytes));
}

#[test]
fn digests_and_have_sets() {
    check_bytes(
        &codec::encode(&digest()),
        &expect!["00abababababababababababababababababababababababababababababababab"],
    );
    let mut set = HaveSet::empty(&Layout::new(10 << 20).unwrap());
    for index in [0, 3, 9] {
        set.insert(Layout::new(10 << 20).unwrap().piece(index).unwrap());
    }
    check_bytes(&codec::encode(&Have::Set(set.to_bytes())), &expect!["01050902000000"]);
    check_bytes(&codec::encode(&Have::Added(vec![1, 300])), &expect!["020201fb2c01"]);
    check_bytes(&codec::encode(&Have::All), &expect!["00"]);
    check_bytes(&codec::encode(&Have::Gone), &expect!["03"]);
}

fn payload<T: Payload + PartialEq + std::fmt::Debug>(value: &T, expected: &Expect) {
    let bytes = codec::encode(value);
    check_bytes(&bytes, expected);
    let envelope = Envelope::sign(value, &key());
    assert_eq!(envelope.open::<T>(&key().verifying_key()).expect("just signed"), *value);
}

#[test]
fn signed_payloads() {
    let node = NodeId([1; 32]);
    payload(
        &Statement { digest: digest(), size: 300, root: [2; 32] },
        &expect![
            "00ababababababababababababababababababababababababababababababababfb2c010202020202020202020202020202020202020202020202020202020202020202"
        ],
    );
    payload(
        &ProvisionalStatement { digest: digest(), attempt: 9, sequence: 1, claimed_size: 5, prefix: vec![] },
        &expect!["00abababababababababababababababababababababababababababababababab09010500"],
    );
    payload(
        &Membership { node, labels: labels(), not_before: 1, not_after: 2, serial: 3 },
        &expect!["01010101010101010101010101010101010101010101010101010101010101010102657501016100010203"],
    );
    payload(
        &Capability {
            subject: Subject::AnyMember,
            covered: Covered::List(vec![digest()]),
            discovery: [4; 32],
            not_before: 1,
            not_after: 2,
        },
        &expect![
            "01000100abababababababababababababababababababababababababababababababab04040404040404040404040404040404040404040404040404040404040404040102"
        ],
    );
    payload(
        &Candidates {
            image: digest(),
            labels: labels(),
            scope: Scope::Zone,
            version: Version { epoch: 1, counter: 2 },
            members: vec![node],
        },
        &expect![
            "00abababababababababababababababababababababababababababababababab0102657501016100010102010101010101010101010101010101010101010101010101010101010101010101"
        ],
    );
    payload(
        &TagRecord {
            repository: "a/b".parse().unwrap(),
            tag: "v1".parse().unwrap(),
            digest: Some(digest()),
            media_type: "m".into(),
            version: Version { epoch: 1, counter: 2 },
            signed_at: 3,
            public: true,
        },
        &expect!["03612f620276310100abababababababababababababababababababababababababababababababab016d01020301"],
    );
    payload(
        &KeySet { version: Version::default(), keys: vec![(Purpose::Tag, [5; 32])] },
        &expect!["000001030505050505050505050505050505050505050505050505050505050505050505"],
    );
    payload(&RevocationList { version: Version::default(), serials: vec![1, 251] }, &expect!["00000201fbfb00"]);
}

#[test]
fn a_signature_is_pinned_and_of_one_type_alone() {
    let statement = Statement { digest: digest(), size: 300, root: [2; 32] };
    let envelope = Envelope::sign(&statement, &key());
    check_bytes(
        &codec::encode(&envelope)[74..],
        &expect![
            "0202020202f60b909dd985cce7bf32248ef747eb58fd3fe7f1aa9afe50dd704d3825fbc1a8408f4c12d173351da3dc3ecda4df5ab2cb0d0a0c0ebb34832de27d4877f9b500"
        ],
    );
    let wrong = envelope.open::<Membership>(&key().verifying_key());
    assert!(matches!(wrong, Err(EnvelopeError::Type { expected: PayloadType::Membership, found: 1 })));
    let other = SigningKey::from_bytes(&[8; 32]).verifying_key();
    assert!(matches!(envelope.open::<Statement>(&other), Err(EnvelopeError::Key { .. })));
    let bytes = codec::encode(&envelope);
    for at in 0..bytes.len() {
        let mut bent = bytes.clone();
        bent[at] ^= 1;
        if let Ok(bent) = codec::decode::<Envelope, 4096>(&bent) {
            assert!(bent.open::<Statement>(&key().verifying_key()).is_err(), "a flipped bit in byte {at} was believed");
        }
    }
}

#[test]
fn a_key_signs_only_what_its_purpose_allows() {
    let set =
        KeySet { version: Version::default(), keys: vec![(Purpose::Statement, key().verifying_key().to_bytes())] };
    let statement = Statement { digest: digest(), size: 0, root: [0; 32] };
    assert!(Envelope::sign(&statement, &key()).open::<Statement>(&set).is_ok());
    let list = RevocationList { version: Version::default(), serials: vec![] };
    assert!(matches!(Envelope::sign(&list, &key()).open::<RevocationList>(&set), Err(EnvelopeError::Key { .. })));
    let inner = KeySet { version: Version::default(), keys: vec![] };
    assert!(matches!(Envelope::sign(&inner, &key()).open::<KeySet>(&set), Err(EnvelopeError::Key { .. })));
}

#[test]
fn joins() {
    let join = |shown| Join { node: NodeId([1; 32]), time: 2, labels: Labels::default(), shown, signature: [3; 64] };
    // Node, time and no labels before it, the signature after it.
    let shown = |shown| {
        let bytes = codec::encode(&join(shown));
        bytes[36..bytes.len() - 64].to_vec()
    };
    check_bytes(&shown(Shown::Nothing), &expect!["00"]);
    check_bytes(
        &shown(Shown::Token(TokenShown { id: TokenId([4; 16]), mac: [5; 32] })),
        &expect!["01040404040404040404040404040404040505050505050505050505050505050505050505050505050505050505050505"],
    );
    check_bytes(&shown(Shown::ServiceAccount("a.b.c".into())), &expect!["0205612e622e63"]);
    assert_eq!(format!("{:?}", Shown::ServiceAccount("secret".into())), "ServiceAccount(hidden)");
}

fn frame(message: &Message, expected: &Expect) {
    let frame = message.to_frame();
    check_bytes(&frame, expected);
    let (header, body) = frame.split_at(message::HEADER_LEN);
    let header = message::FrameHeader::parse(header.try_into().expect("a whole header")).expect("a good header");
    assert_eq!((header.kind, header.body_len), (message::KIND_MESSAGE, body.len()));
    assert_eq!(Message::from_body(body).expect("a good body"), *message);
}

#[test]
fn frames() {
    let address: SocketAddr = "10.0.0.1:5052".parse().unwrap();
    let me = PeerInfo { node: NodeId([1; 32]), peer: vec![address], libp2p: vec![], labels: Labels::default() };
    frame(
        &Message::Hello { protocol: PROTOCOL, me: me.clone(), nonce: [3; 32], membership: None },
        &expect![
            "5200000001000100010101010101010101010101010101010101010101010101010101010101010101000a000001fbbc1300000000030303030303030303030303030303030303030303030303030303030303030300"
        ],
    );
    frame(
        &Message::Ask { id: 1, question: Question::Hashes(digest()) },
        &expect!["250000000104010100abababababababababababababababababababababababababababababababab"],
    );
    frame(
        &Message::Tell { id: 1, answer: Answer::Hashes(vec![[9; 32]]) },
        &expect!["2500000001050101010909090909090909090909090909090909090909090909090909090909090909"],
    );
    frame(
        &Message::Have { digest: digest(), have: Have::All },
        &expect!["24000000010600abababababababababababababababababababababababababababababababab00"],
    );
    frame(
        &Message::Request { id: 7, digest: digest(), piece: 3, offset: 0, priority: Priority::Normal },
        &expect!["2700000001070700abababababababababababababababababababababababababababababababab030001"],
    );
    frame(&Message::Refuse { id: 7, reason: RefuseReason::Busy }, &expect!["0400000001080701"]);
    frame(&Message::Cancel { id: 7 }, &expect!["03000000010907"]);
    frame(
        &Message::Peers { image: digest(), peers: vec![me] },
        &expect![
            "51000000010a00abababababababababababababababababababababababababababababababab01010101010101010101010101010101010101010101010101010101010101010101000a000001fbbc1300000000"
        ],
    );
    frame(&Message::Close { reason: CloseReason::Revoked }, &expect!["03000000010b04"]);
    frame(
        &Message::BadPiece { digest: digest(), piece: 1 },
        &expect!["24000000010c00abababababababababababababababababababababababababababababababab01"],
    );
    check_bytes(&message::data_header(7, 131_072), &expect!["050002000207000000"]);
}

#[test]
fn two_versions_that_meet_speak_the_lower_minor_of_one_major() {
    let version = |major, minor| ProtocolVersion { major, minor };
    assert_eq!(version(1, 0).agree(version(1, 3)), Some(version(1, 0)));
    assert_eq!(version(1, 3).agree(version(1, 0)), Some(version(1, 0)));
    assert_eq!(version(1, 0).agree(version(2, 0)), None);
}
