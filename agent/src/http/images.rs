//! From a reference to a manifest: the seeder first, what is stored while it is down, peers for what was never here.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use bytes::Bytes;
use futures::FutureExt;
use http::{HeaderValue, header};
use shoal_http::{
    Reply,
    reply::{Content, empty},
};
use shoal_proto::{
    Digest,
    name::{Reference, Repository, Tag},
    oci::ErrorCode,
    signed::UnixSeconds,
    tree::BlobHasher,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    ApiReply, Asked, CONTENT_DIGEST, blobs::Sent, first_known, flight::Flights, grants::Grants, manifest::Children,
    respond,
};
use crate::{
    config,
    handle::{Handle, WantError},
    metrics::{From, Metrics},
    rate::Rate,
    store::{BeginError, Blob, ImageRecord, OpenedStatement, Store, StoreError, TagRow},
    upstream::{Credentials, PulledImage, Upstream, UpstreamError},
};

/// Images that the loop was told of in this process. Over this many the memory is cleared, which costs a pull request
/// for each image that is asked for again.
const TOLD_MAX: usize = 4096;

/// What the registry is made of.
#[derive(Debug, Clone)]
pub struct ImagesParts {
    /// Where blobs are.
    pub store: Store,
    /// The seeder.
    pub upstream: Upstream,
    /// The loop.
    pub handle: Handle,
    /// Where to count.
    pub metrics: Metrics,
    /// What the file says.
    pub config: config::Registry,
    /// The cap on what clients are sent.
    pub client_rate: Arc<Rate>,
    /// Ends what runs in the background.
    pub shutdown: CancellationToken,
}

/// Resolves references; knows which blob belongs to which image.
#[derive(Debug)]
pub(super) struct Images {
    pub(super) parts: ImagesParts,
    flights: Flights<(Repository, Reference, Credentials), Result<Resolved, ResolveError>>,
    /// What the seeder lately said of clients.
    pub(super) grants: Grants,
    /// Until when the loop's capability for an image lasts.
    told: Mutex<BTreeMap<(Digest, Repository), UnixSeconds>>,
    /// In which images a blob is, in order; bounded by the store's records. A set takes a kilobyte for each blob.
    members: Mutex<BTreeMap<Digest, Vec<(Repository, Digest)>>>,
    pub(super) prefetching: Mutex<BTreeSet<Digest>>,
    pub(super) tasks: TaskTracker,
}

/// A manifest that is stored whole.
#[derive(Debug, Clone)]
pub(super) struct Resolved {
    pub(super) repository: Repository,
    pub(super) media_type: String,
    pub(super) manifest: Arc<Blob>,
    /// Statements that came with it, so that the layers need no request each.
    pub(super) statements: Arc<[OpenedStatement]>,
    /// Answered without the seeder.
    pub(super) stale: bool,
}

/// Why a reference or a blob cannot be served.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ResolveError {
    /// The seeder does not give it.
    #[error(transparent)]
    Upstream(UpstreamError),
    /// The loop does not get it.
    #[error(transparent)]
    Want(WantError),
    /// No room.
    #[error("{0}")]
    Full(String),
    /// The store fails.
    #[error("{0}")]
    Store(String),
    /// The manifest is not what it should be.
    #[error("{0}")]
    Manifest(String),
}

impl std::convert::From<UpstreamError> for ResolveError {
    fn from(error: UpstreamError) -> Self {
        Self::Upstream(error)
    }
}

impl std::convert::From<StoreError> for ResolveError {
    fn from(error: StoreError) -> Self {
        Self::Store(error.to_string())
    }
}

impl std::convert::From<WantError> for ResolveError {
    fn from(error: WantError) -> Self {
        Self::Want(error)
    }
}

impl ResolveError {
    fn is_unreachable(&self) -> bool {
        matches!(self, Self::Upstream(error) if error.is_unreachable())
    }
}

impl Images {
    pub(super) fn new(parts: ImagesParts) -> Arc<Self> {
        let images = Self {
            flights: Flights::new(),
            grants: Grants::new(),
            told: Mutex::default(),
            members: Mutex::default(),
            prefetching: Mutex::default(),
            tasks: TaskTracker::new(),
            parts,
        };
        match images.parts.store.images() {
            Ok(stored) => stored.iter().for_each(|info| images.learn(&info.record)),
            Err(error) => tracing::error!(%error, "stored images cannot be listed; they will be pulled again"),
        }
        Arc::new(images)
    }

    pub(super) const fn upstream(&self) -> &Upstream {
        &self.parts.upstream
    }

    pub(super) const fn metrics(&self) -> &Metrics {
        &self.parts.metrics
    }

    pub(super) async fn drain(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// Answers a request for a manifest.
    pub(super) async fn manifest(self: &Arc<Self>, asked: &Asked, reference: &Reference) -> Result<Reply, ApiReply> {
        let resolve = |name| self.resolve(name, reference.clone(), asked.accept(), asked.credentials.clone());
        let resolved = first_known(&asked.names, resolve).await;
        let resolved = resolved.map_err(|error| respond::resolve(&error, ErrorCode::ManifestUnknown))?;
        if !asked.is_head() {
            self.prefetch(&resolved, asked.is_low(), &asked.credentials);
        }
        let digest = HeaderValue::from_str(&resolved.manifest.digest().to_string()).expect("a digest is ASCII");
        let etag = HeaderValue::from_str(&format!("\"{}\"", resolved.manifest.digest())).expect("a digest is ASCII");
        let unchanged = asked.headers.get(header::IF_NONE_MATCH).is_some_and(|known| known == etag);
        let media_type = HeaderValue::from_str(&resolved.media_type)
            .unwrap_or_else(|_| HeaderValue::from_static("application/octet-stream"));
        let size = resolved.manifest.statement().size;
        // A manifest has no ranges: clients hash it whole.
        let mut content = Content::new(&http::HeaderMap::new(), size, &media_type, Some(&etag));
        let headers = content.headers_mut();
        headers.remove(header::ACCEPT_RANGES);
        headers.insert(CONTENT_DIGEST, digest);
        if resolved.stale {
            // 110 for caches (RFC 7234 §5.5.1), 299 for registry clients, which show it (distribution-spec, "Warnings").
            headers.append(header::WARNING, HeaderValue::from_static("110 - \"Response is Stale\""));
            let text = "299 - \"the seeder is unreachable; the tag may have moved since\"";
            headers.append(header::WARNING, HeaderValue::from_static(text));
        }
        if unchanged {
            let mut response = content.into_head().map(|_| empty());
            *response.status_mut() = http::StatusCode::NOT_MODIFIED;
            response.headers_mut().remove(header::CONTENT_LENGTH);
            return Ok(response.into());
        }
        if asked.is_head() {
            return Ok(content.into_head().into());
        }
        let sent = Sent::new(resolved.manifest.guard(), self.metrics());
        Ok(content.from_file(resolved.manifest.file().clone()).metered(sent).into())
    }

    /// The manifest of a reference; concurrent askers share the work.
    async fn resolve(
        self: &Arc<Self>,
        repository: Repository,
        reference: Reference,
        accept: Vec<HeaderValue>,
        credentials: Credentials,
    ) -> Result<Resolved, ResolveError> {
        let key = (repository.clone(), reference.clone(), credentials.clone());
        let images = self.clone();
        let flight = self.flights.join(key, || {
            async move {
                match &reference {
                    Reference::Tag(tag) => images.resolve_tag(&repository, tag, &accept, &credentials).await,
                    Reference::Digest(digest) => images.resolve_digest(&repository, digest, &credentials).await,
                }
            }
            .boxed()
        });
        flight.await
    }

    async fn resolve_tag(
        self: &Arc<Self>,
        repository: &Repository,
        tag: &Tag,
        accept: &[HeaderValue],
        credentials: &Credentials,
    ) -> Result<Resolved, ResolveError> {
        let reference = Reference::Tag(tag.clone());
        let known = self.parts.store.tag(repository, tag)?;
        let fresh = async {
            let digest = known.as_ref().map(|row| &row.image);
            let head = self.upstream().head_manifest(repository, &reference, accept, digest, credentials).await;
            self.grants.note(repository, credentials, &head, Instant::now());
            let head = head?;
            if let Some(row) = &known
                && row.image == head.digest
                && let Some(resolved) = self.whole(repository, &head.digest).await?
            {
                self.confirm(row.clone()).await?;
                return Ok(resolved);
            }
            self.pull(repository, &reference, credentials).await
        };
        match fresh.await {
            Err(error) if error.is_unreachable() => {
                self.without_seeder(repository, tag, known, credentials, error).await
            }
            result => result,
        }
    }

    async fn resolve_digest(
        self: &Arc<Self>,
        repository: &Repository,
        digest: &Digest,
        credentials: &Credentials,
    ) -> Result<Resolved, ResolveError> {
        if let Some(resolved) = self.whole(repository, digest).await? {
            return Ok(resolved);
        }
        match self.pull(repository, &Reference::Digest(*digest), credentials).await {
            Err(error) if error.is_unreachable() => match self.parts.store.image(digest, repository)? {
                Some(record) => self.recorded(record, credentials, error).await,
                None => self.of_peers(repository, &Reference::Digest(*digest), credentials, error).await,
            },
            result => result,
        }
    }

    /// The image if all of it is stored and anybody may have it: then there is nothing to ask.
    async fn whole(&self, repository: &Repository, image: &Digest) -> Result<Option<Resolved>, ResolveError> {
        let Some(record) = self.parts.store.image(image, repository)? else { return Ok(None) };
        let stored = |digest: &Digest| self.parts.store.info(digest).is_some_and(|info| info.complete);
        if !record.all().iter().all(stored) || !self.is_public(&record).await {
            return Ok(None);
        }
        Ok(self.parts.store.blob(image).map(|manifest| Resolved::stored(record, manifest, false)))
    }

    /// The seeder has confirmed a tag.
    async fn confirm(&self, mut row: TagRow) -> Result<(), ResolveError> {
        row.checked_at = now();
        let store = self.parts.store.clone();
        blocking(move || store.put_tag(&row).map_err(|error| ResolveError::Store(error.to_string()))).await
    }

    /// Asks the seeder for all that a manifest needs, and keeps it.
    pub(super) async fn pull(
        self: &Arc<Self>,
        repository: &Repository,
        reference: &Reference,
        credentials: &Credentials,
    ) -> Result<Resolved, ResolveError> {
        let pulled = self.upstream().pull(repository, reference, credentials).await;
        self.grants.note(repository, credentials, &pulled, Instant::now());
        let pulled = pulled?;
        let manifest = self.manifest_of(repository, &pulled, credentials).await?;
        self.keep(repository, pulled, manifest, credentials, false).await
    }

    /// Keeps what a pull gave, tells the loop, and remembers which blobs it brings.
    pub(super) async fn keep(
        self: &Arc<Self>,
        repository: &Repository,
        pulled: PulledImage,
        manifest: Arc<Blob>,
        credentials: &Credentials,
        stale: bool,
    ) -> Result<Resolved, ResolveError> {
        let bytes = read(&manifest).await?;
        let record = ImageRecord {
            image: pulled.digest,
            repository: repository.clone(),
            media_type: pulled.media_type.clone(),
            blobs: Children::of(&bytes).blobs.iter().map(|blob| blob.digest).collect(),
            statements: pulled.statements.iter().map(|signed| signed.envelope.clone()).collect(),
            capability: pulled.capability.clone(),
            discovery: pulled.discovery.clone(),
            bundle: pulled.bundle,
            pinned: false,
            pulled_at: now(),
        };
        let row = pulled.tag_record.as_ref().map(|(envelope, tag)| TagRow {
            repository: repository.clone(),
            tag: tag.tag.clone(),
            image: pulled.digest,
            media_type: pulled.media_type.clone(),
            record: envelope.clone(),
            version: tag.version,
            checked_at: if stale { tag.signed_at } else { now() },
            bundle: pulled.bundle,
        });
        let (store, kept) = (self.parts.store.clone(), record.clone());
        blocking(move || {
            store.put_image(kept)?;
            row.map_or(Ok(()), |row| store.put_tag(&row).map_err(|error| ResolveError::Store(error.to_string())))
        })
        .await?;
        self.learn(&record);
        self.tell(repository, &pulled, credentials).await;
        let statements = pulled.statements.into();
        Ok(Resolved { repository: repository.clone(), media_type: pulled.media_type, manifest, statements, stale })
    }

    /// The manifest's bytes: stored already, or the seeder's, or from peers.
    async fn manifest_of(
        self: &Arc<Self>,
        repository: &Repository,
        pulled: &PulledImage,
        credentials: &Credentials,
    ) -> Result<Arc<Blob>, ResolveError> {
        if let Some(blob) = self.parts.store.blob(&pulled.digest).filter(|blob| blob.is_complete()) {
            return Ok(blob);
        }
        let signed = match pulled.statement(&pulled.digest) {
            Some(signed) => signed.clone(),
            None => self.upstream().statement(repository, &pulled.digest, None, credentials).await?,
        };
        match self.upstream().manifest(repository, &pulled.digest, credentials).await {
            Ok(bytes) => {
                self.metrics().received(From::Seeder, bytes.len() as u64);
                let store = self.parts.store.clone();
                blocking(move || put(&store, &signed, &bytes)).await
            }
            Err(error) if error.is_unreachable() => {
                self.tell(repository, pulled, credentials).await;
                self.wait_for(pulled.digest, repository, signed, credentials).await
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Has the loop fetch a blob, and waits until it is there.
    pub(super) async fn wait_for(
        &self,
        image: Digest,
        repository: &Repository,
        signed: OpenedStatement,
        credentials: &Credentials,
    ) -> Result<Arc<Blob>, ResolveError> {
        let handle = &self.parts.handle;
        let blob = handle.want(image, repository.clone(), signed, false, credentials.clone()).await?;
        let _guard = blob.guard();
        let mut changed = blob.changed();
        let before = changed.borrow_and_update().failure.clone();
        loop {
            if blob.is_complete() {
                return Ok(blob);
            }
            let failure = changed.borrow_and_update().failure.clone();
            if failure != before || blob.is_gone() {
                let reason = failure.map_or_else(|| "it was removed".into(), |failure| failure.reason);
                return Err(ResolveError::Manifest(format!("{} did not arrive: {reason}", blob.digest())));
            }
            if changed.changed().await.is_err() {
                return Err(WantError::Stopped.into());
            }
        }
    }

    pub(super) fn learn(&self, record: &ImageRecord) {
        let mut members = lock(&self.members);
        for digest in record.all() {
            let (owners, owner) = (members.entry(digest).or_default(), (record.repository.clone(), record.image));
            if let Err(at) = owners.binary_search(&owner) {
                owners.reserve_exact(1);
                owners.insert(at, owner);
            }
        }
    }

    /// The image records that hold a blob, in one of the asked repositories.
    pub(super) fn images_with(&self, digest: &Digest, asked: &Asked) -> Result<Vec<ImageRecord>, ResolveError> {
        let owners = lock(&self.members).get(digest).cloned().unwrap_or_default();
        let mut records = Vec::new();
        for (repository, image) in owners.iter().filter(|(name, _)| asked.names.iter().any(|asked| asked == name)) {
            records.extend(self.parts.store.image(image, repository)?);
        }
        // A record that was removed since is forgotten here, too.
        if records.is_empty() && !owners.is_empty() && self.parts.store.info(digest).is_none() {
            lock(&self.members).remove(digest);
        }
        records.sort_by_key(|record| std::cmp::Reverse(record.pulled_at));
        Ok(records)
    }

    pub(super) fn is_told(&self, image: &Digest, repository: &Repository) -> bool {
        lock(&self.told).get(&(*image, repository.clone())).is_some_and(|until| *until > now())
    }

    pub(super) fn set_told(&self, image: Digest, repository: Repository, until: UnixSeconds) {
        let mut told = lock(&self.told);
        if told.len() >= TOLD_MAX {
            told.clear();
        }
        told.insert((image, repository), until);
    }
}

impl Resolved {
    pub(super) fn stored(record: ImageRecord, manifest: Arc<Blob>, stale: bool) -> Self {
        let (repository, media_type) = (record.repository, record.media_type);
        Self { repository, media_type, manifest, statements: Arc::default(), stale }
    }
}

/// Stores a small blob whose bytes are at hand and were checked against its digest.
fn put(store: &Store, signed: &OpenedStatement, bytes: &Bytes) -> Result<Arc<Blob>, ResolveError> {
    let mut hasher = BlobHasher::new();
    hasher.update(bytes);
    let (_, hashes) = hasher.finish().map_err(|error| ResolveError::Manifest(error.to_string()))?;
    let begun = store.begin(signed, hashes);
    let blob = begun.map_err(|error: BeginError| {
        if error.is_full() { ResolveError::Full(error.to_string()) } else { ResolveError::Store(error.to_string()) }
    })?;
    for piece in blob.layout().iter() {
        // Another request may be writing the same bytes; then it finishes them.
        let Some(mut writer) = blob.writer(piece) else { continue };
        let range = blob.layout().range(piece);
        let index = |at: u64| usize::try_from(at).expect("a manifest fits memory");
        let written = writer.write(&bytes[index(range.start)..index(range.end)]);
        written.map_err(|error| ResolveError::Store(format!("{}: {error}", blob.digest())))?;
        writer.finish().map_err(|error| ResolveError::Store(format!("{}: {error}", blob.digest())))?;
    }
    Ok(blob)
}

/// A small stored blob's bytes.
pub(super) async fn read(blob: &Arc<Blob>) -> Result<Bytes, ResolveError> {
    use std::os::unix::fs::FileExt;
    let blob = blob.clone();
    blocking(move || {
        let len = usize::try_from(blob.statement().size).unwrap_or(usize::MAX);
        if len > crate::upstream::MANIFEST_LEN_MAX {
            return Err(ResolveError::Manifest(format!("the manifest {} is too large ({len} bytes)", blob.digest())));
        }
        let mut bytes = vec![0; len];
        blob.file().read_exact_at(&mut bytes, 0).map_err(|error| ResolveError::Store(error.to_string()))?;
        Ok(bytes.into())
    })
    .await
}

/// Runs store calls that touch the disk.
pub(super) async fn blocking<T: Send + 'static>(
    run: impl FnOnce() -> Result<T, ResolveError> + Send + 'static,
) -> Result<T, ResolveError> {
    let ended = tokio::task::spawn_blocking(run).await;
    ended.unwrap_or_else(|error| Err(ResolveError::Store(format!("a task of the store ended early: {error}"))))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(super) fn now() -> UnixSeconds {
    std::time::SystemTime::now().duration_since(std::time::SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
