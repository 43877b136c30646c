//! Request bodies: read whole under a limit, or drained so that the client gets to read an error.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;

/// Most bytes that [`drain`] reads of a body that nobody wants. A client that is still sending when the connection closes
/// may lose the error that was meant for it; past this much the bandwidth is worth more than the message.
pub const DRAIN_MAX: u64 = 16 << 20;
/// Longest time that [`drain`] takes, for the same reason.
pub const DRAIN_TIME: Duration = Duration::from_secs(5);

/// A request's body. Knows whether it was read to its end.
#[derive(Debug)]
pub struct RequestBody {
    inner: Incoming,
    ended: Arc<AtomicBool>,
    /// Longest wait for the next bytes.
    stall: Duration,
}

impl RequestBody {
    pub(crate) fn new(inner: Incoming, stall: Duration) -> (Self, Arc<AtomicBool>) {
        let ended = Arc::new(AtomicBool::new(inner.is_end_stream()));
        (Self { inner, ended: Arc::clone(&ended), stall }, ended)
    }
}

impl http_body::Body for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = std::task::ready!(Pin::new(&mut self.inner).poll_frame(cx));
        if frame.is_none() || self.inner.is_end_stream() {
            self.ended.store(true, Ordering::Relaxed);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// Why a body could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// Over the limit.
    #[error("the request's body is over the limit of {limit} bytes")]
    TooLarge {
        /// The caller's limit in bytes.
        limit: usize,
    },
    /// Nothing came for [`crate::Limits::body_stall`].
    #[error("the request's body stopped coming for {:.0?}", .0)]
    Stalled(Duration),
    /// The client went away, or its body is malformed.
    #[error("the request's body ended early: {0}")]
    Broken(#[from] hyper::Error),
}

/// The next bytes of `body`, or none at its end. Cancel-safe.
///
/// # Errors
/// The client went away or stopped sending.
pub async fn next(body: &mut RequestBody) -> Result<Option<Bytes>, ReadError> {
    loop {
        let stall = body.stall;
        let frame = tokio::time::timeout(stall, body.frame()).await.map_err(|_| ReadError::Stalled(stall))?;
        match frame {
            None => return Ok(None),
            Some(frame) => {
                if let Ok(data) = frame?.into_data() {
                    return Ok(Some(data));
                }
            }
        }
    }
}

/// Reads the whole of `body`, at most `limit` bytes. A longer one is drained, so that the client reads the error.
///
/// # Errors
/// Too long, broken off or stalled.
pub async fn collect(mut body: RequestBody, limit: usize) -> Result<Bytes, ReadError> {
    let mut whole = BytesMut::new();
    if body.size_hint().lower() > limit as u64 {
        drain(body).await;
        return Err(ReadError::TooLarge { limit });
    }
    while let Some(data) = next(&mut body).await? {
        if whole.len() + data.len() > limit {
            drain(body).await;
            return Err(ReadError::TooLarge { limit });
        }
        whole.extend_from_slice(&data);
    }
    Ok(whole.freeze())
}

/// Reads on to the end of `body` and forgets it, within [`DRAIN_MAX`] and [`DRAIN_TIME`].
pub async fn drain(mut body: RequestBody) {
    let read = async {
        let mut total = 0;
        while let Ok(Some(data)) = next(&mut body).await {
            total += data.len() as u64;
            if total > DRAIN_MAX {
                return;
            }
        }
    };
    let _out_of_time = tokio::time::timeout(DRAIN_TIME, read).await;
}
