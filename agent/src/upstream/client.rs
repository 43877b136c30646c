//! Requests and answers: connections, time limits, retries. The only file, beside [`super::connect`], that knows the
//! HTTP client library. No redirect is followed: a seeder has no reason to send a client's password elsewhere.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper_util::{
    client::legacy,
    rt::{TokioExecutor, TokioTimer},
};
use shoal_proto::{
    api::{CONTENT_TYPE, Info, REPLY_LEN_MAX},
    codec,
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

use super::{
    ANSWER_TIMEOUT, ATTEMPTS, Challenge, Credentials, PIECE_STREAMS_MAX, REQUESTS_MAX, SILENCE_MAX, UpstreamError,
    challenge::{is_sound, keep_sound},
    connect::{Connector, Tls},
    error::retry_after,
};

/// Idle connections kept: what a pull's burst of small requests leaves behind.
const IDLE_CONNECTIONS_MAX: usize = 8;
/// How long they are kept; below the common 60 s of load balancers.
const IDLE_TIMEOUT: Duration = Duration::from_secs(50);
/// Bytes of a body read ahead of whoever consumes it, per connection.
const READ_AHEAD_BYTES: usize = 256 << 10;
/// Longest error body that is looked at.
const ERROR_BODY_MAX: usize = 64 << 10;
/// First pause between attempts; it doubles, and half of it is random.
const PAUSE: Duration = Duration::from_millis(100);

/// The connections to one seeder.
#[derive(Debug, Clone)]
pub(super) struct Client {
    http: legacy::Client<Connector, Full<Bytes>>,
    base: Arc<str>,
    small: Arc<Semaphore>,
    streams: Arc<Semaphore>,
}

impl Client {
    pub(super) fn new(base: &Uri, tls: Option<Tls>) -> Self {
        let http = legacy::Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_TIMEOUT)
            .pool_max_idle_per_host(IDLE_CONNECTIONS_MAX)
            .http1_max_buf_size(READ_AHEAD_BYTES)
            .build(Connector::new(tls));
        Self {
            http,
            base: base.to_string().trim_end_matches('/').into(),
            small: Arc::new(Semaphore::new(REQUESTS_MAX)),
            streams: Arc::new(Semaphore::new(PIECE_STREAMS_MAX)),
        }
    }

    pub(super) fn url(&self) -> String {
        self.base.to_string()
    }

    /// A request without a body.
    pub(super) fn request(&self, method: Method, path: &str, credentials: &Credentials) -> Request<Bytes> {
        self.request_with(method, path, credentials, Bytes::new())
    }

    pub(super) fn request_with(
        &self,
        method: Method,
        path: &str,
        credentials: &Credentials,
        body: Bytes,
    ) -> Request<Bytes> {
        let mut request = Request::new(body);
        *request.method_mut() = method;
        *request.uri_mut() = format!("{}{path}", self.base).parse().expect("names and digests need no escaping");
        if let Some(authorization) = &credentials.0 {
            request.headers_mut().insert(header::AUTHORIZATION, authorization.clone());
        }
        if !request.body().is_empty() {
            request.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(CONTENT_TYPE));
        }
        request
    }

    pub(super) async fn info(&self) -> Result<Info, UpstreamError> {
        let path = "/v2/_shoal/info";
        let bytes = self.fetch(&self.request(Method::GET, path, &Credentials::none()), REPLY_LEN_MAX).await?;
        codec::decode::<Info, REPLY_LEN_MAX>(&bytes).map_err(|error| self.protocol(path, &error.to_string()))
    }

    /// A small answer's whole body.
    pub(super) async fn fetch(&self, request: &Request<Bytes>, limit: usize) -> Result<Bytes, UpstreamError> {
        let _permit = permit(&self.small).await;
        let mut attempt = 0;
        loop {
            attempt += 1;
            let result = match self.attempt(request, false).await {
                Ok(response) => self.body(request, response, limit).await,
                Err(error) => Err(error),
            };
            match result {
                Err(UpstreamError::Unreachable { .. }) if attempt < ATTEMPTS => pause(attempt).await,
                result => return result,
            }
        }
    }

    /// The head of a small answer. `conditional`: 304 is a success.
    pub(super) async fn send(
        &self,
        request: &Request<Bytes>,
        conditional: bool,
    ) -> Result<Response<Incoming>, UpstreamError> {
        let _permit = permit(&self.small).await;
        let mut attempt = 0;
        loop {
            attempt += 1;
            match self.attempt(request, conditional).await {
                Err(UpstreamError::Unreachable { .. }) if attempt < ATTEMPTS => pause(attempt).await,
                result => return result,
            }
        }
    }

    /// An answer of any status but a redirect.
    pub(super) async fn send_once(&self, request: &Request<Bytes>) -> Result<Response<Incoming>, UpstreamError> {
        let _permit = permit(&self.small).await;
        let mut response = self.exchange(request).await?;
        if response.status().is_redirection() && response.status() != StatusCode::NOT_MODIFIED {
            return Err(self.protocol(request.uri().path(), "it redirects, which is not followed"));
        }
        keep_sound(response.headers_mut(), &self.base);
        Ok(response)
    }

    /// The head of an answer whose body is long; the permit goes with the body.
    pub(super) async fn stream(
        &self,
        request: &Request<Bytes>,
    ) -> Result<(Response<Incoming>, OwnedSemaphorePermit), UpstreamError> {
        let permit = permit(&self.streams).await;
        let mut attempt = 0;
        loop {
            attempt += 1;
            match self.attempt(request, false).await {
                Err(UpstreamError::Unreachable { .. }) if attempt < ATTEMPTS => pause(attempt).await,
                result => return result.map(|response| (response, permit)),
            }
        }
    }

    async fn exchange(&self, request: &Request<Bytes>) -> Result<Response<Incoming>, UpstreamError> {
        let (parts, body) = request.clone().into_parts();
        match timeout(ANSWER_TIMEOUT, self.http.request(Request::from_parts(parts, Full::new(body)))).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) => Err(self.unreachable(&chain(&error))),
            Err(_) => Err(self.unreachable(&format!("no answer within {} s", ANSWER_TIMEOUT.as_secs()))),
        }
    }

    /// One attempt; any status but success is an error.
    async fn attempt(&self, request: &Request<Bytes>, conditional: bool) -> Result<Response<Incoming>, UpstreamError> {
        let response = self.exchange(request).await?;
        let status = response.status();
        if status.is_success() || (conditional && status == StatusCode::NOT_MODIFIED) {
            return Ok(response);
        }
        let (path, url) = (request.uri().path().to_owned(), self.url());
        Err(match status {
            StatusCode::NOT_FOUND => UpstreamError::NotFound { url, what: path, body: error_body(response).await },
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                let challenges = response.headers().get_all(header::WWW_AUTHENTICATE).iter();
                let www_authenticate = challenges.filter(|value| is_sound(value, &self.base)).cloned().collect();
                let body = error_body(response).await;
                UpstreamError::Unauthorized(Box::new(Challenge { status, www_authenticate, body }))
            }
            StatusCode::TOO_MANY_REQUESTS => {
                UpstreamError::Refused { url, retry_after: retry_after(response.headers()) }
            }
            status if status.is_server_error() => self.unreachable(&format!("{path}: {status}")),
            status => self.protocol(&path, &format!("unexpected status {status}")),
        })
    }

    async fn body(
        &self,
        request: &Request<Bytes>,
        response: Response<Incoming>,
        limit: usize,
    ) -> Result<Bytes, UpstreamError> {
        match timeout(SILENCE_MAX, Limited::new(response.into_body(), limit).collect()).await {
            Ok(Ok(body)) => Ok(body.to_bytes()),
            Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => {
                Err(self.protocol(request.uri().path(), &format!("more than {limit} bytes")))
            }
            Ok(Err(error)) => Err(self.unreachable(&chain(&*error))),
            Err(_) => Err(self.unreachable("the answer stopped half-way")),
        }
    }

    pub(super) fn unreachable(&self, error: &str) -> UpstreamError {
        UpstreamError::Unreachable { url: self.url(), error: error.to_owned() }
    }

    pub(super) fn protocol(&self, what: &str, error: &str) -> UpstreamError {
        UpstreamError::Protocol { url: self.url(), what: what.to_owned(), error: error.to_owned() }
    }
}

async fn permit(semaphore: &Arc<Semaphore>) -> OwnedSemaphorePermit {
    semaphore.clone().acquire_owned().await.expect("the semaphore is never closed")
}

async fn error_body(response: Response<Incoming>) -> Bytes {
    match timeout(SILENCE_MAX, Limited::new(response.into_body(), ERROR_BODY_MAX).collect()).await {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(_)) | Err(_) => Bytes::new(),
    }
}

/// Half of the pause is random, so that a fleet that lost its seeder does not come back in step.
async fn pause(attempt: u32) {
    let full = PAUSE * 2u32.saturating_pow(attempt - 1);
    tokio::time::sleep(full / 2 + (full / 2).mul_f32(random_share())).await;
}

/// A random number in `0.0..1.0`.
fn random_share() -> f32 {
    let mut bytes = [0; 2];
    // Without randomness the pause is merely regular.
    let _ = getrandom::fill(&mut bytes);
    f32::from(u16::from_le_bytes(bytes)) / 65_536.0
}

/// An error with its causes, which libraries keep apart.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
