//! The admin socket: `<data>/agent.sock`, mode 0600, for `shoal status` and `shoal image …` on this machine.
//!
//! | request | answer |
//! |---|---|
//! | `GET /status` | [`crate::status::Status`] |
//! | `GET /pulls` | list of [`crate::history::PullReport`], the newest first |
//! | `GET /images` | list of [`Image`] |
//! | `POST /images/<digest>/pin`, `…/unpin` | 204, or 404 |
//! | `DELETE /images/<digest>` | [`Removed`] |
//! | `POST /images/<digest>/verify` | [`Verified`], or 404 |

use std::{
    collections::BTreeSet,
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use http::{Method, Request, Response, StatusCode};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::{Deserialize, Serialize};
use shoal_http::Body;
use shoal_proto::Digest;
use tokio::{
    net::{UnixListener, UnixStream},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use crate::{
    status::{Sources, json, text},
    store::{ImageInfo, ImageRecord, StoreError},
};

/// The socket's name in the data folder.
pub const SOCKET: &str = "agent.sock";
/// Connections at once: a person and a script or two.
const CONNECTIONS_MAX: usize = 16;
/// Longest wait for a request on an open connection.
const IDLE_MAX: Duration = Duration::from_secs(30);

/// An image as `shoal image ls` shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// The repository, as the seeder knows it.
    pub repository: String,
    /// The tags that point to it.
    pub tags: Vec<String>,
    /// The manifest.
    pub digest: Digest,
    /// Its media type.
    pub media_type: String,
    /// Bytes of manifest, config and layers, as far as they are stored here.
    pub size: u64,
    /// Whether all are stored whole.
    pub complete: bool,
    /// Whether it is kept whatever the quota says.
    pub pinned: bool,
    /// When it was last pulled, in Unix seconds.
    pub pulled_at: u64,
}

/// What `shoal image rm` did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Removed {
    /// Records removed: one for each repository.
    pub images: usize,
    /// Blobs removed.
    pub blobs: usize,
    /// Blobs in use now, which go by eviction.
    pub busy: usize,
}

/// What the check of an image's blobs found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verified {
    /// Pieces hashed.
    pub checked: u32,
    /// Pieces that were damaged, and are missing now.
    pub bad: usize,
}

impl From<ImageInfo> for Image {
    fn from(info: ImageInfo) -> Self {
        Self {
            repository: info.record.repository.to_string(),
            tags: info.tags.iter().map(ToString::to_string).collect(),
            digest: info.record.image,
            media_type: info.record.media_type,
            size: info.size,
            complete: info.complete,
            pinned: info.record.pinned,
            pulled_at: info.record.pulled_at,
        }
    }
}

/// Binds the socket in the data folder `dir`. The caller holds the folder's lock, so what a dead process left may go.
///
/// # Errors
/// The socket cannot be made.
pub fn bind(dir: &Path) -> io::Result<(UnixListener, PathBuf)> {
    let path = dir.join(SOCKET);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let listener = UnixListener::bind(&path)?;
    // The folder itself is 0700; between the two calls nobody else gets in.
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
    Ok((listener, path))
}

/// Serves the socket until `shutdown`.
pub async fn serve(listener: UnixListener, sources: Sources, shutdown: CancellationToken) {
    let sources = Arc::new(sources);
    let mut connections = JoinSet::new();
    loop {
        let room = connections.len() < CONNECTIONS_MAX;
        tokio::select! {
            () = shutdown.cancelled() => return,
            Some(_) = connections.join_next() => {}
            accepted = listener.accept(), if room => match accepted {
                Ok((stream, _)) => drop(connections.spawn(connection(stream, sources.clone()))),
                Err(error) => tracing::warn!(%error, "an admin connection could not be accepted"),
            },
        }
    }
}

async fn connection(stream: UnixStream, sources: Arc<Sources>) {
    let service = service_fn(move |request: Request<Incoming>| {
        let sources = sources.clone();
        async move { Ok::<_, std::convert::Infallible>(answer(&request, &sources).await) }
    });
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(IDLE_MAX)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "an admin connection ended early");
    }
}

async fn answer(request: &Request<Incoming>, sources: &Sources) -> Response<Body> {
    let path: Vec<_> = request.uri().path().trim_matches('/').split('/').collect();
    let result = match (request.method(), path.as_slice()) {
        (&Method::GET, ["status"]) => match sources.status().await {
            Some(status) => Ok(json(&status)),
            None => Ok(text(StatusCode::SERVICE_UNAVAILABLE, "text/plain", "the agent is shutting down\n")),
        },
        (&Method::GET, ["pulls"]) => match sources.handle.pulls().await {
            Some(pulls) => Ok(json(&pulls)),
            None => Ok(text(StatusCode::SERVICE_UNAVAILABLE, "text/plain", "the agent is shutting down\n")),
        },
        (&Method::GET, ["images"]) => images(sources).await,
        (&Method::POST, ["images", digest, what @ ("pin" | "unpin")]) => match digest.parse() {
            Ok(digest) => pin(sources, digest, *what == "pin").await,
            Err(_) => Ok(missing()),
        },
        (&Method::DELETE, ["images", digest]) => match digest.parse() {
            Ok(digest) => remove(sources, digest).await,
            Err(_) => Ok(missing()),
        },
        (&Method::POST, ["images", digest, "verify"]) => match digest.parse() {
            Ok(digest) => verify(sources, digest).await,
            Err(_) => Ok(missing()),
        },
        _ => Ok(missing()),
    };
    result.unwrap_or_else(|error| {
        tracing::error!(%error, "an admin command failed");
        text(StatusCode::INTERNAL_SERVER_ERROR, "text/plain", error)
    })
}

fn missing() -> Response<Body> {
    text(StatusCode::NOT_FOUND, "text/plain", "not found\n")
}

async fn images(sources: &Sources) -> Result<Response<Body>, String> {
    let store = sources.store.clone();
    let images = blocking(move || store.images()).await?;
    Ok(json(&images.into_iter().map(Image::from).collect::<Vec<_>>()))
}

async fn pin(sources: &Sources, digest: Digest, pinned: bool) -> Result<Response<Body>, String> {
    let store = sources.store.clone();
    let known = blocking(move || store.pin(&digest, pinned)).await?;
    Ok(if known { text(StatusCode::NO_CONTENT, "text/plain", "") } else { missing() })
}

async fn remove(sources: &Sources, digest: Digest) -> Result<Response<Body>, String> {
    let store = sources.store.clone();
    let removed = blocking(move || store.remove_image(&digest)).await?;
    for digest in &removed.blobs {
        sources.handle.forget(*digest).await;
    }
    let answer = Removed { images: removed.images, blobs: removed.blobs.len(), busy: removed.busy };
    Ok(if removed.images == 0 { missing() } else { json(&answer) })
}

async fn verify(sources: &Sources, image: Digest) -> Result<Response<Body>, String> {
    let store = sources.store.clone();
    let found = blocking(move || {
        let blobs: BTreeSet<_> = store.images_of(&image)?.iter().flat_map(ImageRecord::all).collect();
        let mut found = Verified { checked: 0, bad: 0 };
        for blob in &blobs {
            let checked = store.verify(blob)?.unwrap_or_default();
            found.checked += checked.checked;
            found.bad += checked.bad.len();
        }
        Ok((!blobs.is_empty()).then_some(found))
    });
    Ok(found.await?.map_or_else(missing, |found| json(&found)))
}

async fn blocking<T: Send + 'static>(
    run: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, String> {
    match tokio::task::spawn_blocking(run).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(error.to_string()),
        Err(error) => Err(error.to_string()),
    }
}
