//! The fleet's keys, and everything that is signed with them.
//!
//! The root key is made at the first start and lies in `root.key` (0600), apart from the store, because it can be taken
//! offline: it signs nothing but the key set, whose signed form is kept with the other secrets in the store. The keys of
//! the set sign one purpose each.
//!
//! **Rotation.** New keys sign from the moment on in which the new set is in the store; the old ones stay in the set for
//! [`GENERATIONS_MAX`] generations, so that what they have signed holds while it is in use. Nobody restarts: agents hear of
//! the set from the seeder or from one another. A stored statement is signed anew when it is given out next.

use std::{
    fs::OpenOptions,
    io::{Read as _, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
};

use bincode::{Decode, Encode};
use ed25519_dalek::{SigningKey, VerifyingKey};
use shoal_proto::{
    Digest, codec,
    envelope::{Envelope, KeyId, Payload},
    member::CLOCK_SKEW_MAX_S,
    name::{Reference, Repository},
    signed::{DiscoveryKey, KeySet, Label, Purpose, Statement, UnixSeconds, Version},
};

use crate::{
    store::{BlobInfo, Store, StoreError},
    time::unix_seconds,
};

/// Largest encoded secrets in bytes.
const SECRETS_LEN_MAX: usize = 16 << 10;
const PURPOSES: [Purpose; 6] =
    [Purpose::Statement, Purpose::Member, Purpose::Capability, Purpose::Tag, Purpose::Revocation, Purpose::Tls];

/// Generations of keys that are believed: the present one and those before it. What lasts longest is a membership, and who
/// rotates more than twice a day has a reason not to believe the oldest.
pub const GENERATIONS_MAX: usize = 3;

/// Why the keys cannot be rotated.
#[derive(Debug, thiserror::Error)]
pub enum RotateError {
    /// Not this fleet's root key.
    #[error("that is not this fleet's root key")]
    Root,
    /// The keys cannot be made or kept.
    #[error(transparent)]
    Keys(#[from] KeysError),
}

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
    ring: RwLock<Arc<Ring>>,
    rotating: tokio::sync::Mutex<()>,
}

/// A key set, and the secret halves of its newest keys.
struct Ring {
    key_set: Arc<KeySet>,
    signed: Envelope,
    keys: Vec<(Purpose, SigningKey)>,
}

impl Ring {
    fn of(secrets: &Secrets) -> Result<Self, KeysError> {
        let root = VerifyingKey::from_bytes(&secrets.root).map_err(|_| KeysError::Damaged)?;
        let key_set = secrets.key_set.open::<KeySet>(&root).map_err(|_| KeysError::Damaged)?;
        let keys = secrets.keys.iter().map(|(purpose, key)| (*purpose, SigningKey::from_bytes(key))).collect();
        Ok(Self { key_set: Arc::new(key_set), signed: secrets.key_set.clone(), keys })
    }

    fn key(&self, purpose: Purpose) -> &SigningKey {
        let (_, key) = self.keys.iter().find(|(of, _)| *of == purpose).expect("there is a key for each purpose");
        key
    }
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
            return Self::of(&secrets);
        }
        let root = root_key(&root_path(dir))?;
        // The time of birth as epoch: what a store that was lost had signed is older.
        let epoch = unix_seconds();
        let keys = new_keys()?;
        let key_set = KeySet { version: Version { epoch, counter: 1 }, keys: public(&keys).collect() };
        let secrets = Secrets {
            epoch,
            discovery: random()?,
            root: root.verifying_key().to_bytes(),
            key_set: Envelope::sign(&key_set, &root),
            keys,
        };
        store.put_secrets(codec::encode(&secrets)).await?;
        Self::of(&secrets)
    }

    /// Raises the epoch of the keys in `store`: for a store that goes back in time. The key set is signed anew with it, by
    /// the root key in `dir`: agents may know a later set than the store does, and take no older one. False if the root key
    /// is elsewhere: then the next rotation does it.
    ///
    /// # Errors
    /// The store or the root key cannot be used, or what they hold is damaged.
    pub async fn raise_epoch(dir: &Path, store: &dyn Store) -> Result<bool, KeysError> {
        let Some(bytes) = store.secrets().await? else { return Ok(true) };
        let mut secrets: Secrets = codec::decode::<_, SECRETS_LEN_MAX>(&bytes).map_err(|_| KeysError::Damaged)?;
        secrets.epoch = unix_seconds().max(secrets.epoch + 1);
        let path = root_path(dir);
        let signs = path.exists();
        if signs {
            let root = SigningKey::from_bytes(&read_root(&path)?);
            if root.verifying_key().to_bytes() != secrets.root {
                let error = std::io::Error::new(std::io::ErrorKind::InvalidData, "it is another fleet's");
                return Err(KeysError::Root { path, error });
            }
            let mut key_set = KeySet::clone(&Ring::of(&secrets)?.key_set);
            key_set.version.epoch = secrets.epoch;
            secrets.key_set = Envelope::sign(&key_set, &root);
        }
        store.put_secrets(codec::encode(&secrets)).await?;
        Ok(signs)
    }

    fn of(secrets: &Secrets) -> Result<Self, KeysError> {
        let ring = RwLock::new(Arc::new(Ring::of(secrets)?));
        let Secrets { epoch, discovery, root, .. } = *secrets;
        Ok(Self { epoch, discovery, root, ring, rotating: tokio::sync::Mutex::const_new(()) })
    }

    fn ring(&self) -> Arc<Ring> {
        self.ring.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Makes a new key for each purpose and signs with it from now on. One rotation at a time; others wait.
    ///
    /// # Errors
    /// `root` is not the fleet's root key, or the new set cannot be kept; then the old one stays.
    pub async fn rotate(&self, store: &dyn Store, root: &[u8; 32]) -> Result<Version, RotateError> {
        let root = SigningKey::from_bytes(root);
        if root.verifying_key().to_bytes() != self.root {
            return Err(RotateError::Root);
        }
        let _alone = self.rotating.lock().await;
        let (old, keys) = (self.ring(), new_keys()?);
        // The epoch is the store's, which a restore has raised; the counter never falls back.
        let version = self.version(old.key_set.version.counter + 1);
        let kept = old.key_set.keys.iter().copied().take((GENERATIONS_MAX - 1) * PURPOSES.len());
        let key_set = KeySet { version, keys: public(&keys).chain(kept).collect() };
        let secrets = Secrets {
            epoch: self.epoch,
            discovery: self.discovery,
            root: self.root,
            key_set: Envelope::sign(&key_set, &root),
            keys,
        };
        store.put_secrets(codec::encode(&secrets)).await.map_err(KeysError::from)?;
        *self.ring.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(Ring::of(&secrets)?);
        tracing::info!(epoch = version.epoch, counter = version.counter, "the fleet's keys are new");
        Ok(version)
    }

    /// The root's public key.
    #[must_use]
    pub const fn root(&self) -> &[u8; 32] {
        &self.root
    }

    /// The public keys that may sign.
    #[must_use]
    pub fn key_set(&self) -> Arc<KeySet> {
        self.ring().key_set.clone()
    }

    /// The same, signed by the root.
    #[must_use]
    pub fn signed_key_set(&self) -> Envelope {
        self.ring().signed.clone()
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
        Envelope::sign(payload, self.ring().key(purpose))
    }

    /// The key that signs for `purpose` now. What is kept signed for long is compared with it.
    #[must_use]
    pub fn key_id(&self, purpose: Purpose) -> KeyId {
        KeyId::of(&self.ring().key(purpose).verifying_key())
    }

    /// The statement of stored content, signed anew if its key was replaced since.
    #[must_use]
    pub fn statement(&self, info: &BlobInfo) -> Envelope {
        let ring = self.ring();
        let key = ring.key(Purpose::Statement);
        if info.statement.key() == KeyId::of(&key.verifying_key()) {
            return info.statement.clone();
        }
        Envelope::sign(&Statement { digest: info.digest, size: info.size, root: info.root }, key)
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

    /// What makes tokens for clients: the same in every replica, and after a restart.
    #[must_use]
    pub fn token_key(&self) -> [u8; 32] {
        blake3::derive_key("shoal 2026 client tokens", &self.discovery)
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

type Secret = (Purpose, [u8; 32]);

fn new_keys() -> Result<Vec<Secret>, KeysError> {
    PURPOSES.into_iter().map(|purpose| Ok((purpose, random()?))).collect()
}

fn public(keys: &[Secret]) -> impl Iterator<Item = Secret> {
    keys.iter().map(|(purpose, key)| (*purpose, SigningKey::from_bytes(key).verifying_key().to_bytes()))
}

/// Where the root key lies in a data directory, until it is taken offline.
#[must_use]
pub fn root_path(dir: &Path) -> PathBuf {
    dir.join("root.key")
}

/// Reads a root key from its file: 64 hex digits.
///
/// # Errors
/// The file cannot be read, or holds something else.
pub fn read_root(path: &Path) -> Result<[u8; 32], KeysError> {
    let failed = |error| KeysError::Root { path: path.to_owned(), error };
    let mut text = String::new();
    std::fs::File::open(path).and_then(|file| file.take(100).read_to_string(&mut text)).map_err(failed)?;
    let mut key = [0; 32];
    hex::decode_to_slice(text.trim(), &mut key)
        .map_err(|_| failed(std::io::Error::new(std::io::ErrorKind::InvalidData, "it should hold 64 hex digits")))?;
    Ok(key)
}

/// Copies the root key to a new file (0600); `remove`: and takes it out of the data directory. The seeder needs it for
/// nothing but rotations.
///
/// # Errors
/// It cannot be read, or `to` is there already or cannot be written.
pub fn export_root(dir: &Path, to: &Path, remove: bool) -> Result<(), KeysError> {
    let from = root_path(dir);
    let key = read_root(&from)?;
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |error| KeysError::Root { path, error }
    };
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(to).map_err(failed(to))?;
    file.write_all(hex::encode(key).as_bytes()).and_then(|()| file.sync_all()).map_err(failed(to))?;
    // The copy's name is on the disk before the original's is not.
    let folder = to.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
    std::fs::File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed(folder))?;
    if remove {
        std::fs::remove_file(&from).map_err(failed(&from))?;
    }
    Ok(())
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
            Ok(SigningKey::from_bytes(&read_root(path)?))
        }
        Err(error) => Err(failed(error)),
    }
}

#[cfg(test)]
mod tests {
    use shoal_proto::envelope::EnvelopeError;

    use super::*;
    use crate::store::local::Local;

    async fn fleet() -> (tempfile::TempDir, Local, Fleet, [u8; 32]) {
        let dir = tempfile::tempdir().unwrap();
        let store = Local::open(dir.path(), 0).unwrap();
        let fleet = Fleet::load(dir.path(), &store).await.unwrap();
        let root = read_root(&root_path(dir.path())).unwrap();
        (dir, store, fleet, root)
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_old_keys_have_signed_holds_for_two_rotations_and_new_keys_sign_at_once() {
        let (dir, store, fleet, root) = fleet().await;
        let statement = Statement { digest: Digest::of(b"x"), size: 1, root: [7; 32] };
        let first = fleet.sign(&statement);
        let info = BlobInfo { digest: statement.digest, size: 1, root: [7; 32], statement: first.clone() };
        assert_eq!(fleet.statement(&info), first);
        for counter in 2..4 {
            assert_eq!(fleet.rotate(&store, &root).await.unwrap().counter, counter);
            assert_eq!(first.open::<Statement>(&*fleet.key_set()).unwrap(), statement);
            let fresh = fleet.statement(&info);
            assert_ne!(fresh, first);
            assert_eq!(fresh.open::<Statement>(&*fleet.key_set()).unwrap(), statement);
        }
        fleet.rotate(&store, &root).await.unwrap();
        let refused = first.open::<Statement>(&*fleet.key_set());
        assert!(matches!(refused, Err(EnvelopeError::Key { .. })), "the oldest are dropped: {refused:?}");
        assert_eq!(fleet.key_set().keys.len(), GENERATIONS_MAX * PURPOSES.len());
        let again = Fleet::load(dir.path(), &store).await.unwrap();
        assert_eq!((again.key_set(), again.root()), (fleet.key_set(), fleet.root()));
        assert_eq!(again.sign(&statement), fleet.sign(&statement), "with the same keys after a restart");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_foreign_root_key_rotates_nothing() {
        let (_dir, store, fleet, root) = fleet().await;
        let before = fleet.key_set();
        assert!(matches!(fleet.rotate(&store, &[9; 32]).await, Err(RotateError::Root)));
        assert_eq!(fleet.key_set(), before);
        fleet.rotate(&store, &root).await.unwrap();
        assert_ne!(fleet.key_set(), before);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_fleet_needs_its_root_key_for_rotations_alone() {
        use std::os::unix::fs::PermissionsExt as _;
        let (dir, store, fleet, _) = fleet().await;
        let safe = dir.path().join("safe");
        export_root(dir.path(), &safe, true).unwrap();
        assert!(export_root(dir.path(), &safe, false).is_err() && !root_path(dir.path()).exists());
        assert_eq!(std::fs::metadata(&safe).unwrap().permissions().mode() & 0o777, 0o600);
        let again = Fleet::load(dir.path(), &store).await.unwrap();
        assert_eq!(again.root(), fleet.root());
        again.rotate(&store, &read_root(&safe).unwrap()).await.unwrap();
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_restored_store_shows_a_key_set_that_counts_as_newer_than_any_that_was_lost() {
        let (dir, store, fleet, root) = fleet().await;
        let backup = store.secrets().await.unwrap().unwrap();
        fleet.rotate(&store, &root).await.unwrap();
        let lost = fleet.rotate(&store, &root).await.unwrap();
        store.put_secrets(backup.clone()).await.unwrap();
        assert!(Fleet::raise_epoch(dir.path(), &store).await.unwrap());
        let restored = Fleet::load(dir.path(), &store).await.unwrap();
        assert!(restored.key_set().version > lost);
        // Without the root key the next rotation is what counts as newer.
        store.put_secrets(backup).await.unwrap();
        std::fs::remove_file(root_path(dir.path())).unwrap();
        assert!(!Fleet::raise_epoch(dir.path(), &store).await.unwrap());
        let restored = Fleet::load(dir.path(), &store).await.unwrap();
        assert!(restored.rotate(&store, &root).await.unwrap() > lost);
    }
}
