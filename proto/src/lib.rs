//! The words on Shoal's wire, and their signatures.
//!
//! Everything that an agent, a seeder or the simulator says to another is defined here, once: digests and names, the
//! cut of a blob into pieces, the signed envelope, the peer protocol's frames, the `/v2/` grammar. Nothing here does
//! IO, reads a clock or starts a thread.
//!
//! **Invariants.** A [`Digest`] or a [`Repository`](name::Repository) that exists is valid: parsing is the only way
//! to make one. A [`PieceIndex`](layout::PieceIndex) is made by a [`Layout`](layout::Layout) alone. Decoding never
//! panics and never allocates more than the limit that its caller names ([`codec`]).
//!
//! **Absent on purpose.** No policy (that is `shoal-transfer`), no sockets, and, without the feature `hash`, no C code.

pub mod api;
pub mod codec;
pub mod digest;
pub mod envelope;
pub mod have;
pub mod layout;
pub mod member;
#[cfg(feature = "hash")]
pub mod merkle;
pub mod message;
pub mod name;
pub mod oci;
pub mod range;
pub mod signed;
#[cfg(feature = "hash")]
pub mod token;
#[cfg(feature = "hash")]
pub mod tree;

pub use digest::Digest;

/// The version of the peer protocol, the vendor routes and the piece layout together. Two sides whose majors differ
/// part with [`Refusal::Version`](message::CloseReason::Version); a higher minor only adds frames that the other side
/// ignores.
pub const PROTOCOL: ProtocolVersion = ProtocolVersion { major: 1, minor: 0 };

/// A protocol version as it stands in the hello.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, bincode::Encode, bincode::Decode)]
pub struct ProtocolVersion {
    /// Changes when an old reader would misread.
    pub major: u16,
    /// Changes when words are added that an old reader skips.
    pub minor: u16,
}

impl ProtocolVersion {
    /// What two sides speak when they meet: the lower minor of the same major, else nothing.
    #[must_use]
    pub fn agree(self, other: Self) -> Option<Self> {
        (self.major == other.major).then(|| self.min(other))
    }
}
