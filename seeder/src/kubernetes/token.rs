//! A service-account token as it is read: a JSON Web Token (RFC 7519) in the compact form of a signature (RFC 7515).
//!
//! Nothing in it is believed before [`Token::verify`]: until then it says only which cluster's which key is to be asked.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::{Deserialize, de::IgnoredAny};
use shoal_proto::{api::SERVICE_ACCOUNT_LEN_MAX, signed::UnixSeconds};

use super::{
    NotVouched,
    keys::{Algorithm, Key},
};

/// What begins the subject of every service account.
const SUBJECT: &str = "system:serviceaccount:";

#[derive(Deserialize)]
struct Header {
    alg: String,
    kid: Option<String>,
    /// Extensions that must be understood. None is.
    crit: Option<IgnoredAny>,
}

/// What the token says.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Claims {
    /// The cluster.
    pub(super) iss: String,
    /// `system:serviceaccount:NAMESPACE:NAME`.
    sub: String,
    /// One text or several.
    aud: serde_json::Value,
    exp: Option<UnixSeconds>,
    nbf: Option<UnixSeconds>,
    #[serde(rename = "kubernetes.io", default)]
    bound: Bound,
}

/// What the token is bound to. Clusters before 1.32 do not name the node.
#[derive(Debug, Clone, Default, Deserialize)]
struct Bound {
    pod: Option<Named>,
    node: Option<Named>,
}

#[derive(Debug, Clone, Deserialize)]
struct Named {
    name: String,
}

/// A token that can be read.
#[derive(Debug)]
pub(super) struct Token<'a> {
    /// What the signature covers.
    signed: &'a str,
    signature: Vec<u8>,
    /// By what it claims to be signed.
    pub(super) algorithm: Algorithm,
    /// With which key.
    pub(super) key: String,
    claims: Claims,
}

fn part<T: for<'de> Deserialize<'de>>(text: &str) -> Result<T, NotVouched> {
    let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| NotVouched::Malformed("a part is not base64"))?;
    serde_json::from_slice(&bytes)
        .map_err(|_| NotVouched::Malformed("a part is not the JSON of a service account's token"))
}

impl<'a> Token<'a> {
    /// Reads a token.
    ///
    /// # Errors
    /// It is none, or is signed in a way that is not taken.
    pub(super) fn read(text: &'a str) -> Result<Self, NotVouched> {
        if text.len() > SERVICE_ACCOUNT_LEN_MAX {
            return Err(NotVouched::Malformed("it is too long"));
        }
        let (signed, signature) = text.rsplit_once('.').ok_or(NotVouched::Malformed("it has no signature"))?;
        let (header, claims) = signed.split_once('.').ok_or(NotVouched::Malformed("it has no header"))?;
        let header: Header = part(header)?;
        if header.crit.is_some() {
            return Err(NotVouched::Malformed("it has extensions that must be understood"));
        }
        let algorithm = Algorithm::named(&header.alg).ok_or(NotVouched::Algorithm)?;
        let key = header.kid.ok_or(NotVouched::Malformed("it names no key"))?;
        let signature = URL_SAFE_NO_PAD.decode(signature).map_err(|_| NotVouched::Malformed("a part is not base64"))?;
        Ok(Self { signed, signature, algorithm, key, claims: part(claims)? })
    }

    /// The cluster that it claims to be of.
    pub(super) fn issuer(&self) -> &str {
        &self.claims.iss
    }

    /// What it says, if `key` has signed it.
    ///
    /// # Errors
    /// The signature does not hold.
    pub(super) fn verify(&self, key: &Key) -> Result<&Claims, NotVouched> {
        let holds = key.holds(self.algorithm, self.signed.as_bytes(), &self.signature);
        holds.then_some(&self.claims).ok_or(NotVouched::Signature)
    }

    /// Names the token, however its signature is written.
    pub(super) fn id(&self) -> [u8; 32] {
        *blake3::hash(self.signed.as_bytes()).as_bytes()
    }
}

impl Claims {
    /// Whether it is meant for `audience`.
    pub(super) fn is_for(&self, audience: &str) -> bool {
        let several = self.aud.as_array().map_or_else(|| std::slice::from_ref(&self.aud), Vec::as_slice);
        several.iter().any(|one| one.as_str() == Some(audience))
    }

    /// From when to when it holds; none if it has no end.
    pub(super) fn lasts(&self) -> Option<(UnixSeconds, UnixSeconds)> {
        Some((self.nbf.unwrap_or(0), self.exp?))
    }

    /// Namespace and name of the service account.
    pub(super) fn account(&self) -> Option<(&str, &str)> {
        let (namespace, name) = self.sub.strip_prefix(SUBJECT)?.split_once(':')?;
        (!namespace.is_empty() && !name.is_empty() && !name.contains(':')).then_some((namespace, name))
    }

    /// The pod that it was made for.
    pub(super) fn pod(&self) -> Option<&str> {
        self.bound.pod.as_ref().map(|pod| pod.name.as_str())
    }

    /// The machine that the pod runs on.
    pub(super) fn machine(&self) -> Option<&str> {
        self.bound.node.as_ref().map(|node| node.name.as_str())
    }
}
