//! Distance in user space, for kernels without `netem`: TCP proxies that pass on what they get some time later.
//!
//! Each host has an alias in the core. Who connects to an alias is connected to the same port of the host behind it, from
//! the caller's own alias, so that everybody is known by the alias and nobody by the address. Each of the two legs is a
//! connection of its own with the link's small round-trip time: what is delayed is data and answers, not TCP's growth.
//! A connection itself is made at once; its first answer takes a round trip.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result};
use bytes::{Bytes, BytesMut};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpSocket, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    task::JoinSet,
    time::{Instant, sleep_until},
};

use super::host::Namespace;

/// Where aliases lie.
pub const ALIASES: &str = "10.99.0.0/16";
/// Bytes on their way in one direction of one connection: four times what 50 Mbit/s hold in 80 ms.
const FLIGHT_BYTES_MAX: usize = 2 << 20;
/// Bytes read at once.
const CHUNK_LEN: usize = 32 << 10;
/// Chunks on their way; small ones of a few hundred bytes stay below [`FLIGHT_BYTES_MAX`] for long.
const FLIGHT_CHUNKS_MAX: usize = 4096;

/// The address by which others know the n-th host.
#[must_use]
pub const fn alias(n: usize) -> Ipv4Addr {
    let [.., high, low] = (n + 1).to_be_bytes();
    Ipv4Addr::new(10, 99, high, low)
}

/// The proxies; they end when dropped.
#[derive(Debug)]
pub struct Delay {
    _serving: JoinSet<Result<()>>,
}

impl Delay {
    pub(super) async fn start(core: &Namespace, hosts: &[Ipv4Addr], ports: &[u16], delay: Duration) -> Result<Self> {
        let hosts: Arc<[Ipv4Addr]> = hosts.into();
        let (all, ports) = (Arc::clone(&hosts), ports.to_owned());
        // Bound and served on the core's thread.
        let bind = async move {
            let mut serving = JoinSet::new();
            for (n, &host) in all.iter().enumerate() {
                for &port in &ports {
                    let listener = TcpListener::bind((alias(n), port)).await.context("bind a proxy")?;
                    serving.spawn(serve(listener, SocketAddr::from((host, port)), Arc::clone(&all), delay));
                }
            }
            Ok(serving)
        };
        Ok(Self { _serving: core.run(bind).await? })
    }
}

async fn serve(listener: TcpListener, target: SocketAddr, hosts: Arc<[Ipv4Addr]>, delay: Duration) -> Result<()> {
    let mut connections = JoinSet::new();
    loop {
        let (stream, from) = listener.accept().await.context("accept")?;
        let source = hosts.iter().position(|&host| IpAddr::V4(host) == from.ip()).map(alias);
        // A connection that breaks is its ends' matter: both halves are dropped, which both ends see.
        connections.spawn(async move { pass(stream, source, target, delay).await.unwrap_or_default() });
        while connections.try_join_next().is_some() {}
    }
}

async fn pass(from: TcpStream, source: Option<Ipv4Addr>, target: SocketAddr, delay: Duration) -> Result<()> {
    let socket = TcpSocket::new_v4()?;
    if let Some(source) = source {
        socket.bind(SocketAddr::from((source, 0)))?;
    }
    let to = socket.connect(target).await?;
    for stream in [&from, &to] {
        stream.set_nodelay(true)?;
    }
    let ((asks, answered), (answers, asked)) = (from.into_split(), to.into_split());
    tokio::try_join!(carry(asks, asked, delay), carry(answers, answered, delay))?;
    Ok(())
}

struct Chunk {
    due: Instant,
    bytes: Bytes,
    _room: OwnedSemaphorePermit,
}

async fn carry(from: OwnedReadHalf, to: OwnedWriteHalf, delay: Duration) -> Result<()> {
    let (sender, receiver) = mpsc::channel(FLIGHT_CHUNKS_MAX);
    tokio::try_join!(take(from, sender, delay), give(receiver, to))?;
    Ok(())
}

async fn take(mut from: OwnedReadHalf, sender: mpsc::Sender<Chunk>, delay: Duration) -> Result<()> {
    let room = Arc::new(Semaphore::new(FLIGHT_BYTES_MAX));
    let mut buffer = BytesMut::new();
    loop {
        buffer.reserve(CHUNK_LEN);
        if from.read_buf(&mut buffer).await? == 0 {
            return Ok(());
        }
        let bytes = buffer.split().freeze();
        // Later than it came if the other side is slow: that is backpressure.
        let len = u32::try_from(bytes.len().min(FLIGHT_BYTES_MAX)).context("a chunk's length")?;
        let permit = Arc::clone(&room).acquire_many_owned(len).await?;
        let chunk = Chunk { due: Instant::now() + delay, bytes, _room: permit };
        sender.send(chunk).await.context("the other end has left")?;
    }
}

async fn give(mut receiver: mpsc::Receiver<Chunk>, mut to: OwnedWriteHalf) -> Result<()> {
    while let Some(chunk) = receiver.recv().await {
        sleep_until(chunk.due).await;
        to.write_all(&chunk.bytes).await?;
    }
    to.shutdown().await?;
    Ok(())
}
