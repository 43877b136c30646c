//! Frames off a socket: bounded, and without a copy for a piece's bytes.

use std::io;

use shoal_proto::message::{FrameError, FrameHeader, HEADER_LEN};
use tokio::io::{AsyncRead, AsyncReadExt};

/// The reading half of a connection.
pub(super) type Source = Box<dyn AsyncRead + Send + Sync + Unpin>;

/// Buffer while only control frames come: hundreds of connections may be up.
const SMALL_LEN: usize = 4 << 10;
/// Buffer while pieces come. BLAKE3 and pwrite are at their best from 64 KiB on.
const LARGE_LEN: usize = 128 << 10;
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
    buffer: Vec<u8>,
    start: usize,
    end: usize,
}

impl Frames {
    pub(super) fn new(source: Source) -> Self {
        Self { source, buffer: vec![0; SMALL_LEN], start: 0, end: 0 }
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
        self.source.read_exact(&mut body[here..]).await?;
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
        if self.buffer.len() < LARGE_LEN && left > SMALL_LEN {
            self.buffer.resize(LARGE_LEN, 0);
        }
        self.fill(left.min(CHUNK_LEN).min(self.buffer.len())).await?;
        let len = left.min(self.end - self.start);
        Ok(self.take(len))
    }

    /// Gives memory back while no piece is expected.
    pub(super) fn relax(&mut self) {
        if self.buffer.len() > SMALL_LEN && self.end - self.start <= SMALL_LEN {
            let rest = self.take(self.end - self.start).to_vec();
            self.buffer = vec![0; SMALL_LEN];
            self.buffer[..rest.len()].copy_from_slice(&rest);
            (self.start, self.end) = (0, rest.len());
        }
    }

    fn take(&mut self, len: usize) -> &[u8] {
        let at = self.start;
        self.start += len;
        &self.buffer[at..at + len]
    }

    /// Reads until at least `least` bytes are in the buffer.
    async fn fill(&mut self, least: usize) -> Result<(), ReadError> {
        if self.end - self.start >= least {
            return Ok(());
        }
        self.buffer.copy_within(self.start..self.end, 0);
        (self.start, self.end) = (0, self.end - self.start);
        while self.end < least {
            let len = self.source.read(&mut self.buffer[self.end..]).await?;
            if len == 0 {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
            self.end += len;
        }
        Ok(())
    }
}
