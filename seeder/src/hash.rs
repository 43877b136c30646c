//! SHA-2 through aws-lc: on machines without SHA extensions it takes half of the time of the `sha2` crate, and a push costs
//! little else.

use aws_lc_rs::digest::{Context, SHA256, SHA512};
use shoal_proto::digest::{Algorithm, Digest};

/// Computes a digest over bytes that arrive in parts.
#[derive(Clone)]
pub(crate) struct Sha {
    algorithm: Algorithm,
    context: Context,
}

impl std::fmt::Debug for Sha {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Sha").field(&self.algorithm).finish()
    }
}

impl Sha {
    pub(crate) fn new(algorithm: Algorithm) -> Self {
        let function = match algorithm {
            Algorithm::Sha256 => &SHA256,
            Algorithm::Sha512 => &SHA512,
        };
        Self { algorithm, context: Context::new(function) }
    }

    pub(crate) fn update(&mut self, data: &[u8]) {
        self.context.update(data);
    }

    pub(crate) fn finish(self) -> Digest {
        let value = self.context.finish();
        let value = value.as_ref();
        match self.algorithm {
            Algorithm::Sha256 => Digest::sha256(value.try_into().expect("SHA-256 has 32 bytes")),
            Algorithm::Sha512 => Digest::sha512(value.try_into().expect("SHA-512 has 64 bytes")),
        }
    }

    pub(crate) fn of(algorithm: Algorithm, data: &[u8]) -> Digest {
        let mut sha = Self::new(algorithm);
        sha.update(data);
        sha.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agrees_with_the_digest_of_the_protocol() {
        for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
            for data in [b"".as_slice(), b"abc", &[7; 1000]] {
                assert_eq!(Sha::of(algorithm, data), Digest::of_with(algorithm, data));
            }
        }
    }
}
