//! What this node believes: the fleet's root key, pinned, and the key set that it has signed.
//!
//! In open mode the root key is pinned at the first contact and kept in the store; from then on another one is an
//! error that a person must look at. A key set replaces an older one, never a newer.

use std::{
    sync::{Arc, Mutex, PoisonError, RwLock},
    time::{Duration, Instant},
};

use ed25519_dalek::VerifyingKey;
use shoal_proto::{
    api::Info,
    codec,
    envelope::{ENVELOPE_LEN_MAX, Envelope, EnvelopeError},
    signed::KeySet,
};

use super::{Upstream, UpstreamConfig, UpstreamError, client::Client};
use crate::store::{Note, Store, StoreError};

/// Shortest time between two fetches of the key set: an envelope with a made-up key id must not cost a request each.
pub const REFRESH_MIN: Duration = Duration::from_secs(10);

/// The pinned root and the newest key set under it.
#[derive(Debug)]
pub struct Trust {
    root: VerifyingKey,
    keys: RwLock<Arc<KeySet>>,
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
    #[error("no key of the seeder is pinned; `--insecure-open` takes the one that it shows")]
    NotPinned,
    /// This agent is open, the seeder is not.
    #[error("the seeder is not in open mode; start it with `--insecure-open` too")]
    NotOpen,
    /// Not an Ed25519 key.
    #[error("the root key is malformed")]
    Key,
    /// The key set is not signed by the root.
    #[error("the seeder's key set is not to be believed: {0}")]
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
        let keys = keys.open::<KeySet>(&root)?;
        Ok(Self { root, keys: RwLock::new(Arc::new(keys)), refreshed: Mutex::default(), store: None })
    }

    /// The root key.
    #[must_use]
    pub const fn root(&self) -> &VerifyingKey {
        &self.root
    }

    /// The newest key set.
    #[must_use]
    pub fn keys(&self) -> Arc<KeySet> {
        self.keys.read().unwrap_or_else(PoisonError::into_inner).clone()
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
        self.accept_keys(&info.keys)
    }

    /// Takes a newer key set, from whomever it comes.
    ///
    /// # Errors
    /// The root has not signed it, or it cannot be kept.
    pub fn accept_keys(&self, envelope: &Envelope) -> Result<(), TrustError> {
        let keys = envelope.open::<KeySet>(&self.root)?;
        let mut known = self.keys.write().unwrap_or_else(PoisonError::into_inner);
        if keys.version > known.version {
            *known = Arc::new(keys);
            drop(known);
            if let Some(store) = &self.store {
                store.put_note(Note::KeySet, &codec::encode(envelope))?;
            }
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
        Ok(Some(Self { store: Some(store.clone()), ..Self::in_memory(root, &keys)? }))
    }

    fn pin(store: &Store, info: &Info) -> Result<Self, TrustError> {
        let root = VerifyingKey::from_bytes(&info.root).map_err(|_| TrustError::Key)?;
        let trust = Self { store: Some(store.clone()), ..Self::in_memory(root, &info.keys)? };
        store.put_note(Note::Root, &info.root)?;
        store.put_note(Note::KeySet, &codec::encode(&info.keys))?;
        tracing::warn!(root = %hex::encode(info.root), "pinned the seeder's key at the first contact (--insecure-open)");
        Ok(trust)
    }
}

impl Upstream {
    /// Asks the seeder who it is and compares with what is pinned; pins at the first contact in open mode. A seeder
    /// that is down is no error where a pin is known.
    ///
    /// # Errors
    /// Another root key than pinned, nothing pinned and the seeder down or not open.
    pub async fn connect(config: &UpstreamConfig, store: &Store) -> Result<Self, TrustError> {
        let remembered = Trust::remembered(store)?;
        let info = Client::new(&config.seeder).info().await;
        let trust = match (remembered, info) {
            (Some(trust), Ok(info)) => {
                trust.accept(&info)?;
                trust
            }
            (Some(trust), Err(error)) => {
                tracing::warn!(%error, "starting without the seeder");
                trust
            }
            (None, Ok(_)) if !config.insecure_open => return Err(TrustError::NotPinned),
            (None, Ok(info)) if !info.open => return Err(TrustError::NotOpen),
            (None, Ok(info)) => Trust::pin(store, &info)?,
            (None, Err(error)) => return Err(error.into()),
        };
        Ok(Self::new(config, trust))
    }
}
