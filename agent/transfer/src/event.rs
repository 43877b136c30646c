//! The words between the core and its shell: what has happened ([`Input`]), and what is to be done ([`Action`]).

use alloc::{borrow::Cow, vec::Vec};

use serde::{Deserialize, Serialize};
use shoal_proto::{
    have::Have,
    message::{Priority, RefuseReason},
    signed::Scope,
};

use crate::{
    ids::{BlobId, PeerId, ReaderId, RequestId, UploadId},
    time::Span,
};

/// What a node wants with a blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Goal {
    /// Fetch what is missing: of a pull, or in the background to warm.
    Fetch {
        /// Whether it yields to all else.
        background: bool,
    },
    /// Only serve what is stored.
    Serve,
}

/// Why a request to a peer or the seeder gave nothing (more).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Failure {
    /// The peer refused.
    Refused(#[serde(with = "crate::trace::refuse")] RefuseReason),
    /// The connection ended.
    ConnectionLost,
    /// The seeder cannot be reached or answers with errors.
    Unreachable,
    /// The bytes could not be written here.
    WriteFailed,
    /// The piece is being written by another request.
    Busy,
    /// The sender broke the protocol: too much, too little, not what was asked.
    Violation,
}

/// A few piece indexes in place, so that news cost no allocation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Batch {
    len: u8,
    pieces: [u32; Self::MAX],
}

impl Batch {
    /// Most indexes in one batch.
    pub const MAX: usize = 12;

    /// The first [`Batch::MAX`] of `pieces`.
    #[inline]
    #[must_use]
    pub fn first_of(pieces: &[u32]) -> Self {
        let mut batch = Self { len: 0, pieces: [0; Self::MAX] };
        for (to, from) in batch.pieces.iter_mut().zip(pieces) {
            *to = *from;
            batch.len += 1;
        }
        batch
    }

    /// Takes up to [`Batch::MAX`] indexes.
    pub(crate) fn take(pieces: &mut impl Iterator<Item = u32>) -> Self {
        let mut batch = Self { len: 0, pieces: [0; Self::MAX] };
        for (to, from) in batch.pieces.iter_mut().zip(pieces) {
            *to = from;
            batch.len += 1;
        }
        batch
    }

    /// The indexes.
    #[inline]
    #[must_use]
    pub fn as_slice(&self) -> &[u32] {
        &self.pieces[..usize::from(self.len)]
    }
}

impl Serialize for Batch {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.as_slice().serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Batch {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self::first_of(&Vec::<u32>::deserialize(deserializer)?))
    }
}

/// What has happened. Bytes never come in: the shell hashes, stores, and tells.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Input<'a> {
    /// A blob is to be fetched or served. `have`: the pieces that are stored and verified.
    BlobOpened {
        /// Its id from now on; an older generation of the slot must have been closed.
        blob: BlobId,
        /// Bytes in the blob.
        size: u64,
        /// Bytes in a piece.
        piece_len: u64,
        /// What is stored: [`Have::All`] or [`Have::Set`].
        #[serde(with = "crate::trace::have")]
        have: Have,
        /// What is wanted.
        goal: Goal,
        /// Pieces that may be asked for so far: all, or, under a provisional statement, those of its prefix.
        prefix: Option<u32>,
        /// Known peers that are said to be interested in it; more may come as `PeerIntroduced`.
        introduced: Cow<'a, [PeerId]>,
    },
    /// A blob is wanted in another way.
    GoalChanged {
        /// The blob.
        blob: BlobId,
        /// The new goal.
        goal: Goal,
    },
    /// A provisional statement has grown.
    PrefixGrown {
        /// The blob.
        blob: BlobId,
        /// Pieces with a known hash.
        prefix: u32,
    },
    /// The final statement has come and agrees with the provisional ones.
    Finalised {
        /// The blob.
        blob: BlobId,
    },
    /// The blob is gone or of no interest: its requests are cancelled, its peers told.
    BlobClosed {
        /// The blob.
        blob: BlobId,
    },

    /// A client reads a blob from a piece on.
    ReaderOpened {
        /// The client.
        reader: ReaderId,
        /// The blob.
        blob: BlobId,
        /// First piece that it needs.
        from: u32,
        /// The piece after the last that it needs.
        to: u32,
    },
    /// A reader now waits for this piece.
    ReaderMoved {
        /// The client.
        reader: ReaderId,
        /// The piece.
        piece: u32,
    },
    /// A reader is gone.
    ReaderClosed {
        /// The client.
        reader: ReaderId,
    },

    /// The shell knows of a node: by introduction, peer exchange, the DHT, configuration, or because it connected.
    PeerKnown {
        /// Its id from now on.
        peer: PeerId,
        /// The narrowest scope that it shares with this node.
        #[serde(with = "crate::trace::scope")]
        scope: Scope,
        /// A number that all nodes agree on, for rendezvous hashing: the first 8 bytes of its node id.
        rank: u64,
        /// Whether the configuration names it: it is tried for every blob.
        fixed: bool,
    },
    /// A known peer is said to be interested in a blob.
    PeerIntroduced {
        /// The peer.
        peer: PeerId,
        /// The blob.
        blob: BlobId,
    },
    /// A connection to the peer is up, whoever dialled.
    Connected {
        /// The peer.
        peer: PeerId,
    },
    /// The dial that [`Action::Connect`] asked for failed.
    ConnectFailed {
        /// The peer.
        peer: PeerId,
    },
    /// The connection is gone. Its requests and uploads are void; the shell reports neither.
    Disconnected {
        /// The peer.
        peer: PeerId,
    },
    /// A peer says what it holds.
    PeerHas {
        /// The peer.
        peer: PeerId,
        /// The blob.
        blob: BlobId,
        /// Which pieces.
        #[serde(with = "crate::trace::have")]
        have: Have,
    },
    /// A peer has gained pieces: [`Have::Added`] without its allocation.
    PeerGained {
        /// The peer.
        peer: PeerId,
        /// The blob.
        blob: BlobId,
        /// Indexes of the pieces.
        pieces: Cow<'a, [u32]>,
    },

    /// Bytes have come for a request, in all so many for the piece in transmission.
    Progress {
        /// The request.
        request: RequestId,
        /// Bytes of its current piece received, offset included.
        bytes: u64,
    },
    /// A piece is verified and stored; a request to a peer is over with it. Counts even if the request was taken back
    /// meanwhile.
    PieceStored {
        /// The request that brought it.
        request: RequestId,
        /// The blob.
        blob: BlobId,
        /// The piece.
        piece: u32,
    },
    /// A piece did not match its hash; a request to a peer is over with it.
    PieceCorrupt {
        /// The request.
        request: RequestId,
        /// The piece.
        piece: u32,
        /// Whether every byte of it came from this request's sender.
        sole_sender: bool,
    },
    /// A request is over without its piece.
    FetchFailed {
        /// The request.
        request: RequestId,
        /// Why.
        failure: Failure,
    },
    /// The seeder has chosen: these pieces will come on this request.
    SeederGave {
        /// The request.
        request: RequestId,
        /// The pieces, in the order in which they will come.
        pieces: Cow<'a, [u32]>,
    },
    /// The seeder gives nothing now: peers hold it, or are receiving it. The request is over.
    SeederDeferred {
        /// The request.
        request: RequestId,
        /// When to ask again.
        retry_after: Span,
    },
    /// The seeder asks to be left alone: it has enough to do, or this node has drawn enough. The request is over.
    SeederBusy {
        /// The request.
        request: RequestId,
        /// For how long.
        retry_after: Span,
    },
    /// All pieces of a request to the seeder have come. The request is over.
    SeederDone {
        /// The request.
        request: RequestId,
    },

    /// A peer asks for a piece.
    UploadRequested {
        /// Its id from now on.
        upload: UploadId,
        /// Who asks.
        peer: PeerId,
        /// The blob.
        blob: BlobId,
        /// The piece.
        piece: u32,
        /// How urgent it is to the peer.
        #[serde(with = "crate::trace::priority")]
        priority: Priority,
    },
    /// All bytes of an upload are in the socket, or the peer took the request back.
    UploadEnded {
        /// The upload.
        upload: UploadId,
        /// Bytes that were written.
        bytes: u64,
    },

    /// The signed candidate list of a scope: the owners of a blob's pieces are elected among them.
    Candidates {
        /// The blob.
        blob: BlobId,
        /// The scope: [`Scope::Site`], [`Scope::Zone`] or [`Scope::Region`].
        #[serde(with = "crate::trace::scope")]
        scope: Scope,
        /// Ranks of the members, this node's among them or not.
        ranks: Cow<'a, [u64]>,
    },
    /// Whether the disk takes more: full, or too slow for what arrives.
    Disk {
        /// False: ask for nothing more.
        writable: bool,
    },
    /// The moment that [`Node::poll_timeout`](crate::Node::poll_timeout) named has come.
    Timeout,
}

/// What is to be done. Every action that expects an answer carries the id that the answer repeats.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Action {
    /// Ask `peer` for a piece, from the first byte on that the shell does not have of it. Answered by `Progress`, then
    /// one of `PieceStored`, `PieceCorrupt`, `FetchFailed`.
    Fetch {
        /// The request.
        request: RequestId,
        /// Whom.
        peer: PeerId,
        /// The blob.
        blob: BlobId,
        /// The piece.
        piece: u32,
        /// How urgent.
        #[serde(with = "crate::trace::priority")]
        priority: Priority,
    },
    /// Ask the seeder for up to `max` of the pieces in `want`. Answered by `SeederDeferred`, `FetchFailed`, or
    /// `SeederGave` and then for each piece `PieceStored` or `PieceCorrupt`, and in the end `SeederDone`.
    AskSeeder {
        /// The request.
        request: RequestId,
        /// The blob.
        blob: BlobId,
        /// The pieces, as [`HaveSet::to_bytes`](shoal_proto::have::HaveSet::to_bytes).
        want: Vec<u8>,
        /// The piece that a reader waits for: it goes first if it may go at all.
        urgent: Option<u32>,
        /// At most so many.
        max: u16,
        /// No progress for a while.
        stalled: bool,
    },
    /// Take a request back. What comes of it later misses. What was received of a piece is kept for the next request.
    Cancel {
        /// The request.
        request: RequestId,
    },
    /// Send the piece that the upload asked for. Answered by `UploadEnded`.
    Serve {
        /// The upload.
        upload: UploadId,
    },
    /// Refuse an upload. It is over.
    Refuse {
        /// The upload.
        upload: UploadId,
        /// Why.
        #[serde(with = "crate::trace::refuse")]
        reason: RefuseReason,
    },
    /// Tell `peer` that this node has gained pieces since the last word about the blob.
    TellGained {
        /// Whom.
        peer: PeerId,
        /// The blob.
        blob: BlobId,
        /// Which pieces.
        pieces: Batch,
    },
    /// Tell `peer` all that this node holds of a blob, and that it wants to hear the same. [`Have::All`],
    /// [`Have::Set`] or [`Have::Gone`].
    TellHave {
        /// Whom.
        peer: PeerId,
        /// The blob.
        blob: BlobId,
        /// Which pieces.
        #[serde(with = "crate::trace::have")]
        have: Have,
    },
    /// Connect to `peer`. Answered by `Connected` or `ConnectFailed`.
    Connect {
        /// Whom.
        peer: PeerId,
    },
    /// Drop the peer, connected or not, and take nothing from its node until then. Answered by `Disconnected` if it
    /// was connected.
    Ban {
        /// Whom.
        peer: PeerId,
        /// For how long.
        span: Span,
    },
    /// The peer's id is free: the core knows it no more.
    Forget {
        /// Whom.
        peer: PeerId,
    },
    /// Look for providers of a blob in the DHT. What is found comes as `PeerKnown` and `PeerIntroduced`.
    FindProviders {
        /// The blob.
        blob: BlobId,
    },
    /// Announce this node as a provider of the blob, and refresh that until it is closed.
    Announce {
        /// The blob.
        blob: BlobId,
    },
    /// Every piece is stored.
    Completed {
        /// The blob.
        blob: BlobId,
    },
    /// Nothing has arrived for long and no source is left. The node keeps trying; the shell may tell its clients.
    Stalled {
        /// The blob.
        blob: BlobId,
    },
}
