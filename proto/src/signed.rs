//! The payloads of the signed envelope.
//!
//! What is replaced over time carries a [`Version`]: a receiver keeps the highest it has seen and takes nothing older.

use std::{fmt, str::FromStr};

use bincode::{Decode, Encode};
use ed25519_dalek::VerifyingKey;

use crate::{
    digest::Digest,
    envelope::{KeyId, KeyRing, Payload, PayloadType},
    layout::BLOB_SIZE_MAX,
    name::{Repository, Tag},
};

/// Seconds since 1970-01-01 UTC.
pub type UnixSeconds = u64;

/// A BLAKE3 root or chaining value.
pub type Blake3 = [u8; 32];

/// Orders what replaces one another. A restore from backup raises the epoch, so that it counts as newer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Encode, Decode)]
pub struct Version {
    /// Grows when a store is restored.
    pub epoch: u64,
    /// Grows with each change within an epoch.
    pub counter: u64,
}

/// Who a node is: its Ed25519 public key, from which its libp2p `PeerId` follows.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub struct NodeId(pub [u8; 32]);

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(&self.0[..6]))
    }
}

/// The binding of a digest to size and BLAKE3 root: pieces verified against the root are the digest's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub struct Statement {
    /// The blob or manifest.
    pub digest: Digest,
    /// Its length in bytes.
    pub size: u64,
    /// Its BLAKE3 hash.
    pub root: Blake3,
}

/// Why a true statement does not fit what was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Misfit {
    /// For another blob.
    #[error("the statement is about {found}, not what was asked for")]
    Digest {
        /// What the statement names.
        found: Box<Digest>,
    },
    /// Another size than the manifest's descriptor gives.
    #[error("the statement gives {found} bytes, the manifest {asked}")]
    Size {
        /// The descriptor's size.
        asked: u64,
        /// The statement's.
        found: u64,
    },
    /// Over the largest blob that has a layout.
    #[error("a blob of {0} bytes is too large")]
    TooLarge(u64),
}

impl Statement {
    /// Checks that the statement is about `digest`, of `size` bytes where the size is known. To be called on receipt
    /// and on load.
    ///
    /// # Errors
    /// Another digest or size, or one too large.
    pub fn check(&self, digest: &Digest, size: Option<u64>) -> Result<(), Misfit> {
        if self.digest != *digest {
            return Err(Misfit::Digest { found: Box::new(self.digest) });
        }
        match size {
            Some(asked) if asked != self.size => Err(Misfit::Size { asked, found: self.size }),
            _ if self.size > BLOB_SIZE_MAX => Err(Misfit::TooLarge(self.size)),
            _ => Ok(()),
        }
    }
}

/// The piece hashes so far of a blob that still arrives from an upstream.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct ProvisionalStatement {
    /// The digest that the upstream claims.
    pub digest: Digest,
    /// One download from the upstream; pieces of two attempts never mix.
    pub attempt: u128,
    /// Grows with the prefix.
    pub sequence: u32,
    /// The size that the upstream claims.
    pub claimed_size: u64,
    /// Hashes of the first pieces.
    pub prefix: Vec<Blake3>,
}

/// One label value: `[a-z0-9]([a-z0-9._-]*[a-z0-9])?`, at most 63 bytes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Label(String);

/// A text that is no label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a label is 1 to 63 of [a-z0-9._-] and starts and ends with a letter or digit")]
pub struct LabelError;

impl Label {
    /// The label as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Label {
    type Err = LabelError;

    fn from_str(s: &str) -> Result<Self, LabelError> {
        let word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        let ends = s.bytes().next().is_some_and(word) && s.bytes().last().is_some_and(word);
        let all = s.bytes().all(|b| word(b) || matches!(b, b'.' | b'_' | b'-'));
        if ends && all && s.len() <= 63 { Ok(Self(s.to_owned())) } else { Err(LabelError) }
    }
}

impl Encode for Label {
    fn encode<E: bincode::enc::Encoder>(&self, encoder: &mut E) -> Result<(), bincode::error::EncodeError> {
        self.0.encode(encoder)
    }
}

impl<C> Decode<C> for Label {
    fn decode<D: bincode::de::Decoder<Context = C>>(d: &mut D) -> Result<Self, bincode::error::DecodeError> {
        let text = <String as Decode<C>>::decode(d)?;
        text.parse().map_err(|_| bincode::error::DecodeError::Other("invalid label"))
    }
}

impl<'de, C> bincode::BorrowDecode<'de, C> for Label {
    fn borrow_decode<D: bincode::de::BorrowDecoder<'de, Context = C>>(
        d: &mut D,
    ) -> Result<Self, bincode::error::DecodeError> {
        Decode::decode(d)
    }
}

/// Where a node stands. Two nodes share a scope if that label and all wider ones are equal and present.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Encode, Decode)]
pub struct Labels {
    /// The widest: what cross-region bytes are paid between.
    pub region: Option<Label>,
    /// A part of a region.
    pub zone: Option<Label>,
    /// A part of a zone: one uplink, one LAN.
    pub site: Option<Label>,
}

/// A boundary's width, narrow to wide.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub enum Scope {
    /// Same site.
    Site,
    /// Same zone.
    Zone,
    /// Same region.
    Region,
    /// Anywhere in the fleet.
    Fleet,
}

impl Labels {
    /// The narrowest scope that holds both.
    #[must_use]
    pub fn shared(&self, other: &Self) -> Scope {
        let same = |a: &Option<Label>, b: &Option<Label>| a.is_some() && a == b;
        if !same(&self.region, &other.region) {
            Scope::Fleet
        } else if !same(&self.zone, &other.zone) {
            Scope::Region
        } else if !same(&self.site, &other.site) {
            Scope::Zone
        } else {
            Scope::Site
        }
    }

    /// These labels cut to `scope`: what all members of the scope have in common.
    #[must_use]
    pub fn within(&self, scope: Scope) -> Self {
        let keep = |label: &Option<Label>, from: Scope| label.clone().filter(|_| scope <= from);
        Self {
            region: keep(&self.region, Scope::Region),
            zone: keep(&self.zone, Scope::Zone),
            site: keep(&self.site, Scope::Site),
        }
    }
}

/// This node belongs to the fleet, with these labels.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Membership {
    /// The member.
    pub node: NodeId,
    /// Where it stands; given by its join token, not by itself.
    pub labels: Labels,
    /// Valid from.
    pub not_before: UnixSeconds,
    /// Valid until.
    pub not_after: UnixSeconds,
    /// Names this membership in a revocation list.
    pub serial: u64,
}

/// Whom a capability is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub enum Subject {
    /// One node.
    Node(NodeId),
    /// Every member: content that anonymous clients may pull.
    AnyMember,
}

/// Which digests a capability covers.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum Covered {
    /// These.
    List(Vec<Digest>),
    /// The leaves under this Merkle root; each is shown with a proof.
    Root {
        /// The root of the tree over the digests (`MerkleTree`).
        root: Blake3,
        /// Number of leaves.
        leaves: u32,
    },
}

/// A key under which holders of a digest are found in the DHT: BLAKE3 of the digest, keyed with the fleet's secret.
pub type DiscoveryKey = [u8; 32];

/// This subject may read these digests until then.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Capability {
    /// Who.
    pub subject: Subject,
    /// What.
    pub covered: Covered,
    /// Under which key the image's holders are found.
    pub discovery: DiscoveryKey,
    /// Valid from.
    pub not_before: UnixSeconds,
    /// Valid until.
    pub not_after: UnixSeconds,
}

impl Capability {
    /// Whether the capability lets `node` read `digest` at `now`, where the digests are listed.
    #[must_use]
    pub fn covers(&self, node: &NodeId, digest: &Digest, now: UnixSeconds) -> bool {
        self.is_for(node, now) && matches!(&self.covered, Covered::List(list) if list.contains(digest))
    }

    /// Whether the capability is `node`'s at `now`, whatever it covers.
    #[must_use]
    pub fn is_for(&self, node: &NodeId, now: UnixSeconds) -> bool {
        let who = match &self.subject {
            Subject::Node(subject) => subject == node,
            Subject::AnyMember => true,
        };
        who && (self.not_before..self.not_after).contains(&now)
    }
}

/// Most members of a candidate list.
pub const CANDIDATES_MAX: usize = 32;

/// The members among which the owners of an image's pieces are elected within a scope: the same list for all.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Candidates {
    /// The image's manifest.
    pub image: Digest,
    /// The scope: labels cut to it.
    pub labels: Labels,
    /// Its width.
    pub scope: Scope,
    /// Replaces lists of lower version.
    pub version: Version,
    /// At most [`CANDIDATES_MAX`].
    pub members: Vec<NodeId>,
}

/// Where a tag points.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct TagRecord {
    /// The repository.
    pub repository: Repository,
    /// The tag.
    pub tag: Tag,
    /// The manifest, or none where the tag was deleted.
    pub digest: Option<Digest>,
    /// The manifest's media type; empty where the tag was deleted.
    pub media_type: String,
    /// Replaces records of lower version.
    pub version: Version,
    /// When the seeder signed it.
    pub signed_at: UnixSeconds,
    /// Whether anonymous clients may pull it: peers then serve it in bundles.
    pub public: bool,
}

/// What a key may sign.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub enum Purpose {
    /// Statements, final and provisional.
    Statement,
    /// Memberships.
    Member,
    /// Capabilities and candidate lists.
    Capability,
    /// Tag records.
    Tag,
    /// Revocation lists.
    Revocation,
    /// Certificates of the seeder's HTTPS.
    Tls,
}

impl Purpose {
    /// The purpose of a key that signs `payload`; key sets are signed by the root alone.
    #[must_use]
    pub const fn of(payload: PayloadType) -> Option<Self> {
        match payload {
            PayloadType::Statement | PayloadType::ProvisionalStatement => Some(Self::Statement),
            PayloadType::Membership => Some(Self::Member),
            PayloadType::Capability | PayloadType::Candidates => Some(Self::Capability),
            PayloadType::TagRecord => Some(Self::Tag),
            PayloadType::RevocationList => Some(Self::Revocation),
            PayloadType::KeySet => None,
        }
    }
}

/// The fleet's keys, signed by the root. Old keys stay in the set while what they signed is in use.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct KeySet {
    /// Replaces sets of lower version.
    pub version: Version,
    /// Purpose and Ed25519 public key.
    pub keys: Vec<(Purpose, [u8; 32])>,
}

impl KeyRing for KeySet {
    fn key(&self, payload: PayloadType, id: KeyId) -> Option<VerifyingKey> {
        let purpose = Purpose::of(payload)?;
        self.keys
            .iter()
            .filter(|(of, key)| *of == purpose && key[..8] == id.0)
            .find_map(|(_, key)| VerifyingKey::from_bytes(key).ok())
    }
}

/// Memberships that no longer hold.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct RevocationList {
    /// Replaces lists of lower version.
    pub version: Version,
    /// Serials of memberships, sorted.
    pub serials: Vec<u64>,
}

macro_rules! payloads {
    ($($name:ident),*) => {$(
        impl Payload for $name {
            const TYPE: PayloadType = PayloadType::$name;
        }
    )*};
}
payloads!(Statement, ProvisionalStatement, Membership, Capability, Candidates, TagRecord, KeySet, RevocationList);
