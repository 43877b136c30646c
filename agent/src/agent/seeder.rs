//! Requests to the seeder: each a task that streams pieces into the store.
//!
//! The seeder says first which pieces it gives. The loop answers with the right to write each of them, along with what
//! had come of it before; pieces that a peer is bringing meanwhile are read and dropped. At most as many tasks run as the
//! core has requests open; a request that is taken back cancels its task, and what had come is kept.

use std::{sync::Arc, time::Duration};

use shoal_proto::{Digest, api::PiecesWanted, layout::PieceIndex, name::Repository};
use shoal_transfer::{
    event::{Failure, Input},
    ids::{BlobId, RequestId},
    time::Span,
};
use tokio::{
    sync::{mpsc, oneshot},
    task::block_in_place,
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use super::{Done, Shell};
use crate::{
    history::{Source, Why},
    metrics,
    peer::{Partial, Sender},
    rate::Rate,
    store::{Blob, WriteError},
    upstream::{Credentials, PieceChunk, PieceStream, Upstream, UpstreamError},
};

/// The core is told of a piece's progress at most this often.
const PROGRESS_STEP: u64 = 256 << 10;
/// Pause before a full disk is tried again.
const DISK_FULL_PAUSE: Duration = Duration::from_secs(5);
/// How long a seeder is left alone that asks for it without saying for how long.
const BUSY_PAUSE: Duration = Duration::from_secs(1);
/// What a seeder that defers without saying for how long gets.
const DEFER_MIN: Span = Span::from_millis(10);

/// What the core asks for.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) want: Vec<u8>,
    pub(super) urgent: Option<u32>,
    pub(super) max: u16,
    pub(super) stalled: bool,
}

/// News of one request.
#[derive(Debug)]
pub(super) struct SeederNews {
    request: RequestId,
    news: News,
}

#[derive(Debug)]
enum News {
    /// These will come. `reply`: the right to write each, where this node has it.
    Gave {
        pieces: Vec<PieceIndex>,
        reply: oneshot::Sender<Vec<Option<Partial>>>,
    },
    Deferred(Span),
    Progress(u64),
    Stored {
        digest: Digest,
        piece: PieceIndex,
        bytes: u64,
    },
    Corrupt {
        digest: Digest,
        piece: PieceIndex,
        sole_sender: bool,
    },
    WriteFailed {
        digest: Digest,
        full: bool,
    },
    /// The request is over; what had come of the piece in transmission.
    Over {
        left: Option<Box<Partial>>,
        result: Result<(), Arc<UpstreamError>>,
    },
}

/// One request, as a task.
struct Task {
    request: RequestId,
    upstream: Upstream,
    repository: Repository,
    credentials: Credentials,
    blob: Arc<Blob>,
    wanted: PiecesWanted,
    done: mpsc::Sender<Done>,
    cancel: CancellationToken,
    rate: Arc<Rate>,
    /// The pieces that come, next one last, and the right to write them.
    writers: Vec<Option<Partial>>,
    told: u64,
}

impl Shell {
    /// The core asks the seeder for pieces.
    pub(super) fn ask_seeder(&mut self, request: RequestId, blob: BlobId, asked: Asked) {
        let Asked { want, urgent, max, stalled } = asked;
        let open = self.blobs.by_id(blob);
        let Some((open, repository)) = open.and_then(|open| Some((open, open.repository.clone()?))) else {
            return self.feed(Input::FetchFailed { request, failure: Failure::Unreachable });
        };
        let cancel = self.stop.child_token();
        let task = Task {
            request,
            upstream: self.upstream.clone(),
            repository,
            credentials: open.credentials.clone(),
            blob: open.blob.clone(),
            wanted: PiecesWanted { want, urgent, max, stalled },
            done: self.done.clone(),
            cancel: cancel.clone(),
            rate: self.seeder_rate.clone(),
            writers: Vec::new(),
            told: 0,
        };
        let held = self.peers.connected().any(|(_, _, state)| state.told.contains(&blob));
        let why = match (stalled, held) {
            (true, _) => Why::Stalled,
            (false, true) => Why::NotHeld,
            (false, false) => Why::NoPeers,
        };
        self.history.asked_seeder(request, task.blob.digest(), why, Instant::now());
        self.fetches.begin_seeder(request, blob, cancel);
        self.tasks.spawn(task.run());
    }

    pub(super) fn cancel_seeder_tasks(&self) {
        self.fetches.cancel_seeder();
    }

    pub(super) fn on_seeder(&mut self, news: SeederNews) {
        let SeederNews { request, news } = news;
        match news {
            News::Gave { pieces, reply } => {
                let Some(blob) = self.fetches.blob_of(request) else { return };
                let indexes: Vec<u32> = pieces.iter().map(|piece| piece.get()).collect();
                let rights = pieces.iter().map(|piece| self.claim(blob, *piece)).collect();
                self.feed(Input::SeederGave { request, pieces: indexes.into() });
                if let Err(rights) = reply.send(rights) {
                    rights.into_iter().flatten().for_each(|partial| self.keep_partial(partial));
                }
            }
            News::Deferred(retry_after) => {
                self.fetches.end(request);
                self.feed(Input::SeederDeferred { request, retry_after });
            }
            News::Progress(bytes) => self.feed(Input::Progress { request, bytes }),
            News::Stored { digest, piece, bytes } => {
                self.metrics.received(metrics::From::Seeder, bytes);
                self.metrics.came(Source::Seeder, bytes);
                self.history.from_seeder(request, &digest, bytes, Instant::now());
                self.discovery.seeder_bytes += bytes;
                self.stored(request, &digest, piece);
            }
            News::Corrupt { digest, piece, sole_sender } => {
                tracing::error!(%digest, piece = piece.get(), sole_sender, "a piece from the seeder does not have its hash");
                self.discovery.bad_pieces += 1;
                self.feed(Input::PieceCorrupt { request, piece: piece.get(), sole_sender });
                self.unpark(&(digest, piece));
            }
            News::WriteFailed { digest, full } => self.on_write_failed(request, &digest, full),
            News::Over { left, result } => self.on_seeder_over(request, left, result),
        }
    }

    fn on_seeder_over(
        &mut self,
        request: RequestId,
        left: Option<Box<Partial>>,
        result: Result<(), Arc<UpstreamError>>,
    ) {
        if let Some(partial) = left {
            self.keep_partial(*partial);
        }
        let blob = self.fetches.blob_of(request);
        let digest = blob.and_then(|blob| self.blobs.by_id(blob)).map(|open| *open.blob.digest());
        let trouble = result.as_ref().err().map(ToString::to_string);
        self.history.seeder_over(request, digest.as_ref(), trouble.as_deref(), Instant::now());
        if !self.fetches.end(request) {
            return;
        }
        match result {
            Ok(()) => self.feed(Input::SeederDone { request }),
            Err(error) => {
                if let UpstreamError::Refused { retry_after, .. } = &*error {
                    tracing::debug!(%error, "the seeder has enough to do");
                    let millis = retry_after.unwrap_or(BUSY_PAUSE).as_millis();
                    let retry_after = Span::from_millis(u64::try_from(millis).unwrap_or(u64::MAX));
                    return self.feed(Input::SeederBusy { request, retry_after });
                }
                tracing::debug!(%error, "the seeder gives no pieces");
                if let Some(open) = blob.and_then(|blob| self.blobs.arena.get_mut(blob)) {
                    open.trouble = Some(error.to_string());
                }
                self.feed(Input::FetchFailed { request, failure: Failure::Unreachable });
            }
        }
    }

    /// Asks for nothing more until there may be room again.
    pub(super) fn disk_full(&mut self) {
        if self.disk_full_until.is_none() {
            tracing::error!("the disk is full; fetching pauses");
            self.feed(Input::Disk { writable: false });
        }
        self.disk_full_until = Some(Instant::now() + DISK_FULL_PAUSE);
    }
}

impl Task {
    async fn run(mut self) {
        let cancel = self.cancel.clone();
        let result = tokio::select! {
            () = cancel.cancelled() => Ok(()),
            result = self.stream() => result,
        };
        // The piece in transmission is kept; rights to pieces that have not begun are given back by dropping them.
        let begun = |partial: &Partial| partial.written() > 0;
        let left = self.writers.drain(..).flatten().find(begun).map(Box::new);
        self.tell(News::Over { left, result: result.map_err(Arc::new) }).await;
    }

    async fn tell(&self, news: News) {
        let _ = self.done.send(Done::Seeder(SeederNews { request: self.request, news })).await;
    }

    async fn stream(&mut self) -> Result<(), UpstreamError> {
        let (digest, layout) = (*self.blob.digest(), *self.blob.layout());
        let mut stream: PieceStream =
            self.upstream.pieces(&self.repository, &digest, &layout, &self.wanted, &self.credentials).await?;
        if stream.given().is_empty() {
            let asked = Span::from_millis(u64::from(stream.retry_after_ms()));
            self.tell(News::Deferred(asked.max(DEFER_MIN))).await;
            return Ok(());
        }
        let (reply, rights) = oneshot::channel();
        self.tell(News::Gave { pieces: stream.given().to_vec(), reply }).await;
        // Without an answer the request was taken back.
        let Ok(rights) = rights.await else { return Ok(()) };
        self.writers = rights;
        self.writers.reverse();
        while let Some(chunk) = stream.next().await? {
            self.rate.turn(chunk.data.len()).await;
            if let Some(news) = self.take(&chunk) {
                self.tell(news).await;
            }
        }
        Ok(())
    }

    /// Writes a chunk of the piece in transmission.
    fn take(&mut self, chunk: &PieceChunk) -> Option<News> {
        let digest = *self.blob.digest();
        let slot = self.writers.last_mut()?;
        let mut news = None;
        if let Some(partial) = slot {
            // What had come before is not written again.
            let known = partial.written().saturating_sub(chunk.offset).min(chunk.data.len() as u64);
            let fresh = &chunk.data[usize::try_from(known).unwrap_or(chunk.data.len())..];
            match block_in_place(|| partial.write(fresh, Sender::Seeder)) {
                Ok(()) => {
                    let written = partial.written();
                    if written >= self.told + PROGRESS_STEP {
                        self.told = written;
                        news = Some(News::Progress(written));
                    }
                }
                Err(error) => {
                    tracing::error!(%error, %digest, "a piece cannot be written");
                    *slot = None;
                    news = Some(News::WriteFailed { digest, full: matches!(error, WriteError::DiskFull) });
                }
            }
        }
        if !chunk.last {
            return news;
        }
        self.told = 0;
        match self.writers.pop().flatten() {
            None => news,
            Some(partial) => Some(finish(digest, partial)),
        }
    }
}

fn finish(digest: Digest, partial: Partial) -> News {
    let (piece, bytes) = (partial.piece(), partial.written());
    let sole_sender = partial.is_only_from(Sender::Seeder);
    match block_in_place(|| partial.finish()) {
        Ok(_) => News::Stored { digest, piece, bytes },
        Err(_) => News::Corrupt { digest, piece, sole_sender },
    }
}
