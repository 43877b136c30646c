//! Whom a TLS client believes: the authorities in a file, or the system's.

use std::{
    io,
    path::{Path, PathBuf},
};

use rustls::{
    RootCertStore,
    pki_types::{CertificateDer, pem::PemObject as _},
};

/// Where systems keep the certificates of public authorities: Debian, Red Hat, SUSE, Alpine.
const SYSTEM_ROOTS: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// Why nobody can be believed.
#[derive(Debug, thiserror::Error)]
pub enum RootsError {
    /// The file cannot be read.
    #[error("cannot read the certificates in {}: {error}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// The file holds no authority's certificate.
    #[error("{} holds no authority's certificate that can be used: it takes PEM", .0.display())]
    Empty(PathBuf),
    /// The system has no certificates of authorities where they are looked for.
    #[error("this system has no certificates of authorities (none of {SYSTEM_ROOTS:?} is there); name a file of them")]
    NoSystem,
}

/// The authorities in `file`; the system's where none is named. Blocks on the disk.
///
/// # Errors
/// There is no such file, or no authority in it.
pub fn roots(file: Option<&Path>) -> Result<RootCertStore, RootsError> {
    let system = || SYSTEM_ROOTS.iter().map(Path::new).find(|path| path.exists()).ok_or(RootsError::NoSystem);
    let path = file.map_or_else(system, Ok)?;
    let pem = std::fs::read(path).map_err(|error| RootsError::Read { path: path.to_owned(), error })?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    let mut roots = RootCertStore::empty();
    let (added, _) = roots.add_parsable_certificates(found.unwrap_or_default());
    if added == 0 { Err(RootsError::Empty(path.to_owned())) } else { Ok(roots) }
}
