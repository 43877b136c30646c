//! Quotas: how much repositories may hold together.

use std::fmt;

use serde::{Deserialize, Serialize};
use shoal_proto::name::Repository;

use crate::users::Pattern;

/// Most quotas. Each push is held against all of them.
pub const QUOTAS_MAX: usize = 64;

/// How much the repositories of a pattern may hold together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Quota {
    /// `team/app`, `team/**`, or `**` for all.
    pub repositories: Pattern,
    /// Bytes of blobs and manifests; what several of the repositories hold counts once. None: as many as they like.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// Tags. None: as many as they like.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tags: Option<u64>,
}

impl Quota {
    /// Whether `repository` is one of its repositories.
    #[must_use]
    pub fn holds(&self, repository: &Repository) -> bool {
        self.repositories.holds(repository)
    }
}

/// What a quota is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Measure {
    /// Bytes of blobs and manifests.
    Bytes,
    /// Tags.
    Tags,
}

impl fmt::Display for Measure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bytes => "bytes",
            Self::Tags => "tags",
        })
    }
}

/// A quota leaves too little.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, thiserror::Error)]
#[error(
    "the quota of {repositories} is {limit} {measure} and {used} are in use, so {more} more do not fit; delete what is not \
     needed, or ask whoever runs this registry for more"
)]
pub struct Exceeded {
    /// The quota's repositories.
    pub repositories: String,
    /// Of what.
    pub measure: Measure,
    /// How much there may be.
    pub limit: u64,
    /// How much there is.
    pub used: u64,
    /// How much was to be added.
    pub more: u64,
}

/// What the repositories of a quota hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// The quota.
    #[serde(flatten)]
    pub quota: Quota,
    /// Bytes of blobs and manifests, each counted once.
    pub used_bytes: u64,
    /// Tags.
    pub used_tags: u64,
}
