//! Errors → what the client gets. Failures of this side (5xx) are logged here, once.

use http::{HeaderValue, Response, StatusCode, header};
use shoal_http::{ApiError, reply};
use shoal_proto::oci::ErrorCode;

use super::{ApiReply, ResolveError};
use crate::{handle::WantError, upstream::UpstreamError};

/// `unknown`: the code for what the seeder does not have.
pub(super) fn resolve(error: &ResolveError, unknown: ErrorCode) -> ApiReply {
    match error {
        ResolveError::Upstream(error) => upstream(error, unknown),
        ResolveError::Want(WantError::Upstream { error, .. }) => upstream(error, unknown),
        ResolveError::Want(WantError::Stopped) => failed(StatusCode::SERVICE_UNAVAILABLE, error).into(),
        ResolveError::Want(WantError::Store { full: true, .. }) | ResolveError::Full(_) => {
            failed(StatusCode::INSUFFICIENT_STORAGE, error).into()
        }
        ResolveError::Want(WantError::Store { .. }) | ResolveError::Store(_) => {
            failed(StatusCode::INTERNAL_SERVER_ERROR, error).into()
        }
        ResolveError::Manifest(_) => failed(StatusCode::BAD_GATEWAY, error).into(),
    }
}

/// What the seeder said, in this registry's words; a challenge as it is.
pub(super) fn upstream(error: &UpstreamError, unknown: ErrorCode) -> ApiReply {
    match error {
        UpstreamError::NotFound { body, .. } => {
            let said = std::str::from_utf8(body).unwrap_or_default();
            let code = if said.contains("NAME_UNKNOWN") { ErrorCode::NameUnknown } else { unknown };
            ApiError::new(code, error.to_string()).status(StatusCode::NOT_FOUND).into()
        }
        UpstreamError::Unauthorized(challenge) => {
            let mut response = Response::new(reply::full(challenge.body.clone()));
            *response.status_mut() = challenge.status;
            let headers = response.headers_mut();
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
            for value in &challenge.www_authenticate {
                headers.append(header::WWW_AUTHENTICATE, value.clone());
            }
            response.into()
        }
        UpstreamError::Refused { retry_after, .. } => {
            let error = ApiError::new(ErrorCode::TooManyRequests, error.to_string());
            retry_after.map_or_else(|| error.clone(), |after| error.clone().retry_after(after)).into()
        }
        UpstreamError::Unreachable { .. } => failed(StatusCode::SERVICE_UNAVAILABLE, error).into(),
        UpstreamError::Protocol { .. } | UpstreamError::ServiceAccount { .. } => {
            failed(StatusCode::BAD_GATEWAY, error).into()
        }
    }
}

fn failed(status: StatusCode, error: &dyn std::error::Error) -> ApiError {
    tracing::error!(%error, status = status.as_u16(), "a request failed");
    ApiError::internal(error.to_string()).status(status)
}
