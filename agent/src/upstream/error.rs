//! What can go wrong between agent and seeder.

use std::{path::PathBuf, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode, header};

/// A 401 or 403, to be passed to the client as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Challenge {
    /// 401 or 403.
    pub status: StatusCode,
    /// The `WWW-Authenticate` lines.
    pub www_authenticate: Vec<HeaderValue>,
    /// The seeder's own body (OCI JSON), cut at 64 KiB.
    pub body: Bytes,
}

impl Challenge {
    /// The first error's message in the body, after a colon; nothing if there is none.
    fn said(&self) -> String {
        let body: serde_json::Value = serde_json::from_slice(&self.body).unwrap_or_default();
        body["errors"][0]["message"].as_str().map_or_else(String::new, |message| format!(": {message}"))
    }
}

/// Why the seeder did not give what was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UpstreamError {
    /// No connection, no answer in time, or a 5xx.
    #[error("the seeder at {url} cannot be reached: {error}")]
    Unreachable {
        /// Which seeder.
        url: String,
        /// The last attempt's error.
        error: String,
    },
    /// 404.
    #[error("the seeder at {url} has no {what}")]
    NotFound {
        /// Which seeder.
        url: String,
        /// The path that was asked for.
        what: String,
        /// The seeder's own body (OCI JSON), cut at 64 KiB; empty after a HEAD.
        body: Bytes,
    },
    /// 401 or 403.
    #[error("the seeder refuses access ({}){}", .0.status, .0.said())]
    Unauthorized(Box<Challenge>),
    /// 429.
    #[error("the seeder at {url} is busy{}", retry_after.map_or_else(String::new, |after| format!("; it asks to wait {} s", after.as_secs())))]
    Refused {
        /// Which seeder.
        url: String,
        /// What it asks for.
        retry_after: Option<Duration>,
    },
    /// The file of the service-account token by which this node joins.
    #[error("cannot read the service-account token {}: {error}", path.display())]
    ServiceAccount {
        /// Which file.
        path: PathBuf,
        /// Why.
        error: String,
    },
    /// An answer that cannot be, or one that was not signed as it should.
    #[error("the seeder at {url} answers {what} wrongly: {error}")]
    Protocol {
        /// Which seeder.
        url: String,
        /// The path that was asked for.
        what: String,
        /// What is wrong.
        error: String,
    },
}

impl UpstreamError {
    /// Whether the seeder refuses the membership that was shown, and a renewed one would do: its key has been replaced, or
    /// it has ended.
    #[must_use]
    pub(super) fn wants_renewal(&self) -> bool {
        let Self::Unauthorized(challenge) = self else { return false };
        let body: serde_json::Value = serde_json::from_slice(&challenge.body).unwrap_or_default();
        let reason = body["errors"][0]["detail"]["reason"].as_str().unwrap_or_default();
        ["foreign-membership", "membership-expired"].contains(&reason)
    }

    /// Whether the seeder could not be asked at all, so that what is known without it may stand in.
    #[must_use]
    pub const fn is_unreachable(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::Refused { .. })
    }
}

/// The seconds form of `Retry-After`; the date form is taken as "some time".
pub(super) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim().parse().ok().map(Duration::from_secs)
}
