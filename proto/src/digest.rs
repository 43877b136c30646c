//! Content digests: `sha256:…` and `sha512:…`, parsed, never a `String`.

use std::{cmp::Ordering, fmt, hash::Hash, str::FromStr};

use bincode::{
    de::{BorrowDecoder, Decoder},
    enc::Encoder,
    error::{DecodeError, EncodeError},
};

/// The hash functions that the OCI image-spec registers and Shoal accepts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Algorithm {
    /// SHA-256, 32 bytes.
    Sha256,
    /// SHA-512, 64 bytes.
    Sha512,
}

impl Algorithm {
    /// Length of a digest in bytes.
    #[must_use]
    pub const fn digest_len(self) -> usize {
        match self {
            Self::Sha256 => 32,
            Self::Sha512 => 64,
        }
    }

    /// The registered name, as it stands before the colon.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
        }
    }
}

impl FromStr for Algorithm {
    type Err = DigestError;

    fn from_str(s: &str) -> Result<Self, DigestError> {
        match s {
            "sha256" => Ok(Self::Sha256),
            "sha512" => Ok(Self::Sha512),
            _ => Err(DigestError::Algorithm),
        }
    }
}

/// Why a text is no digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DigestError {
    /// No colon between algorithm and hex.
    #[error("a digest reads `sha256:<64 hex digits>`; this has no colon")]
    Format,
    /// An algorithm other than sha256 and sha512.
    #[error("only sha256 and sha512 digests are supported")]
    Algorithm,
    /// Wrong length, or not lower-case hex.
    #[error("the part after the colon must be lower-case hex of the algorithm's length")]
    Hex,
}

/// The name of a blob or manifest: algorithm and hash value. 65 bytes, `Copy`; ordered by algorithm, then value.
#[derive(Clone, Copy)]
pub struct Digest {
    algorithm: Algorithm,
    /// Only the first `algorithm.digest_len()` bytes count; the rest is zero.
    bytes: [u8; 64],
}

impl Digest {
    /// A SHA-256 digest from its 32 bytes.
    #[must_use]
    pub fn sha256(value: [u8; 32]) -> Self {
        let mut bytes = [0; 64];
        bytes[..32].copy_from_slice(&value);
        Self { algorithm: Algorithm::Sha256, bytes }
    }

    /// A SHA-512 digest from its 64 bytes.
    #[must_use]
    pub const fn sha512(value: [u8; 64]) -> Self {
        Self { algorithm: Algorithm::Sha512, bytes: value }
    }

    /// The hash function.
    #[must_use]
    pub const fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// The hash value: 32 or 64 bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.algorithm.digest_len()]
    }

    /// The hash value in lower-case hex, without the algorithm.
    #[must_use]
    pub fn hex(&self) -> String {
        hex::encode(self.as_bytes())
    }

    /// Computes the SHA-256 digest of `data`.
    #[cfg(feature = "hash")]
    #[must_use]
    pub fn of(data: &[u8]) -> Self {
        use sha2::Digest as _;
        Self::sha256(sha2::Sha256::digest(data).into())
    }

    /// Computes the digest of `data` under `algorithm`.
    #[cfg(feature = "hash")]
    #[must_use]
    pub fn of_with(algorithm: Algorithm, data: &[u8]) -> Self {
        use sha2::Digest as _;
        match algorithm {
            Algorithm::Sha256 => Self::of(data),
            Algorithm::Sha512 => Self::sha512(sha2::Sha512::digest(data).into()),
        }
    }

    fn key(&self) -> (Algorithm, &[u8]) {
        (self.algorithm, self.as_bytes())
    }
}

impl PartialEq for Digest {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl Eq for Digest {}

impl PartialOrd for Digest {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Digest {
    fn cmp(&self, other: &Self) -> Ordering {
        self.key().cmp(&other.key())
    }
}

impl Hash for Digest {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.key().hash(state);
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm.as_str(), self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(s: &str) -> Result<Self, DigestError> {
        let (algorithm, value) = s.split_once(':').ok_or(DigestError::Format)?;
        let algorithm: Algorithm = algorithm.parse()?;
        let lower = value.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        if value.len() != 2 * algorithm.digest_len() || !lower {
            return Err(DigestError::Hex);
        }
        let mut bytes = [0; 64];
        hex::decode_to_slice(value, &mut bytes[..algorithm.digest_len()]).map_err(|_| DigestError::Hex)?;
        Ok(Self { algorithm, bytes })
    }
}

impl serde::Serialize for Digest {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Digest {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

impl bincode::Encode for Digest {
    fn encode<E: Encoder>(&self, encoder: &mut E) -> Result<(), EncodeError> {
        match self.algorithm {
            Algorithm::Sha256 => {
                0u8.encode(encoder)?;
                let mut value = [0; 32];
                value.copy_from_slice(&self.bytes[..32]);
                value.encode(encoder)
            }
            Algorithm::Sha512 => {
                1u8.encode(encoder)?;
                self.bytes.encode(encoder)
            }
        }
    }
}

impl<C> bincode::Decode<C> for Digest {
    fn decode<D: Decoder<Context = C>>(decoder: &mut D) -> Result<Self, DecodeError> {
        match u8::decode(decoder)? {
            0 => Ok(Self::sha256(<[u8; 32]>::decode(decoder)?)),
            1 => Ok(Self::sha512(<[u8; 64]>::decode(decoder)?)),
            _ => Err(DecodeError::Other("unknown digest algorithm")),
        }
    }
}

impl<'de, C> bincode::BorrowDecode<'de, C> for Digest {
    fn borrow_decode<D: BorrowDecoder<'de, Context = C>>(decoder: &mut D) -> Result<Self, DecodeError> {
        bincode::Decode::decode(decoder)
    }
}

/// Computes a digest over bytes that arrive in parts.
#[cfg(feature = "hash")]
#[derive(Debug, Clone)]
pub enum Verifier {
    /// Over SHA-256.
    Sha256(sha2::Sha256),
    /// Over SHA-512.
    Sha512(sha2::Sha512),
}

#[cfg(feature = "hash")]
impl Verifier {
    /// Starts empty.
    #[must_use]
    pub fn new(algorithm: Algorithm) -> Self {
        match algorithm {
            Algorithm::Sha256 => Self::Sha256(sha2::Sha256::default()),
            Algorithm::Sha512 => Self::Sha512(sha2::Sha512::default()),
        }
    }

    /// Adds the next bytes.
    pub fn update(&mut self, data: &[u8]) {
        use sha2::Digest as _;
        match self {
            Self::Sha256(hasher) => hasher.update(data),
            Self::Sha512(hasher) => hasher.update(data),
        }
    }

    /// The digest of all bytes added.
    #[must_use]
    pub fn finish(self) -> Digest {
        use sha2::Digest as _;
        match self {
            Self::Sha256(hasher) => Digest::sha256(hasher.finalize().into()),
            Self::Sha512(hasher) => Digest::sha512(hasher.finalize().into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_round_trips() {
        for text in [format!("sha256:{}", "0a".repeat(32)), format!("sha512:{}", "f1".repeat(64))] {
            assert_eq!(text.parse::<Digest>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn what_is_no_digest_says_why() {
        let cases = [
            ("", DigestError::Format),
            ("sha256", DigestError::Format),
            ("md5:00", DigestError::Algorithm),
            ("SHA256:00", DigestError::Algorithm),
            ("sha256:00", DigestError::Hex),
            ("sha256:../../../../etc/passwd", DigestError::Hex),
        ];
        for (text, error) in cases {
            assert_eq!(text.parse::<Digest>(), Err(error), "{text}");
        }
        let upper = format!("sha256:{}", "0A".repeat(32));
        assert_eq!(upper.parse::<Digest>(), Err(DigestError::Hex));
    }
}
