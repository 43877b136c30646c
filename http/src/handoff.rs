//! A body that goes from a file to the socket without passing through user space.

use std::{
    fmt,
    fs::File,
    io,
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use bytes::{Bytes, BytesMut};
use futures::future::BoxFuture;
use http::{HeaderValue, Response, header};
use tokio::{io::Interest, net::TcpStream};

use crate::server::{UNSENT_MAX, limit_unsent};

/// Most bytes of one `sendfile` call. It bounds how long a thread may wait for a disk, and how late a stop is noticed.
const SENDFILE_MAX: u64 = 1 << 20;
/// Most bytes that are read ahead of the next request while a body is sent: more than one head, so that pipelining works,
/// and no more, so that a client cannot park its data here.
const READ_AHEAD_MAX: usize = 64 << 10;

/// A part of a body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Segment {
    /// These bytes: framing, or a small header of the body's own.
    Bytes(Bytes),
    /// These bytes of the file.
    File(Range<u64>),
}

impl Segment {
    /// Bytes on the wire.
    #[must_use]
    pub const fn len(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::File(range) => range.end - range.start,
        }
    }

    /// Whether nothing is sent for it.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of the file.
    #[must_use]
    pub const fn payload_len(&self) -> u64 {
        match self {
            Self::Bytes(_) => 0,
            Self::File(range) => range.end - range.start,
        }
    }
}

/// The rest of a body will never come.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the body cannot be completed: {0}")]
pub struct Abort(pub String);

/// Says how far a file may be read while it is still being written.
pub trait BodySource: Send {
    /// Waits until byte `at` may be read, and returns the end of what may be read from there on (always over `at`). Also
    /// tells the source how far the client has got: it is called with the position of the next byte to be sent. Must be
    /// cancel-safe: the future is dropped when the client goes away, and made anew otherwise.
    ///
    /// # Errors
    /// The rest never comes; the connection is closed, so that the client sees a body cut short.
    fn wait(&mut self, at: u64) -> BoxFuture<'_, Result<u64, Abort>>;
}

/// Is told of a body's bytes as they reach the socket. Dropped when the transfer ends, however it ends.
pub trait Meter: Send {
    /// The socket took so many more bytes of the file.
    fn written(&mut self, bytes: u64);
    /// The socket has taken the whole body.
    fn finished(&mut self) {}
}

impl Meter for Arc<AtomicU64> {
    fn written(&mut self, bytes: u64) {
        self.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// An answer whose body is sent by `sendfile`.
pub struct Handoff {
    /// Status and headers, `Content-Length` among them.
    pub(crate) head: Response<()>,
    pub(crate) file: Arc<File>,
    pub(crate) segments: Vec<Segment>,
    pub(crate) source: Option<Box<dyn BodySource>>,
    pub(crate) meter: Option<Box<dyn Meter>>,
    pub(crate) unsent_max: Option<u32>,
}

impl fmt::Debug for Handoff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handoff").field("head", &self.head).field("segments", &self.segments).finish_non_exhaustive()
    }
}

impl Handoff {
    /// Sends `head`, then `segments` of `file` in order. Sets `Content-Length`.
    #[must_use]
    pub fn new(mut head: Response<()>, file: Arc<File>, segments: Vec<Segment>) -> Self {
        let len: u64 = segments.iter().map(Segment::len).sum();
        head.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(len));
        Self { head, file, segments, source: None, meter: None, unsent_max: None }
    }

    /// The file is still being written: `source` says how far it may be read.
    #[must_use]
    pub fn growing(mut self, source: impl BodySource + 'static) -> Self {
        self.source = Some(Box::new(source));
        self
    }

    /// `meter` is told of the bytes that are written.
    #[must_use]
    pub fn metered(mut self, meter: impl Meter + 'static) -> Self {
        self.meter = Some(Box::new(meter));
        self
    }

    /// The kernel takes at most about so many bytes ahead of what the network takes, so that the meter tells what is on its
    /// way and not what waits on this host.
    #[must_use]
    pub const fn unsent_max(mut self, bytes: u32) -> Self {
        self.unsent_max = Some(bytes);
        self
    }

    /// Whether the body is short enough, and all there, to be sent by hyper.
    pub(crate) fn is_small(&self) -> bool {
        self.source.is_none() && self.segments.iter().map(Segment::len).sum::<u64>() <= crate::server::SMALL_BODY_MAX
    }
}

/// Why a transfer ended early. The connection is of no further use.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TransferError {
    #[error("the client went away")]
    Gone,
    #[error("the client took nothing for {} seconds", .0.as_secs())]
    Stalled(Duration),
    #[error("the file ends at byte {0}, before the body does")]
    Truncated(u64),
    #[error(transparent)]
    Abort(#[from] Abort),
    #[error(transparent)]
    Io(io::Error),
}

impl From<io::Error> for TransferError {
    fn from(error: io::Error) -> Self {
        let gone = matches!(
            error.kind(),
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionAborted
        );
        if gone { Self::Gone } else { Self::Io(error) }
    }
}

/// One transfer on one socket.
#[derive(Debug)]
pub(crate) struct Transfer<'a> {
    pub(crate) stream: &'a TcpStream,
    /// What the client sends meanwhile: its next requests.
    pub(crate) read_ahead: &'a mut BytesMut,
    /// Longest time without a byte taken by the client.
    pub(crate) stall: Duration,
}

impl Transfer<'_> {
    /// Sends head and body.
    pub(crate) async fn run(&mut self, handoff: Handoff, close: bool) -> Result<(), TransferError> {
        let Handoff { head, file, segments, mut source, mut meter, unsent_max } = handoff;
        if let Some(max) = unsent_max {
            limit_unsent(self.stream, max);
        }
        self.bytes(&head_bytes(&head, close)).await?;
        for segment in segments {
            let range = match segment {
                Segment::Bytes(bytes) => {
                    self.bytes(&bytes).await?;
                    continue;
                }
                Segment::File(range) => range,
            };
            let mut at = range.start;
            while at < range.end {
                let until = match &mut source {
                    None => range.end,
                    Some(source) => self.available(source.as_mut(), at).await?.min(range.end),
                };
                self.pages(&file, &mut at, until, meter.as_deref_mut()).await?;
            }
        }
        if let Some(meter) = &mut meter {
            meter.finished();
        }
        if unsent_max.is_some() {
            limit_unsent(self.stream, UNSENT_MAX);
        }
        Ok(())
    }

    async fn available(&mut self, source: &mut dyn BodySource, at: u64) -> Result<u64, TransferError> {
        tokio::select! {
            until = source.wait(at) => Ok(until?),
            gone = watch(self.stream, self.read_ahead) => Err(gone),
        }
    }

    async fn pages(
        &mut self,
        file: &File,
        at: &mut u64,
        until: u64,
        mut meter: Option<&mut (dyn Meter + 'static)>,
    ) -> Result<(), TransferError> {
        while *at < until {
            self.writable().await?;
            let count = usize::try_from((until - *at).min(SENDFILE_MAX)).expect("a MiB fits");
            let sent = self.stream.try_io(Interest::WRITABLE, || {
                let mut offset = *at;
                rustix::fs::sendfile(self.stream, file, Some(&mut offset), count).map_err(io::Error::from)
            });
            match sent {
                Ok(0) => return Err(TransferError::Truncated(*at)),
                Ok(sent) => {
                    *at += sent as u64;
                    if let Some(meter) = &mut meter {
                        meter.written(sent as u64);
                    }
                }
                Err(error) if retry(&error) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    async fn bytes(&mut self, mut bytes: &[u8]) -> Result<(), TransferError> {
        while !bytes.is_empty() {
            self.writable().await?;
            match self.stream.try_write(bytes) {
                Ok(sent) => bytes = &bytes[sent..],
                Err(error) if retry(&error) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Waits for room in the socket. Also gives other tasks their turn: a readiness costs a unit of tokio's budget.
    async fn writable(&mut self) -> Result<(), TransferError> {
        let wait = async {
            tokio::select! {
                biased;
                ready = self.stream.writable() => ready.map_err(TransferError::from),
                gone = watch(self.stream, self.read_ahead) => Err(gone),
            }
        };
        tokio::time::timeout(self.stall, wait).await.map_err(|_| TransferError::Stalled(self.stall))?
    }
}

fn retry(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

/// Ends when the client goes away. Keeps what it sends; once that is [`READ_AHEAD_MAX`], only a failed write tells.
async fn watch(stream: &TcpStream, read_ahead: &mut BytesMut) -> TransferError {
    loop {
        if read_ahead.len() >= READ_AHEAD_MAX {
            return std::future::pending().await;
        }
        if let Err(error) = stream.readable().await {
            return error.into();
        }
        let mut buffer = [0; 4096];
        match stream.try_read(&mut buffer) {
            Ok(0) => return TransferError::Gone,
            Ok(len) => read_ahead.extend_from_slice(&buffer[..len]),
            Err(error) if retry(&error) => {}
            Err(error) => return error.into(),
        }
    }
}

fn head_bytes(head: &Response<()>, close: bool) -> Vec<u8> {
    let status = head.status();
    let mut text = Vec::with_capacity(512);
    text.extend_from_slice(b"HTTP/1.1 ");
    text.extend_from_slice(status.as_str().as_bytes());
    text.push(b' ');
    text.extend_from_slice(status.canonical_reason().unwrap_or("").as_bytes());
    text.extend_from_slice(b"\r\n");
    for (name, value) in head.headers() {
        text.extend_from_slice(name.as_str().as_bytes());
        text.extend_from_slice(b": ");
        text.extend_from_slice(value.as_bytes());
        text.extend_from_slice(b"\r\n");
    }
    text.extend_from_slice(b"date: ");
    text.extend_from_slice(httpdate::fmt_http_date(SystemTime::now()).as_bytes());
    text.extend_from_slice(if close { b"\r\nconnection: close\r\n\r\n" } else { b"\r\n\r\n" });
    text
}
