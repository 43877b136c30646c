//! Where a cluster's keys come from: a file, or the address where the cluster publishes them. They are kept, and asked for
//! again with restraint: a stranger's token that names a made-up key must not cost a request each.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
    time::{Duration, Instant},
};

use http::{HeaderValue, Uri};
use shoal_http::client::{ClientTls, ClientTlsError, get};
use tokio::{sync::Mutex, time::timeout};

use super::{
    NotVouched,
    keys::{KEY_SET_LEN_MAX, Key, Keys},
};
use crate::config::join::{KeysAt, Kubernetes};

/// Keys are taken as they were for so long; then the cluster is asked again, so that a key that it gives up is given up here.
const FRESH: Duration = Duration::from_secs(600);
/// Keys are used for so long while the cluster does not answer. Members try on; their memberships last a day.
const STALE_MAX: Duration = Duration::from_secs(3600);
/// Shortest time between two questions, whatever tokens name and whether or not there was an answer.
pub(super) const ASK_AGAIN: Duration = Duration::from_secs(10);
/// What is asked for.
const ACCEPT: HeaderValue = HeaderValue::from_static("application/jwk-set+json, application/json");
/// How long an answer may take in all.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(10);

/// The keys as they were when they came.
struct Kept {
    keys: Keys,
    at: Instant,
}

/// Where they come from.
enum Place {
    File(PathBuf),
    Url { uri: Uri, tls: Option<ClientTls>, bearer_file: Option<PathBuf> },
}

/// A cluster's keys.
pub(super) struct Source {
    place: Place,
    kept: RwLock<Option<Arc<Kept>>>,
    /// When they were asked for last. Held while they are: others wait for the one answer.
    asked: Mutex<Option<Instant>>,
}

impl Source {
    /// Opens no connection. Blocks on the disk.
    pub(super) fn new(config: &Kubernetes, at: KeysAt) -> Result<Self, ClientTlsError> {
        let place = match at {
            KeysAt::File(path) => Place::File(path),
            KeysAt::Url(uri) => {
                let secure = uri.scheme_str() == Some("https");
                let tls = secure.then(|| ClientTls::load(config.ca.as_deref())).transpose()?;
                Place::Url { uri, tls, bearer_file: config.bearer_file.clone() }
            }
        };
        Ok(Self { place, kept: RwLock::default(), asked: Mutex::default() })
    }

    /// The key of that name at `now`.
    ///
    /// # Errors
    /// The cluster has none such, or cannot be asked.
    pub(super) async fn key(&self, name: &str, now: Instant) -> Result<Key, NotVouched> {
        if let Some(key) = self.known(name, now, FRESH) {
            return Ok(key);
        }
        let mut asked = self.asked.lock().await;
        // Another may have asked meanwhile.
        if let Some(key) = self.known(name, now, FRESH) {
            return Ok(key);
        }
        let mut failed = None;
        if asked.is_none_or(|asked| now.saturating_duration_since(asked) >= ASK_AGAIN) {
            *asked = Some(now);
            match self.ask().await {
                Ok(keys) => {
                    let kept = Some(Arc::new(Kept { keys, at: now }));
                    *self.kept.write().unwrap_or_else(PoisonError::into_inner) = kept;
                }
                Err(error) => {
                    tracing::warn!(%error, "a cluster's keys cannot be had");
                    failed = Some(error);
                }
            }
        }
        if let Some(key) = self.known(name, now, STALE_MAX) {
            return Ok(key);
        }
        let kept = self.kept.read().unwrap_or_else(PoisonError::into_inner).clone();
        let current = kept.is_some_and(|kept| now.saturating_duration_since(kept.at) < STALE_MAX);
        match failed {
            None if current => Err(NotVouched::Key),
            None => Err(NotVouched::Unavailable("they could not be had a moment ago".into())),
            Some(error) => Err(NotVouched::Unavailable(error)),
        }
    }

    fn known(&self, name: &str, now: Instant, age_max: Duration) -> Option<Key> {
        let kept = self.kept.read().unwrap_or_else(PoisonError::into_inner).clone()?;
        let young = now.saturating_duration_since(kept.at) < age_max;
        young.then(|| kept.keys.named(name).cloned()).flatten()
    }

    async fn ask(&self) -> Result<Keys, String> {
        let bytes = match &self.place {
            Place::File(path) => read_file(path).await?.into(),
            Place::Url { uri, tls, bearer_file } => {
                let bearer = match bearer_file {
                    Some(path) => Some(bearer(path).await?),
                    None => None,
                };
                let answer = timeout(ANSWER_TIME_MAX, get(uri, tls.as_ref(), bearer, ACCEPT, KEY_SET_LEN_MAX)).await;
                let answer = answer.map_err(|_| format!("{uri} does not answer in time"))?;
                answer.map_err(|error| format!("{uri}: {error}"))?
            }
        };
        let keys = Keys::read(&bytes).filter(|keys| !keys.is_empty());
        keys.ok_or_else(|| "what came is no JSON Web Key Set with a key for RS256 or ES256".into())
    }
}

impl std::fmt::Debug for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.place {
            Place::File(path) => write!(f, "Source({})", path.display()),
            Place::Url { uri, .. } => write!(f, "Source({uri})"),
        }
    }
}

async fn read_file(path: &Path) -> Result<Vec<u8>, String> {
    tokio::fs::read(path).await.map_err(|error| format!("cannot read {}: {error}", path.display()))
}

/// What the seeder says of itself. Read each time: a cluster replaces it.
async fn bearer(path: &Path) -> Result<HeaderValue, String> {
    let token = read_file(path).await?;
    let mut value = HeaderValue::from_bytes(&[b"Bearer ", token.trim_ascii()].concat())
        .map_err(|_| format!("{} holds no token", path.display()))?;
    value.set_sensitive(true);
    Ok(value)
}
