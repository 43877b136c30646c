//! TLS of a listener: certificate, key and the authorities of clients from files, which are read again when they change.
//!
//! **Invariants.** A change that cannot be used changes nothing: the certificate read before goes on being served. No byte
//! of a key's file gets into an error or a log.

use std::{
    fmt, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use rustls::{
    Error as RustlsError, RootCertStore, ServerConfig,
    crypto::aws_lc_rs::default_provider,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    server::{WebPkiClientVerifier, danger::ClientCertVerifier},
};
use tokio_util::sync::CancellationToken;

/// What is spoken inside, the best first.
pub(crate) const HTTP_2: &[u8] = b"h2";
const HTTP_1: &[u8] = b"http/1.1";
/// How often the files are looked at. Three calls of `stat`: often enough that whoever renews a certificate need not wait,
/// and that a certificate and a key which are replaced one after the other soon are a pair again.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// The files of a listener's TLS, all of them PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Files {
    /// The certificate, and after it those of the authorities between it and a root.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// The authorities of which clients must have a certificate; none: clients show none.
    pub client_ca: Option<PathBuf>,
}

/// Why there is no TLS with these files.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("cannot read the TLS {what} {}: {error}; see that the path is right and that this user may read it", path.display())]
    Read {
        /// What it should hold.
        what: &'static str,
        /// Which.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// A file does not hold what it should.
    #[error("{} holds no TLS {what} that can be read: it takes PEM, with `-----BEGIN {label}-----`", path.display())]
    Content {
        /// What it should hold.
        what: &'static str,
        /// How PEM calls that.
        label: &'static str,
        /// Which.
        path: PathBuf,
    },
    /// Key and certificate do not belong together.
    #[error(
        "the TLS key {} is not that of the first certificate in {}: give the two that were made together",
        key.display(), certificate.display()
    )]
    Mismatch {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's file.
        key: PathBuf,
    },
    /// The certificate, the key or the authorities are of a kind that is not known here.
    #[error("{} cannot be used for TLS: {error}; have it issued anew (ECDSA P-256 or RSA 2048, X.509 v3)", path.display())]
    Unusable {
        /// Which.
        path: PathBuf,
        /// Why.
        error: RustlsError,
    },
}

/// How a file was when it was looked at: inode, length, times of change. A link that was turned to another file counts, as
/// does a file whose times were set back.
type Look = Option<(u64, u64, [i64; 4])>;

struct Current {
    config: Arc<ServerConfig>,
    looks: [Look; 3],
}

/// The TLS of a listener.
pub struct Tls {
    files: Files,
    current: Mutex<Current>,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").field("files", &self.files).finish_non_exhaustive()
    }
}

impl Tls {
    /// Reads the files. Blocks on the disk.
    ///
    /// # Errors
    /// One cannot be read, holds something else, or the two do not belong together.
    pub fn load(files: Files) -> Result<Self, TlsError> {
        let looks = look(&files);
        let config = Arc::new(read(&files)?);
        Ok(Self { files, current: Mutex::new(Current { config, looks }) })
    }

    /// Reads the files again if they have changed since they were looked at last; connections from then on get what they
    /// hold. Blocks on the disk.
    ///
    /// # Errors
    /// As [`Tls::load`]; then all stays as it was, and the files are not tried again until they change again.
    pub fn refresh(&self) -> Result<bool, TlsError> {
        let looks = look(&self.files);
        if std::mem::replace(&mut self.current().looks, looks) == looks {
            return Ok(false);
        }
        let config = Arc::new(read(&self.files)?);
        self.current().config = config;
        Ok(true)
    }

    /// Looks at the files every other second, until `stop`.
    pub async fn follow(self: Arc<Self>, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
            let tls = Arc::clone(&self);
            match tokio::task::spawn_blocking(move || tls.refresh()).await {
                Ok(Ok(false)) => {}
                Ok(Ok(true)) => {
                    tracing::info!(certificate = %self.files.certificate.display(), "new connections get the TLS files' new content");
                }
                Ok(Err(error)) => {
                    tracing::error!(%error, "the TLS files have changed and cannot be used; the certificate read before is kept");
                }
                Err(error) => tracing::error!(%error, "the TLS files could not be looked at"),
            }
        }
    }

    pub(crate) fn config(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.current().config)
    }

    fn current(&self) -> MutexGuard<'_, Current> {
        self.current.lock().expect("nobody panics while holding it")
    }
}

fn look(files: &Files) -> [Look; 3] {
    let one = |path: &Path| {
        let found = std::fs::metadata(path).ok()?;
        let times = [found.mtime(), found.mtime_nsec(), found.ctime(), found.ctime_nsec()];
        Some((found.ino(), found.len(), times))
    };
    [one(&files.certificate), one(&files.key), files.client_ca.as_deref().and_then(one)]
}

fn read(files: &Files) -> Result<ServerConfig, TlsError> {
    let provider = Arc::new(default_provider());
    let certificates = certificates("certificate", &files.certificate)?;
    // Why it cannot be read is not told: the reason may quote the file.
    let key = PrivateKeyDer::from_pem_slice(&content("key", &files.key)?).map_err(|_| TlsError::Content {
        what: "key",
        label: "PRIVATE KEY",
        path: files.key.clone(),
    })?;
    let unusable = |path: &Path| {
        let path = path.to_owned();
        move |error| TlsError::Unusable { path, error }
    };
    let builder = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(unusable(&files.certificate))?;
    let builder = match &files.client_ca {
        None => builder.with_no_client_auth(),
        Some(path) => builder.with_client_cert_verifier(verifier(path)?),
    };
    let mut config = builder.with_single_cert(certificates, key).map_err(|error| {
        if matches!(error, RustlsError::InconsistentKeys(_)) {
            return TlsError::Mismatch { certificate: files.certificate.clone(), key: files.key.clone() };
        }
        let of_certificate = matches!(error, RustlsError::InvalidCertificate(_));
        unusable(if of_certificate { &files.certificate } else { &files.key })(error)
    })?;
    config.alpn_protocols = vec![HTTP_2.to_vec(), HTTP_1.to_vec()];
    Ok(config)
}

fn verifier(path: &Path) -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
    let failed = |error| TlsError::Unusable { path: path.to_owned(), error };
    let mut roots = RootCertStore::empty();
    for authority in certificates("clients' authority", path)? {
        roots.add(authority).map_err(failed)?;
    }
    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::new(default_provider()))
        .build()
        .map_err(|error| failed(RustlsError::General(error.to_string())))
}

fn certificates(what: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&content(what, path)?).collect();
    let found = read.ok().filter(|found| !found.is_empty());
    found.ok_or_else(|| TlsError::Content { what, label: "CERTIFICATE", path: path.to_owned() })
}

fn content(what: &'static str, path: &Path) -> Result<Vec<u8>, TlsError> {
    std::fs::read(path).map_err(|error| TlsError::Read { what, path: path.to_owned(), error })
}
