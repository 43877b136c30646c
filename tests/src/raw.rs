//! Bytes sent as they are, to see what a server makes of them.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context, Result};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

/// How long a server may take to answer or to close.
const PATIENCE: Duration = Duration::from_secs(20);
/// Most bytes that are read of an answer.
const ANSWER_LEN_MAX: u64 = 1 << 20;

/// Sends `bytes`, keeps the sending side open and reads until the server closes.
///
/// # Errors
/// No connection, or the server neither answers nor closes in time.
pub async fn exchange(address: SocketAddr, bytes: &[u8]) -> Result<Vec<u8>> {
    let mut stream = TcpStream::connect(address).await.with_context(|| format!("connect to {address}"))?;
    // The server may close before it has read all: what it said until then counts.
    let _ = stream.write_all(bytes).await;
    let mut answer = Vec::new();
    match timeout(PATIENCE, stream.take(ANSWER_LEN_MAX).read_to_end(&mut answer)).await {
        // A reset is a close as well.
        Ok(_) => Ok(answer),
        Err(_) => anyhow::bail!("{address} did not close after {PATIENCE:?}; it said {} bytes", answer.len()),
    }
}

/// Sends one HTTP/1.1 request head as it stands (without the final empty line) and gives the answer as text.
///
/// # Errors
/// As [`exchange`].
pub async fn http(address: SocketAddr, head: &str) -> Result<String> {
    let request = format!("{head}\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    Ok(String::from_utf8_lossy(&exchange(address, request.as_bytes()).await?).into_owned())
}
