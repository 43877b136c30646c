//! The `/v2/` grammar: one table from (method, path) to [`Route`], for agent and seeder alike, and the OCI error codes.
//!
//! A repository name holds slashes, so a path is read from its end: the last segments say what is asked for, all
//! before them is the name.

use serde::Serialize;

use crate::{
    digest::{Digest, DigestError},
    name::{NameError, Reference, Repository},
};

/// Where a path leads, whatever the method. Names `end-…` are those of the OCI distribution-spec.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Route {
    /// `/v2/` (end-1).
    Root,
    /// `/v2/_catalog` (Docker's registry API).
    Catalog,
    /// `/v2/<name>/tags/list` (end-8).
    Tags(Repository),
    /// `/v2/<name>/manifests/<reference>` (end-3, end-7, end-9).
    Manifest(Repository, Reference),
    /// `/v2/<name>/blobs/<digest>` (end-2, end-10).
    Blob(Repository, Digest),
    /// `/v2/<name>/blobs/uploads/` (end-4, end-11).
    Uploads(Repository),
    /// `/v2/<name>/blobs/uploads/<session>` (end-5, end-6, end-13, end-14).
    Upload(Repository, UploadId),
    /// `/v2/<name>/referrers/<digest>` (end-12).
    Referrers(Repository, Digest),
    /// `/v2/_oci/ext/discover` (the OCI extensions API).
    Extensions,
    /// `/v2/_shoal/info`.
    Info,
    /// `/v2/_shoal/join`.
    Join,
    /// `/v2/_shoal/members`.
    Members,
    /// `/v2/_shoal/revocations`.
    Revocations,
    /// `/v2/_shoal/token`.
    Token,
    /// `/v2/<name>/_shoal/pull/<reference>`.
    Pull(Repository, Reference),
    /// `/v2/<name>/_shoal/statement/<digest>`.
    Statement(Repository, Digest),
    /// `/v2/<name>/_shoal/hashes/<digest>`.
    Hashes(Repository, Digest),
    /// `/v2/<name>/_shoal/pieces/<digest>`.
    Pieces(Repository, Digest),
}

/// The name of an upload session: 1 to 64 of `[A-Za-z0-9_-]`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UploadId(String);

impl UploadId {
    /// As text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::str::FromStr for UploadId {
    type Err = RouteError;

    fn from_str(s: &str) -> Result<Self, RouteError> {
        let good =
            (1..=64).contains(&s.len()) && s.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
        if good { Ok(Self(s.to_owned())) } else { Err(RouteError::UploadId) }
    }
}

/// Why a path leads nowhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RouteError {
    /// No such path.
    #[error("there is nothing at this path; the registry API lies under /v2/")]
    NotFound,
    /// A bad repository name.
    #[error("{0}")]
    Name(NameError),
    /// A bad tag.
    #[error("{0}")]
    Tag(NameError),
    /// A bad digest.
    #[error("{0}")]
    Digest(DigestError),
    /// A bad upload session.
    #[error("no such upload session")]
    UploadId,
}

impl RouteError {
    /// The OCI error code that a client is told.
    #[must_use]
    pub const fn code(&self) -> ErrorCode {
        match self {
            Self::NotFound => ErrorCode::Unsupported,
            Self::Name(_) => ErrorCode::NameInvalid,
            Self::Tag(_) => ErrorCode::ManifestInvalid,
            Self::Digest(_) => ErrorCode::DigestInvalid,
            Self::UploadId => ErrorCode::BlobUploadUnknown,
        }
    }
}

impl Route {
    /// Reads a request's path (without the query). Percent-encoding is refused but for `%3A`, the colon that some
    /// clients encode in digests: no valid name needs any other.
    ///
    /// # Errors
    /// The path leads nowhere, or a name in it is invalid.
    pub fn parse(path: &str) -> Result<Self, RouteError> {
        let decoded;
        let path = if path.contains('%') {
            decoded = path.replace("%3A", ":").replace("%3a", ":");
            decoded.as_str()
        } else {
            path
        };
        let rest = path.strip_prefix("/v2").ok_or(RouteError::NotFound)?;
        if rest.is_empty() || rest == "/" {
            return Ok(Self::Root);
        }
        let rest = rest.strip_prefix('/').ok_or(RouteError::NotFound)?;
        match rest {
            "_catalog" => return Ok(Self::Catalog),
            "_oci/ext/discover" => return Ok(Self::Extensions),
            "_shoal/info" => return Ok(Self::Info),
            "_shoal/join" => return Ok(Self::Join),
            "_shoal/members" => return Ok(Self::Members),
            "_shoal/revocations" => return Ok(Self::Revocations),
            "_shoal/token" => return Ok(Self::Token),
            _ => {}
        }
        let (before, last) = rest.rsplit_once('/').ok_or(RouteError::NotFound)?;
        let (before, kind) = before.rsplit_once('/').ok_or(RouteError::NotFound)?;
        Self::under_name(before, kind, last)
    }

    fn under_name(before: &str, kind: &str, last: &str) -> Result<Self, RouteError> {
        let name = |text: &str| text.parse::<Repository>().map_err(RouteError::Name);
        let digest = |text: &str| text.parse::<Digest>().map_err(RouteError::Digest);
        if let Some(repository) = before.strip_suffix("/_shoal") {
            let repository = name(repository);
            return match kind {
                "pull" => Ok(Self::Pull(repository?, reference(last)?)),
                "statement" => Ok(Self::Statement(repository?, digest(last)?)),
                "hashes" => Ok(Self::Hashes(repository?, digest(last)?)),
                "pieces" => Ok(Self::Pieces(repository?, digest(last)?)),
                _ => Err(RouteError::NotFound),
            };
        }
        match (kind, last) {
            ("tags", "list") => Ok(Self::Tags(name(before)?)),
            ("manifests", _) => Ok(Self::Manifest(name(before)?, reference(last)?)),
            ("referrers", _) => Ok(Self::Referrers(name(before)?, digest(last)?)),
            ("blobs", "uploads") => Ok(Self::Uploads(name(before)?)),
            ("blobs", _) => Ok(Self::Blob(name(before)?, digest(last)?)),
            ("uploads", _) => {
                let repository = name(before.strip_suffix("/blobs").ok_or(RouteError::NotFound)?)?;
                if last.is_empty() {
                    Ok(Self::Uploads(repository))
                } else {
                    Ok(Self::Upload(repository, last.parse()?))
                }
            }
            _ => Err(RouteError::NotFound),
        }
    }

    /// The repository that the path names.
    #[must_use]
    pub const fn repository(&self) -> Option<&Repository> {
        match self {
            Self::Tags(name)
            | Self::Manifest(name, _)
            | Self::Blob(name, _)
            | Self::Uploads(name)
            | Self::Upload(name, _)
            | Self::Referrers(name, _)
            | Self::Pull(name, _)
            | Self::Statement(name, _)
            | Self::Hashes(name, _)
            | Self::Pieces(name, _) => Some(name),
            Self::Root
            | Self::Catalog
            | Self::Extensions
            | Self::Info
            | Self::Join
            | Self::Members
            | Self::Revocations
            | Self::Token => None,
        }
    }
}

fn reference(text: &str) -> Result<Reference, RouteError> {
    text.parse().map_err(|error| match error {
        NameError::Digest(digest) => RouteError::Digest(digest),
        NameError::Repository | NameError::Tag => RouteError::Tag(error),
    })
}

/// The error codes of the OCI distribution-spec ("Error Codes").
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum ErrorCode {
    /// blob unknown to registry
    BlobUnknown,
    /// blob upload invalid
    BlobUploadInvalid,
    /// blob upload unknown to registry
    BlobUploadUnknown,
    /// provided digest did not match uploaded content
    DigestInvalid,
    /// manifest references a manifest or blob unknown to registry
    ManifestBlobUnknown,
    /// manifest invalid
    ManifestInvalid,
    /// manifest unknown to registry
    ManifestUnknown,
    /// invalid repository name
    NameInvalid,
    /// repository name not known to registry
    NameUnknown,
    /// provided length did not match content length
    SizeInvalid,
    /// authentication required
    Unauthorized,
    /// requested access to the resource is denied
    Denied,
    /// the operation is unsupported
    Unsupported,
    /// too many requests
    #[serde(rename = "TOOMANYREQUESTS")]
    TooManyRequests,
    /// Not of the specification: this side failed (5xx).
    #[serde(rename = "UNKNOWN")]
    Internal,
}

impl ErrorCode {
    /// The HTTP status that goes with the code where the operation names no other.
    #[must_use]
    pub const fn status(self) -> u16 {
        match self {
            Self::BlobUploadInvalid
            | Self::DigestInvalid
            | Self::ManifestInvalid
            | Self::NameInvalid
            | Self::SizeInvalid => 400,
            Self::Unauthorized => 401,
            Self::Denied => 403,
            Self::BlobUnknown
            | Self::BlobUploadUnknown
            | Self::ManifestBlobUnknown
            | Self::ManifestUnknown
            | Self::NameUnknown => 404,
            Self::Unsupported => 405,
            Self::TooManyRequests => 429,
            Self::Internal => 500,
        }
    }
}

/// The JSON body of an error.
#[must_use]
pub fn error_body(code: ErrorCode, message: &str, detail: Option<&serde_json::Value>) -> String {
    let detail = detail.unwrap_or(&serde_json::Value::Null);
    serde_json::json!({ "errors": [{ "code": code, "message": message, "detail": detail }] }).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_lead_where_the_specification_says() {
        let name: Repository = "a/b".parse().unwrap();
        let hex = "0".repeat(64);
        let digest: Digest = format!("sha256:{hex}").parse().unwrap();
        let tag: Reference = "latest".parse().unwrap();
        let cases = [
            ("/v2".to_owned(), Route::Root),
            ("/v2/".into(), Route::Root),
            ("/v2/_catalog".into(), Route::Catalog),
            ("/v2/a/b/tags/list".into(), Route::Tags(name.clone())),
            ("/v2/a/b/manifests/latest".into(), Route::Manifest(name.clone(), tag.clone())),
            (format!("/v2/a/b/manifests/sha256:{hex}"), Route::Manifest(name.clone(), Reference::Digest(digest))),
            (format!("/v2/a/b/blobs/sha256:{hex}"), Route::Blob(name.clone(), digest)),
            (format!("/v2/a/b/blobs/sha256%3A{hex}"), Route::Blob(name.clone(), digest)),
            ("/v2/a/b/blobs/uploads/".into(), Route::Uploads(name.clone())),
            ("/v2/a/b/blobs/uploads".into(), Route::Uploads(name.clone())),
            ("/v2/a/b/blobs/uploads/u-1".into(), Route::Upload(name.clone(), "u-1".parse().unwrap())),
            (format!("/v2/a/b/referrers/sha256:{hex}"), Route::Referrers(name.clone(), digest)),
            ("/v2/_shoal/info".into(), Route::Info),
            ("/v2/_shoal/members".into(), Route::Members),
            ("/v2/_shoal/token".into(), Route::Token),
            ("/v2/a/b/_shoal/pull/latest".into(), Route::Pull(name.clone(), tag)),
            (format!("/v2/a/b/_shoal/pieces/sha256:{hex}"), Route::Pieces(name, digest)),
            ("/v2/tags/tags/list".into(), Route::Tags("tags".parse().unwrap())),
        ];
        for (path, route) in cases {
            assert_eq!(Route::parse(&path), Ok(route), "{path}");
        }
    }

    #[test]
    fn other_paths_say_what_is_wrong() {
        let cases = [
            ("/", ErrorCode::Unsupported),
            ("/v1/search", ErrorCode::Unsupported),
            ("/v2x/", ErrorCode::Unsupported),
            ("/v2/a", ErrorCode::Unsupported),
            ("/v2/A/tags/list", ErrorCode::NameInvalid),
            ("/v2/a/../b/tags/list", ErrorCode::NameInvalid),
            ("/v2/a%2Fb/tags/list", ErrorCode::NameInvalid),
            ("/v2/a/manifests/-x", ErrorCode::ManifestInvalid),
            ("/v2/a/blobs/sha256:zz", ErrorCode::DigestInvalid),
            ("/v2/a/blobs/uploads/a%00b", ErrorCode::BlobUploadUnknown),
            ("/v2/a/_shoal/nothing/x", ErrorCode::Unsupported),
        ];
        for (path, code) in cases {
            assert_eq!(Route::parse(path).unwrap_err().code(), code, "{path}");
        }
    }
}
