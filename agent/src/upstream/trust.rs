//! What this node believes: the fleet's root key, pinned; the key set that it has signed; the revocations.
//!
//! The root key is the join token's, or, in open mode, the one that the seeder shows at the first contact. It is kept in
//! the store; from then on another one is an error that a person must look at. Key sets and revocation lists replace older
//! ones, never newer ones, whoever brings them.

use std::{
    sync::{Arc, Mutex, PoisonError, RwLock},
    time::{Duration, Instant},
};

use ed25519_dalek::VerifyingKey;
use shoal_proto::{
    api::Info,
    codec,
    envelope::{ENVELOPE_LEN_MAX, Envelope, EnvelopeError},
    signed::{KeySet, RevocationList, Version},
};
use tokio::sync::{Notify, watch};

use super::{Upstream, UpstreamConfig, UpstreamError, client::Client};
use crate::{
    config::JoinBy,
    store::{Note, Store, StoreError},
};

/// Shortest time between two fetches of the key set: an envelope with a made-up key id must not cost a request each.
pub const REFRESH_MIN: Duration = Duration::from_secs(10);

/// The newest of something signed: as signed, and opened.
#[derive(Debug, Clone)]
struct Newest<T> {
    envelope: Envelope,
    opened: Arc<T>,
}

/// The pinned root, the newest key set under it, and the newest revocation list under that.
#[derive(Debug)]
pub struct Trust {
    root: VerifyingKey,
    keys: RwLock<Newest<KeySet>>,
    revocations: RwLock<Option<Newest<RevocationList>>>,
    news: Notify,
    version: watch::Sender<Version>,
    refreshed: Mutex<Option<Instant>>,
    store: Option<Store>,
}

/// Why the seeder is not trusted.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// The seeder's root key is another than the one pinned.
    #[error(
        "the seeder shows root key {found}, but {pinned} was pinned at the first contact; if the fleet was set up anew, \
         start this agent with an empty data folder, else somebody stands between"
    )]
    RootChanged {
        /// The pinned key in hex.
        pinned: String,
        /// The key shown, in hex.
        found: String,
    },
    /// Nothing is pinned, and pinning was not allowed.
    #[error("this node has not joined the fleet: give it a join token (`shoal-seeder join-token create` prints one)")]
    NotPinned,
    /// The seeder's root key is another than the join token's or the configured one.
    #[error(
        "the seeder shows root key {found}, the join token or fleet_key is of the fleet with {expected}: somebody stands \
         between, or it is another fleet's"
    )]
    NotExpected {
        /// What was expected, in hex.
        expected: String,
        /// The key shown, in hex.
        found: String,
    },
    /// This agent is open, the seeder is not.
    #[error("the seeder is not in open mode: give a join token, or start it with `--insecure-open` too")]
    NotOpen,
    /// Not an Ed25519 key.
    #[error("the root key is malformed")]
    Key,
    /// The key set is not signed by the root.
    #[error("what is said to be the fleet's is not to be believed: {0}")]
    KeySet(#[from] EnvelopeError),
    /// The seeder cannot be asked, and nothing is known from before.
    #[error(transparent)]
    Upstream(#[from] UpstreamError),
    /// What is known cannot be kept.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Trust {
    /// Trust in `root` alone, kept nowhere.
    ///
    /// # Errors
    /// The key set is not signed by the root.
    pub fn in_memory(root: VerifyingKey, keys: &Envelope) -> Result<Self, TrustError> {
        let opened = Arc::new(keys.open::<KeySet>(&root)?);
        let version = watch::Sender::new(opened.version);
        Ok(Self {
            root,
            version,
            keys: RwLock::new(Newest { envelope: keys.clone(), opened }),
            revocations: RwLock::default(),
            news: Notify::new(),
            refreshed: Mutex::default(),
            store: None,
        })
    }

    /// The root key.
    #[must_use]
    pub const fn root(&self) -> &VerifyingKey {
        &self.root
    }

    /// The newest key set.
    #[must_use]
    pub fn keys(&self) -> Arc<KeySet> {
        self.keys.read().unwrap_or_else(PoisonError::into_inner).opened.clone()
    }

    /// The same as signed, and its version.
    #[must_use]
    pub fn signed_keys(&self) -> (Envelope, Version) {
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
        (keys.envelope.clone(), keys.opened.version)
    }

    /// The newest revocation list as signed, and its version.
    #[must_use]
    pub fn signed_revocations(&self) -> Option<(Envelope, Version)> {
        let list = self.revocations.read().unwrap_or_else(PoisonError::into_inner);
        list.as_ref().map(|list| (list.envelope.clone(), list.opened.version))
    }

    /// Whether the membership of that serial was revoked.
    #[must_use]
    pub fn is_revoked(&self, serial: u64) -> bool {
        let list = self.revocations.read().unwrap_or_else(PoisonError::into_inner);
        list.as_ref().is_some_and(|list| list.opened.serials.binary_search(&serial).is_ok())
    }

    /// The newest key set's version, and every later one.
    #[must_use]
    pub fn versions(&self) -> watch::Receiver<Version> {
        self.version.subscribe()
    }

    /// How many memberships are revoked.
    #[must_use]
    pub fn revoked(&self) -> usize {
        let list = self.revocations.read().unwrap_or_else(PoisonError::into_inner);
        list.as_ref().map_or(0, |list| list.opened.serials.len())
    }

    /// Waits until a newer key set or revocation list was taken. One waits at a time. Cancel-safe.
    pub async fn news(&self) {
        self.news.notified().await;
    }

    /// Takes a newer key set from what the seeder says of itself.
    ///
    /// # Errors
    /// Another root, or a key set that it has not signed.
    pub fn accept(&self, info: &Info) -> Result<(), TrustError> {
        if info.root != self.root.to_bytes() {
            let (pinned, found) = (hex::encode(self.root.to_bytes()), hex::encode(info.root));
            return Err(TrustError::RootChanged { pinned, found });
        }
        self.accept_keys(&info.keys).map(|_| ())
    }

    /// Takes a newer key set, from whomever it comes. Gives the version that was offered.
    ///
    /// # Errors
    /// The root has not signed it, or it cannot be kept.
    pub fn accept_keys(&self, envelope: &Envelope) -> Result<Version, TrustError> {
        let (known, version) = self.signed_keys();
        if known == *envelope {
            return Ok(version);
        }
        let keys = envelope.open::<KeySet>(&self.root)?;
        let version = keys.version;
        let mut known = self.keys.write().unwrap_or_else(PoisonError::into_inner);
        if version > known.opened.version {
            *known = Newest { envelope: envelope.clone(), opened: Arc::new(keys) };
            drop(known);
            self.version.send_replace(version);
            self.keep(Note::KeySet, envelope)?;
        }
        Ok(version)
    }

    /// Takes a newer revocation list, from whomever it comes. Gives the version that was offered.
    ///
    /// # Errors
    /// The fleet has not signed it, or it cannot be kept.
    pub fn accept_revocations(&self, envelope: &Envelope) -> Result<Version, TrustError> {
        if let Some((known, version)) = self.signed_revocations()
            && known == *envelope
        {
            return Ok(version);
        }
        let mut list = envelope.open::<RevocationList>(&*self.keys())?;
        // Looked up by halves: what is signed may be in any order.
        list.serials.sort_unstable();
        let version = list.version;
        let mut known = self.revocations.write().unwrap_or_else(PoisonError::into_inner);
        if known.as_ref().is_none_or(|known| known.opened.version < version) {
            tracing::info!(revoked = list.serials.len(), "a newer revocation list");
            *known = Some(Newest { envelope: envelope.clone(), opened: Arc::new(list) });
            drop(known);
            self.keep(Note::Revocations, envelope)?;
        }
        Ok(version)
    }

    fn keep(&self, note: Note, envelope: &Envelope) -> Result<(), TrustError> {
        self.news.notify_one();
        if let Some(store) = &self.store {
            store.put_note(note, &codec::encode(envelope))?;
        }
        Ok(())
    }

    pub(super) fn may_refresh(&self) -> bool {
        let mut refreshed = self.refreshed.lock().unwrap_or_else(PoisonError::into_inner);
        let may = refreshed.is_none_or(|at| at.elapsed() >= REFRESH_MIN);
        if may {
            *refreshed = Some(Instant::now());
        }
        may
    }

    /// What the store remembers, if it is whole.
    fn remembered(store: &Store) -> Result<Option<Self>, TrustError> {
        let (Some(root), Some(keys)) = (store.note(Note::Root)?, store.note(Note::KeySet)?) else { return Ok(None) };
        let root = <[u8; 32]>::try_from(root.as_slice()).map_err(|_| TrustError::Key)?;
        let root = VerifyingKey::from_bytes(&root).map_err(|_| TrustError::Key)?;
        let keys = codec::decode::<Envelope, ENVELOPE_LEN_MAX>(&keys).map_err(EnvelopeError::from)?;
        let trust = Self { store: Some(store.clone()), ..Self::in_memory(root, &keys)? };
        let list = store.note(Note::Revocations)?;
        if let Some(list) = list.and_then(|list| codec::decode::<Envelope, ENVELOPE_LEN_MAX>(&list).ok())
            && let Err(error) = trust.accept_revocations(&list)
        {
            tracing::warn!(%error, "the stored revocation list is dropped; the seeder and peers have it");
        }
        Ok(Some(trust))
    }

    fn pin(store: &Store, info: &Info, expected: Option<&[u8; 32]>) -> Result<Self, TrustError> {
        if let Some(expected) = expected.filter(|root| **root != info.root) {
            let (expected, found) = (hex::encode(expected), hex::encode(info.root));
            return Err(TrustError::NotExpected { expected, found });
        }
        let root = VerifyingKey::from_bytes(&info.root).map_err(|_| TrustError::Key)?;
        let trust = Self { store: Some(store.clone()), ..Self::in_memory(root, &info.keys)? };
        store.put_note(Note::Root, &info.root)?;
        store.put_note(Note::KeySet, &codec::encode(&info.keys))?;
        if expected.is_none() {
            tracing::warn!(root = %hex::encode(info.root), "pinned the key that the seeder shows at the first contact");
        }
        Ok(trust)
    }
}

impl Upstream {
    /// Asks the seeder who it is and compares with what is pinned; pins at the first contact, by the join token or in open
    /// mode. A seeder that is down is no error where a pin is known.
    ///
    /// # Errors
    /// Another root key than pinned, nothing pinned and the seeder down or not open.
    pub async fn connect(config: &UpstreamConfig, store: &Store) -> Result<Self, TrustError> {
        let remembered = Trust::remembered(store)?;
        let expected = config.join_by.token().map(|token| &token.root).or(config.fleet_key.as_ref());
        if let (Some(trust), Some(expected)) = (&remembered, expected)
            && *expected != trust.root.to_bytes()
        {
            let (pinned, found) = (hex::encode(trust.root.to_bytes()), hex::encode(expected));
            return Err(TrustError::RootChanged { pinned, found });
        }
        let info = Client::new(&config.seeder, config.tls.clone()).info().await;
        let trust = match (remembered, info) {
            (Some(trust), Ok(info)) => {
                trust.accept(&info)?;
                trust
            }
            (Some(trust), Err(error)) => {
                tracing::warn!(%error, "starting without the seeder");
                trust
            }
            // An authority vouches for the name to which a service-account token is shown.
            (None, Ok(info)) if matches!(config.join_by, JoinBy::ServiceAccount(_)) && config.tls.is_some() => {
                Trust::pin(store, &info, expected)?
            }
            (None, Ok(_)) if expected.is_none() && !config.insecure_open => return Err(TrustError::NotPinned),
            (None, Ok(info)) if expected.is_none() && !info.open => return Err(TrustError::NotOpen),
            (None, Ok(info)) => Trust::pin(store, &info, expected)?,
            (None, Err(error)) => return Err(error.into()),
        };
        Ok(Self::new(config, trust))
    }
}
