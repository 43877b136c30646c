//! Who this node is: an Ed25519 key in the data folder, made at the first start.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use ed25519_dalek::{Signer, SigningKey};
use shoal_proto::signed::NodeId;

/// The node's key file within the data folder: 32 bytes, mode 0600.
pub const KEY_FILE: &str = "node.key";

/// The node's key pair.
#[derive(Clone)]
pub struct Identity {
    key: SigningKey,
}

/// A key file that cannot be read, made or believed.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The file fails.
    #[error("cannot read or create the node key {}: {error}", path.display())]
    File {
        /// Where.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// Not 32 bytes.
    #[error("{} is no node key; remove it and the node gets a new identity", .0.display())]
    Malformed(PathBuf),
}

impl Identity {
    /// The key in the data folder `dir`, made if there is none.
    ///
    /// # Errors
    /// The file cannot be read or written, or holds something else.
    pub fn load_or_create(dir: &Path) -> Result<Self, IdentityError> {
        let path = dir.join(KEY_FILE);
        match fs::read(&path) {
            Ok(bytes) => match <[u8; 32]>::try_from(bytes.as_slice()) {
                Ok(secret) => Ok(Self::from_secret(&secret)),
                Err(_) => Err(IdentityError::Malformed(path)),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let mut secret = [0; 32];
                getrandom::fill(&mut secret).expect("the kernel gives random bytes once it has booted");
                write_new(dir, &path, &secret).map_err(|error| IdentityError::File { path, error })?;
                Ok(Self::from_secret(&secret))
            }
            Err(error) => Err(IdentityError::File { path, error }),
        }
    }

    /// The identity of a secret.
    #[must_use]
    pub fn from_secret(secret: &[u8; 32]) -> Self {
        Self { key: SigningKey::from_bytes(secret) }
    }

    /// The secret's 32 bytes, for libraries that want the key in a form of their own.
    #[must_use]
    pub fn secret(&self) -> [u8; 32] {
        self.key.to_bytes()
    }

    /// The public half.
    #[must_use]
    pub fn node(&self) -> NodeId {
        NodeId(self.key.verifying_key().to_bytes())
    }

    /// Signs `bytes`.
    #[must_use]
    pub fn sign(&self, bytes: &[u8]) -> [u8; 64] {
        self.key.sign(bytes).to_bytes()
    }
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Identity({})", self.node())
    }
}

/// Written beside and renamed, so that a crash leaves no half key.
fn write_new(dir: &Path, path: &Path, secret: &[u8]) -> io::Result<()> {
    let part = dir.join("node.key.part");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&part)?;
    file.write_all(secret)?;
    file.sync_all()?;
    fs::rename(&part, path)?;
    fs::File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_keeps_its_identity() {
        let dir = tempfile::tempdir().unwrap();
        let first = Identity::load_or_create(dir.path()).unwrap();
        assert_eq!(Identity::load_or_create(dir.path()).unwrap().node(), first.node());
        fs::write(dir.path().join(KEY_FILE), b"short").unwrap();
        assert!(matches!(Identity::load_or_create(dir.path()), Err(IdentityError::Malformed(_))));
    }
}
