//! The peer protocol's frames.
//!
//! On the wire a frame is `length (u32 LE, of what follows it) ‖ kind (u8) ‖ body`. The body of [`KIND_DATA`] is
//! `request id (u32 LE) ‖ bytes`, raw, so that a sender may write it with sendfile; every other body is a [`Message`]
//! by [`crate::codec`]. One connection serves a pair of nodes: all blobs, both directions. Each side sends
//! [`Message::Hello`] first; nothing else is taken before it.

use std::net::SocketAddr;

use bincode::{Decode, Encode};

use crate::{
    ProtocolVersion,
    codec::{self, CodecError},
    digest::Digest,
    envelope::Envelope,
    have::Have,
    signed::{Blake3, DiscoveryKey, Labels, NodeId},
};

/// Largest frame in bytes, after the length field. Bounds what a peer makes us buffer, and how long an urgent frame
/// waits behind one in transmission.
pub const FRAME_LEN_MAX: usize = 256 << 10;
/// Bytes of a frame before its body: length and kind.
pub const HEADER_LEN: usize = 5;
/// Bytes of a data frame before the blob's bytes: header and request id.
pub const DATA_HEADER_LEN: usize = HEADER_LEN + 4;
/// Most blob bytes in one data frame.
pub const DATA_LEN_MAX: usize = FRAME_LEN_MAX - 1 - 4;
/// Most nodes in one [`Message::Peers`], and in one introduction.
pub const PEERS_MAX: usize = 32;
/// Most proofs in one [`Message::Capability`]. One is enough as a rule: for the blob that is about to be asked for.
pub const PROOFS_MAX: usize = 64;
/// Most addresses of each sort in one [`PeerInfo`].
pub const ADDRESSES_MAX: usize = 8;

/// Kind of a frame that carries a [`Message`].
pub const KIND_MESSAGE: u8 = 1;
/// Kind of a frame that carries a piece's bytes.
pub const KIND_DATA: u8 = 2;

/// A digest, and what proves that it is among those under a Merkle root.
pub type Proof = (Digest, Vec<Blake3>);

/// How to reach a node.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Encode, Decode)]
pub struct PeerInfo {
    /// Who answers there.
    pub node: NodeId,
    /// Where it speaks the peer protocol, best first; at most [`ADDRESSES_MAX`].
    pub peer: Vec<SocketAddr>,
    /// Where it speaks libp2p, best first; at most [`ADDRESSES_MAX`].
    pub libp2p: Vec<SocketAddr>,
    /// Where it stands.
    pub labels: Labels,
}

/// How urgent a request is. The server sends the data of a more urgent one first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub enum Priority {
    /// A client waits for this piece.
    Reader,
    /// Part of a pull.
    Normal,
    /// Warming: yields to all else.
    Background,
}

/// What can be asked of a peer besides pieces.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum Question {
    /// The signed statement of a digest; answered by [`Answer::Signed`].
    Statement(Digest),
    /// A blob's piece hashes; answered by [`Answer::Hashes`].
    Hashes(Digest),
    /// What is needed to pull a public tag or digest without the seeder: the keyed hash of repository and reference;
    /// answered by [`Answer::Bundle`].
    Bundle(DiscoveryKey),
    /// Nodes interested in an image; answered by [`Answer::Peers`].
    Peers(Digest),
}

/// All that a node needs to pull one reference without the seeder. The manifest itself is a blob with a statement.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Bundle {
    /// The manifest.
    pub digest: Digest,
    /// Its media type.
    pub media_type: String,
    /// The signed tag record, where a tag was asked for.
    pub tag_record: Option<Envelope>,
    /// A capability for any member that covers the digests.
    pub capability: Envelope,
    /// Statements of the manifest, its config and its layers.
    pub statements: Vec<Envelope>,
}

/// The answer to a [`Question`].
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum Answer {
    /// Signed things.
    Signed(Vec<Envelope>),
    /// Piece hashes, to be checked against the signed root.
    Hashes(Vec<Blake3>),
    /// A bundle.
    Bundle(Box<Bundle>),
    /// Nodes.
    Peers(Vec<PeerInfo>),
    /// Not held, or not for you: the two are not told apart.
    Nothing,
}

/// Why a request for a piece is not served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Encode, Decode)]
pub enum RefuseReason {
    /// Not held, or the asker showed no live capability for it: the two are not told apart.
    NotHeld,
    /// Too many requests are queued; ask another.
    Busy,
    /// The bytes could not be read.
    Failed,
}

/// Why a connection ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Encode, Decode)]
pub enum CloseReason {
    /// This node stops.
    Shutdown,
    /// The protocol's majors differ.
    Version,
    /// No membership, or one that does not hold here.
    NotAMember,
    /// The membership has ended; renew it.
    Expired,
    /// The membership was revoked.
    Revoked,
    /// A frame that cannot be read, or not in its place.
    Protocol,
    /// Too many connections.
    Limit,
    /// A connection of this pair exists already.
    Duplicate,
    /// Nothing passed for long.
    Idle,
    /// Banned for what it sent.
    Banned,
}

/// One message of the peer protocol.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum Message {
    /// The first frame of both sides.
    Hello {
        /// What the sender speaks.
        protocol: ProtocolVersion,
        /// Who it is and where it listens. In `tls` mode the certificate proves the id, in `plain` mode
        /// [`Message::Proof`].
        me: PeerInfo,
        /// Fresh random bytes that the other side signs in `plain` mode.
        nonce: [u8; 32],
        /// The signed membership.
        membership: Option<Envelope>,
    },
    /// `plain` mode: Ed25519 signature over [`proof_bytes`].
    Proof {
        /// By the sender's node key.
        signature: [u8; 64],
    },
    /// A capability, with the Merkle proofs of the digests that will be asked for where it covers a root.
    Capability {
        /// The signed capability.
        capability: Envelope,
        /// At most [`PROOFS_MAX`].
        proofs: Vec<Proof>,
    },
    /// Signed things that pass on between members: revocation lists, key sets, candidate lists.
    Signed(Vec<Envelope>),
    /// Asks for something small.
    Ask {
        /// Repeated by the answer.
        id: u32,
        /// What.
        question: Question,
    },
    /// Answers.
    Tell {
        /// The question's.
        id: u32,
        /// What is known.
        answer: Answer,
    },
    /// What the sender holds of a blob, and that it wants to hear the same: the first one for a blob (even an empty
    /// set) subscribes, [`Have::Gone`] ends it.
    Have {
        /// The blob.
        digest: Digest,
        /// Which pieces.
        have: Have,
    },
    /// Asks for a piece; answered by data frames, in order, or [`Message::Refuse`].
    Request {
        /// Chosen by the asker, unique among its open requests on this connection.
        id: u32,
        /// The blob.
        digest: Digest,
        /// The piece's index.
        piece: u32,
        /// First byte within the piece: a piece begun elsewhere goes on where it stopped.
        offset: u32,
        /// How urgent.
        priority: Priority,
    },
    /// The request will not be served.
    Refuse {
        /// The request's.
        id: u32,
        /// Why.
        reason: RefuseReason,
    },
    /// The asker no longer wants the request; the server stops at the next frame.
    Cancel {
        /// The request's.
        id: u32,
    },
    /// Nodes interested in an image (peer exchange); at most [`PEERS_MAX`].
    Peers {
        /// The image's manifest.
        image: Digest,
        /// The nodes.
        peers: Vec<PeerInfo>,
    },
    /// The last frame.
    Close {
        /// Why.
        reason: CloseReason,
    },
    /// The receiver sent a bad piece of this blob: it should verify what it stores again.
    BadPiece {
        /// The blob.
        digest: Digest,
        /// The piece.
        piece: u32,
    },
}

/// What [`Message::Proof`] signs: `"shoal plain hello\0" ‖ signer ‖ verifier ‖ verifier's nonce ‖ signer's nonce`.
#[must_use]
pub fn proof_bytes(
    signer: &NodeId,
    verifier: &NodeId,
    verifiers_nonce: &[u8; 32],
    signers_nonce: &[u8; 32],
) -> Vec<u8> {
    [b"shoal plain hello\0".as_slice(), &signer.0, &verifier.0, verifiers_nonce, signers_nonce].concat()
}

/// A frame's length and kind, read before its body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameHeader {
    /// Bytes of the body.
    pub body_len: usize,
    /// [`KIND_MESSAGE`], [`KIND_DATA`], or one of a later minor version, to be skipped.
    pub kind: u8,
}

/// A frame that cannot be.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// Longer than [`FRAME_LEN_MAX`], or without a kind.
    #[error("a frame of {0} bytes is outside 1..={FRAME_LEN_MAX}")]
    Length(usize),
    /// A data frame without a request id.
    #[error("a data frame is too short for its request id")]
    Data,
    /// The body does not decode.
    #[error(transparent)]
    Message(#[from] CodecError),
}

impl FrameHeader {
    /// Reads the first [`HEADER_LEN`] bytes of a frame.
    ///
    /// # Errors
    /// The length is out of bounds.
    pub fn parse(header: [u8; HEADER_LEN]) -> Result<Self, FrameError> {
        let [a, b, c, d, kind] = header;
        let len = u32::from_le_bytes([a, b, c, d]) as usize;
        if (1..=FRAME_LEN_MAX).contains(&len) {
            Ok(Self { body_len: len - 1, kind })
        } else {
            Err(FrameError::Length(len))
        }
    }
}

impl Message {
    /// The message as a whole frame.
    #[must_use]
    pub fn to_frame(&self) -> Vec<u8> {
        let body = codec::encode(self);
        let mut frame = Vec::with_capacity(HEADER_LEN + body.len());
        frame.extend_from_slice(&frame_len(1 + body.len()).to_le_bytes());
        frame.push(KIND_MESSAGE);
        frame.extend_from_slice(&body);
        frame
    }

    /// Reads the body of a [`KIND_MESSAGE`] frame.
    ///
    /// # Errors
    /// It does not decode.
    pub fn from_body(body: &[u8]) -> Result<Self, FrameError> {
        Ok(codec::decode::<Self, FRAME_LEN_MAX>(body)?)
    }
}

/// The first [`DATA_HEADER_LEN`] bytes of a data frame that carries `len` bytes for request `id`.
///
/// # Panics
/// If `len` is over [`DATA_LEN_MAX`].
#[must_use]
pub fn data_header(id: u32, len: usize) -> [u8; DATA_HEADER_LEN] {
    assert!(len <= DATA_LEN_MAX, "callers cut data into frames");
    let mut header = [0; DATA_HEADER_LEN];
    header[..4].copy_from_slice(&frame_len(1 + 4 + len).to_le_bytes());
    header[4] = KIND_DATA;
    header[5..].copy_from_slice(&id.to_le_bytes());
    header
}

fn frame_len(len: usize) -> u32 {
    u32::try_from(len).expect("frames are far below 4 GiB")
}
