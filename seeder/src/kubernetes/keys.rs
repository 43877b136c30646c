//! The public keys of a cluster: a JSON Web Key Set (RFC 7517).

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, RSA_PKCS1_2048_8192_SHA256, RsaPublicKeyComponents, UnparsedPublicKey,
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::Deserialize;

/// Largest key set in bytes.
pub(super) const KEY_SET_LEN_MAX: usize = 256 << 10;
/// Most keys that are looked at: a cluster has one or two, and a few more while they are replaced.
const KEYS_MAX: usize = 64;
/// Bytes of a coordinate on P-256.
const COORDINATE_LEN: usize = 32;

/// How tokens are signed. Whatever else a token names, `none` and shared secrets above all, is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Algorithm {
    /// RSASSA-PKCS1-v1_5 with SHA-256.
    Rs256,
    /// ECDSA on P-256 with SHA-256.
    Es256,
}

impl Algorithm {
    pub(super) fn named(name: &str) -> Option<Self> {
        match name {
            "RS256" => Some(Self::Rs256),
            "ES256" => Some(Self::Es256),
            _ => None,
        }
    }
}

/// A public key, good for one algorithm.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Key {
    Rsa { n: Vec<u8>, e: Vec<u8> },
    P256 { point: Vec<u8> },
}

impl Key {
    /// Whether this key has signed `message` by `algorithm`. A key of another kind has not.
    pub(super) fn holds(&self, algorithm: Algorithm, message: &[u8], signature: &[u8]) -> bool {
        match (self, algorithm) {
            (Self::Rsa { n, e }, Algorithm::Rs256) => {
                RsaPublicKeyComponents { n, e }.verify(&RSA_PKCS1_2048_8192_SHA256, message, signature).is_ok()
            }
            (Self::P256 { point }, Algorithm::Es256) => {
                UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point).verify(message, signature).is_ok()
            }
            (Self::Rsa { .. }, Algorithm::Es256) | (Self::P256 { .. }, Algorithm::Rs256) => false,
        }
    }
}

/// A cluster's keys by their names.
#[derive(Default)]
pub(super) struct Keys(Vec<(String, Key)>);

/// A key as it is written. What is not known of it is passed over.
#[derive(Deserialize)]
struct Written {
    kty: String,
    kid: String,
    alg: Option<String>,
    #[serde(rename = "use")]
    purpose: Option<String>,
    crv: Option<String>,
    n: Option<String>,
    e: Option<String>,
    x: Option<String>,
    y: Option<String>,
}

#[derive(Deserialize)]
struct Set {
    keys: Vec<serde_json::Value>,
}

impl Keys {
    /// Reads a key set; keys of kinds that are not known, or for other purposes, are left out. None if it is no key set.
    pub(super) fn read(bytes: &[u8]) -> Option<Self> {
        if bytes.len() > KEY_SET_LEN_MAX {
            return None;
        }
        let Set { keys } = serde_json::from_slice(bytes).ok()?;
        let written = keys.into_iter().take(KEYS_MAX).filter_map(|key| serde_json::from_value::<Written>(key).ok());
        Some(Self(written.filter_map(|key| Some((key.kid.clone(), key.read()?))).collect()))
    }

    /// The key of that name.
    pub(super) fn named(&self, name: &str) -> Option<&Key> {
        self.0.iter().find(|(named, _)| named == name).map(|(_, key)| key)
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Written {
    fn read(self) -> Option<Key> {
        if self.purpose.is_some_and(|purpose| purpose != "sig") {
            return None;
        }
        let bytes = |text: Option<String>| URL_SAFE_NO_PAD.decode(text?).ok();
        let alg = |expected: &str| self.alg.as_deref().is_none_or(|alg| alg == expected);
        match self.kty.as_str() {
            "RSA" if alg("RS256") => Some(Key::Rsa { n: bytes(self.n)?, e: bytes(self.e)? }),
            "EC" if alg("ES256") && self.crv.as_deref() == Some("P-256") => {
                let (x, y) = (bytes(self.x)?, bytes(self.y)?);
                let whole = x.len() == COORDINATE_LEN && y.len() == COORDINATE_LEN;
                // The form of SEC 1 for an uncompressed point.
                whole.then(|| Key::P256 { point: [&[4], x.as_slice(), y.as_slice()].concat() })
            }
            _ => None,
        }
    }
}
