//! What is not signed as it should be is refused, each kind of forgery for its own reason.

use ed25519_dalek::SigningKey;
use shoal_proto::{
    Digest, codec,
    envelope::{ENVELOPE_LEN_MAX, Envelope, EnvelopeError, KeyId, KeyRing, Payload, PayloadType},
    member::{CLOCK_SKEW_MAX_S, NotAdmitted, admit},
    signed::{
        Candidates, Capability, Covered, KeySet, Labels, Membership, NodeId, ProvisionalStatement, Purpose,
        RevocationList, Scope, Statement, Subject, TagRecord, Version,
    },
};

const PURPOSES: [Purpose; 6] =
    [Purpose::Statement, Purpose::Member, Purpose::Capability, Purpose::Tag, Purpose::Revocation, Purpose::Tls];
const NODE: NodeId = NodeId([3; 32]);
const VERSION: Version = Version { epoch: 5, counter: 2 };

/// The key of a purpose; none is the root's.
fn key(purpose: Option<Purpose>) -> SigningKey {
    let found = purpose.and_then(|purpose| (1..).zip(PURPOSES).find(|(_, other)| *other == purpose));
    SigningKey::from_bytes(&[found.map_or(50, |(n, _)| n); 32])
}

fn public(key: &SigningKey) -> [u8; 32] {
    key.verifying_key().to_bytes()
}

fn key_set() -> KeySet {
    KeySet { version: VERSION, keys: PURPOSES.iter().map(|of| (*of, public(&key(Some(*of))))).collect() }
}

/// The fleet's keys: the root for key sets, the set's for all else.
struct Keys;

impl KeyRing for Keys {
    fn key(&self, payload: PayloadType, id: KeyId) -> Option<ed25519_dalek::VerifyingKey> {
        let root = key(None).verifying_key();
        if payload == PayloadType::KeySet { root.key(payload, id) } else { key_set().key(payload, id) }
    }
}

fn digest() -> Digest {
    Digest::of(b"x")
}

fn membership() -> Membership {
    Membership { node: NODE, labels: Labels::default(), not_before: 1000, not_after: 9000, serial: 7 }
}

/// The types as which an envelope opens.
fn opens_as(envelope: &Envelope) -> Vec<PayloadType> {
    fn one<T: Payload>(envelope: &Envelope) -> Option<PayloadType> {
        envelope.open::<T>(&Keys).ok().map(|_| T::TYPE)
    }
    let all = [
        one::<Statement>,
        one::<ProvisionalStatement>,
        one::<Membership>,
        one::<Capability>,
        one::<Candidates>,
        one::<TagRecord>,
        one::<KeySet>,
        one::<RevocationList>,
    ];
    all.iter().filter_map(|open| open(envelope)).collect()
}

fn decoded(bytes: &[u8]) -> Option<Envelope> {
    codec::decode::<Envelope, ENVELOPE_LEN_MAX>(bytes).ok()
}

/// Forges `payload` in every way; first that it opens where nothing is forged.
fn forge<T: Payload + PartialEq + std::fmt::Debug>(payload: &T) {
    let own = Purpose::of(T::TYPE);
    let honest = Envelope::sign(payload, &key(own));
    assert_eq!(honest.open::<T>(&Keys).as_ref().ok(), Some(payload), "the legal twin");
    assert_eq!(opens_as(&honest), [T::TYPE], "as nothing else");
    let stranger = SigningKey::from_bytes(&[99; 32]);
    let others = PURPOSES.iter().copied().map(Some).chain([None]).filter(|of| *of != own).map(key);
    for wrong in others.chain([stranger.clone()]) {
        let refused = Envelope::sign(payload, &wrong).open::<T>(&Keys);
        assert!(matches!(refused, Err(EnvelopeError::Key { .. })), "{:?}: {refused:?}", T::TYPE);
    }
    // A stranger's signature under the name of the right key.
    let mut posing = codec::encode(&Envelope::sign(payload, &stranger));
    posing[2..10].copy_from_slice(&public(&key(own))[..8]);
    let refused = decoded(&posing).expect("another key id is an envelope still").open::<T>(&Keys);
    assert!(matches!(refused, Err(EnvelopeError::Signature)), "{:?}: {refused:?}", T::TYPE);
    let bytes = codec::encode(&honest);
    for len in 0..bytes.len() {
        assert_eq!(decoded(&bytes[..len]), None, "cut off at {len}");
    }
    for at in 0..bytes.len() {
        for bit in [0x01, 0x80] {
            let mut bent = bytes.clone();
            bent[at] ^= bit;
            if let Some(bent) = decoded(&bent) {
                assert!(opens_as(&bent).is_empty(), "{:?}: byte {at} does not count", T::TYPE);
            }
        }
    }
    for kind in (1..=8).filter(|kind| *kind != T::TYPE as u8) {
        let mut swapped = bytes.clone();
        swapped[0] = kind;
        let swapped = decoded(&swapped).expect("another type is an envelope still");
        let refused = swapped.open::<T>(&Keys);
        assert!(matches!(refused, Err(EnvelopeError::Type { .. })), "{:?} as {kind}: {refused:?}", T::TYPE);
        assert!(opens_as(&swapped).is_empty(), "{:?} passes as {kind}", T::TYPE);
    }
}

#[test]
fn a_forged_statement_membership_capability_or_record_is_refused_for_its_own_reason() {
    let root = [1; 32];
    forge(&Statement { digest: digest(), size: 5, root });
    forge(&ProvisionalStatement { digest: digest(), attempt: 1, sequence: 2, claimed_size: 3, prefix: vec![root] });
    forge(&membership());
    let (subject, covered) = (Subject::AnyMember, Covered::List(vec![digest()]));
    forge(&Capability { subject, covered, discovery: root, not_before: 0, not_after: 9 });
    let (labels, scope) = (Labels::default(), Scope::Fleet);
    forge(&Candidates { image: digest(), labels, scope, version: VERSION, members: vec![NODE] });
    forge(&TagRecord {
        repository: "team/app".parse().unwrap(),
        tag: "v1".parse().unwrap(),
        digest: Some(digest()),
        media_type: "x".into(),
        version: VERSION,
        signed_at: 9,
        public: true,
    });
    forge(&key_set());
    forge(&RevocationList { version: VERSION, serials: vec![1, 2] });
}

#[test]
fn a_membership_is_taken_at_clocks_ten_minutes_apart_and_no_further() {
    // As the seeder signs it at 1600: it holds from the tolerance before on.
    let issued = membership().not_before + CLOCK_SKEW_MAX_S;
    let shown = Envelope::sign(&membership(), &key(Some(Purpose::Member)));
    let at = |now| admit(Some(&shown), &NODE, &Keys, |_| false, now);
    assert!(at(issued).is_ok() && at(issued - CLOCK_SKEW_MAX_S).is_ok() && at(issued + CLOCK_SKEW_MAX_S).is_ok());
    assert!(matches!(at(issued - CLOCK_SKEW_MAX_S - 1), Err(NotAdmitted::NotYet)));
    assert!(at(membership().not_after - 1).is_ok());
    assert!(matches!(at(membership().not_after), Err(NotAdmitted::Expired)));
}

#[test]
fn a_capability_is_of_no_use_to_another_node_for_another_digest_or_out_of_its_time() {
    let (subject, covered) = (Subject::Node(NODE), Covered::List(vec![digest()]));
    let capability = Capability { subject, covered, discovery: [0; 32], not_before: 100, not_after: 200 };
    let (other_node, other_digest) = (NodeId([4; 32]), Digest::of(b"y"));
    assert!(capability.covers(&NODE, &digest(), 100) && capability.covers(&NODE, &digest(), 199));
    assert!(!capability.covers(&other_node, &digest(), 150), "replayed by another node");
    assert!(!capability.covers(&NODE, &other_digest, 150), "for another digest");
    assert!(!capability.covers(&NODE, &digest(), 200) && !capability.covers(&NODE, &digest(), 99), "out of its time");
}
