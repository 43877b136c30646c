//! The administrator's socket, `admin.sock` in the data directory (0600): one command a line, one line of JSON back.

use std::{
    io,
    net::SocketAddr,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{UnixListener, UnixStream},
    sync::Semaphore,
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use crate::{
    keys::Fleet,
    members::{Members, order::Order},
    metrics::{Metrics, Payload},
    quota::Usage,
    store::{Collected, Counts, Store, StoreError, local::backup::Backup},
};

/// What an order about tokens and members begins with; JSON follows.
const FLEET: &str = "fleet ";
/// Longest command in bytes.
const LINE_MAX: u64 = 4096;
/// Administrators at once.
const SESSIONS_MAX: usize = 8;
/// Longest wait for a command or for the answer to one.
const PATIENCE: Duration = Duration::from_secs(30);

/// Longest wait for a command that goes through all that is stored.
const LONG_PATIENCE: Duration = Duration::from_secs(24 * 3600);

/// How a seeder is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Whether a process serves the data directory.
    pub running: bool,
    /// The program's version.
    pub version: String,
    /// Where the registry listens.
    pub listen: Vec<SocketAddr>,
    /// Seconds since it started.
    pub uptime_s: u64,
    /// The fleet's root key in hex.
    pub root: String,
    /// About how many repositories there are.
    pub repositories: u64,
    /// About how many blobs and manifests there are.
    pub blobs: u64,
    /// About how many uploads are open.
    pub uploads: u64,
    /// Payload bytes that this process has written to sockets.
    pub payload_bytes: u64,
    /// What quotas leave, and what is in use of them.
    pub quotas: Vec<Usage>,
}

/// Why a running seeder cannot be asked.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// No process serves the data directory.
    #[error("no seeder runs on this data directory")]
    NotRunning,
    /// It does not answer, or with what is not understood.
    #[error("the running seeder does not answer on {}: {error}", path.display())]
    Failed {
        /// The socket.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
}

/// What the socket's answers are made of.
#[derive(Debug)]
pub(crate) struct Admin {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) members: Arc<Members>,
    pub(crate) listen: Vec<SocketAddr>,
    pub(crate) started: Instant,
}

/// The socket's path in a data directory.
#[must_use]
pub fn socket_path(dir: &Path) -> PathBuf {
    dir.join("admin.sock")
}

/// Binds the socket. The caller holds the data directory's lock, so a socket that is there is a dead one.
pub(crate) fn bind(dir: &Path) -> io::Result<UnixListener> {
    let path = socket_path(dir);
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(&path)?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

impl Admin {
    pub(crate) async fn run(self: Arc<Self>, listener: UnixListener, stop: CancellationToken) {
        let room = Arc::new(Semaphore::new(SESSIONS_MAX));
        let mut sessions = JoinSet::new();
        loop {
            let permit = tokio::select! {
                () = stop.cancelled() => break,
                Some(_ended) = sessions.join_next() => continue,
                permit = Arc::clone(&room).acquire_owned() => permit.expect("the semaphore is never closed"),
            };
            let accepted = tokio::select! {
                () = stop.cancelled() => break,
                accepted = listener.accept() => accepted,
            };
            if let Ok((stream, _)) = accepted {
                let admin = Arc::clone(&self);
                sessions.spawn(async move {
                    let _permit = permit;
                    if let Ok(Err(error)) = tokio::time::timeout(LONG_PATIENCE, admin.session(stream)).await {
                        tracing::debug!(%error, "an administrator's session ended early");
                    }
                });
            }
        }
    }

    async fn session(&self, stream: UnixStream) -> io::Result<()> {
        let (read, mut write) = stream.into_split();
        let mut line = String::new();
        let command =
            tokio::time::timeout(PATIENCE, async { BufReader::new(read.take(LINE_MAX)).read_line(&mut line).await });
        command.await??;
        let answer = match line.trim() {
            "status" => match self.report().await {
                Ok(report) => serde_json::json!({ "ok": report }),
                Err(error) => serde_json::json!({ "error": error.to_string() }),
            },
            "gc" => match self.store.collect().await {
                Ok(done) => serde_json::json!({ "ok": done }),
                Err(error) => serde_json::json!({ "error": error.to_string() }),
            },
            line if let Some(to) = line.strip_prefix("backup ") => match self.store.backup(Path::new(to)).await {
                Ok(done) => serde_json::json!({ "ok": done }),
                Err(error) => serde_json::json!({ "error": error.to_string() }),
            },
            "scrub" => match scrub(&*self.store).await {
                Ok(found) => serde_json::json!({ "ok": found }),
                Err(error) => serde_json::json!({ "error": error.to_string() }),
            },
            other => match other.strip_prefix(FLEET).map(serde_json::from_str::<Order>) {
                Some(Ok(order)) => match self.members.execute(order).await {
                    Ok(done) => serde_json::json!({ "ok": done }),
                    Err(error) => serde_json::json!({ "error": error.to_string() }),
                },
                Some(Err(error)) => serde_json::json!({ "error": error.to_string() }),
                None => serde_json::json!({ "error": format!("unknown command {other:?}") }),
            },
        };
        write.write_all(format!("{answer}\n").as_bytes()).await
    }

    async fn report(&self) -> Result<Report, StoreError> {
        let kinds = [Payload::Blob, Payload::Pieces, Payload::Manifest];
        let mut report = report(&self.store.counts().await?, self.store.usage(), self.members.fleet());
        report.running = true;
        report.listen.clone_from(&self.listen);
        report.uptime_s = self.started.elapsed().as_secs();
        report.payload_bytes = kinds.iter().map(|kind| self.metrics.payload_bytes(*kind)).sum();
        Ok(report)
    }
}

/// What a store says about itself, without a process that serves it.
pub(crate) fn report(counts: &Counts, quotas: Vec<Usage>, fleet: &Fleet) -> Report {
    Report {
        running: false,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        listen: Vec::new(),
        uptime_s: 0,
        root: hex::encode(fleet.root()),
        repositories: counts.repositories,
        blobs: counts.blobs,
        uploads: counts.uploads,
        payload_bytes: 0,
        quotas,
    }
}

/// What a scrub of the whole store found.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Scrub {
    /// Blobs and manifests that were hashed again.
    pub checked: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Those that were damaged or lost, now in quarantine.
    pub damaged: Vec<String>,
}

/// Hashes everything that is stored once more.
///
/// # Errors
/// The store's list could not be read to its end.
pub async fn scrub(store: &dyn Store) -> Result<Scrub, StoreError> {
    let mut found = Scrub::default();
    let mut after = None;
    loop {
        let step = store.scrub(after).await?;
        found.checked += step.checked;
        found.bytes += step.bytes;
        found.damaged.extend(step.damaged.iter().map(ToString::to_string));
        match step.last {
            Some(last) => after = Some(last),
            None => return Ok(found),
        }
    }
}

/// Asks the seeder that serves `dir` how it is.
///
/// # Errors
/// None runs, or it does not answer.
pub async fn ask(dir: &Path) -> Result<Report, AskError> {
    command(dir, "status", PATIENCE).await
}

/// Has the seeder that serves `dir` run one pass of its collector.
///
/// # Errors
/// None runs, or it does not answer.
pub async fn collect(dir: &Path) -> Result<Collected, AskError> {
    command(dir, "gc", LONG_PATIENCE).await
}

/// Has the seeder that serves `dir` copy all that it stores into `to`, an absolute path that is not there.
///
/// # Errors
/// None runs, it does not answer, or it cannot write there.
pub async fn backup(dir: &Path, to: &Path) -> Result<Backup, AskError> {
    // A command is one line of text.
    if to.to_str().is_none_or(|to| to.contains(char::is_control) || to.trim() != to) {
        let error = io::Error::other("the backup's path has bytes that cannot be passed on");
        return Err(AskError::Failed { path: socket_path(dir), error });
    }
    command(dir, &format!("backup {}", to.display()), LONG_PATIENCE).await
}

/// Has the seeder that serves `dir` hash again all that it stores.
///
/// # Errors
/// None runs, or it does not answer.
pub async fn scrub_running(dir: &Path) -> Result<Scrub, AskError> {
    command(dir, "scrub", LONG_PATIENCE).await
}

/// Has the seeder that serves `dir` carry out an order about tokens and members.
///
/// # Errors
/// None runs, it does not answer, or the order cannot be carried out.
pub async fn execute(dir: &Path, order: &Order) -> Result<serde_json::Value, AskError> {
    let order = serde_json::to_string(order)
        .map_err(|error| AskError::Failed { path: socket_path(dir), error: io::Error::other(error) })?;
    command(dir, &format!("{FLEET}{order}"), PATIENCE).await
}

async fn command<T: DeserializeOwned>(dir: &Path, command: &str, patience: Duration) -> Result<T, AskError> {
    #[derive(Deserialize)]
    struct Answer<T> {
        ok: Option<T>,
        error: Option<String>,
    }
    let path = socket_path(dir);
    let asked = async {
        let mut stream = UnixStream::connect(&path).await?;
        stream.write_all(format!("{command}\n").as_bytes()).await?;
        let mut text = String::new();
        stream.take(1 << 20).read_to_string(&mut text).await?;
        let answer: Answer<T> = serde_json::from_str(&text).map_err(io::Error::other)?;
        answer.ok.ok_or_else(|| io::Error::other(answer.error.unwrap_or_default()))
    };
    let outcome = tokio::time::timeout(patience, asked).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
    outcome.map_err(|error| {
        let nobody = matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused);
        if nobody { AskError::NotRunning } else { AskError::Failed { path, error } }
    })
}
