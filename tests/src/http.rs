//! A small HTTP client: plain OCI requests to a registry on loopback.

use anyhow::{Context, Result, ensure};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use futures::Stream;
use http_body_util::{BodyExt, Full, Limited, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    HeaderMap, Method, Request, Response, StatusCode,
    body::{Frame, Incoming},
    header,
};
use hyper_util::{
    client::legacy::{self, connect::HttpConnector},
    rt::TokioExecutor,
};

/// Largest reply that is collected in memory, in bytes: manifests (4 MiB), status pages, and the blobs of tests that look at
/// all their bytes at once. Larger blobs are streamed.
const REPLY_LEN_MAX: usize = 32 << 20;

/// The body of a request.
pub type Body = UnsyncBoxBody<Bytes, std::io::Error>;

/// A body that is at hand.
#[must_use]
pub fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

/// A body that is made while it is sent.
pub fn streamed(chunks: impl Stream<Item = std::io::Result<Bytes>> + Send + 'static) -> Body {
    StreamBody::new(futures::StreamExt::map(chunks, |chunk| chunk.map(Frame::data))).boxed_unsync()
}

/// Speaks to one server. Clones share its connections.
#[derive(Debug, Clone)]
pub struct Client {
    inner: legacy::Client<HttpConnector, Body>,
    authority: String,
    authorization: Option<String>,
}

/// A reply that was read to its end.
#[derive(Debug, Clone)]
pub struct Reply {
    /// The status.
    pub status: StatusCode,
    /// The headers.
    pub headers: HeaderMap,
    /// The whole body.
    pub body: Bytes,
}

impl Reply {
    /// A header's value as text; empty where there is none.
    #[must_use]
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    /// The body as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The code of the first error in an OCI error body; empty where the body is none.
    #[must_use]
    pub fn error_code(&self) -> String {
        let body: serde_json::Value = serde_json::from_slice(&self.body).unwrap_or_default();
        body["errors"][0]["code"].as_str().unwrap_or_default().to_owned()
    }
}

impl Client {
    /// A client of the server at `authority` (`127.0.0.1:5000`).
    #[must_use]
    pub fn new(authority: impl Into<String>) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        let inner = legacy::Client::builder(TokioExecutor::new()).build(connector);
        Self { inner, authority: authority.into(), authorization: None }
    }

    /// The same client, with a user's name and password on every request.
    #[must_use]
    pub fn user(mut self, name: &str, password: &str) -> Self {
        let shown = STANDARD.encode(format!("{name}:{password}"));
        self.authorization = Some(format!("Basic {shown}"));
        self
    }

    /// The server's address.
    #[must_use]
    pub fn authority(&self) -> &str {
        &self.authority
    }

    /// Sends a request; `target` is a path with its query, or a whole URL (a `Location`). The reply's body is not read.
    ///
    /// # Errors
    /// The request cannot be made, or no reply comes.
    pub async fn send(
        &self,
        method: Method,
        target: &str,
        headers: &[(&str, &str)],
        body: Body,
    ) -> Result<Response<Incoming>> {
        let uri =
            if target.starts_with('/') { format!("http://{}{target}", self.authority) } else { target.to_owned() };
        let mut request = Request::builder().method(method.clone()).uri(&uri);
        if let Some(authorization) = &self.authorization {
            request = request.header(header::AUTHORIZATION, authorization);
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(body).with_context(|| format!("{method} {uri}"))?;
        self.inner.request(request).await.with_context(|| format!("{method} {uri}"))
    }

    /// Sends a request without a body and reads the whole reply.
    ///
    /// # Errors
    /// As [`Client::send`]; the reply is too long or breaks off.
    pub async fn fetch(&self, method: Method, target: &str, headers: &[(&str, &str)]) -> Result<Reply> {
        let response = self.send(method, target, headers, full(Bytes::new())).await?;
        collect(response).await.with_context(|| format!("the reply to {target}"))
    }

    /// `GET` that must succeed with 200.
    ///
    /// # Errors
    /// As [`Client::fetch`]; another status.
    pub async fn get(&self, target: &str) -> Result<Reply> {
        let reply = self.fetch(Method::GET, target, &[]).await?;
        ensure!(reply.status == StatusCode::OK, "GET {target}: {} {}", reply.status, reply.text());
        Ok(reply)
    }
}

/// Reads a reply to its end.
///
/// # Errors
/// It is too long, or breaks off.
pub async fn collect(response: Response<Incoming>) -> Result<Reply> {
    let (parts, body) = response.into_parts();
    let body = Limited::new(body, REPLY_LEN_MAX).collect().await.map_err(anyhow::Error::from_boxed)?.to_bytes();
    Ok(Reply { status: parts.status, headers: parts.headers, body })
}

/// The `Location` of a reply.
///
/// # Errors
/// There is none.
pub fn location(headers: &HeaderMap) -> Result<String> {
    let value = headers.get(header::LOCATION).context("the reply has no Location")?;
    Ok(value.to_str().context("Location is not text")?.to_owned())
}
