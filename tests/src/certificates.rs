//! An authority of one's own, with certificates of it.

use std::path::Path;

use anyhow::{Context, Result};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};

/// The file of the authority's certificate.
pub const AUTHORITY: &str = "ca.pem";

/// Makes an authority ([`AUTHORITY`]), and a certificate (`NAME.pem`) and a key (`NAME.key`) of it for each name, in
/// `directory`.
///
/// # Errors
/// A name cannot be in a certificate, or a file cannot be written.
pub fn issue(directory: &Path, names: &[&str]) -> Result<()> {
    let write = |name: &str, text: String| {
        let path = directory.join(name);
        std::fs::write(&path, text).with_context(|| format!("write {}", path.display()))
    };
    let (mut params, key) = (CertificateParams::default(), KeyPair::generate()?);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    write(AUTHORITY, params.self_signed(&key)?.pem())?;
    let issuer = Issuer::new(params, key);
    for name in names {
        let key = KeyPair::generate()?;
        let certificate = CertificateParams::new(vec![(*name).to_owned()])?.signed_by(&key, &issuer)?;
        write(&format!("{name}.pem"), certificate.pem())?;
        write(&format!("{name}.key"), key.serialize_pem())?;
    }
    Ok(())
}
