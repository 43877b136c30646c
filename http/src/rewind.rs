//! The socket as hyper sees it: bytes that were read before come first, and it is known when hyper has flushed.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
};

use bytes::{Buf as _, Bytes};
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::rt::TokioIo;

#[derive(Debug)]
pub(crate) struct Rewind<T> {
    prefix: Bytes,
    io: TokioIo<T>,
    flushed: Arc<AtomicBool>,
}

impl<T> Rewind<T> {
    /// `flushed` is set whenever hyper has written all that it buffered.
    pub(crate) fn new(io: T, prefix: Bytes, flushed: Arc<AtomicBool>) -> Self {
        Self { prefix, io: TokioIo::new(io), flushed }
    }

    /// The socket, and the bytes that hyper has not taken.
    pub(crate) fn into_parts(self) -> (T, Bytes) {
        (self.io.into_inner(), self.prefix)
    }
}

impl<T> Read for Rewind<T>
where
    TokioIo<T>: Read + Unpin,
    T: Unpin,
{
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, mut buf: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        if self.prefix.is_empty() {
            return Pin::new(&mut self.io).poll_read(cx, buf);
        }
        let len = self.prefix.len().min(buf.remaining());
        buf.put_slice(&self.prefix[..len]);
        self.prefix.advance(len);
        Poll::Ready(Ok(()))
    }
}

impl<T> Write for Rewind<T>
where
    TokioIo<T>: Write + Unpin,
    T: Unpin,
{
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.io).poll_flush(cx);
        if matches!(flushed, Poll::Ready(Ok(()))) {
            self.flushed.store(true, Ordering::Relaxed);
        }
        flushed
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }
}
