//! Stand-ins for tests: a seeder that speaks the vendor routes from memory, and a loop that fetches from it alone.

use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use ed25519_dalek::SigningKey;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use shoal_http::{ApiError, Limits, Peer, Reply, RequestBody, Service, body, reply};
use shoal_proto::{
    Digest, PROTOCOL,
    api::{Discovery, Info, Join, Joined, Meet, Met, PiecesGiven, PiecesWanted, Pull, Pulled, REQUEST_LEN_MAX},
    codec,
    envelope::Envelope,
    have::HaveSet,
    merkle::MerkleTree,
    message::{Bundle, PeerInfo},
    name::{Reference, Repository},
    oci::{ErrorCode, Route},
    signed::{
        Capability, Covered, DiscoveryKey, KeySet, Labels, Membership, NodeId, Purpose, RevocationList, Statement,
        Subject, TagRecord, Version,
    },
    tree::{BlobHasher, PieceHashes},
};
use tokio::{net::TcpListener, task::JoinSet};
use tokio_util::sync::CancellationToken;

use crate::store::OpenedStatement;

mod bad_peer;
mod stage;

pub(crate) use bad_peer::{BadPeer, Manner, Wire};
pub(crate) use stage::{Stage, upstream_config};

pub(crate) const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";

/// Bytes that differ along the blob and between blobs.
pub(crate) fn content(seed: u8, len: usize) -> Bytes {
    (0..len).map(|i| u8::try_from((i / 3 + i / 4096 * 7 + usize::from(seed) * 31) % 253).unwrap()).collect()
}

/// What a seeder does with requests for pieces, instead of answering them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// This status.
    Status(StatusCode),
    /// 429, with `Retry-After` in seconds.
    Busy(u32),
    /// No word, for as long as the client waits.
    Hang,
    /// Half of the pieces' bytes.
    Truncate,
    /// Pieces that were not asked for.
    Others,
}

/// A seeder in memory.
#[derive(Debug)]
pub(crate) struct FakeSeeder {
    pub(crate) root: SigningKey,
    key: SigningKey,
    pub(crate) open: AtomicBool,
    /// Answers 503 to everything.
    pub(crate) down: AtomicBool,
    /// Answers 503 to so many requests yet.
    pub(crate) failing: AtomicU32,
    /// Clients must show this `Authorization`, if any.
    pub(crate) password: Mutex<Option<String>>,
    /// What a client hears that does not show it.
    pub(crate) challenge: Mutex<String>,
    pub(crate) blobs: Mutex<BTreeMap<Digest, Bytes>>,
    tags: Mutex<HashMap<(Repository, Reference), Digest>>,
    pub(crate) counter: AtomicU32,
    /// `METHOD path`, in order.
    pub(crate) log: Mutex<Vec<String>>,
    /// What is done with so many requests for pieces yet.
    pub(crate) fault: Mutex<Option<(Fault, u32)>>,
    /// Flips a bit in every piece.
    pub(crate) lying: AtomicBool,
    pub(crate) introductions: Mutex<Vec<PeerInfo>>,
    /// What the agents of a test would tell one another.
    pub(crate) bundles: Mutex<BTreeMap<DiscoveryKey, Arc<Bundle>>>,
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl FakeSeeder {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            root: SigningKey::from_bytes(&[1; 32]),
            key: SigningKey::from_bytes(&[2; 32]),
            open: AtomicBool::new(true),
            down: AtomicBool::new(false),
            failing: AtomicU32::new(0),
            password: Mutex::default(),
            challenge: Mutex::new("Basic realm=\"seeder\"".into()),
            blobs: Mutex::default(),
            tags: Mutex::default(),
            counter: AtomicU32::new(1),
            log: Mutex::default(),
            fault: Mutex::default(),
            lying: AtomicBool::new(false),
            introductions: Mutex::default(),
            bundles: Mutex::default(),
        })
    }

    /// Serves on a port of its own until the token is cancelled.
    pub(crate) async fn serve(self: &Arc<Self>, tasks: &mut JoinSet<()>, stop: &CancellationToken) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (service, stop) = (self.clone(), stop.clone());
        tasks.spawn(async move {
            shoal_http::serve(vec![listener], service, Limits::default(), stop.cancelled_owned()).await;
        });
        address
    }

    pub(crate) fn put_blob(&self, data: &Bytes) -> Digest {
        let digest = Digest::of(data);
        lock(&self.blobs).insert(digest, data.clone());
        digest
    }

    /// Pushes an image with these layers (and an empty JSON config); gives the manifest's digest.
    pub(crate) fn push(&self, repository: &str, tag: &str, layers: &[Bytes]) -> Digest {
        let config = Bytes::from_static(b"{}");
        let describe =
            |data: &Bytes| serde_json::json!({ "mediaType": "x", "digest": self.put_blob(data), "size": data.len() });
        let manifest = serde_json::json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "config": describe(&config),
            "layers": layers.iter().map(describe).collect::<Vec<_>>(),
        });
        self.push_manifest(repository, tag, &Bytes::from(manifest.to_string()))
    }

    pub(crate) fn push_manifest(&self, repository: &str, tag: &str, manifest: &Bytes) -> Digest {
        let digest = self.put_blob(manifest);
        let repository: Repository = repository.parse().unwrap();
        self.counter.fetch_add(1, Ordering::Relaxed);
        let mut tags = lock(&self.tags);
        tags.insert((repository.clone(), tag.parse().unwrap()), digest);
        tags.insert((repository, Reference::Digest(digest)), digest);
        digest
    }

    pub(crate) fn requests(&self) -> Vec<String> {
        std::mem::take(&mut *lock(&self.log))
    }

    pub(crate) fn key_set(&self) -> Envelope {
        let public = self.key.verifying_key().to_bytes();
        let purposes = [Purpose::Statement, Purpose::Member, Purpose::Capability, Purpose::Tag, Purpose::Revocation];
        let keys = KeySet {
            version: Version { epoch: 0, counter: 1 },
            keys: purposes.into_iter().map(|purpose| (purpose, public)).collect(),
        };
        Envelope::sign(&keys, &self.root)
    }

    pub(crate) fn describe(&self, digest: &Digest) -> Option<(OpenedStatement, PieceHashes, Bytes)> {
        let data = lock(&self.blobs).get(digest)?.clone();
        let mut hasher = BlobHasher::new();
        hasher.update(&data);
        let (root, hashes) = hasher.finish().unwrap();
        let statement = Statement { digest: *digest, size: data.len() as u64, root };
        Some((OpenedStatement { envelope: Envelope::sign(&statement, &self.key), statement }, hashes, data))
    }

    fn pulled(&self, repository: &Repository, reference: &Reference) -> Option<Pulled> {
        let digest = *lock(&self.tags).get(&(repository.clone(), reference.clone()))?;
        let manifest = lock(&self.blobs).get(&digest)?.clone();
        let value: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
        let layers = value["layers"].as_array().cloned().unwrap_or_default();
        let children = layers.iter().chain([&value["config"]]);
        let mut digests: Vec<Digest> = children.filter_map(|child| child["digest"].as_str()?.parse().ok()).collect();
        digests.push(digest);
        let public = lock(&self.password).is_none();
        let now = crate::http::tests_now();
        let capability = Capability {
            subject: if public { Subject::AnyMember } else { Subject::Node(NodeId([9; 32])) },
            covered: Covered::List(digests.clone()),
            discovery: [3; 32],
            not_before: now - 60,
            not_after: now + 3600,
        };
        let record = |tag: &shoal_proto::name::Tag| TagRecord {
            repository: repository.clone(),
            tag: tag.clone(),
            digest: Some(digest),
            media_type: MANIFEST_TYPE.into(),
            version: Version { epoch: 0, counter: u64::from(self.counter.load(Ordering::Relaxed)) },
            signed_at: now,
            public,
        };
        Some(Pulled {
            digest,
            media_type: MANIFEST_TYPE.into(),
            tag_record: match reference {
                Reference::Tag(tag) => Some(Envelope::sign(&record(tag), &self.key)),
                Reference::Digest(_) => None,
            },
            statements: digests.iter().filter_map(|digest| Some(self.describe(digest)?.0.envelope)).collect(),
            capability: Envelope::sign(&capability, &self.key),
            discovery: digests.iter().map(|&digest| Discovery { digest, key: [4; 32], region: [5; 32] }).collect(),
            bundle: public.then_some([6; 32]),
            candidates: vec![],
            introductions: lock(&self.introductions).clone(),
        })
    }

    async fn answer(&self, request: Request<RequestBody>) -> Result<Reply, ApiError> {
        let (parts, body) = request.into_parts();
        let route = Route::parse(parts.uri.path())?;
        let unknown = |code| ApiError::new(code, "not here");
        if let (Some(password), Some(_)) = (&*lock(&self.password), route.repository()) {
            let shown = parts.headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
            if shown != Some(password) {
                let challenge = lock(&self.challenge).clone().parse::<HeaderValue>().unwrap();
                return Err(unknown(ErrorCode::Unauthorized).header(header::WWW_AUTHENTICATE, challenge));
            }
        }
        match route {
            Route::Info => {
                let (root, open) = (self.root.verifying_key().to_bytes(), self.open.load(Ordering::Relaxed));
                Ok(encoded(&Info { protocol: PROTOCOL, root, keys: self.key_set(), open }))
            }
            Route::Join => Ok(self.join(&decoded(body).await?)),
            Route::Members => {
                decoded::<Meet>(body).await.map(|_| encoded(&Met { introductions: lock(&self.introductions).clone() }))
            }
            Route::Pull(repository, reference) => {
                let _: Pull = decoded(body).await?;
                self.pulled(&repository, &reference)
                    .map(|pulled| encoded(&pulled))
                    .ok_or_else(|| unknown(ErrorCode::ManifestUnknown))
            }
            Route::Manifest(repository, reference) => {
                let digest = lock(&self.tags).get(&(repository, reference)).copied();
                let digest = digest.ok_or_else(|| unknown(ErrorCode::ManifestUnknown))?;
                Ok(self.manifest(&parts, &digest))
            }
            Route::Statement(_, digest) => {
                let found = self.describe(&digest).ok_or_else(|| unknown(ErrorCode::BlobUnknown))?;
                Ok(encoded(&found.0.envelope))
            }
            Route::Hashes(_, digest) => {
                let found = self.describe(&digest).ok_or_else(|| unknown(ErrorCode::BlobUnknown))?;
                Ok(Response::new(reply::full(found.1.as_slice().as_flattened().to_vec())).into())
            }
            Route::Pieces(_, digest) => self.pieces_asked(&digest, body).await,
            Route::Blob(_, digest) => {
                let data = lock(&self.blobs).get(&digest).cloned().ok_or_else(|| unknown(ErrorCode::BlobUnknown))?;
                let content = reply::Content::new(
                    &parts.headers,
                    data.len() as u64,
                    &HeaderValue::from_static("application/octet-stream"),
                    None,
                );
                Ok(content.from_memory(&data).into())
            }
            Route::Tags(name) => {
                let known = lock(&self.tags).keys().any(|(of, _)| *of == name);
                let found = Response::new(reply::full(format!("{{\"name\":\"{name}\",\"tags\":[\"seeder\"]}}")));
                if known { Ok(found.into()) } else { Err(unknown(ErrorCode::NameUnknown)) }
            }
            Route::Root
            | Route::Catalog
            | Route::Uploads(_)
            | Route::Upload(..)
            | Route::Referrers(..)
            | Route::Extensions
            | Route::Revocations
            | Route::Token => Err(unknown(ErrorCode::Unsupported)),
        }
    }

    fn join(&self, join: &Join) -> Reply {
        encoded(&Joined { membership: self.membership(join.node, &join.labels), revocations: None })
    }

    /// The serial of a node's memberships.
    pub(crate) fn serial(node: &NodeId) -> u64 {
        u64::from_le_bytes(node.0[..8].try_into().unwrap())
    }

    /// A signed revocation list.
    pub(crate) fn revocations(&self, counter: u64, nodes: &[NodeId]) -> Envelope {
        let mut serials: Vec<u64> = nodes.iter().map(Self::serial).collect();
        serials.sort_unstable();
        Envelope::sign(&RevocationList { version: Version { epoch: 0, counter }, serials }, &self.key)
    }

    /// The key set at a later version.
    pub(crate) fn key_set_at(&self, counter: u64) -> Envelope {
        let mut keys = self.key_set().open::<KeySet>(&self.root.verifying_key()).unwrap();
        keys.version.counter = counter;
        Envelope::sign(&keys, &self.root)
    }

    pub(crate) fn membership(&self, node: NodeId, labels: &Labels) -> Envelope {
        let now = crate::http::tests_now();
        let labels = labels.clone();
        let serial = Self::serial(&node);
        let membership = Membership { node, labels, not_before: now - 60, not_after: now + 3600, serial };
        Envelope::sign(&membership, &self.key)
    }

    /// A capability for any member.
    pub(crate) fn capability(&self, digests: &[Digest]) -> Envelope {
        self.capability_for(Subject::AnyMember, Covered::List(digests.to_vec()))
    }

    /// A capability for one node.
    pub(crate) fn capability_of(&self, node: NodeId, digests: &[Digest]) -> Envelope {
        self.capability_for(Subject::Node(node), Covered::List(digests.to_vec()))
    }

    /// The same by Merkle root.
    pub(crate) fn capability_under(&self, tree: &MerkleTree) -> Envelope {
        self.capability_for(
            Subject::AnyMember,
            Covered::Root { root: tree.root(), leaves: u32::try_from(tree.leaves()).unwrap() },
        )
    }

    fn capability_for(&self, subject: Subject, covered: Covered) -> Envelope {
        let now = crate::http::tests_now();
        let (not_before, not_after) = (now - 60, now + 3600);
        Envelope::sign(&Capability { subject, covered, discovery: [3; 32], not_before, not_after }, &self.key)
    }

    fn manifest(&self, parts: &http::request::Parts, digest: &Digest) -> Reply {
        let data = lock(&self.blobs)[digest].clone();
        let etag = format!("\"{digest}\"");
        let known = parts.headers.get(header::IF_NONE_MATCH).is_some_and(|known| known.as_bytes() == etag.as_bytes());
        let head = parts.method == Method::HEAD;
        let mut response = Response::new(if known || head { reply::empty() } else { reply::full(data.clone()) });
        if known {
            *response.status_mut() = StatusCode::NOT_MODIFIED;
        } else {
            response.headers_mut().insert(header::CONTENT_LENGTH, data.len().into());
        }
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(MANIFEST_TYPE));
        let digest = HeaderValue::from_str(&digest.to_string()).unwrap();
        response.headers_mut().insert("docker-content-digest", digest);
        response.into()
    }

    async fn pieces_asked(&self, digest: &Digest, body: RequestBody) -> Result<Reply, ApiError> {
        let wanted: PiecesWanted = decoded(body).await?;
        let fault = self.next_fault();
        match fault {
            Some(Fault::Status(status)) => return Err(ApiError::internal("a fault").status(status)),
            Some(Fault::Busy(after)) => {
                let busy = ApiError::new(ErrorCode::TooManyRequests, "a fault");
                return Err(busy.retry_after(Duration::from_secs(u64::from(after))));
            }
            Some(Fault::Hang) => std::future::pending::<()>().await,
            Some(Fault::Truncate | Fault::Others) | None => {}
        }
        let found = self.describe(digest).ok_or_else(|| ApiError::new(ErrorCode::BlobUnknown, "not here"))?;
        Ok(self.pieces(&wanted, &found.1, &found.2, fault))
    }

    fn next_fault(&self) -> Option<Fault> {
        let mut fault = lock(&self.fault);
        let (what, left) = fault.as_mut()?;
        let what = *what;
        *left -= 1;
        if *left == 0 {
            *fault = None;
        }
        Some(what)
    }

    fn pieces(&self, wanted: &PiecesWanted, hashes: &PieceHashes, data: &Bytes, fault: Option<Fault>) -> Reply {
        let layout = hashes.layout();
        let want = HaveSet::from_bytes(layout, &wanted.want).unwrap();
        let others = layout.iter().filter(|piece| fault == Some(Fault::Others) && !want.contains(*piece));
        let pieces: Vec<_> = others.chain(want.iter()).take(usize::from(wanted.max)).collect();
        let given = PiecesGiven { pieces: pieces.iter().map(|piece| piece.get()).collect(), retry_after_ms: 50 };
        let head = codec::encode(&given);
        let mut body = u32::try_from(head.len()).unwrap().to_le_bytes().to_vec();
        body.extend_from_slice(&head);
        for piece in pieces {
            let range = layout.range(piece);
            let start = body.len();
            body.extend_from_slice(&data[usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap()]);
            if self.lying.load(Ordering::Relaxed) {
                body[start] ^= 1;
            }
        }
        if fault == Some(Fault::Truncate) {
            body.truncate(body.len() / 2);
        }
        Response::new(reply::full(body)).into()
    }
}

fn encoded<T: bincode::Encode>(value: &T) -> Reply {
    Response::new(reply::full(codec::encode(value))).into()
}

async fn decoded<T: bincode::Decode<()>>(body: RequestBody) -> Result<T, ApiError> {
    let bytes = body::collect(body, REQUEST_LEN_MAX).await?;
    Ok(codec::decode::<T, REQUEST_LEN_MAX>(&bytes).unwrap())
}

impl Service for FakeSeeder {
    async fn call(self: Arc<Self>, request: Request<RequestBody>, _peer: Peer) -> Reply {
        lock(&self.log).push(format!("{} {}", request.method(), request.uri()));
        let failing =
            self.failing.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok();
        if self.down.load(Ordering::Relaxed) || failing {
            return ApiError::internal("down").status(StatusCode::SERVICE_UNAVAILABLE).into();
        }
        self.answer(request).await.unwrap_or_else(Reply::from)
    }
}
