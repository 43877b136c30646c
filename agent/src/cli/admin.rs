//! Requests to the running agent's admin socket.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::{net::UnixStream, task::JoinSet};

use crate::admin::SOCKET;

/// Longest answer: a list of some ten thousand images.
const ANSWER_LEN_MAX: usize = 16 << 20;

/// A running agent.
#[derive(Debug)]
pub(super) struct Admin {
    path: PathBuf,
}

impl Admin {
    pub(super) fn of(data_dir: &Path) -> Self {
        Self { path: data_dir.join(SOCKET) }
    }

    /// The answer to a request; `None` for 404.
    pub(super) async fn ask<T: DeserializeOwned>(&self, method: Method, path: &str) -> Result<Option<T>> {
        let (status, body) = self.send(method, path).await?;
        match status {
            StatusCode::NOT_FOUND => Ok(None),
            status if status.is_success() => Ok(Some(
                serde_json::from_slice(&body).context("the agent's answer cannot be read; is it of this version?")?,
            )),
            _ => bail!("the agent says: {}", String::from_utf8_lossy(&body).trim()),
        }
    }

    /// A command without an answer; false for 404.
    pub(super) async fn tell(&self, method: Method, path: &str) -> Result<bool> {
        let (status, body) = self.send(method, path).await?;
        match status {
            StatusCode::NOT_FOUND => Ok(false),
            status if status.is_success() => Ok(true),
            _ => bail!("the agent says: {}", String::from_utf8_lossy(&body).trim()),
        }
    }

    async fn send(&self, method: Method, path: &str) -> Result<(StatusCode, Bytes)> {
        let stream = UnixStream::connect(&self.path).await.with_context(|| {
            format!(
                "no agent answers at {}; start one (`shoal agent`) or name its folder (--data-dir)",
                self.path.display()
            )
        })?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        // Ends with the request: the set is dropped on return.
        let mut tasks = JoinSet::new();
        tasks.spawn(connection);
        let request =
            Request::builder().method(method).uri(path).header("host", "agent").body(Full::<Bytes>::default())?;
        let response = sender.send_request(request).await.context("the agent went away")?;
        let status = response.status();
        let body = Limited::new(response.into_body(), ANSWER_LEN_MAX).collect().await;
        let body = body.map_err(|error| anyhow::anyhow!("the agent's answer broke off: {error}"))?;
        Ok((status, body.to_bytes()))
    }
}
