//! The signed envelope: the one form in which anything signed travels.
//!
//! The signature (Ed25519, RFC 8032) covers `"shoal envelope\0" ‖ type ‖ version ‖ key id ‖ payload length (u64 LE) ‖
//! payload`, so that a signature over one type never passes as another. The payload is kept as the exact bytes that
//! were signed; it is decoded only after the signature holds.

use bincode::{Decode, Encode};
use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};

use crate::codec::{self, CodecError};

/// Largest payload in bytes. The largest is a capability with a list of digests; longer lists go by Merkle root.
pub const PAYLOAD_LEN_MAX: usize = 128 << 10;
/// Largest encoded envelope in bytes: payload, signature and framing.
pub const ENVELOPE_LEN_MAX: usize = PAYLOAD_LEN_MAX + 128;

const DOMAIN: &[u8] = b"shoal envelope\0";

/// What an envelope holds. The number is on the wire: never reuse one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum PayloadType {
    /// [`crate::signed::Statement`]
    Statement = 1,
    /// [`crate::signed::ProvisionalStatement`]
    ProvisionalStatement = 2,
    /// [`crate::signed::Membership`]
    Membership = 3,
    /// [`crate::signed::Capability`]
    Capability = 4,
    /// [`crate::signed::Candidates`]
    Candidates = 5,
    /// [`crate::signed::TagRecord`]
    TagRecord = 6,
    /// [`crate::signed::KeySet`]
    KeySet = 7,
    /// [`crate::signed::RevocationList`]
    RevocationList = 8,
}

/// Names the key that signed: the first eight bytes of its public key. A hint for the look-up, not a proof.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub struct KeyId(pub [u8; 8]);

impl KeyId {
    /// The id of `key`.
    #[must_use]
    pub fn of(key: &VerifyingKey) -> Self {
        let mut id = [0; 8];
        id.copy_from_slice(&key.as_bytes()[..8]);
        Self(id)
    }
}

/// Something that can be signed.
pub trait Payload: Encode + Decode<()> {
    /// Its type on the wire.
    const TYPE: PayloadType;
    /// The version of its encoding.
    const VERSION: u8 = 1;
}

/// Looks up the keys that may sign a type of payload.
pub trait KeyRing {
    /// The key of that id, if it may sign `payload`.
    fn key(&self, payload: PayloadType, id: KeyId) -> Option<VerifyingKey>;
}

impl KeyRing for VerifyingKey {
    fn key(&self, _: PayloadType, id: KeyId) -> Option<VerifyingKey> {
        (KeyId::of(self) == id).then_some(*self)
    }
}

/// A signed payload, not yet trusted: [`Envelope::open`] is the only way to what it says.
#[derive(Clone, PartialEq, Eq, Hash, Encode, Decode)]
pub struct Envelope {
    kind: u8,
    version: u8,
    key: KeyId,
    payload: Vec<u8>,
    signature: [u8; 64],
}

/// Why an envelope is not believed.
#[derive(Debug, thiserror::Error)]
pub enum EnvelopeError {
    /// The envelope holds another type than the one asked for.
    #[error("the envelope holds type {found}, not {expected:?}")]
    Type {
        /// What the caller asked for.
        expected: PayloadType,
        /// The tag that came.
        found: u8,
    },
    /// A version of the payload that this program does not read.
    #[error("version {0} of this payload is not known here; update this node")]
    Version(u8),
    /// No key of that id may sign this type.
    #[error("key {} may not sign {payload:?}, or is not of this fleet", hex::encode(key.0))]
    Key {
        /// The key that the envelope names.
        key: KeyId,
        /// The type.
        payload: PayloadType,
    },
    /// The signature does not hold.
    #[error("the signature does not hold")]
    Signature,
    /// The signed bytes do not decode.
    #[error(transparent)]
    Payload(#[from] CodecError),
}

impl Envelope {
    /// Signs `payload` with `key`.
    #[must_use]
    pub fn sign<T: Payload>(payload: &T, key: &SigningKey) -> Self {
        let id = KeyId::of(&key.verifying_key());
        let payload = codec::encode(payload);
        let signature = key.sign(&signed_bytes(T::TYPE as u8, T::VERSION, id, &payload)).to_bytes();
        Self { kind: T::TYPE as u8, version: T::VERSION, key: id, payload, signature }
    }

    /// The payload, if it is a `T` of a known version, signed by a key that `keys` lets sign it.
    ///
    /// # Errors
    /// Another type or version, an unknown key, a signature that does not hold, or bytes that do not decode.
    pub fn open<T: Payload>(&self, keys: &impl KeyRing) -> Result<T, EnvelopeError> {
        if self.kind != T::TYPE as u8 {
            return Err(EnvelopeError::Type { expected: T::TYPE, found: self.kind });
        }
        if self.version != T::VERSION {
            return Err(EnvelopeError::Version(self.version));
        }
        let key = keys.key(T::TYPE, self.key).ok_or(EnvelopeError::Key { key: self.key, payload: T::TYPE })?;
        let bytes = signed_bytes(self.kind, self.version, self.key, &self.payload);
        key.verify_strict(&bytes, &Signature::from_bytes(&self.signature)).map_err(|_| EnvelopeError::Signature)?;
        Ok(codec::decode::<T, PAYLOAD_LEN_MAX>(&self.payload)?)
    }

    /// The type tag as it stands on the wire.
    #[must_use]
    pub const fn kind(&self) -> u8 {
        self.kind
    }

    /// The key that claims to have signed.
    #[must_use]
    pub const fn key(&self) -> KeyId {
        self.key
    }
}

impl std::fmt::Debug for Envelope {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Envelope {{ kind: {}, key: {}, {} bytes }}", self.kind, hex::encode(self.key.0), self.payload.len())
    }
}

fn signed_bytes(kind: u8, version: u8, key: KeyId, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(DOMAIN.len() + 18 + payload.len());
    bytes.extend_from_slice(DOMAIN);
    bytes.extend_from_slice(&[kind, version]);
    bytes.extend_from_slice(&key.0);
    bytes.extend_from_slice(&(payload.len() as u64).to_le_bytes());
    bytes.extend_from_slice(payload);
    bytes
}
