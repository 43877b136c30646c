//! The fleet's keys, and everything that is signed with them.
//!
//! The root key is made at the first start and lies in `root.key` (0600), apart from the store, because it can be taken
//! offline: it signs nothing but the key set, whose signed form is kept with the other secrets in the store. The keys of
//! the set sign one purpose each.

use std::{
    fs::OpenOptions,
    io::{Read as _, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use bincode::{Decode, Encode};
use ed25519_dalek::SigningKey;
use shoal_proto::{
    Digest, codec,
    envelope::{Envelope, Payload},
    member::CLOCK_SKEW_MAX_S,
    name::{Reference, Repository},
    signed::{DiscoveryKey, KeySet, Label, Purpose, UnixSeconds, Version},
};

use crate::{
    store::{Store, StoreError},
    time::unix_seconds,
};

/// Largest encoded secrets in bytes.
const SECRETS_LEN_MAX: usize = 16 << 10;
const PURPOSES: [Purpose; 6] =
    [Purpose::Statement, Purpose::Member, Purpose::Capability, Purpose::Tag, Purpose::Revocation, Purpose::Tls];

/// Why the fleet's keys cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// The root key's file cannot be read or made.
    #[error("cannot use the fleet's root key {}: {error}", path.display())]
    Root {
        /// The file.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// No random bytes.
    #[error("the system gives no random bytes: {0}")]
    Random(String),
    /// The secrets in the store cannot be understood.
    #[error("the fleet's secrets in the store are damaged; restore the data directory from a backup")]
    Damaged,
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What is kept of the keys in the store.
#[derive(Encode, Decode)]
struct Secrets {
    epoch: u64,
    discovery: [u8; 32],
    root: [u8; 32],
    key_set: Envelope,
    keys: Vec<(Purpose, [u8; 32])>,
}

/// The fleet's keys.
pub struct Fleet {
    epoch: u64,
    discovery: [u8; 32],
    root: [u8; 32],
    key_set: KeySet,
    signed_key_set: Envelope,
    keys: Vec<(Purpose, SigningKey)>,
}

impl std::fmt::Debug for Fleet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Fleet")
            .field("root", &hex::encode(self.root))
            .field("epoch", &self.epoch)
            .finish_non_exhaustive()
    }
}

impl Fleet {
    /// Loads the fleet's keys, or makes them at the first start. `dir` is the data directory.
    ///
    /// # Errors
    /// The root key's file or the store cannot be used, or what they hold is damaged.
    pub async fn load(dir: &Path, store: &dyn Store) -> Result<Self, KeysError> {
        if let Some(bytes) = store.secrets().await? {
            let secrets: Secrets = codec::decode::<_, SECRETS_LEN_MAX>(&bytes).map_err(|_| KeysError::Damaged)?;
            return Self::of(secrets);
        }
        let root = root_key(&dir.join("root.key"))?;
        // The time of birth as epoch: what a store that was lost had signed is older.
        let epoch = unix_seconds();
        let mut keys = Vec::with_capacity(PURPOSES.len());
        for purpose in PURPOSES {
            keys.push((purpose, random()?));
        }
        let public =
            keys.iter().map(|(purpose, key)| (*purpose, SigningKey::from_bytes(key).verifying_key().to_bytes()));
        let key_set = KeySet { version: Version { epoch, counter: 1 }, keys: public.collect() };
        let secrets = Secrets {
            epoch,
            discovery: random()?,
            root: root.verifying_key().to_bytes(),
            key_set: Envelope::sign(&key_set, &root),
            keys,
        };
        store.put_secrets(codec::encode(&secrets)).await?;
        Self::of(secrets)
    }

    /// Raises the epoch of the keys in `store`: for a store that goes back in time.
    ///
    /// # Errors
    /// The store cannot be used, or what it holds is damaged.
    pub async fn raise_epoch(store: &dyn Store) -> Result<(), KeysError> {
        let Some(bytes) = store.secrets().await? else { return Ok(()) };
        let mut secrets: Secrets = codec::decode::<_, SECRETS_LEN_MAX>(&bytes).map_err(|_| KeysError::Damaged)?;
        secrets.epoch = unix_seconds().max(secrets.epoch + 1);
        store.put_secrets(codec::encode(&secrets)).await?;
        Ok(())
    }

    fn of(secrets: Secrets) -> Result<Self, KeysError> {
        let Secrets { epoch, discovery, root, key_set: signed_key_set, keys } = secrets;
        let root_key = ed25519_dalek::VerifyingKey::from_bytes(&root).map_err(|_| KeysError::Damaged)?;
        let key_set = signed_key_set.open::<KeySet>(&root_key).map_err(|_| KeysError::Damaged)?;
        let keys = keys.iter().map(|(purpose, key)| (*purpose, SigningKey::from_bytes(key))).collect();
        Ok(Self { epoch, discovery, root, key_set, signed_key_set, keys })
    }

    /// The root's public key.
    #[must_use]
    pub const fn root(&self) -> &[u8; 32] {
        &self.root
    }

    /// The public keys that may sign.
    #[must_use]
    pub const fn key_set(&self) -> &KeySet {
        &self.key_set
    }

    /// The same, signed by the root.
    #[must_use]
    pub const fn signed_key_set(&self) -> &Envelope {
        &self.signed_key_set
    }

    /// A version of this store's epoch.
    #[must_use]
    pub const fn version(&self, counter: u64) -> Version {
        Version { epoch: self.epoch, counter }
    }

    /// Signs `payload` with the key of its purpose.
    ///
    /// # Panics
    /// For a key set: only the root signs it.
    #[must_use]
    pub fn sign<T: Payload>(&self, payload: &T) -> Envelope {
        let purpose = Purpose::of(T::TYPE).expect("key sets are signed by the root alone");
        let (_, key) = self.keys.iter().find(|(of, _)| *of == purpose).expect("there is a key for each purpose");
        Envelope::sign(payload, key)
    }

    fn discovery_key(&self, parts: &[&[u8]]) -> DiscoveryKey {
        let mut hasher = blake3::Hasher::new_keyed(&self.discovery);
        for part in parts {
            // The length first, so that parts cannot run into one another.
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
        *hasher.finalize().as_bytes()
    }

    /// Where holders of `digest` are found, in the whole fleet.
    #[must_use]
    pub fn digest_key(&self, digest: &Digest) -> DiscoveryKey {
        self.discovery_key(&[b"digest", digest.to_string().as_bytes()])
    }

    /// Where holders of `digest` in `region` are found; a node without a region counts to one that has no name.
    #[must_use]
    pub fn region_key(&self, digest: &Digest, region: Option<&Label>) -> DiscoveryKey {
        let region = region.map_or("", Label::as_str);
        self.discovery_key(&[b"region", digest.to_string().as_bytes(), region.as_bytes()])
    }

    /// Where the bundle of a public reference is found.
    #[must_use]
    pub fn bundle_key(&self, repository: &Repository, reference: &Reference) -> DiscoveryKey {
        self.discovery_key(&[b"bundle", repository.as_str().as_bytes(), reference.to_string().as_bytes()])
    }
}

/// How long what is signed for a time holds, from a while ago (clocks differ) to `seconds` from now.
#[must_use]
pub fn valid_for(seconds: u64) -> (UnixSeconds, UnixSeconds) {
    let now = unix_seconds();
    (now.saturating_sub(CLOCK_SKEW_MAX_S), now + seconds)
}

fn random() -> Result<[u8; 32], KeysError> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).map_err(|error| KeysError::Random(error.to_string()))?;
    Ok(bytes)
}

/// Reads the root key (64 hex digits), or makes it.
fn root_key(path: &Path) -> Result<SigningKey, KeysError> {
    let failed = |error| KeysError::Root { path: path.to_owned(), error };
    let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    match made {
        Ok(mut file) => {
            let key = random()?;
            file.write_all(hex::encode(key).as_bytes()).and_then(|()| file.sync_all()).map_err(failed)?;
            Ok(SigningKey::from_bytes(&key))
        }
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            let mut text = String::new();
            std::fs::File::open(path).and_then(|file| file.take(100).read_to_string(&mut text)).map_err(failed)?;
            let mut key = [0; 32];
            hex::decode_to_slice(text.trim(), &mut key).map_err(|_| {
                failed(std::io::Error::new(std::io::ErrorKind::InvalidData, "it should hold 64 hex digits"))
            })?;
            Ok(SigningKey::from_bytes(&key))
        }
        Err(error) => Err(failed(error)),
    }
}
