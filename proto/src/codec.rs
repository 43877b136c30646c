//! The one place that knows how structs become bytes: bincode 2, standard configuration (little-endian varints), with a
//! limit on every decode. Replacing the library means replacing this file and the golden vectors.

use bincode::{Decode, Encode, config};

/// A message that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    /// More bytes than the caller takes.
    #[error("the message has {found} bytes, over the limit of {limit}")]
    TooLong {
        /// The caller's limit in bytes.
        limit: usize,
        /// What came.
        found: usize,
    },
    /// Not what was expected, truncated, or claiming lengths over the limit.
    #[error("the message is malformed: {0}")]
    Malformed(#[from] bincode::error::DecodeError),
    /// Bytes left after the message.
    #[error("{0} bytes are left after the message")]
    Trailing(usize),
}

/// Encodes `value`.
///
/// # Panics
/// Never for the types of this crate: they hold no maps of unknown length and no custom serialisers that fail.
#[must_use]
pub fn encode<T: Encode>(value: &T) -> Vec<u8> {
    bincode::encode_to_vec(value, config::standard()).expect("wire types always encode")
}

/// Decodes one `T` that fills `bytes`; `LIMIT` bounds both the input and what a claimed length may allocate.
///
/// # Errors
/// Too long, malformed, or followed by more bytes.
pub fn decode<T: Decode<()>, const LIMIT: usize>(bytes: &[u8]) -> Result<T, CodecError> {
    if bytes.len() > LIMIT {
        return Err(CodecError::TooLong { limit: LIMIT, found: bytes.len() });
    }
    let (value, used) = bincode::decode_from_slice(bytes, config::standard().with_limit::<LIMIT>())?;
    if used == bytes.len() { Ok(value) } else { Err(CodecError::Trailing(bytes.len() - used)) }
}
