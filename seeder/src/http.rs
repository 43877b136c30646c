//! The registry's HTTP interface: one table from route and method to handler, one gate before all of them.

use std::{
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, Instant},
};

use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, header};
use http_body_util::BodyExt as _;
use shoal_http::{
    ApiError, Body, Peer, Reply, RequestBody, Service,
    body::drain,
    handoff::Meter as _,
    reply::{Content, empty, full},
};
use shoal_proto::{
    Digest,
    oci::{ErrorCode, Route},
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::{
    access::{Access, Action},
    events::Events,
    keys::Fleet,
    kubernetes::Clusters,
    members::Members,
    metrics::{Metrics, Payload},
    pieces::Ledger,
    slots::Slots,
    store::{Sign, Store, StoreError},
    swarm::{AddressRule, Swarm},
};

mod blobs;
mod login;
mod manifests;
mod members;
mod query;
mod rates;
mod tags;
mod uploads;
mod vendor;

pub(crate) use login::Realm;
use query::Query;
use rates::Rates;

const DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");
const API_VERSION: HeaderName = HeaderName::from_static("docker-distribution-api-version");
const OCTETS: HeaderValue = HeaderValue::from_static("application/octet-stream");
const JSON: HeaderValue = HeaderValue::from_static("application/json");
/// What a client that is turned away for load is told to wait.
const BUSY_WAIT: Duration = Duration::from_secs(1);

/// What the registry serves from.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) members: Arc<Members>,
    pub(crate) clusters: Clusters,
    pub(crate) access: Access,
    pub(crate) realm: Realm,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) addresses: AddressRule,
    /// Bodies from files that are sent at once; clients beyond are told to come again.
    pub(crate) transfers_max: usize,
    /// Piece requests that are served at once; further ones queue, so that the first pieces are out early and can be
    /// traded.
    pub(crate) piece_slots: usize,
    /// Requests a second of one client; 0 for no limit.
    pub(crate) requests_per_s: u32,
}

impl std::fmt::Debug for dyn Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Store")
    }
}

/// The registry.
#[derive(Debug)]
pub(crate) struct Registry {
    store: Arc<dyn Store>,
    fleet: Arc<Fleet>,
    members: Arc<Members>,
    clusters: Clusters,
    access: Access,
    realm: Realm,
    events: Events,
    metrics: Arc<Metrics>,
    addresses: AddressRule,
    rates: Rates,
    transfers: Arc<Semaphore>,
    piece_slots: Arc<Slots>,
    /// Manifests that are read from clients at once.
    manifest_bodies: Semaphore,
    ledger: Arc<Mutex<Ledger>>,
    swarm: Mutex<Swarm>,
    capabilities: Mutex<vendor::Capabilities>,
}

/// A request as the handlers see it.
#[derive(Debug)]
struct Asked {
    method: Method,
    /// The name by which the client reached this registry, as it says.
    host: Option<String>,
    path: String,
    headers: HeaderMap,
    query: Query,
    peer: Peer,
}

impl Asked {
    fn is_head(&self) -> bool {
        self.method == Method::HEAD
    }

    fn header(&self, name: HeaderName) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// Whether the client has the content of `etag` already.
    fn has(&self, etag: &HeaderValue) -> bool {
        let etag = etag.as_bytes();
        self.headers.get_all(header::IF_NONE_MATCH).iter().any(|value| {
            value
                .as_bytes()
                .split(|byte| *byte == b',')
                .map(<[u8]>::trim_ascii)
                .any(|known| known == b"*" || known.strip_prefix(b"W/").unwrap_or(known) == etag)
        })
    }
}

type Answer = Result<Reply, ApiError>;

impl Registry {
    pub(crate) fn new(parts: Parts) -> Self {
        let Parts {
            store,
            members,
            clusters,
            access,
            realm,
            metrics,
            addresses,
            transfers_max,
            piece_slots,
            requests_per_s,
        } = parts;
        Self {
            store,
            fleet: Arc::clone(members.fleet()),
            members,
            clusters,
            access,
            realm,
            events: Events::new(Arc::clone(&metrics)),
            metrics,
            addresses,
            rates: Rates::new(requests_per_s),
            transfers: Arc::new(Semaphore::new(transfers_max)),
            piece_slots: Slots::new(piece_slots),
            manifest_bodies: Semaphore::new(manifests::BODIES_MAX),
            ledger: Arc::default(),
            swarm: Mutex::default(),
            capabilities: Mutex::default(),
        }
    }

    fn swarm(&self) -> MutexGuard<'_, Swarm> {
        self.swarm.lock().expect("nobody panics while holding the swarm")
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().expect("nobody panics while holding the ledger")
    }

    fn sign(&self) -> Sign {
        let fleet = Arc::clone(&self.fleet);
        Arc::new(move |statement| fleet.sign(statement))
    }

    /// Leave to send a body from a file.
    fn transfer(&self) -> Result<OwnedSemaphorePermit, ApiError> {
        Arc::clone(&self.transfers).try_acquire_owned().map_err(|_| busy("too many downloads are running"))
    }

    async fn answer(&self, route: Route, asked: Asked, body: RequestBody) -> Answer {
        let Some(action) = action(&route, &asked.method) else {
            drain(body).await;
            return Err(ApiError::method(allowed(&route)));
        };
        let subject = self.access.subject(&asked.headers);
        if let Err(denied) = self.access.authorise(&subject, route.repository(), action) {
            drain(body).await;
            return Err(self.challenged(denied, &asked, route.repository(), action));
        }
        self.dispatch(route, asked, body).await
    }

    async fn dispatch(&self, route: Route, asked: Asked, body: RequestBody) -> Answer {
        let get = matches!(asked.method, Method::GET | Method::HEAD);
        match (route, &asked.method) {
            (Route::Root, _) => Ok(json(&serde_json::json!({}))),
            (Route::Extensions, _) => Ok(json(&vendor::extensions())),
            (Route::Catalog, _) => self.catalog(&asked).await,
            (Route::Tags(name), _) => self.list_tags(&name, &asked).await,
            (Route::Referrers(name, digest), _) => self.list_referrers(&name, digest, &asked).await,
            (Route::Manifest(name, reference), _) if get => self.get_manifest(&name, &reference, &asked).await,
            (Route::Manifest(name, reference), &Method::PUT) => self.put_manifest(&name, reference, &asked, body).await,
            (Route::Manifest(name, reference), _) => self.delete_manifest(&name, &reference).await,
            (Route::Blob(name, digest), _) if get => self.get_blob(&name, digest, &asked).await,
            (Route::Blob(name, digest), _) => self.delete_blob(&name, digest).await,
            (Route::Uploads(name), _) => self.begin_upload(&name, &asked, body).await,
            (Route::Upload(name, id), _) if get => self.upload_status(&name, &id, &asked).await,
            (Route::Upload(name, id), &Method::PATCH) => self.append_upload(&name, &id, &asked, body).await,
            (Route::Upload(name, id), &Method::PUT) => self.finish_upload(&name, &id, &asked, body).await,
            (Route::Upload(name, id), _) => self.cancel_upload(&name, &id, &asked).await,
            (Route::Info, _) => Ok(self.info()),
            (Route::Join, _) => self.join(body).await,
            (Route::Members, _) => self.meet(&asked, body).await,
            (Route::Revocations, _) => Ok(self.revocations()),
            (Route::Token, _) => self.token(&asked),
            (Route::Pull(name, reference), _) => self.pull(&name, &reference, &asked, body).await,
            (Route::Statement(name, digest), _) => self.statement(&name, digest).await,
            (Route::Hashes(name, digest), _) => self.hashes(&name, digest).await,
            (Route::Pieces(name, digest), _) => self.pieces(&name, digest, &asked, body).await,
        }
    }
}

/// What a method does at a route; none where the two do not go together.
fn action(route: &Route, method: &Method) -> Option<Action> {
    let get = matches!(*method, Method::GET | Method::HEAD);
    let post = *method == Method::POST;
    let delete = *method == Method::DELETE;
    match route {
        Route::Root => get.then_some(Action::Login),
        Route::Extensions | Route::Info | Route::Revocations | Route::Token => get.then_some(Action::Greet),
        Route::Catalog => get.then_some(Action::Catalog),
        Route::Tags(_) | Route::Referrers(..) | Route::Statement(..) | Route::Hashes(..) => get.then_some(Action::Pull),
        Route::Pull(..) | Route::Pieces(..) => post.then_some(Action::Pull),
        Route::Manifest(..) | Route::Blob(..) if get => Some(Action::Pull),
        Route::Manifest(..) | Route::Blob(..) if delete => Some(Action::Delete),
        Route::Manifest(..) => (*method == Method::PUT).then_some(Action::Push),
        Route::Blob(..) => None,
        Route::Uploads(_) => post.then_some(Action::Push),
        Route::Upload(..) => (get || delete || matches!(*method, Method::PUT | Method::PATCH)).then_some(Action::Push),
        Route::Join | Route::Members => post.then_some(Action::Join),
    }
}

const fn label(route: &Route) -> &'static str {
    match route {
        Route::Root => "root",
        Route::Catalog => "catalog",
        Route::Tags(_) => "tags",
        Route::Manifest(..) => "manifest",
        Route::Blob(..) => "blob",
        Route::Uploads(_) => "uploads",
        Route::Upload(..) => "upload",
        Route::Referrers(..) => "referrers",
        Route::Extensions => "extensions",
        Route::Info => "info",
        Route::Join => "join",
        Route::Members => "members",
        Route::Revocations => "revocations",
        Route::Token => "token",
        Route::Pull(..) => "pull",
        Route::Statement(..) => "statement",
        Route::Hashes(..) => "hashes",
        Route::Pieces(..) => "pieces",
    }
}

const fn allowed(route: &Route) -> &'static str {
    match route {
        Route::Root
        | Route::Catalog
        | Route::Tags(_)
        | Route::Referrers(..)
        | Route::Extensions
        | Route::Info
        | Route::Revocations
        | Route::Token
        | Route::Statement(..)
        | Route::Hashes(..) => "GET, HEAD",
        Route::Manifest(..) => "GET, HEAD, PUT, DELETE",
        Route::Blob(..) => "GET, HEAD, DELETE",
        Route::Upload(..) => "GET, HEAD, PATCH, PUT, DELETE",
        Route::Uploads(_) | Route::Join | Route::Members | Route::Pull(..) | Route::Pieces(..) => "POST",
    }
}

impl Service for Registry {
    async fn call(self: Arc<Self>, request: Request<RequestBody>, peer: Peer) -> Reply {
        let (parts, body) = request.into_parts();
        let method = method_label(&parts.method);
        let (label, answer) = match Route::parse(parts.uri.path()) {
            Ok(route) if let Err(wait) = self.rates.pass(peer.remote.ip(), Instant::now()) => {
                drain(body).await;
                let error = ApiError::new(ErrorCode::TooManyRequests, "this client asks too often");
                (label(&route), Err(error.retry_after(wait)))
            }
            Ok(route) => {
                let asked = asked(parts.method, parts.headers, &parts.uri, peer);
                (label(&route), self.answer(route, asked, body).await)
            }
            Err(error) => {
                drain(body).await;
                ("none", Err(error.into()))
            }
        };
        let mut reply = answer.unwrap_or_else(|error| {
            if error.http_status().is_server_error() {
                tracing::error!(path = parts.uri.path(), peer = %peer.remote, %error, "a request failed");
            }
            error.into()
        });
        reply.headers_mut().insert(API_VERSION, HeaderValue::from_static("registry/2.0"));
        self.metrics.request(label, method, reply.status());
        reply
    }
}

fn asked(method: Method, headers: HeaderMap, uri: &Uri, peer: Peer) -> Asked {
    let query = Query::read(uri.query().unwrap_or_default());
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    let host = host.or_else(|| uri.authority().map(|host| host.as_str())).map(str::to_owned);
    Asked { method, host, path: uri.path().to_owned(), headers, query, peer }
}

/// Few words for the metrics, whatever clients send.
fn method_label(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::PATCH => "PATCH",
        Method::DELETE => "DELETE",
        _ => "other",
    }
}

impl Registry {
    /// Answers with content in memory, counted as it goes out.
    fn send_memory(&self, kind: Payload, content: Content, bytes: &bytes::Bytes) -> Reply {
        let mut meter = self.metrics.meter(kind, None);
        let payload = content.payload_len();
        let mut told = false;
        let response = content.from_memory(bytes).map(|body| {
            body.map_frame(move |frame| {
                // The body is one frame.
                if !std::mem::replace(&mut told, true) {
                    meter.written(payload);
                }
                frame
            })
            .boxed_unsync()
        });
        response.into()
    }
}

fn busy(what: &str) -> ApiError {
    ApiError::new(ErrorCode::TooManyRequests, format!("{what}; try again")).retry_after(BUSY_WAIT)
}

/// A failed store as the client gets it. The cause is logged with the request.
fn store_failed(error: &StoreError) -> ApiError {
    match error {
        StoreError::Full => ApiError::internal(error.to_string()).status(StatusCode::INSUFFICIENT_STORAGE),
        StoreError::Quota(exceeded) => {
            ApiError::new(ErrorCode::Denied, exceeded.to_string()).detail(serde_json::json!(exceeded))
        }
        StoreError::Failed { what, error } => {
            tracing::error!(what, %error, "the store failed");
            ApiError::internal("the store failed; the seeder's log says why")
        }
    }
}

fn json(value: &serde_json::Value) -> Reply {
    let mut response = Response::new(full(value.to_string()));
    response.headers_mut().insert(header::CONTENT_TYPE, JSON);
    response.into()
}

/// An answer without a body.
fn bare(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(empty());
    *response.status_mut() = status;
    if status != StatusCode::NO_CONTENT && status != StatusCode::NOT_MODIFIED {
        response.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(0));
    }
    response
}

/// A header value of text that this program has made or parsed: names, digests, numbers.
fn value(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).expect("names, digests and numbers are visible ASCII")
}

fn etag(digest: &Digest) -> HeaderValue {
    value(&format!("\"{digest}\""))
}

fn unknown_blob(digest: &Digest) -> ApiError {
    ApiError::new(ErrorCode::BlobUnknown, "this repository does not hold that blob")
        .detail(serde_json::json!({ "digest": digest }))
}
