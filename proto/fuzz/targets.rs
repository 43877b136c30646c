//! What each fuzz target does with its bytes. Shared by the fuzzer and by the test that replays the corpora.

use shoal_proto::{
    Digest, api, codec,
    envelope::{ENVELOPE_LEN_MAX, Envelope},
    have::HaveSet,
    layout::{Layout, PIECE_LEN_MIN},
    member::Caller,
    message::{FRAME_LEN_MAX, FrameHeader, HEADER_LEN, Message},
    name::{Repository, Tag},
    oci::Route,
    range::{self, Selection},
    signed::{Capability, KeySet, Label, Membership, Statement, TagRecord},
    token::JoinToken,
};

/// A frame of the peer protocol: header, then body.
pub(crate) fn frame(data: &[u8]) {
    if let Some((header, body)) = data.split_first_chunk::<HEADER_LEN>()
        && let Ok(header) = FrameHeader::parse(*header)
    {
        assert!(header.body_len < FRAME_LEN_MAX);
        if let Ok(message) = Message::from_body(&body[..header.body_len.min(body.len())]) {
            let again = message.to_frame();
            assert_eq!(Message::from_body(&again[HEADER_LEN..]).expect("what was encoded decodes"), message);
        }
    }
}

/// Anything signed.
pub(crate) fn envelope(data: &[u8]) {
    let Ok(envelope) = codec::decode::<Envelope, ENVELOPE_LEN_MAX>(data) else { return };
    let keys = KeySet { version: Default::default(), keys: Vec::new() };
    assert!(envelope.open::<Statement>(&keys).is_err());
    assert!(envelope.open::<Capability>(&keys).is_err());
    assert!(envelope.open::<TagRecord>(&keys).is_err());
}

/// Bodies of the vendor routes.
pub(crate) fn vendor(data: &[u8]) {
    let _ = codec::decode::<api::Join, { api::REQUEST_LEN_MAX }>(data);
    let _ = codec::decode::<api::Pull, { api::REQUEST_LEN_MAX }>(data);
    let _ = codec::decode::<api::PiecesWanted, { api::REQUEST_LEN_MAX }>(data);
    let _ = codec::decode::<api::Pulled, { api::REPLY_LEN_MAX }>(data);
    let _ = codec::decode::<api::PiecesGiven, { api::REPLY_LEN_MAX }>(data);
    let _ = codec::decode::<api::Info, { api::REPLY_LEN_MAX }>(data);
}

/// A request's path.
pub(crate) fn route(data: &[u8]) {
    let Ok(path) = std::str::from_utf8(data) else { return };
    if let Ok(route) = Route::parse(path)
        && let Some(name) = route.repository()
    {
        assert!(!name.as_str().contains(".."), "{name} leaves its folder");
    }
    let _ = path.parse::<Digest>();
}

/// A `Range` header.
pub(crate) fn range(data: &[u8]) {
    let Ok(header) = std::str::from_utf8(data) else { return };
    for size in [0, 1, 100, u64::MAX] {
        if let Selection::Parts(parts) = range::select(Some(header), size) {
            assert!(!parts.is_empty() && parts.len() <= range::RANGES_MAX);
            assert!(parts.iter().all(|part| part.start < part.end && part.end <= size));
        }
    }
}

/// A have-set of a blob of 100 pieces.
pub(crate) fn have(data: &[u8]) {
    let layout = Layout::new(100 * PIECE_LEN_MIN).expect("a small blob");
    if let Ok(set) = HaveSet::from_bytes(&layout, data) {
        assert_eq!(set.to_bytes(), data);
        assert!(set.iter().count() == set.len() as usize && set.len() <= 100);
    }
}

/// The header by which a member says who it is.
pub(crate) fn caller(data: &[u8]) {
    let Ok(header) = std::str::from_utf8(data) else { return };
    let Ok(caller) = Caller::from_header(header) else { return };
    assert_eq!(Caller::from_header(&caller.to_header()).expect("what was encoded decodes"), caller);
    let keys = KeySet { version: Default::default(), keys: Vec::new() };
    assert!(caller.membership.open::<Membership>(&keys).is_err());
}

/// A join token, as a person pastes it.
pub(crate) fn token(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(token) = text.parse::<JoinToken>() {
        assert_eq!(token.to_string().parse::<JoinToken>().expect("what was printed is read").root, token.root);
    }
}

/// Names, tags, labels and digests, as they become parts of paths.
pub(crate) fn name(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let stays =
        |part: &str| !part.contains("..") && !part.starts_with('/') && part.bytes().all(|b| b > b' ' && b < 127);
    if let Ok(name) = text.parse::<Repository>() {
        assert!(stays(name.as_str()), "{name}");
    }
    if let Ok(tag) = text.parse::<Tag>() {
        assert!(!tag.as_str().contains('/') && tag.as_str() != "..", "{tag}");
    }
    if let Ok(label) = text.parse::<Label>() {
        assert!(!label.as_str().contains('/') && !label.as_str().starts_with('.'), "{label:?}");
    }
    if let Ok(digest) = text.parse::<Digest>() {
        assert_eq!(digest.to_string(), text);
    }
}
