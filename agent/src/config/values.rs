//! Values that are more than a number or a text.

use std::str::FromStr;

use http::Uri;
use shoal_proto::signed::NodeId;

/// A number of bytes: `1048576`, `512KiB`, `64MiB`, `10GiB`, `2TiB`; decimal units (`kB`, `MB`, `GB`, `TB`) as well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ByteSize(pub u64);

impl FromStr for ByteSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = text.split_at(digits);
        let unit: u64 = match unit.trim() {
            "" | "B" => 1,
            "kB" => 1000,
            "MB" => 1_000_000,
            "GB" => 1_000_000_000,
            "TB" => 1_000_000_000_000,
            "KiB" => 1 << 10,
            "MiB" => 1 << 20,
            "GiB" => 1 << 30,
            "TiB" => 1 << 40,
            _ => return Err(format!("`{text}` is no number of bytes; write it like 64MiB")),
        };
        let number: Option<u64> = number.parse().ok();
        let bytes = number.and_then(|number| number.checked_mul(unit));
        bytes.map(Self).ok_or_else(|| format!("`{text}` is no number of bytes; write it like 64MiB"))
    }
}

/// A root key: 64 hex digits.
pub(super) fn fleet_key(text: &str) -> Result<[u8; 32], String> {
    let mut key = [0; 32];
    hex::decode_to_slice(text.trim(), &mut key)
        .map_err(|_| "a fleet's root key has 64 hex digits; `shoal-seeder status` shows it".to_owned())?;
    Ok(key)
}

/// A platform of the OCI image-spec: `linux/amd64`, `linux/arm64/v8`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Platform {
    /// `GOOS`.
    pub os: String,
    /// `GOARCH`.
    pub architecture: String,
    /// The variant, where it matters.
    pub variant: Option<String>,
}

impl Platform {
    /// The one that this program was built for.
    #[must_use]
    pub fn host() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            "x86" => "386",
            "powerpc64" => "ppc64le",
            other => other,
        };
        Self { os: std::env::consts::OS.to_owned(), architecture: architecture.to_owned(), variant: None }
    }
}

impl FromStr for Platform {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = text.split('/').map(str::to_owned);
        match (parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some(os), Some(architecture), variant, None) if !os.is_empty() && !architecture.is_empty() => {
                Ok(Self { os, architecture, variant: variant.filter(|variant| !variant.is_empty()) })
            }
            _ => Err(format!("`{text}` is no platform; write it like linux/amd64")),
        }
    }
}

impl std::fmt::Display for Platform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        self.variant.as_ref().map_or(Ok(()), |variant| write!(f, "/{variant}"))
    }
}

/// A node to connect to from the start: `<64 hex digits>@<host>:<port of its peer protocol>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StaticPeer {
    /// Who must answer there.
    pub node: NodeId,
    /// A name or an address.
    pub host: String,
    /// Its peer port.
    pub port: u16,
}

impl FromStr for StaticPeer {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parse = || {
            let (node, place) = text.split_once('@')?;
            let (host, port) = place.rsplit_once(':')?;
            let mut id = [0; 32];
            hex::decode_to_slice(node, &mut id).ok()?;
            let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
            let port = port.parse().ok().filter(|port| *port != 0)?;
            (!host.is_empty()).then(|| Self { node: NodeId(id), host: host.to_owned(), port })
        };
        parse().ok_or_else(|| {
            format!("`{text}` is no peer; write <node id>@<host>:<peer port> (`shoal status` shows the id)")
        })
    }
}

macro_rules! from_text {
    ($($type:ty),*) => {$(
        impl<'de> serde::Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    )*};
}
from_text!(Platform, StaticPeer);

impl<'de> serde::Deserialize<'de> for ByteSize {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = ByteSize;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a number of bytes, like 1048576 or \"64MiB\"")
            }

            fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<ByteSize, E> {
                u64::try_from(number).map(ByteSize).map_err(|_| E::custom("a number of bytes is not negative"))
            }

            fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<ByteSize, E> {
                Ok(ByteSize(number))
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<ByteSize, E> {
                text.parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

/// `http://host[:port]` or `https://host[:port]` without path, query or user.
pub(super) fn seeder_url(text: &str) -> Result<Uri, String> {
    let wrong = || format!("`{text}` is no seeder URL; write it like http://seeder.example:5000");
    let uri: Uri = text.parse().map_err(|_| wrong())?;
    let authority = uri.authority().ok_or_else(wrong)?;
    match uri.scheme_str() {
        Some("http" | "https") => {}
        _ => return Err(wrong()),
    }
    let bare = matches!(uri.path(), "" | "/") && uri.query().is_none() && !authority.as_str().contains('@');
    if bare && !authority.host().is_empty() { Ok(uri) } else { Err(wrong()) }
}
