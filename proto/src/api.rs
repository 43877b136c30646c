//! The vendor routes between agent and seeder: bodies by [`crate::codec`], under `/v2/_shoal/…` and
//! `/v2/<name>/_shoal/…`.
//!
//! | request | body → reply |
//! |---|---|
//! | `GET /v2/_shoal/info` | – → [`Info`] |
//! | `POST /v2/_shoal/join` | [`Join`] → [`Joined`] |
//! | `POST /v2/_shoal/members` | [`Meet`] → [`Met`] |
//! | `GET /v2/_shoal/revocations` | – → [`Revocations`] |
//! | `POST /v2/<name>/_shoal/pull/<reference>` | [`Pull`] → [`Pulled`] |
//! | `GET /v2/<name>/_shoal/statement/<digest>` | – → [`Envelope`] |
//! | `GET /v2/<name>/_shoal/hashes/<digest>` | – → the piece hashes, 32 bytes each |
//! | `POST /v2/<name>/_shoal/pieces/<digest>` | [`PiecesWanted`] → `length (u32 LE) ‖` [`PiecesGiven`] `‖` the pieces' bytes in the order given |
//!
//! Errors are the OCI JSON errors of [`crate::oci`]. A client's own `Authorization` goes along on all of them. A member says
//! who it is in the header [`CALLER_HEADER`](crate::member::CALLER_HEADER), signed for the very request.

use std::fmt;

use bincode::{Decode, Encode};

use crate::{
    ProtocolVersion,
    digest::Digest,
    envelope::{ENVELOPE_LEN_MAX, Envelope},
    message::PeerInfo,
    signed::{DiscoveryKey, Labels, NodeId, UnixSeconds},
};

/// Content type of every body but piece hashes.
pub const CONTENT_TYPE: &str = "application/vnd.shoal.v1";
/// Largest request body in bytes.
pub const REQUEST_LEN_MAX: usize = 64 << 10;
/// Largest reply in bytes, apart from pieces: a [`Pulled`] of an image of [`DIGESTS_MAX`] digests.
pub const REPLY_LEN_MAX: usize = 2 << 20;
/// Most digests of an image that a [`Pulled`] describes, the manifest's among them: the largest manifest holds more, and what
/// is beyond comes from the seeder alone.
pub const DIGESTS_MAX: usize = 4096;
/// A capability lists so many digests; one over more names their Merkle root, so that it stays small however many there are.
pub const LISTED_MAX: usize = 512;
/// Most pieces in one reply to [`PiecesWanted`].
pub const PIECES_GIVEN_MAX: u16 = 16;

/// Who the seeder is.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Info {
    /// What it speaks.
    pub protocol: ProtocolVersion,
    /// The fleet's root key: pinned on first use in open mode, checked against the join token else.
    pub root: [u8; 32],
    /// The root-signed key set.
    pub keys: Envelope,
    /// Whether anybody may join (`--insecure-open`).
    pub open: bool,
}

/// Names a token at the seeder. Says nothing of its secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub struct TokenId(pub [u8; 16]);

impl fmt::Display for TokenId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

/// A token as a join shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub struct TokenShown {
    /// Which.
    pub id: TokenId,
    /// BLAKE3, keyed with what the token's secret gives, over [`join_bytes`].
    pub mac: [u8; 32],
}

/// Longest [`Shown::ServiceAccount`] in bytes: clusters issue one to two KiB.
pub const SERVICE_ACCOUNT_LEN_MAX: usize = 16 << 10;

/// By what a node is let in.
#[derive(Clone, PartialEq, Eq, Encode, Decode)]
pub enum Shown {
    /// Nothing: in open mode, or for the renewal of a member that joined by a token.
    Nothing,
    /// A join token. Counted when the node joins by it for the first time.
    Token(TokenShown),
    /// A service-account token (a JSON Web Token) of the Kubernetes cluster that the node belongs to, for every renewal anew.
    /// Whoever has it may show it: it must not travel in the clear.
    ServiceAccount(String),
}

impl fmt::Debug for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nothing => f.write_str("Nothing"),
            Self::Token(shown) => f.debug_tuple("Token").field(&shown.id).finish(),
            Self::ServiceAccount(_) => f.write_str("ServiceAccount(hidden)"),
        }
    }
}

/// A node asks for membership, or for its renewal.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Join {
    /// Who asks.
    pub node: NodeId,
    /// When it signed, so that an overheard request is of no use later.
    pub time: UnixSeconds,
    /// The labels that it would like; only an open seeder gives them.
    pub labels: Labels,
    /// By what it is to be let in.
    pub shown: Shown,
    /// The node key's Ed25519 signature over [`join_bytes`].
    pub signature: [u8; 64],
}

/// What [`Join::signature`] covers: `"shoal join\0" ‖ root key ‖ node ‖ time (u64 LE)`.
#[must_use]
pub fn join_bytes(root: &[u8; 32], node: &NodeId, time: UnixSeconds) -> Vec<u8> {
    [b"shoal join\0".as_slice(), root, &node.0, &time.to_le_bytes()].concat()
}

/// The node is a member.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Joined {
    /// The signed membership.
    pub membership: Envelope,
    /// The newest revocation list, if there is one.
    pub revocations: Option<Envelope>,
}

/// A node starts to pull a reference: it asks for all that it needs, and tells where it can be found.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Pull {
    /// How others reach it. Addresses other than the request's own source count only where the seeder allows them; a
    /// port of 0 or an unspecified address means the source address.
    pub me: PeerInfo,
}

/// A node tells the fleet where it can be found, and hears of others, before it pulls anything: without the seeder it could
/// reach nobody else.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Meet {
    /// As in [`Pull::me`].
    pub me: PeerInfo,
}

/// Which memberships no longer hold. Members pass the list on; each asks the seeder only now and then.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Revocations {
    /// The newest signed list; none if nobody was ever revoked.
    pub list: Option<Envelope>,
    /// Ask again after so many seconds: the more members, the longer, so that all together ask at a steady rate.
    pub again_in_s: u32,
}

/// The answer to [`Meet`].
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Met {
    /// Members that came by lately, own region first.
    pub introductions: Vec<PeerInfo>,
}

/// All that a node needs to pull one manifest.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Pulled {
    /// The manifest.
    pub digest: Digest,
    /// Its media type.
    pub media_type: String,
    /// Where a tag was asked for: the signed tag record.
    pub tag_record: Option<Envelope>,
    /// Statements of the manifest, its config and its layers (an index has only its own). Missing ones are asked for
    /// singly: their bytes may not have arrived yet.
    pub statements: Vec<Envelope>,
    /// Lets this node, or any member, read those digests.
    pub capability: Envelope,
    /// Where each digest's holders are found in the DHT.
    pub discovery: Vec<Discovery>,
    /// The key under which a public reference's bundle is found among peers.
    pub bundle: Option<DiscoveryKey>,
    /// Signed candidate lists of the image, of the scopes that hold this node.
    pub candidates: Vec<Envelope>,
    /// Members recently interested in the image, own region first.
    pub introductions: Vec<PeerInfo>,
}

/// Under which keys a digest's holders are found in the DHT.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub struct Discovery {
    /// The digest.
    pub digest: Digest,
    /// In the whole fleet.
    pub key: DiscoveryKey,
    /// In this node's region.
    pub region: DiscoveryKey,
}

/// A member says which pieces it wants and cannot find; the seeder picks among them, those least sent to the region of
/// its membership first.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct PiecesWanted {
    /// The pieces it would take ([`HaveSet::to_bytes`](crate::have::HaveSet::to_bytes)).
    pub want: Vec<u8>,
    /// The piece that a client reads next: it goes first if it was sent no more often than others.
    pub urgent: Option<u32>,
    /// At most so many, at most [`PIECES_GIVEN_MAX`].
    pub max: u16,
    /// It has made no progress for a while: serve it even what was sent to its region before.
    pub stalled: bool,
}

/// The seeder's choice.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct PiecesGiven {
    /// The pieces that follow, whole, in this order.
    pub pieces: Vec<u32>,
    /// None was given: peers hold them or are receiving them. Ask again after so many milliseconds if they do not
    /// come.
    pub retry_after_ms: u32,
}

const _: () = assert!(REPLY_LEN_MAX > ENVELOPE_LEN_MAX);
