//! A proxy that corrupts: it stands before one agent's peer port (in `plain` mode) and flips a bit in every data frame
//! that the agent sends. All else passes as it is, so that the agent looks like a good member until its bytes are
//! checked.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use anyhow::{Context, Result};
use shoal_proto::message::{FrameHeader, HEADER_LEN, KIND_DATA};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    task::JoinSet,
};

/// Bytes of a data frame's body before the blob's: the request id.
const REQUEST_ID_LEN: usize = 4;

/// A running proxy; it ends when dropped.
#[derive(Debug)]
pub struct Flip {
    address: SocketAddr,
    flipped: Arc<AtomicU64>,
    _serving: JoinSet<()>,
}

impl Flip {
    /// Binds a port of 127.0.0.1 and leads to the same port of `target`, another address of loopback. The
    /// agent that listens there and says `--advertise 127.0.0.1` is known by the proxy's address alone.
    ///
    /// # Errors
    /// No port can be bound.
    pub async fn start(target: IpAddr) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.context("bind the proxy")?;
        let address = listener.local_addr()?;
        let target = SocketAddr::new(target, address.port());
        let flipped = Arc::new(AtomicU64::new(0));
        let mut serving = JoinSet::new();
        serving.spawn(serve(listener, target, Arc::clone(&flipped)));
        Ok(Self { address, flipped, _serving: serving })
    }

    /// Where it listens.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Data frames that were spoilt so far.
    #[must_use]
    pub fn flipped(&self) -> u64 {
        self.flipped.load(Ordering::Relaxed)
    }
}

async fn serve(listener: TcpListener, target: SocketAddr, flipped: Arc<AtomicU64>) {
    let mut connections = JoinSet::new();
    while let Ok((from, _)) = listener.accept().await {
        let flipped = Arc::clone(&flipped);
        // A connection that breaks is the peers' matter.
        connections.spawn(async move { pass(from, target, &flipped).await.unwrap_or_default() });
        while connections.try_join_next().is_some() {}
    }
}

async fn pass(from: TcpStream, target: SocketAddr, flipped: &AtomicU64) -> Result<()> {
    let to = TcpStream::connect(target).await?;
    for stream in [&from, &to] {
        stream.set_nodelay(true)?;
    }
    let ((mut asks, answered), (answers, mut asked)) = (from.into_split(), to.into_split());
    tokio::select! {
        result = copy(&mut asks, &mut asked) => drop(result?),
        result = spoil(answers, answered, flipped) => result?,
    }
    Ok(())
}

/// Passes frames on, each data frame with one bit flipped.
async fn spoil(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, flipped: &AtomicU64) -> Result<()> {
    loop {
        let mut header = [0; HEADER_LEN];
        from.read_exact(&mut header).await?;
        let FrameHeader { body_len, kind } = FrameHeader::parse(header)?;
        let mut body = vec![0; body_len];
        from.read_exact(&mut body).await?;
        if kind == KIND_DATA && body_len > REQUEST_ID_LEN {
            let middle = usize::midpoint(REQUEST_ID_LEN, body_len);
            body[middle] ^= 1;
            flipped.fetch_add(1, Ordering::Relaxed);
        }
        to.write_all(&header).await?;
        to.write_all(&body).await?;
    }
}
