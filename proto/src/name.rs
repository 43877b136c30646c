//! Repository names, tags and references, by the OCI distribution-spec's grammar.

use std::{fmt, str::FromStr};

use crate::digest::{Digest, DigestError};

/// Longest repository name in bytes. Clients hold host, slash and name together under 255.
pub const REPOSITORY_LEN_MAX: usize = 255;
/// Longest tag in bytes (distribution-spec, "pulling manifests").
pub const TAG_LEN_MAX: usize = 128;

/// Why a text is no name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Not a repository name.
    #[error(
        "a repository name is lower-case letters and digits, parts joined by `.`, `_`, `__`, `-` or `/`, at most {REPOSITORY_LEN_MAX} bytes"
    )]
    Repository,
    /// Not a tag.
    #[error("a tag is at most {TAG_LEN_MAX} of [a-zA-Z0-9._-] and starts with a letter, digit or `_`")]
    Tag,
    /// Looks like a digest and is none.
    #[error(transparent)]
    Digest(#[from] DigestError),
}

/// A repository name such as `library/debian`. Never empty, never with `..`, an upper-case letter or an empty part.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Repository(String);

/// A tag such as `latest`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tag(String);

/// What a manifest is asked for by.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reference {
    /// A movable name.
    Tag(Tag),
    /// The content itself.
    Digest(Digest),
}

impl Repository {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Tag {
    /// The tag as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

fn alphanumeric(b: u8) -> bool {
    b.is_ascii_lowercase() || b.is_ascii_digit()
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`
fn is_component(part: &str) -> bool {
    let bytes = part.as_bytes();
    let (Some(&first), Some(&last)) = (bytes.first(), bytes.last()) else { return false };
    if !alphanumeric(first) || !alphanumeric(last) {
        return false;
    }
    part.split(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
        .all(|run| run.is_empty() || run == "." || run == "_" || run == "__" || run.bytes().all(|b| b == b'-'))
}

impl FromStr for Repository {
    type Err = NameError;

    fn from_str(s: &str) -> Result<Self, NameError> {
        if s.len() <= REPOSITORY_LEN_MAX && s.split('/').all(is_component) {
            Ok(Self(s.to_owned()))
        } else {
            Err(NameError::Repository)
        }
    }
}

impl FromStr for Tag {
    type Err = NameError;

    fn from_str(s: &str) -> Result<Self, NameError> {
        let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
        let bytes = s.as_bytes();
        let starts = bytes.first().is_some_and(|&b| word(b));
        if starts && s.len() <= TAG_LEN_MAX && bytes.iter().all(|&b| word(b) || b == b'.' || b == b'-') {
            Ok(Self(s.to_owned()))
        } else {
            Err(NameError::Tag)
        }
    }
}

impl FromStr for Reference {
    type Err = NameError;

    fn from_str(s: &str) -> Result<Self, NameError> {
        if s.contains(':') { Ok(Self::Digest(s.parse()?)) } else { Ok(Self::Tag(s.parse()?)) }
    }
}

impl fmt::Display for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tag(tag) => fmt::Display::fmt(tag, f),
            Self::Digest(digest) => fmt::Display::fmt(digest, f),
        }
    }
}

/// Text on the wire and in JSON; parsed again on the way in, so that no invalid name gets past the codec.
macro_rules! as_text {
    ($type:ty) => {
        impl bincode::Encode for $type {
            fn encode<E: bincode::enc::Encoder>(&self, encoder: &mut E) -> Result<(), bincode::error::EncodeError> {
                self.to_string().encode(encoder)
            }
        }
        impl<C> bincode::Decode<C> for $type {
            fn decode<D: bincode::de::Decoder<Context = C>>(d: &mut D) -> Result<Self, bincode::error::DecodeError> {
                let text = <String as bincode::Decode<C>>::decode(d)?;
                text.parse().map_err(|_| bincode::error::DecodeError::Other("invalid name"))
            }
        }
        impl<'de, C> bincode::BorrowDecode<'de, C> for $type {
            fn borrow_decode<D: bincode::de::BorrowDecoder<'de, Context = C>>(
                d: &mut D,
            ) -> Result<Self, bincode::error::DecodeError> {
                bincode::Decode::decode(d)
            }
        }
        impl serde::Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
        impl<'de> serde::Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}
as_text!(Repository);
as_text!(Tag);
as_text!(Reference);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn good_names_parse_and_bad_ones_do_not() {
        for good in ["a", "library/debian", "a.b/c_d/e__f/g---h", "ghcr.io/org/app", "0/1"] {
            assert_eq!(good.parse::<Repository>().unwrap().as_str(), good);
        }
        let long = "a".repeat(256);
        for bad in ["", "/", "a/", "/a", "a//b", "A", "a..b", "a___b", "a_.b", "-a", "a-", "a b", "..", "a/../b", &long]
        {
            assert_eq!(bad.parse::<Repository>(), Err(NameError::Repository), "{bad}");
        }
    }

    #[test]
    fn good_tags_parse_and_bad_ones_do_not() {
        for good in ["latest", "v1.0-rc.1", "_x", "A"] {
            assert_eq!(good.parse::<Tag>().unwrap().as_str(), good);
        }
        for bad in ["", ".a", "-a", "a/b", "a b", "a:b", &"x".repeat(129)] {
            assert_eq!(bad.parse::<Tag>(), Err(NameError::Tag), "{bad}");
        }
    }
}
