//! The socket beneath TLS. The TLS library reads 4 KiB at a time; while pieces come, as much as has arrived is taken off
//! the socket at once and handed to it from a buffer: a system call for each 128 KiB instead of for each 4.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    task::{Context, Poll, ready},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

use super::buffers::{Buffer, Buffers};

/// Whether pieces are expected on a connection.
#[derive(Debug, Clone, Default)]
pub(super) struct Busy(Arc<AtomicBool>);

impl Busy {
    pub(super) fn set(&self, busy: bool) {
        self.0.store(busy, Ordering::Relaxed);
    }

    fn get(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Bytes that the kernel may hold unsent of a connection, as its writer wants it; none said yet: 0.
#[derive(Debug, Clone, Default)]
pub(super) struct Unsent(Arc<AtomicU32>);

impl Unsent {
    pub(super) fn set(&self, bytes: u32) {
        self.0.store(bytes, Ordering::Relaxed);
    }

    fn get(&self) -> u32 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A socket read ahead of its user while that is [`Busy`].
#[derive(Debug)]
pub(super) struct Wire {
    tcp: TcpStream,
    busy: Busy,
    unsent: Unsent,
    /// What the kernel was told of `unsent`.
    unsent_told: u32,
    buffers: Arc<Buffers>,
    /// What was read ahead; nothing while the socket is empty, so that only bytes in hand take memory.
    ahead: Option<Ahead>,
}

#[derive(Debug)]
struct Ahead {
    bytes: Buffer,
    start: usize,
    end: usize,
}

impl Wire {
    pub(super) fn new(tcp: TcpStream, buffers: Arc<Buffers>) -> Self {
        Self { tcp, busy: Busy::default(), unsent: Unsent::default(), unsent_told: 0, buffers, ahead: None }
    }

    /// To say whether pieces are expected.
    pub(super) fn busy(&self) -> Busy {
        self.busy.clone()
    }

    /// To say how much the kernel may hold unsent; heeded by the next write.
    pub(super) fn unsent(&self) -> Unsent {
        self.unsent.clone()
    }

    fn heed(&mut self) -> io::Result<()> {
        let wanted = self.unsent.get();
        if std::mem::replace(&mut self.unsent_told, wanted) != wanted {
            socket2::SockRef::from(&self.tcp).set_tcp_notsent_lowat(wanted)?;
        }
        Ok(())
    }
}

impl AsyncRead for Wire {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.ahead.is_none() {
            if !this.busy.get() {
                return Pin::new(&mut this.tcp).poll_read(cx, buf);
            }
            let mut bytes = this.buffers.take();
            let mut read = ReadBuf::new(&mut bytes);
            ready!(Pin::new(&mut this.tcp).poll_read(cx, &mut read))?;
            let end = read.filled().len();
            this.ahead = Some(Ahead { bytes, start: 0, end });
        }
        if let Some(ahead) = &mut this.ahead {
            let len = buf.remaining().min(ahead.end - ahead.start);
            buf.put_slice(&ahead.bytes[ahead.start..ahead.start + len]);
            ahead.start += len;
            if ahead.start == ahead.end {
                this.ahead = None;
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Wire {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.heed()?;
        Pin::new(&mut self.tcp).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.heed()?;
        Pin::new(&mut self.tcp).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.tcp.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    use super::*;

    #[tokio::test]
    async fn every_byte_comes_once_and_in_order_whether_busy_or_not() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut far = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (near, _) = listener.accept().await.unwrap();
        let buffers = Arc::new(Buffers::default());
        let mut wire = Wire::new(near, Arc::clone(&buffers));
        let data: Vec<u8> = (0..300_000u32).map(|n| (n % 251) as u8).collect();
        let sent = data.clone();
        let mut tasks = tokio::task::JoinSet::new();
        tasks.spawn(async move { far.write_all(&sent).await.unwrap() });
        let (mut got, mut part, busy) = (Vec::new(), [0; 4096], wire.busy());
        for n in 0.. {
            // Turned off and on in between, whatever lies ahead.
            busy.set(n % 50 < 25);
            let len = wire.read(&mut part).await.unwrap();
            if len == 0 {
                break;
            }
            got.extend_from_slice(&part[..len]);
        }
        tasks.join_next().await.unwrap().unwrap();
        assert!(got == data, "{} bytes", got.len());
        assert!(wire.ahead.is_none(), "nothing is held once all is read");
    }
}
