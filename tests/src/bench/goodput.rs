//! What TCP really gets out of the links: the yardstick of every bound.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::{Context, Result};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::{Instant, timeout_at},
};

use super::{host::Host, stats::Spread};

/// TCP needs a moment to fill the link.
const WARM_UP: Duration = Duration::from_secs(1);
/// How long is measured.
const WINDOW: Duration = Duration::from_secs(3);
/// Bytes sent or read at once.
const CHUNK_LEN: usize = 128 << 10;

/// Raw TCP goodput in bytes a second of each host's link, all at once on a ring: every host sends to the next, so that
/// both directions of every link are full, as they are in a swarm.
///
/// # Errors
/// A connection fails.
pub async fn ring(hosts: &[Arc<Host>]) -> Result<Spread> {
    let mut listeners = Vec::new();
    for host in hosts {
        let ip = host.ip();
        listeners.push(host.run(async move { Ok(TcpListener::bind((ip, 0)).await?) }).await?);
    }
    let addresses: Vec<SocketAddr> = listeners.iter().map(TcpListener::local_addr).collect::<Result<_, _>>()?;
    let end = Instant::now() + WARM_UP + WINDOW;
    let mut tasks = JoinSet::new();
    for (n, (host, listener)) in hosts.iter().zip(listeners).enumerate() {
        let (receiver, sender) = (Arc::clone(host), Arc::clone(host));
        let next = addresses[(n + 1) % hosts.len()];
        tasks.spawn(async move { receiver.run(receive(listener, end)).await.map(Some) });
        tasks.spawn(async move { sender.run(send(next, end)).await.map(|()| None) });
    }
    let mut rates = Vec::new();
    while let Some(rate) = tasks.join_next().await {
        rates.extend(rate.context("a side of the ring")??);
    }
    Spread::of(rates).context("a ring of no hosts")
}

async fn receive(listener: TcpListener, end: Instant) -> Result<f64> {
    let (mut stream, _) = timeout_at(end, listener.accept()).await.context("nobody connects")??;
    let (mut chunk, mut bytes) = (vec![0; CHUNK_LEN], 0_usize);
    let start = end - WINDOW;
    while let Ok(len) = timeout_at(end, stream.read(&mut chunk)).await {
        let len = len?;
        anyhow::ensure!(len > 0, "the sender has left early");
        if Instant::now() >= start {
            bytes += len;
        }
    }
    Ok(bytes as f64 / WINDOW.as_secs_f64())
}

async fn send(to: SocketAddr, end: Instant) -> Result<()> {
    let mut stream =
        timeout_at(end, TcpStream::connect(to)).await.with_context(|| format!("{to} does not answer"))??;
    let chunk = vec![0; CHUNK_LEN];
    // The receiver stops at the same moment: then a reset is as good as the end.
    while let Ok(Ok(())) = timeout_at(end, stream.write_all(&chunk)).await {}
    Ok(())
}
