//! A connection that is closed without losing what was sent last.
//!
//! A socket that is closed while bytes lie in it unread is reset, and what the other end has not read yet is lost to it. An
//! HTTP/2 client sends something at any time: that it has taken bytes, for one. So when all is sent, what still comes is read
//! and forgotten until the client closes too.

use std::{
    future::Future,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::Sleep,
};

/// How long a client may take to close, once it was told that nothing more comes.
const LINGER: Duration = Duration::from_secs(2);

/// Reads on for a while after it was shut down.
#[derive(Debug)]
pub(crate) struct Linger<T> {
    inner: T,
    until: Option<Pin<Box<Sleep>>>,
}

impl<T> Linger<T> {
    pub(crate) const fn new(inner: T) -> Self {
        Self { inner, until: None }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Linger<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Linger<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.until.is_none() {
            ready!(Pin::new(&mut self.inner).poll_shutdown(cx))?;
        }
        let this = &mut *self;
        let until = this.until.get_or_insert_with(|| Box::pin(tokio::time::sleep(LINGER)));
        while until.as_mut().poll(cx).is_pending() {
            let mut space = [0; 4096];
            let mut unread = ReadBuf::new(&mut space);
            // An error tells as well that nobody is there any more.
            let read = ready!(Pin::new(&mut this.inner).poll_read(cx, &mut unread));
            if read.is_err() || unread.filled().is_empty() {
                break;
            }
        }
        Poll::Ready(Ok(()))
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, bufs)
    }
}
