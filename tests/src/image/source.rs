//! Where a blob's bytes come from, and the SHA-256 that names them.

use std::{fs::File, io::Read, path::PathBuf};

use aws_lc_rs::digest::{Context as Sha, SHA256};
use bytes::Bytes;
use shoal_proto::Digest;

/// Bytes handed on at once: large enough for sockets, small enough that many streams fit in memory.
const CHUNK_LEN: usize = 256 << 10;

/// Where bytes come from.
#[derive(Debug, Clone)]
pub enum Source {
    /// Memory.
    Bytes(Bytes),
    /// A file.
    File(PathBuf),
    /// A generator: nothing is kept, the same bytes come each time.
    Seeded {
        /// Chooses the bytes.
        seed: u64,
        /// How many.
        size: u64,
    },
}

/// The bytes in order.
#[derive(Debug)]
enum Chunks {
    Bytes(Bytes),
    File(File),
    Seeded { state: u64, left: u64 },
}

impl Source {
    /// The bytes in order.
    ///
    /// # Errors
    /// A file cannot be opened; reading it may fail later.
    pub fn chunks(&self) -> std::io::Result<impl Iterator<Item = std::io::Result<Bytes>> + Send + use<>> {
        Ok(match self {
            Self::Bytes(bytes) => Chunks::Bytes(bytes.clone()),
            Self::File(path) => Chunks::File(File::open(path)?),
            Self::Seeded { seed, size } => Chunks::Seeded { state: *seed, left: *size },
        })
    }
}

impl Iterator for Chunks {
    type Item = std::io::Result<Bytes>;

    fn next(&mut self) -> Option<Self::Item> {
        match self {
            Self::Bytes(bytes) => {
                let chunk = bytes.split_to(bytes.len().min(CHUNK_LEN));
                (!chunk.is_empty()).then_some(Ok(chunk))
            }
            Self::File(file) => {
                let mut chunk = Vec::with_capacity(CHUNK_LEN);
                match file.take(CHUNK_LEN as u64).read_to_end(&mut chunk) {
                    Ok(0) => None,
                    Ok(_) => Some(Ok(chunk.into())),
                    Err(error) => Some(Err(error)),
                }
            }
            Self::Seeded { left: 0, .. } => None,
            Self::Seeded { state, left } => {
                let len = usize::try_from(*left).map_or(CHUNK_LEN, |left| left.min(CHUNK_LEN));
                let mut chunk = vec![0; len];
                for word in chunk.chunks_mut(8) {
                    word.copy_from_slice(&split_mix(state).to_le_bytes()[..word.len()]);
                }
                *left -= len as u64;
                Some(Ok(chunk.into()))
            }
        }
    }
}

/// SplitMix64: one multiplication chain a word, so that gigabytes are cheap, and no byte pattern that compresses.
const fn split_mix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mut word = *state;
    word = (word ^ (word >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    word ^ (word >> 31)
}

/// SHA-256 as data arrives. The tests' own: a fault in the product's hashing must not hide itself.
#[derive(Clone)]
pub struct Hasher(Sha);

impl std::fmt::Debug for Hasher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Hasher")
    }
}

impl Default for Hasher {
    fn default() -> Self {
        Self::new()
    }
}

impl Hasher {
    /// Nothing hashed yet.
    #[must_use]
    pub fn new() -> Self {
        Self(Sha::new(&SHA256))
    }

    /// Takes the next bytes.
    pub fn update(&mut self, data: &[u8]) {
        self.0.update(data);
    }

    /// The digest of all bytes.
    ///
    /// # Panics
    /// Never: SHA-256 has 32 bytes.
    #[must_use]
    pub fn finish(self) -> Digest {
        Digest::sha256(self.0.finish().as_ref().try_into().expect("SHA-256 has 32 bytes"))
    }
}
