//! The client of the seeder: manifests, statements, membership, introductions, and the pieces that nobody nearby holds.
//!
//! One [`Upstream`] serves the whole agent; clones share connections. It speaks HTTP/1.1 over kept-alive connections,
//! at most [`REQUESTS_MAX`] small requests and [`PIECE_STREAMS_MAX`] piece streams at once; the rest wait. A request
//! that could not be delivered, or met a 502, 503 or 504, is tried [`ATTEMPTS`] times with a jittered pause; a stream
//! that breaks is not: the pieces that came are kept and the caller asks for the others.
//!
//! **Trust.** What the seeder signs is opened against the key set that the pinned root key has signed ([`trust`]); what
//! it does not sign is checked against what it does: piece hashes against the statement's root, a manifest's bytes
//! against its digest. A wrong answer is [`UpstreamError::Protocol`], never a panic.
//!
//! **Who this node is** to the seeder is set once the ports are bound ([`Upstream::set_self`]); the membership is kept
//! here, so that every pull shows the newest.

mod challenge;
mod client;
pub mod connect;
mod error;
mod join;
mod pieces;
mod pull;
#[cfg(test)]
mod tests;
pub mod trust;

use std::{
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, header};
use hyper::body::Incoming;
use shoal_proto::{
    Digest,
    api::Info,
    codec,
    envelope::{ENVELOPE_LEN_MAX, Envelope, EnvelopeError, Payload},
    layout::Layout,
    member::CALLER_HEADER,
    message::PeerInfo,
    name::{Reference, Repository},
    signed::Statement,
    tree::PieceHashes,
};
use tokio::sync::{Notify, watch};

pub use error::{Challenge, UpstreamError};
pub use join::Member;
pub use pieces::{PieceChunk, PieceStream};
pub use pull::PulledImage;

use self::{client::Client, connect::Tls, trust::Trust};
use crate::{config::JoinBy, store::OpenedStatement};

/// Small requests under way at once. A node pulls a few images at a time; 16 keeps a burst of HEADs from queueing
/// behind one slow answer and the seeder from a thousand nodes with a hundred connections each.
pub const REQUESTS_MAX: usize = 16;
/// Piece streams under way at once: enough to hide the round trip; the seeder decides what each carries.
pub const PIECE_STREAMS_MAX: usize = 8;
/// How often a request is tried.
pub const ATTEMPTS: u32 = 3;
/// Time to connect.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Time from the request to the head of the answer: a seeder that pulls through may have to ask its own upstream.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);
/// Longest silence within a body.
pub const SILENCE_MAX: Duration = Duration::from_secs(20);
/// Largest manifest in bytes, as the distribution-spec bids registries to accept.
pub const MANIFEST_LEN_MAX: usize = 4 << 20;

/// A client's `Authorization` header, passed on as it came; or none. Never shown.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct Credentials(Option<HeaderValue>);

impl Credentials {
    /// No credentials.
    #[must_use]
    pub const fn none() -> Self {
        Self(None)
    }

    /// Those of a request.
    #[must_use]
    pub fn of(headers: &HeaderMap) -> Self {
        Self(headers.get(header::AUTHORIZATION).cloned().map(|mut value| {
            value.set_sensitive(true);
            value
        }))
    }

    /// As they came; empty for none.
    pub(crate) fn as_bytes(&self) -> &[u8] {
        self.0.as_ref().map_or(&[], HeaderValue::as_bytes)
    }

    /// Whether there are none.
    #[must_use]
    pub const fn is_none(&self) -> bool {
        self.0.is_none()
    }
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.is_none() { "Credentials(none)" } else { "Credentials(hidden)" })
    }
}

/// How the seeder is reached.
#[derive(Debug, Clone)]
pub struct UpstreamConfig {
    /// `http://host:port` or `https://host:port`, without a path.
    pub seeder: Uri,
    /// Whether to pin the seeder's key at the first contact, without a join token.
    pub insecure_open: bool,
    /// By what the node joins.
    pub join_by: JoinBy,
    /// The root key that the seeder must show; a join token's goes before it.
    pub fleet_key: Option<[u8; 32]>,
    /// How TLS is spoken to it; a seeder at `https://` needs it.
    pub tls: Option<Tls>,
}

/// The client of the seeder. Clones share connections, keys and membership.
#[derive(Debug, Clone)]
pub struct Upstream {
    client: Client,
    trust: Arc<Trust>,
    join_by: Arc<JoinBy>,
    me: Arc<RwLock<Option<PeerInfo>>>,
    member: Arc<watch::Sender<Option<Arc<Member>>>>,
    refused: Arc<Notify>,
}

/// A manifest as the seeder has it now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManifestHead {
    /// Its digest.
    pub digest: Digest,
    /// Its media type; empty if the seeder answered 304, "as you know it".
    pub media_type: String,
    /// Its length in bytes, where it was told.
    pub size: Option<u64>,
}

impl Upstream {
    /// A client that trusts what is in `trust`. Opens no connection.
    #[must_use]
    pub fn new(config: &UpstreamConfig, trust: Trust) -> Self {
        Self {
            client: Client::new(&config.seeder, config.tls.clone()),
            trust: Arc::new(trust),
            join_by: Arc::new(config.join_by.clone()),
            me: Arc::default(),
            member: Arc::new(watch::Sender::new(None)),
            refused: Arc::default(),
        }
    }

    /// The seeder's URL, for messages.
    #[must_use]
    pub fn url(&self) -> String {
        self.client.url()
    }

    /// The keys that the fleet's root has signed.
    #[must_use]
    pub const fn trust(&self) -> &Arc<Trust> {
        &self.trust
    }

    /// How other nodes reach this one: shown at every pull from now on.
    pub fn set_self(&self, me: PeerInfo) {
        *self.me.write().unwrap_or_else(PoisonError::into_inner) = Some(me);
    }

    /// A request in which this node says who it is, if it is a member yet.
    fn call(&self, path: &str, credentials: &Credentials, body: Bytes) -> Request<Bytes> {
        let caller = self.member.borrow().as_ref().map(|member| member.caller(self.trust.root(), path, &body));
        let mut request = self.client.request_with(Method::POST, path, credentials, body);
        if let Some(caller) = caller {
            let value = HeaderValue::from_str(&caller.to_header()).expect("base64 is ASCII");
            request.headers_mut().insert(CALLER_HEADER, value);
        }
        request
    }

    /// Who the seeder is, asked anew.
    ///
    /// # Errors
    /// The seeder is out of reach, or answers nonsense.
    pub async fn info(&self) -> Result<Info, UpstreamError> {
        self.client.info().await
    }

    /// Opens what the fleet has signed. A key that is not known makes the key set be fetched again, not more than once
    /// in [`trust::REFRESH_MIN`].
    ///
    /// # Errors
    /// Another type, an unknown key, a bad signature.
    pub async fn open<T: Payload>(&self, envelope: &Envelope) -> Result<T, EnvelopeError> {
        match envelope.open(&*self.trust.keys()) {
            Err(EnvelopeError::Key { .. }) if self.trust.may_refresh() => {
                if let Ok(info) = self.client.info().await
                    && let Err(error) = self.trust.accept(&info)
                {
                    tracing::error!(%error, "the seeder shows another key than the pinned one");
                }
                envelope.open(&*self.trust.keys())
            }
            result => result,
        }
    }

    /// What a reference points to now. `known` makes it conditional: the same digest is answered by a bare 304.
    ///
    /// # Errors
    /// As all requests; a reference that does not exist is [`UpstreamError::NotFound`].
    pub async fn head_manifest(
        &self,
        repository: &Repository,
        reference: &Reference,
        accept: &[HeaderValue],
        known: Option<&Digest>,
        credentials: &Credentials,
    ) -> Result<ManifestHead, UpstreamError> {
        let path = format!("/v2/{repository}/manifests/{reference}");
        let mut request = self.client.request(Method::HEAD, &path, credentials);
        add_accept(&mut request, accept);
        if let Some(digest) = known
            && let Ok(etag) = HeaderValue::from_str(&format!("\"{digest}\""))
        {
            request.headers_mut().insert(header::IF_NONE_MATCH, etag);
        }
        let response = self.client.send(&request, known.is_some()).await?;
        if let (StatusCode::NOT_MODIFIED, Some(digest)) = (response.status(), known) {
            return Ok(ManifestHead { digest: *digest, media_type: String::new(), size: None });
        }
        let text = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok());
        let digest = text("docker-content-digest").and_then(|text| text.parse().ok());
        let digest = digest.ok_or_else(|| self.client.protocol(&path, "it gives no Docker-Content-Digest"))?;
        let media_type = text("content-type").unwrap_or_default().to_owned();
        Ok(ManifestHead { digest, media_type, size: text("content-length").and_then(|text| text.parse().ok()) })
    }

    /// The bytes of a manifest, checked against its digest.
    ///
    /// # Errors
    /// As all requests; other bytes than asked for are [`UpstreamError::Protocol`].
    pub async fn manifest(
        &self,
        repository: &Repository,
        digest: &Digest,
        credentials: &Credentials,
    ) -> Result<Bytes, UpstreamError> {
        let path = format!("/v2/{repository}/manifests/{digest}");
        let mut request = self.client.request(Method::GET, &path, credentials);
        request.headers_mut().insert(header::ACCEPT, HeaderValue::from_static("*/*"));
        let bytes = self.client.fetch(&request, MANIFEST_LEN_MAX).await?;
        if Digest::of_with(digest.algorithm(), &bytes) == *digest {
            Ok(bytes)
        } else {
            Err(self.client.protocol(&path, "the bytes do not have the digest"))
        }
    }

    /// The statement of a digest, of `size` bytes where the size is known; opened and checked.
    ///
    /// # Errors
    /// As all requests; a false statement is [`UpstreamError::Protocol`].
    pub async fn statement(
        &self,
        repository: &Repository,
        digest: &Digest,
        size: Option<u64>,
        credentials: &Credentials,
    ) -> Result<OpenedStatement, UpstreamError> {
        let path = format!("/v2/{repository}/_shoal/statement/{digest}");
        let request = self.client.request(Method::GET, &path, credentials);
        let bytes = self.client.fetch(&request, ENVELOPE_LEN_MAX).await?;
        let envelope = codec::decode::<Envelope, ENVELOPE_LEN_MAX>(&bytes)
            .map_err(|error| self.client.protocol(&path, &error.to_string()))?;
        self.open_statement(&envelope, digest, size).await.map_err(|error| self.client.protocol(&path, &error))
    }

    /// Opens a statement and checks it against what was asked.
    pub(crate) async fn open_statement(
        &self,
        envelope: &Envelope,
        digest: &Digest,
        size: Option<u64>,
    ) -> Result<OpenedStatement, String> {
        let statement: Statement = self.open(envelope).await.map_err(|error| error.to_string())?;
        statement.check(digest, size).map_err(|error| error.to_string())?;
        Ok(OpenedStatement { envelope: envelope.clone(), statement })
    }

    /// The piece hashes of a blob, checked against its statement's root. A blob of at most one piece needs no request.
    ///
    /// # Errors
    /// As all requests; hashes that do not lead to the root are [`UpstreamError::Protocol`].
    pub async fn hashes(
        &self,
        repository: &Repository,
        statement: &Statement,
        credentials: &Credentials,
    ) -> Result<PieceHashes, UpstreamError> {
        let path = format!("/v2/{repository}/_shoal/hashes/{}", statement.digest);
        let layout = Layout::new(statement.size).map_err(|error| self.client.protocol(&path, &error.to_string()))?;
        let hashes = if layout.pieces() <= 1 {
            vec![statement.root; layout.pieces() as usize]
        } else {
            let request = self.client.request(Method::GET, &path, credentials);
            let bytes = self.client.fetch(&request, layout.pieces() as usize * 32).await?;
            let (hashes, rest) = bytes.as_chunks::<32>();
            if !rest.is_empty() {
                return Err(self.client.protocol(&path, "the piece hashes are cut off"));
            }
            hashes.to_vec()
        };
        PieceHashes::check(layout, hashes, &statement.root)
            .map_err(|error| self.client.protocol(&path, &error.to_string()))
    }

    /// Passes a request of a client on, with the headers that bear on the answer: what the agent does not know itself
    /// (tag lists, referrers, blobs of no known image). One attempt; any status is a success.
    ///
    /// # Errors
    /// The seeder is out of reach.
    pub async fn forward(
        &self,
        method: Method,
        path_and_query: &str,
        headers: &HeaderMap,
        credentials: &Credentials,
    ) -> Result<Response<Incoming>, UpstreamError> {
        let mut request = self.client.request(method, path_and_query, credentials);
        for name in [header::ACCEPT, header::RANGE, header::IF_RANGE, header::IF_NONE_MATCH] {
            for value in headers.get_all(&name) {
                request.headers_mut().append(&name, value.clone());
            }
        }
        self.client.send_once(&request).await
    }
}

fn add_accept(request: &mut Request<Bytes>, accept: &[HeaderValue]) {
    for value in accept {
        request.headers_mut().append(header::ACCEPT, value.clone());
    }
}
