//! Blobs: from the store, while they arrive, or, where no image is known that holds them, straight from the seeder.

use std::{ops::Range, sync::Arc, time::Instant};

use futures::{FutureExt, future::BoxFuture};
use http::{HeaderValue, StatusCode, header};
use http_body_util::BodyExt;
use prometheus_client::metrics::counter::Counter;
use shoal_http::{
    Handoff, Reply,
    handoff::{Abort, BodySource, Meter},
    reply::{Content, empty},
};
use shoal_proto::{
    Digest,
    name::Reference,
    oci::ErrorCode,
    range::{Selection, select},
    signed::Statement,
};
use tokio::sync::watch;

use super::{
    ApiReply, Asked, CONTENT_DIGEST,
    images::{Images, ResolveError},
    respond,
};
use crate::{
    handle::Reader,
    metrics::{EARLY_PIECES_MIN, Metrics},
    rate::Rate,
    store::{Blob, Failure, ImageRecord, InUse, OpenedStatement, Progress},
    upstream::UpstreamError,
};

impl Images {
    /// Answers a request for a blob.
    pub(super) async fn blob(self: &Arc<Self>, asked: &Asked, digest: &Digest) -> Result<Reply, ApiReply> {
        let failed = |error: ResolveError| respond::resolve(&error, ErrorCode::BlobUnknown);
        let records = self.images_with(digest, asked).map_err(failed)?;
        let Some(record) = records.first() else { return self.straight(asked).await };
        if !self.is_public(record).await {
            self.let_in(record, digest, asked)
                .await
                .map_err(|error| respond::upstream(&error, ErrorCode::BlobUnknown))?;
        }
        match self.parts.store.blob(digest).filter(|blob| blob.is_complete()) {
            Some(blob) => Ok(self.stored(asked, &blob)),
            None => self.while_it_arrives(asked, digest, record).await.map_err(failed),
        }
    }

    /// Whether the client may read a private blob. The seeder decides, and its answer stands for a little while: who may not
    /// read the statement may not read the blob. Without the seeder nobody may who was not let in lately.
    async fn let_in(&self, record: &ImageRecord, digest: &Digest, asked: &Asked) -> Result<(), UpstreamError> {
        let (repository, credentials) = (&record.repository, &asked.credentials);
        if let Some(answer) = self.grants.fresh(repository, credentials, Instant::now()) {
            return answer;
        }
        let answer = self.upstream().statement(repository, digest, None, credentials).await.map(|_| ());
        self.grants.note(repository, credentials, &answer, Instant::now());
        match answer {
            Err(error) if error.is_unreachable() && self.goes_on(repository, credentials) => Ok(()),
            answer => answer,
        }
    }

    fn stored(&self, asked: &Asked, blob: &Arc<Blob>) -> Reply {
        let guard = blob.guard();
        let Some(content) = content(asked, blob.statement()) else { return not_modified(blob.digest()) };
        if asked.is_head() {
            return content.into_head().into();
        }
        let handoff: Handoff = content.from_file(blob.file().clone());
        let (rate, size) = (self.parts.client_rate.clone(), blob.statement().size);
        let handoff = if rate.is_capped() { handoff.growing(Paced { inner: None, size, rate }) } else { handoff };
        handoff.metered(Sent::new(guard, self.metrics())).into()
    }

    async fn while_it_arrives(
        self: &Arc<Self>,
        asked: &Asked,
        digest: &Digest,
        record: &ImageRecord,
    ) -> Result<Reply, ResolveError> {
        let signed = self.statement_of(asked, digest, record).await?;
        let Some(content) = content(asked, &signed.statement) else { return Ok(not_modified(digest)) };
        if asked.is_head() || content.payload_len() == 0 {
            return Ok(content.into_head().into());
        }
        if !self.is_told(&record.image, &record.repository) {
            let reference = Reference::Digest(record.image);
            match self.pull(&record.repository, &reference, &asked.credentials).await {
                Ok(_) => {}
                Err(ResolveError::Upstream(error)) if error.is_unreachable() => {
                    let pulled = self.remembered(record, None).await?;
                    self.tell(&record.repository, &pulled, &asked.credentials).await;
                }
                Err(error) => return Err(error),
            }
        }
        let handle = &self.parts.handle;
        let (repository, credentials) = (record.repository.clone(), asked.credentials.clone());
        let blob = handle.want(record.image, repository, signed, asked.is_low(), credentials).await?;
        let guard = blob.guard();
        let range = span(asked, blob.statement().size);
        let range_starts = range.start == 0;
        // Who warms is no reader: what it waits for is not urgent.
        let reader = (!asked.is_low()).then(|| handle.reader(*digest, range));
        let arriving = Arriving::new(guard, reader);
        let handoff: Handoff = content.from_file(blob.file().clone());
        let early = range_starts && blob.layout().pieces() >= EARLY_PIECES_MIN && blob.have().is_empty();
        let mut sent = Sent::new(blob.guard(), self.metrics());
        sent.first_byte = early.then(|| self.metrics().clone());
        let (rate, size) = (self.parts.client_rate.clone(), blob.statement().size);
        let handoff = match rate.is_capped() {
            true => handoff.growing(Paced { inner: Some(arriving), size, rate }),
            false => handoff.growing(arriving),
        };
        Ok(handoff.metered(sent).into())
    }

    async fn statement_of(
        &self,
        asked: &Asked,
        digest: &Digest,
        record: &ImageRecord,
    ) -> Result<OpenedStatement, ResolveError> {
        if let Some(blob) = self.parts.store.blob(digest) {
            return Ok(blob.signed().clone());
        }
        for envelope in &record.statements {
            if let Ok(signed) = self.upstream().open_statement(envelope, digest, None).await {
                return Ok(signed);
            }
        }
        Ok(self.upstream().statement(&record.repository, digest, None, &asked.credentials).await?)
    }

    /// The plain way: whoever asks for a blob of no image that was pulled here gets the seeder's answer.
    async fn straight(&self, asked: &Asked) -> Result<Reply, ApiReply> {
        let mut answer = None;
        for path in asked.names.paths(&asked.path_and_query) {
            match self.upstream().forward(asked.method.clone(), &path, &asked.headers, &asked.credentials).await {
                Ok(response) if response.status() == StatusCode::NOT_FOUND => answer = Some(Ok(response)),
                other => {
                    answer = Some(other);
                    break;
                }
            }
        }
        let response = answer.expect("there is at least one name");
        let response = response.map_err(|error| respond::upstream(&error, ErrorCode::BlobUnknown))?;
        let mut response = response.map(|body| body.map_err(std::io::Error::other).boxed_unsync());
        for hop in [header::CONNECTION, header::TRANSFER_ENCODING, header::DATE] {
            response.headers_mut().remove(hop);
        }
        Ok(response.into())
    }
}

/// Status, headers and ranges; `None` where the client has it already.
fn content(asked: &Asked, statement: &Statement) -> Option<Content> {
    let etag = etag(&statement.digest);
    if asked.headers.get(header::IF_NONE_MATCH).is_some_and(|known| *known == etag) {
        return None;
    }
    let octets = HeaderValue::from_static("application/octet-stream");
    let mut content = Content::new(&asked.headers, statement.size, &octets, Some(&etag));
    let digest = HeaderValue::from_str(&statement.digest.to_string()).expect("a digest is ASCII");
    content.headers_mut().insert(CONTENT_DIGEST, digest);
    Some(content)
}

/// The first to the last byte that the client wants.
fn span(asked: &Asked, size: u64) -> Range<u64> {
    let header = asked.headers.get(header::RANGE).and_then(|value| value.to_str().ok());
    match select(header, size) {
        Selection::Parts(parts) => {
            let start = parts.iter().map(|part| part.start).min().unwrap_or(0);
            start..parts.iter().map(|part| part.end).max().unwrap_or(size)
        }
        Selection::Whole | Selection::Unsatisfiable => 0..size,
    }
}

fn etag(digest: &Digest) -> HeaderValue {
    HeaderValue::from_str(&format!("\"{digest}\"")).expect("a digest is ASCII")
}

fn not_modified(digest: &Digest) -> Reply {
    let mut response = http::Response::new(empty());
    *response.status_mut() = StatusCode::NOT_MODIFIED;
    response.headers_mut().insert(header::ETAG, etag(digest));
    response.into()
}

/// Tells a transfer how far the blob may be read, and the loop how far the client is. Dropped with the transfer: that
/// closes the reader, whatever the reason.
#[derive(Debug)]
struct Arriving {
    guard: InUse,
    reader: Option<Reader>,
    changed: watch::Receiver<Progress>,
    failed_before: Option<Failure>,
}

impl Arriving {
    fn new(guard: InUse, reader: Option<Reader>) -> Self {
        let mut changed = guard.blob().changed();
        let failed_before = changed.borrow_and_update().failure.clone();
        Self { guard, reader, changed, failed_before }
    }

    async fn until(&mut self, at: u64) -> Result<u64, Abort> {
        if let Some(reader) = &self.reader {
            reader.moved(at);
        }
        let digest = *self.guard.blob().digest();
        loop {
            // Marked as seen before the look, so that no change falls between the two.
            let (gone, failure) = {
                let progress = self.changed.borrow_and_update();
                (progress.gone, progress.failure.clone())
            };
            let until = self.guard.blob().verified_until(at);
            if until > at {
                return Ok(until);
            }
            if gone {
                return Err(Abort(format!("{digest} was removed")));
            }
            if let Some(failure) = failure.filter(|failure| Some(failure) != self.failed_before.as_ref()) {
                return Err(Abort(format!("{digest} cannot be fetched: {}", failure.reason)));
            }
            if self.changed.changed().await.is_err() {
                return Err(Abort("the agent is shutting down".into()));
            }
        }
    }
}

impl BodySource for Arriving {
    fn wait(&mut self, at: u64) -> BoxFuture<'_, Result<u64, Abort>> {
        self.until(at).boxed()
    }
}

/// Bytes of a body that are let through at once under a cap: short turns, so that several clients share it evenly.
const PACED_LEN: u64 = 128 << 10;

/// A body under the cap on what clients are sent.
#[derive(Debug)]
struct Paced {
    /// Where the blob is not whole yet.
    inner: Option<Arriving>,
    size: u64,
    rate: Arc<Rate>,
}

impl BodySource for Paced {
    fn wait(&mut self, at: u64) -> BoxFuture<'_, Result<u64, Abort>> {
        async move {
            let until = match &mut self.inner {
                Some(inner) => inner.until(at).await?,
                None => self.size,
            };
            let until = until.min(at + PACED_LEN);
            self.rate.turn(usize::try_from(until - at).unwrap_or(usize::MAX)).await;
            Ok(until)
        }
        .boxed()
    }
}

/// Counts what a client took, and keeps the blob while it takes.
#[derive(Debug)]
pub(super) struct Sent {
    guard: InUse,
    counter: Counter,
    /// Where to tell how much was stored when the first byte went, if that is of interest.
    first_byte: Option<Metrics>,
}

impl Sent {
    pub(super) fn new(guard: InUse, metrics: &Metrics) -> Self {
        Self { guard, counter: metrics.sent_to_clients(), first_byte: None }
    }
}

impl Meter for Sent {
    fn written(&mut self, bytes: u64) {
        self.counter.inc_by(bytes);
        if let Some(metrics) = self.first_byte.take() {
            let have = self.guard.blob().have();
            metrics.first_byte(have.len(), have.pieces());
        }
    }
}
