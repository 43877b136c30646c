//! Who is let in: the one check of a membership, for every connection and every request.

use crate::{
    codec::{self, CodecError},
    envelope::{ENVELOPE_LEN_MAX, Envelope, EnvelopeError, KeyRing},
    message::CloseReason,
    signed::{Membership, NodeId, UnixSeconds},
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use bincode::{Decode, Encode};
use ed25519_dalek::{Signature, VerifyingKey};

/// How far the clocks of two nodes may be apart: what is signed holds from so long before it was signed.
pub const CLOCK_SKEW_MAX_S: u64 = 600;

/// Why a node is not let in.
#[derive(Debug, thiserror::Error)]
pub enum NotAdmitted {
    /// It shows no membership.
    #[error("it shows no membership")]
    None,
    /// What it shows is not signed by this fleet, or is no membership.
    #[error("its membership is not of this fleet: {0}")]
    Foreign(#[from] EnvelopeError),
    /// It shows the membership of another key than its own.
    #[error("it shows the membership of {of:?}, not its own")]
    Stolen {
        /// Whose it is.
        of: NodeId,
    },
    /// The membership holds only from a later time on: clocks differ by more than [`CLOCK_SKEW_MAX_S`].
    #[error("its membership does not hold yet; one of the clocks is wrong")]
    NotYet,
    /// The membership has ended.
    #[error("its membership has ended")]
    Expired,
    /// The membership was revoked.
    #[error("its membership was revoked")]
    Revoked,
}

impl NotAdmitted {
    /// What the node is told.
    #[must_use]
    pub const fn close_reason(&self) -> CloseReason {
        match self {
            Self::None | Self::Foreign(_) | Self::Stolen { .. } => CloseReason::NotAMember,
            Self::NotYet | Self::Expired => CloseReason::Expired,
            Self::Revoked => CloseReason::Revoked,
        }
    }

    /// One word for machines.
    #[must_use]
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::None => "no-membership",
            Self::Foreign(_) => "foreign-membership",
            Self::Stolen { .. } => "stolen-membership",
            Self::NotYet => "membership-not-yet-valid",
            Self::Expired => "membership-expired",
            Self::Revoked => "membership-revoked",
        }
    }
}

/// The membership that `node` shows, if it holds at `now`. That the far end *is* `node` must have been shown by other
/// means: a handshake, a signature.
///
/// # Errors
/// Nothing is shown, or what is shown is another fleet's, another node's, out of its time, or revoked.
pub fn admit(
    shown: Option<&Envelope>,
    node: &NodeId,
    keys: &impl KeyRing,
    is_revoked: impl FnOnce(u64) -> bool,
    now: UnixSeconds,
) -> Result<Membership, NotAdmitted> {
    let membership: Membership = shown.ok_or(NotAdmitted::None)?.open(keys)?;
    if membership.node != *node {
        return Err(NotAdmitted::Stolen { of: membership.node });
    }
    if now < membership.not_before {
        return Err(NotAdmitted::NotYet);
    }
    if now >= membership.not_after {
        return Err(NotAdmitted::Expired);
    }
    if is_revoked(membership.serial) {
        return Err(NotAdmitted::Revoked);
    }
    Ok(membership)
}

/// The HTTP header in which a member says to the seeder who it is; its value is [`Caller::to_header`].
pub const CALLER_HEADER: &str = "shoal-member";
/// Longest value of [`CALLER_HEADER`]: a membership has a few hundred bytes.
const CALLER_HEADER_MAX: usize = 4096;

/// A member that sends a request to the seeder: its membership, and the proof that the request is its own.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Caller {
    /// Who it claims to be.
    pub node: NodeId,
    /// The signed membership.
    pub membership: Envelope,
    /// When it signed, so that an overheard request is of no use later.
    pub time: UnixSeconds,
    /// The node key's Ed25519 signature over [`caller_bytes`].
    pub signature: [u8; 64],
}

/// Why a request is not taken as a member's.
#[derive(Debug, thiserror::Error)]
pub enum BadCaller {
    /// The header cannot be read.
    #[error("the header {CALLER_HEADER} cannot be read")]
    Header,
    /// The signature is not the node's, or of another request.
    #[error("the signature in {CALLER_HEADER} does not hold for this request")]
    Signature,
    /// Signed too long ago, or in the future.
    #[error(
        "the request was signed at another time; the clocks differ by over {CLOCK_SKEW_MAX_S} s, or it is a replay"
    )]
    Time,
    /// The membership does not hold.
    #[error("the sender is not let in: {0}")]
    NotAdmitted(#[from] NotAdmitted),
}

impl BadCaller {
    /// One word for machines.
    #[must_use]
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Header => "bad-header",
            Self::Signature => "bad-signature",
            Self::Time => "bad-time",
            Self::NotAdmitted(reason) => reason.as_str(),
        }
    }
}

/// What [`Caller::signature`] covers: `"shoal request\0" ‖ root key ‖ node ‖ time (u64 LE) ‖ length of the path (u64 LE) ‖
/// path ‖ body`.
#[must_use]
pub fn caller_bytes(root: &[u8; 32], node: &NodeId, time: UnixSeconds, path: &str, body: &[u8]) -> Vec<u8> {
    let len = (path.len() as u64).to_le_bytes();
    [b"shoal request\0".as_slice(), root, &node.0, &time.to_le_bytes(), &len, path.as_bytes(), body].concat()
}

impl Caller {
    /// The header's value.
    #[must_use]
    pub fn to_header(&self) -> String {
        URL_SAFE_NO_PAD.encode(codec::encode(self))
    }

    /// Reads the header's value.
    ///
    /// # Errors
    /// It is none.
    pub fn from_header(value: &str) -> Result<Self, BadCaller> {
        if value.len() > CALLER_HEADER_MAX {
            return Err(BadCaller::Header);
        }
        let bytes = URL_SAFE_NO_PAD.decode(value).map_err(|_| BadCaller::Header)?;
        codec::decode::<Self, ENVELOPE_LEN_MAX>(&bytes).map_err(|_: CodecError| BadCaller::Header)
    }

    /// The membership, if the request is its node's and it holds.
    ///
    /// # Errors
    /// The signature is another's or of another request, or was made at another time; the membership does not hold.
    pub fn check(
        &self,
        root: &[u8; 32],
        keys: &impl KeyRing,
        request: (&str, &[u8]),
        is_revoked: impl FnOnce(u64) -> bool,
        now: UnixSeconds,
    ) -> Result<Membership, BadCaller> {
        if self.time.abs_diff(now) > CLOCK_SKEW_MAX_S {
            return Err(BadCaller::Time);
        }
        let signed = caller_bytes(root, &self.node, self.time, request.0, request.1);
        VerifyingKey::from_bytes(&self.node.0)
            .and_then(|key| key.verify_strict(&signed, &Signature::from_bytes(&self.signature)))
            .map_err(|_| BadCaller::Signature)?;
        Ok(admit(Some(&self.membership), &self.node, keys, is_revoked, now)?)
    }
}

#[cfg(test)]
mod tests {
    use ed25519_dalek::{Signer as _, SigningKey};

    use super::*;
    use crate::signed::Labels;

    const NOW: UnixSeconds = 10_000;
    const ROOT: [u8; 32] = [9; 32];

    fn node_key() -> SigningKey {
        SigningKey::from_bytes(&[2; 32])
    }

    fn fleet_key() -> SigningKey {
        SigningKey::from_bytes(&[1; 32])
    }

    fn membership() -> Membership {
        let node = NodeId(node_key().verifying_key().to_bytes());
        Membership { node, labels: Labels::default(), not_before: NOW - 10, not_after: NOW + 10, serial: 7 }
    }

    fn check(envelope: Option<&Envelope>, revoked: u64, now: UnixSeconds) -> Result<Membership, NotAdmitted> {
        admit(envelope, &membership().node, &fleet_key().verifying_key(), |serial| serial == revoked, now)
    }

    #[test]
    fn a_membership_admits_its_node_in_its_time_and_nobody_else() {
        let signed = Envelope::sign(&membership(), &fleet_key());
        assert_eq!(check(Some(&signed), 0, NOW).unwrap(), membership());
        assert!(matches!(check(None, 0, NOW), Err(NotAdmitted::None)));
        assert!(matches!(check(Some(&signed), 7, NOW), Err(NotAdmitted::Revoked)));
        assert!(matches!(check(Some(&signed), 0, NOW + 10), Err(NotAdmitted::Expired)));
        assert!(matches!(check(Some(&signed), 0, NOW - 11), Err(NotAdmitted::NotYet)));
        let forged = Envelope::sign(&membership(), &node_key());
        assert!(matches!(check(Some(&forged), 0, NOW), Err(NotAdmitted::Foreign(_))));
        let other = NodeId([4; 32]);
        let stolen = Envelope::sign(&Membership { node: other, ..membership() }, &fleet_key());
        assert!(matches!(check(Some(&stolen), 0, NOW), Err(NotAdmitted::Stolen { of }) if of == other));
    }

    #[test]
    fn a_request_counts_as_a_members_only_as_it_was_signed() {
        let node = membership().node;
        let signature = node_key().sign(&caller_bytes(&ROOT, &node, NOW, "/path", b"body")).to_bytes();
        let caller = Caller { node, membership: Envelope::sign(&membership(), &fleet_key()), time: NOW, signature };
        let caller = Caller::from_header(&caller.to_header()).unwrap();
        let check = |caller: &Caller, root: &[u8; 32], request: (&str, &[u8]), now| {
            caller.check(root, &fleet_key().verifying_key(), request, |_| false, now)
        };
        assert_eq!(check(&caller, &ROOT, ("/path", b"body".as_slice()), NOW).unwrap(), membership());
        for (root, request) in
            [(&[8; 32], ("/path", b"body".as_slice())), (&ROOT, ("/pat", b"hbod")), (&ROOT, ("/path", b"Body"))]
        {
            assert!(matches!(check(&caller, root, request, NOW), Err(BadCaller::Signature)));
        }
        let late = NOW + CLOCK_SKEW_MAX_S + 1;
        assert!(matches!(check(&caller, &ROOT, ("/path", b"body".as_slice()), late), Err(BadCaller::Time)));
        let thief = Caller { node: NodeId([5; 32]), ..caller.clone() };
        assert!(matches!(check(&thief, &ROOT, ("/path", b"body".as_slice()), NOW), Err(BadCaller::Signature)));
        let ended = Caller {
            membership: Envelope::sign(&Membership { not_after: NOW, ..membership() }, &fleet_key()),
            ..caller
        };
        let ended = check(&ended, &ROOT, ("/path", b"body".as_slice()), NOW);
        assert!(matches!(ended, Err(BadCaller::NotAdmitted(NotAdmitted::Expired))));
        for junk in ["", "x", "%%%", &"A".repeat(CALLER_HEADER_MAX + 1)] {
            assert!(matches!(Caller::from_header(junk), Err(BadCaller::Header)), "{junk:.10}");
        }
    }
}
