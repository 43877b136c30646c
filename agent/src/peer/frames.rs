//! Frames off a socket: bounded, and without a copy for a piece's bytes.

use std::{io, sync::Arc};

use shoal_proto::message::{FrameError, FrameHeader, HEADER_LEN};
use tokio::io::{AsyncRead, AsyncReadExt};

use super::{
    buffers::{Buffer, Buffers},
    wire::Busy,
};

/// The reading half of a connection.
pub(super) struct Source {
    pub(super) bytes: Box<dyn AsyncRead + Send + Sync + Unpin>,
    /// To say when pieces are expected.
    pub(super) busy: Busy,
}

/// Buffer while only control frames come: hundreds of connections may be up.
const SMALL_LEN: usize = 4 << 10;
/// Data is handed on once so much of it is there, or the rest of its frame.
const CHUNK_LEN: usize = 64 << 10;

/// Why no further frame comes.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReadError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Frame(#[from] FrameError),
}

/// Reads frames. None of its futures is cancel-safe: whoever drops one drops the connection.
pub(super) struct Frames {
    source: Source,
    buffers: Arc<Buffers>,
    small: Box<[u8]>,
    /// In the place of the small one while pieces come.
    large: Option<Buffer>,
    start: usize,
    end: usize,
}

impl Frames {
    pub(super) fn new(source: Source, buffers: Arc<Buffers>) -> Self {
        Self { source, buffers, small: vec![0; SMALL_LEN].into(), large: None, start: 0, end: 0 }
    }

    /// The head of the next frame.
    pub(super) async fn header(&mut self) -> Result<FrameHeader, ReadError> {
        self.fill(HEADER_LEN).await?;
        let mut header = [0; HEADER_LEN];
        header.copy_from_slice(self.take(HEADER_LEN));
        Ok(FrameHeader::parse(header)?)
    }

    /// `len` bytes of the current frame, at most a frame's length.
    pub(super) async fn body(&mut self, len: usize) -> Result<Vec<u8>, ReadError> {
        let mut body = vec![0; len];
        let here = len.min(self.end - self.start);
        body[..here].copy_from_slice(self.take(here));
        self.source.bytes.read_exact(&mut body[here..]).await?;
        Ok(body)
    }

    /// The id at the start of a data frame's body.
    pub(super) async fn id(&mut self) -> Result<u32, ReadError> {
        self.fill(4).await?;
        let mut id = [0; 4];
        id.copy_from_slice(self.take(4));
        Ok(u32::from_le_bytes(id))
    }

    /// The next of `left` bytes of the current frame: all, or at least [`CHUNK_LEN`].
    pub(super) async fn chunk(&mut self, left: usize) -> Result<&[u8], ReadError> {
        if self.large.is_none() && left > SMALL_LEN {
            self.source.busy.set(true);
            let mut large = self.buffers.take();
            large[self.start..self.end].copy_from_slice(&self.small[self.start..self.end]);
            self.large = Some(large);
        }
        let least = left.min(CHUNK_LEN).min(self.buffer().len());
        self.fill(least).await?;
        let len = left.min(self.end - self.start);
        Ok(self.take(len))
    }

    /// Gives memory back while no piece is expected.
    pub(super) fn relax(&mut self) {
        let rest = self.end - self.start;
        if rest <= SMALL_LEN
            && let Some(large) = self.large.take()
        {
            self.small[..rest].copy_from_slice(&large[self.start..self.end]);
            (self.start, self.end) = (0, rest);
            self.source.busy.set(false);
        }
    }

    fn buffer(&mut self) -> &mut [u8] {
        self.large.as_deref_mut().unwrap_or(&mut self.small)
    }

    fn take(&mut self, len: usize) -> &[u8] {
        let at = self.start;
        self.start += len;
        &self.buffer()[at..at + len]
    }

    /// Reads until at least `least` bytes are in the buffer.
    async fn fill(&mut self, least: usize) -> Result<(), ReadError> {
        if self.end - self.start >= least {
            return Ok(());
        }
        let buffer = self.large.as_deref_mut().unwrap_or(&mut self.small);
        buffer.copy_within(self.start..self.end, 0);
        (self.start, self.end) = (0, self.end - self.start);
        while self.end < least {
            let len = self.source.bytes.read(&mut buffer[self.end..]).await?;
            if len == 0 {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
            self.end += len;
        }
        Ok(())
    }
}
