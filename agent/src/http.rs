//! The registry on localhost: read-only, OCI, for the container runtimes of this node.
//!
//! **Names.** A registry name may come in the query (`?ns=ghcr.io`: containerd, Docker ≥ 28) or in the path
//! (`/v2/ghcr.io/org/app/…`: CRI-O, podman, older Docker). All map onto the one seeder. With `ns`, the repository is
//! looked for as `<ns>/<name>` first and as `<name>` if the seeder has no such; where `ns` is the seeder itself, or this
//! agent, only as `<name>`. A registry in the path is part of the name as it stands. An answer to a request with `ns`
//! carries `OCI-Namespace`. A seeder that holds repositories of its own under names of other registries' (`library/…`)
//! therefore answers for them where it does not mirror those registries.
//!
//! **Tags** are asked at the seeder each time, by a conditional HEAD that concurrent requests share; what changed is
//! pulled (`images`). While the seeder cannot be asked, the stored record answers, with a `Warning` header and for at
//! most `registry.stale_max_s`; a tag never seen here is asked from peers.
//!
//! **Manifests start their layers.** A GET of an image's manifest starts its config and layers; a HEAD starts nothing; an
//! index starts nothing, or the layers of `registry.platform`.
//!
//! **Blobs** answer at once with the length that the statement gives, then bytes as pieces verify (`blobs`). The socket
//! takes them straight from the page cache: a slow client holds [`CLIENT_BUFFERS_MAX`] buffers of ours, and its reader
//! is closed on the event that it went away.
//!
//! **Warming.** A client that sends `Shoal-Priority: low` (`shoal pull --low`) gets its blobs only where nothing else is
//! fetched: here, and at the peers that are asked.
//!
//! **Who may ask.** `Host` must be a loopback name or one of `registry.hosts`, and a request with `Origin` is refused:
//! no web page in a local browser talks to this port. Anything but GET and HEAD is answered 405 with the seeder's URL.

mod blobs;
mod context;
mod flight;
mod grants;
mod images;
pub(crate) mod manifest;
mod names;
mod prefetch;
mod respond;
#[cfg(test)]
pub(crate) mod tests;

use std::{net::IpAddr, sync::Arc, time::Duration};

use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::BodyExt;
use shoal_http::{ApiError, Peer, Reply, RequestBody, Service, body, reply};
use shoal_proto::{
    name::Repository,
    oci::{ErrorCode, Route},
};

use tokio::time::timeout;

pub use images::{ImagesParts, ResolveError};

use self::{
    images::Images,
    names::{Names, candidates},
};
use crate::upstream::{Credentials, UpstreamError};

/// How long a client that looks whether it has to log in waits for the seeder's word.
const ROOT_WAIT: Duration = Duration::from_secs(3);

/// How urgent a client's requests are.
pub const PRIORITY: HeaderName = HeaderName::from_static("shoal-priority");
/// The one priority besides the usual: it yields to all else.
pub const PRIORITY_LOW: &str = "low";
/// Buffers of ours that a client holds while it takes a blob, however slowly: none, since `sendfile` moves pages from
/// the cache to the socket.
pub const CLIENT_BUFFERS_MAX: usize = 0;

const API_VERSION: HeaderName = HeaderName::from_static("docker-distribution-api-version");
const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");
const NAMESPACE: HeaderName = HeaderName::from_static("oci-namespace");

/// The service behind the registry's port.
#[derive(Debug)]
pub struct Registry {
    images: Arc<Images>,
    hosts: Vec<String>,
    seeder: String,
}

/// What a request asks for, besides its path.
#[derive(Debug)]
struct Asked {
    method: Method,
    headers: HeaderMap,
    path_and_query: String,
    /// The repository as the seeder may know it, best guess first.
    names: Names,
    credentials: Credentials,
}

impl Asked {
    fn is_head(&self) -> bool {
        self.method == Method::HEAD
    }

    /// Whether the client wants what it asks for only where nothing else is fetched: it warms.
    fn is_low(&self) -> bool {
        self.headers.get(PRIORITY).is_some_and(|priority| priority == PRIORITY_LOW)
    }

    fn accept(&self) -> Vec<HeaderValue> {
        self.headers.get_all(header::ACCEPT).iter().cloned().collect()
    }
}

impl Registry {
    /// A registry over these parts; `hosts` are names besides the loopback ones that clients may use.
    #[must_use]
    pub fn new(parts: ImagesParts, hosts: Vec<String>) -> Self {
        let seeder = parts.upstream.url();
        Self { images: Images::new(parts), hosts, seeder }
    }

    /// Waits until what was started in the background has ended; to be called after the server has stopped.
    pub async fn drain(&self) {
        self.images.drain().await;
    }

    async fn answer(&self, request: Request<RequestBody>) -> (&'static str, Reply) {
        if let Err(refused) = self.admit(&request) {
            return ("refused", refused.into());
        }
        let route = Route::parse(request.uri().path());
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            let message = format!("this is a read-only mirror; push to the seeder at {}", self.seeder);
            // Read on, so that a client that is still sending gets to read the answer.
            body::drain(request.into_body()).await;
            let error = ApiError::new(ErrorCode::Unsupported, message)
                .status(StatusCode::METHOD_NOT_ALLOWED)
                .header(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
            return ("write", error.into());
        }
        let route = match route {
            Ok(route) => route,
            Err(error) => return ("other", ApiError::from(error).into()),
        };
        let (parts, _) = request.into_parts();
        let asked = match candidates(&parts.uri, route.repository(), &self.seeder) {
            Ok(names) => Asked {
                method: parts.method,
                path_and_query: parts.uri.path_and_query().map_or_else(|| "/".to_owned(), ToString::to_string),
                credentials: Credentials::of(&parts.headers),
                headers: parts.headers,
                names,
            },
            Err(error) => return ("other", error.into()),
        };
        let (label, result) = self.dispatch(&route, &asked).await;
        let mut reply = result.unwrap_or_else(Reply::from);
        if let Some(namespace) = asked.names.namespace() {
            reply.headers_mut().insert(NAMESPACE, namespace);
        }
        (label, reply)
    }

    async fn dispatch(&self, route: &Route, asked: &Asked) -> (&'static str, Result<Reply, ApiReply>) {
        match route {
            Route::Root => ("root", Ok(self.root(asked).await)),
            Route::Manifest(_, reference) => ("manifest", self.images.manifest(asked, reference).await),
            Route::Blob(_, digest) => ("blob", self.images.blob(asked, digest).await),
            Route::Tags(_) | Route::Referrers(..) => ("forward", self.forward(asked, true).await),
            Route::Catalog | Route::Extensions => ("forward", self.forward(asked, false).await),
            Route::Uploads(_) | Route::Upload(..) => {
                let message = format!("this is a read-only mirror; push to the seeder at {}", self.seeder);
                let error = ApiError::new(ErrorCode::Unsupported, message).status(StatusCode::METHOD_NOT_ALLOWED);
                ("write", Err(error.into()))
            }
            Route::Info
            | Route::Join
            | Route::Members
            | Route::Revocations
            | Route::Token
            | Route::Pull(..)
            | Route::Statement(..)
            | Route::Hashes(..)
            | Route::Pieces(..) => {
                let error = ApiError::new(ErrorCode::Unsupported, "this path is the seeder's");
                ("other", Err(error.status(StatusCode::NOT_FOUND).into()))
            }
        }
    }

    /// Clients look here whether they have to log in, and with what: that is for the seeder to say. While it does not answer
    /// nobody has to, and what is private is refused where it is asked for.
    async fn root(&self, asked: &Asked) -> Reply {
        if let Ok(Ok(reply)) = timeout(ROOT_WAIT, self.forward(asked, false)).await
            && reply.status() == StatusCode::UNAUTHORIZED
        {
            return reply;
        }
        let mut response = Response::new(reply::full("{}"));
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        response.into()
    }

    /// What only the seeder knows goes there and comes back as it is.
    async fn forward(&self, asked: &Asked, named: bool) -> Result<Reply, ApiReply> {
        let upstream = self.images.upstream();
        let mut last = None;
        let paths = if named { asked.names.paths(&asked.path_and_query) } else { vec![asked.path_and_query.clone()] };
        for path in paths {
            let response = upstream.forward(asked.method.clone(), &path, &asked.headers, &asked.credentials).await;
            let response = response.map_err(|error| respond::upstream(&error, ErrorCode::NameUnknown))?;
            let found = response.status() != StatusCode::NOT_FOUND;
            last = Some(response);
            if found {
                break;
            }
        }
        let response = last.expect("there is at least one name");
        let mut response = response.map(|body| body.map_err(std::io::Error::other).boxed_unsync());
        for hop in [header::CONNECTION, header::TRANSFER_ENCODING, header::DATE] {
            response.headers_mut().remove(hop);
        }
        Ok(response.into())
    }

    fn is_mine(&self, host: &str) -> bool {
        let name = names::host(host);
        let loopback = name == "localhost" || name.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
        loopback || self.hosts.iter().any(|allowed| allowed == name || allowed == host)
    }

    /// Who may ask, and only in words that nobody between could read in another way.
    fn admit(&self, request: &Request<RequestBody>) -> Result<(), ApiError> {
        let headers = request.headers();
        one_meaning(request)?;
        if headers.contains_key(header::ORIGIN) {
            return Err(ApiError::new(ErrorCode::Denied, "web pages may not talk to this port"));
        }
        let host = headers.get(header::HOST).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let target = request.uri().authority().map(http::uri::Authority::as_str);
        if self.is_mine(host) && target.is_none_or(|target| self.is_mine(target)) {
            return Ok(());
        }
        Err(ApiError::new(
            ErrorCode::Denied,
            format!("`{host}` is not a name of this mirror; use localhost, or add it to `registry.hosts`"),
        ))
    }
}

/// Refuses what is framed in a way that programs read differently: this port takes no bodies, so that whatever claims one
/// where none belongs is not taken for the next request. The connection ends with it.
fn one_meaning(request: &Request<RequestBody>) -> Result<(), ApiError> {
    let headers = request.headers();
    let bad = |message| {
        let error = ApiError::new(ErrorCode::Unsupported, message).status(StatusCode::BAD_REQUEST);
        Err(error.header(header::CONNECTION, HeaderValue::from_static("close")))
    };
    if headers.get_all(header::HOST).iter().nth(1).is_some() {
        return bad("more than one Host");
    }
    if headers.contains_key(header::TRANSFER_ENCODING) {
        return bad("this port takes no bodies");
    }
    let reads = matches!(*request.method(), Method::GET | Method::HEAD);
    if reads && headers.get(header::CONTENT_LENGTH).is_some_and(|length| length != "0") {
        return bad("a GET has no body here");
    }
    Ok(())
}

impl Service for Registry {
    async fn call(self: Arc<Self>, request: Request<RequestBody>, _peer: Peer) -> Reply {
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        let (route, mut reply) = self.answer(request).await;
        reply.headers_mut().insert(API_VERSION, HeaderValue::from_static("registry/2.0"));
        tracing::debug!(%method, path, status = reply.status().as_u16(), "request");
        self.images.metrics().request(route, reply.status().as_u16());
        reply
    }
}

/// An answer that is not what was asked for. Boxed: a response is large, and this one is rare.
#[derive(Debug)]
struct ApiReply(Box<Reply>);

impl From<ApiError> for ApiReply {
    fn from(error: ApiError) -> Self {
        Self(Box::new(error.into()))
    }
}

impl From<Response<reply::Body>> for ApiReply {
    fn from(response: Response<reply::Body>) -> Self {
        Self(Box::new(response.into()))
    }
}

impl From<ApiReply> for Reply {
    fn from(reply: ApiReply) -> Self {
        *reply.0
    }
}

/// Tries the names in turn: the first that the seeder knows answers.
async fn first_known<T, F>(names: &Names, ask: impl Fn(Repository) -> F) -> Result<T, ResolveError>
where
    F: Future<Output = Result<T, ResolveError>>,
{
    let mut last = None;
    for name in names.iter() {
        match ask(name.clone()).await {
            Err(error @ ResolveError::Upstream(UpstreamError::NotFound { .. })) => last = Some(error),
            result => return result,
        }
    }
    Err(last.expect("there is at least one name"))
}

#[cfg(test)]
pub(crate) fn tests_now() -> u64 {
    images::now()
}
