//! The one form in which both servers answer with an error: OCI JSON.

use std::time::Duration;

use http::{HeaderName, HeaderValue, Response, StatusCode, header};
use shoal_proto::oci::{self, ErrorCode, RouteError};

use crate::{
    body::ReadError,
    reply::{Body, full},
};

/// An error as the client gets it.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{status} {code:?}: {message}")]
pub struct ApiError {
    code: ErrorCode,
    status: StatusCode,
    message: String,
    detail: Option<serde_json::Value>,
    headers: Vec<(HeaderName, HeaderValue)>,
}

impl ApiError {
    /// An error with the code's own status.
    #[must_use]
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        let status = StatusCode::from_u16(code.status()).expect("error codes have valid statuses");
        Self { code, status, message: message.into(), detail: None, headers: Vec::new() }
    }

    /// With another status than the code's own.
    #[must_use]
    pub const fn status(mut self, status: StatusCode) -> Self {
        self.status = status;
        self
    }

    /// With details for programs.
    #[must_use]
    pub fn detail(mut self, detail: serde_json::Value) -> Self {
        self.detail = Some(detail);
        self
    }

    /// With one more header.
    #[must_use]
    pub fn header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.push((name, value));
        self
    }

    /// Tells the client to come again later.
    #[must_use]
    pub fn retry_after(self, after: Duration) -> Self {
        self.header(header::RETRY_AFTER, HeaderValue::from(after.as_secs().max(1)))
    }

    /// This side failed. The message is for the client: it names no paths and no internals.
    #[must_use]
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::Internal, message)
    }

    /// The path exists, the method does not go with it.
    #[must_use]
    pub fn method(allowed: &'static str) -> Self {
        Self::new(ErrorCode::Unsupported, format!("this path takes {allowed}"))
            .status(StatusCode::METHOD_NOT_ALLOWED)
            .header(header::ALLOW, HeaderValue::from_static(allowed))
    }

    /// The HTTP status that the client gets.
    #[must_use]
    pub const fn http_status(&self) -> StatusCode {
        self.status
    }

    /// The OCI code that the client gets.
    #[must_use]
    pub const fn code(&self) -> ErrorCode {
        self.code
    }

    /// The response.
    #[must_use]
    pub fn into_response(self) -> Response<Body> {
        let body = oci::error_body(self.code, &self.message, self.detail.as_ref());
        let mut response = Response::new(full(body));
        *response.status_mut() = self.status;
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        response.headers_mut().extend(self.headers);
        response
    }
}

impl From<RouteError> for ApiError {
    fn from(error: RouteError) -> Self {
        let api = Self::new(error.code(), error.to_string());
        if error == RouteError::NotFound { api.status(StatusCode::NOT_FOUND) } else { api }
    }
}

impl From<ReadError> for ApiError {
    fn from(error: ReadError) -> Self {
        let api = Self::new(ErrorCode::SizeInvalid, error.to_string());
        match error {
            ReadError::TooLarge { .. } => api.status(StatusCode::PAYLOAD_TOO_LARGE),
            ReadError::Stalled(_) => api.status(StatusCode::REQUEST_TIMEOUT),
            ReadError::Broken(_) => api.status(StatusCode::BAD_REQUEST),
        }
    }
}
