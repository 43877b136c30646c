//! Adding bytes to an upload.

use std::sync::Arc;

use bytes::Bytes;
use shoal_proto::oci::UploadId;
use tokio::sync::OwnedSemaphorePermit;

use super::{Inner, session::Session};
use crate::store::{Append, AppendError, Op, StoreError, Uploader};

/// Bytes that are gathered before they are hashed and written: enough that the way to a blocking thread costs nothing.
const BATCH_LEN: usize = 512 << 10;
/// Bytes that are hashed where they arrive, if they stay in memory: the way to another thread and back takes longer.
const AT_ONCE_MAX: usize = 16 << 10;
/// Bytes that are written before the disk is asked to take them, while more come in.
const SYNC_EARLY_LEN: usize = 16 << 20;
/// Bytes of all uploads together that wait to be hashed and written.
pub(super) const UNWRITTEN_MAX: usize = 16 << 20;

impl Inner {
    pub(super) fn start_append(
        self: &Arc<Self>,
        by: &Uploader,
        upload: &UploadId,
        at: Option<u64>,
    ) -> Result<Appender, AppendError> {
        let (session, claim) = self.claim(by, upload)?;
        let len = session.len()?;
        if at.is_some_and(|at| at != len) {
            return Err(AppendError::Offset { len });
        }
        Ok(Appender {
            inner: Arc::clone(self),
            upload: upload.clone(),
            session,
            claim: Arc::new(claim),
            batch: Vec::new(),
            batched: 0,
            permit: None,
            running: None,
            unsynced: 0,
            syncing: None,
        })
    }
}

type Job = tokio::task::JoinHandle<Result<(), StoreError>>;

/// Adds one request's bytes to a session: while one batch is hashed and written, the next is gathered.
#[derive(Debug)]
pub(super) struct Appender {
    inner: Arc<Inner>,
    upload: UploadId,
    session: Arc<Session>,
    claim: Arc<OwnedSemaphorePermit>,
    batch: Vec<Bytes>,
    batched: usize,
    /// The share of [`UNWRITTEN_MAX`] that the batch takes.
    permit: Option<OwnedSemaphorePermit>,
    running: Option<Job>,
    /// Bytes that were written since the disk was last asked to take them.
    unsynced: usize,
    syncing: Option<Job>,
}

impl Appender {
    /// Hands the batch to a blocking thread, once the one before is done.
    async fn flush(&mut self) -> Result<(), StoreError> {
        self.settle().await?;
        if self.batch.is_empty() {
            return Ok(());
        }
        let (batch, permit) = (std::mem::take(&mut self.batch), self.permit.take());
        let len = std::mem::take(&mut self.batched);
        if len <= AT_ONCE_MAX && self.session.stays_in_memory(len) {
            return self.inner.write(&self.upload, &self.session, &batch);
        }
        let (inner, session, claim) = (Arc::clone(&self.inner), Arc::clone(&self.session), Arc::clone(&self.claim));
        let upload = self.upload.clone();
        // The claim goes along: a client that leaves and comes back must not write between these bytes.
        self.running = Some(self.inner.jobs.spawn_blocking(move || {
            let _held = (claim, permit);
            inner.write(&upload, &session, &batch)
        }));
        self.unsynced += len;
        if self.unsynced >= SYNC_EARLY_LEN && self.syncing.as_ref().is_none_or(Job::is_finished) {
            self.sync_early().await?;
        }
        Ok(())
    }

    /// Has the disk take what was written before the batch that is being written now.
    async fn sync_early(&mut self) -> Result<(), StoreError> {
        settle(&mut self.syncing).await?;
        self.unsynced = 0;
        let (session, claim) = (Arc::clone(&self.session), Arc::clone(&self.claim));
        self.syncing = Some(self.inner.jobs.spawn_blocking(move || {
            let _held = claim;
            session.sync_early()
        }));
        Ok(())
    }

    async fn settle(&mut self) -> Result<(), StoreError> {
        settle(&mut self.running).await
    }

    async fn take(&mut self, data: Bytes) -> Result<(), StoreError> {
        // A frame of hyper is far smaller than the whole budget.
        let want = u32::try_from(data.len().min(UNWRITTEN_MAX)).expect("the budget fits");
        let permit = match Arc::clone(&self.inner.unwritten).try_acquire_many_owned(want) {
            Ok(permit) => permit,
            Err(_) => {
                // Whoever waits holds nothing, so that all others come to an end.
                self.flush().await?;
                self.settle().await?;
                let room = Arc::clone(&self.inner.unwritten).acquire_many_owned(want).await;
                room.map_err(StoreError::failed("wait for room in memory"))?
            }
        };
        match &mut self.permit {
            Some(held) => held.merge(permit),
            none => *none = Some(permit),
        }
        self.batched += data.len();
        self.batch.push(data);
        if self.batched >= BATCH_LEN { self.flush().await } else { Ok(()) }
    }
}

/// Waits for a job, if there is one.
async fn settle(job: &mut Option<Job>) -> Result<(), StoreError> {
    match job {
        None => Ok(()),
        Some(running) => {
            let done = running.await;
            *job = None;
            done.map_err(StoreError::failed("write an upload"))?
        }
    }
}

impl Append for Appender {
    fn write(&mut self, data: Bytes) -> Op<'_, ()> {
        Box::pin(self.take(data))
    }

    fn finish(mut self: Box<Self>) -> Op<'static, u64> {
        Box::pin(async move {
            self.flush().await?;
            self.settle().await?;
            settle(&mut self.syncing).await?;
            // Its state is known since the append began.
            self.session.len()
        })
    }
}
