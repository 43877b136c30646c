//! Image names as people write them.

use std::{fmt, str::FromStr};

use shoal_proto::name::{Reference, Repository};

use super::out::Usage;

/// `NAME`, `NAME:TAG`, `NAME@DIGEST` or `NAME:TAG@DIGEST`; with a host in front, the host is the agent's or seeder's own
/// and left out, since both are chosen by flags.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ImageName {
    pub(super) repository: Repository,
    pub(super) reference: Reference,
}

impl FromStr for ImageName {
    type Err = Usage;

    fn from_str(text: &str) -> Result<Self, Usage> {
        let wrong = |error: &dyn fmt::Display| Usage(format!("`{text}` is no image name: {error}"));
        // `localhost:5050/app` and `127.0.0.1:5050/app`, as one would give them to docker.
        let local = |host: &str| {
            let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
            name == "localhost" || name.parse::<std::net::Ipv4Addr>().is_ok_and(|ip| ip.is_loopback())
        };
        let rest = match text.split_once('/') {
            Some((host, rest)) if local(host) => rest,
            Some((host, _)) if host.contains(':') => {
                return Err(wrong(&"leave the registry's port out; --agent and --seeder say whom to ask"));
            }
            Some(_) | None => text,
        };
        let (name, digest) = rest.split_once('@').map_or((rest, None), |(name, digest)| (name, Some(digest)));
        let (name, tag) = match name.rsplit_once(':') {
            Some((before, tag)) if !tag.contains('/') => (before, tag),
            Some(_) | None => (name, "latest"),
        };
        let repository = name.parse().map_err(|error| wrong(&error))?;
        let reference = match digest {
            Some(digest) => Reference::Digest(digest.parse().map_err(|error| wrong(&error))?),
            None => Reference::Tag(tag.parse().map_err(|error| wrong(&error))?),
        };
        Ok(Self { repository, reference })
    }
}

impl fmt::Display for ImageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.reference {
            Reference::Tag(tag) => write!(f, "{}:{tag}", self.repository),
            Reference::Digest(digest) => write!(f, "{}@{digest}", self.repository),
        }
    }
}
