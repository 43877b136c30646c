//! Mode `tls`: TLS 1.3 between two nodes that are their keys.
//!
//! The certificate is made once a process in the format of the libp2p TLS specification: self-signed with a fresh P-256
//! key, and in it an extension where the node's Ed25519 key signs that P-256 key. There is no authority to ask: whoever
//! shows such a certificate and finishes the handshake *is* that node. No session is ever resumed, so every connection
//! proves it anew; no secrets are logged.

use std::sync::Arc;

use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use ed25519_dalek::{Signature, VerifyingKey};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error as TlsError, ServerConfig,
    SignatureScheme,
    client::{
        Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, aws_lc_rs as provider},
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime},
    server::{
        NoServerSessionStorage,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
};
use shoal_proto::signed::NodeId;
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::wire::Wire;
use crate::identity::Identity;

/// The protocol's name in the TLS handshake: another protocol's client never gets further.
const ALPN: &[u8] = b"shoal/1";
/// The libp2p public key extension.
const EXTENSION: [u64; 9] = [1, 3, 6, 1, 4, 1, 53594, 1, 1];
/// The same as DER.
const EXTENSION_DER: &[u8] = &[0x2b, 0x06, 0x01, 0x04, 0x01, 0x83, 0xa2, 0x5a, 0x01, 0x01];
/// ecdsa-with-SHA256 as DER.
const ECDSA_SHA256_DER: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02];
/// What the node key signs is prefixed with this.
const SIGNED_PREFIX: &[u8] = b"libp2p-tls-handshake:";
/// `SEQUENCE { OCTET STRING (36), OCTET STRING (64) }`; the first holds [`KEY_HEAD`] and the key.
const EXTENSION_HEAD: [u8; 4] = [0x30, 104, 0x04, 36];
/// An Ed25519 public key in libp2p's protobuf: type 1, then 32 bytes.
const KEY_HEAD: [u8; 4] = [0x08, 0x01, 0x12, 0x20];
const SIGNATURE_HEAD: [u8; 2] = [0x04, 64];

/// Both ends' TLS configuration, made once a process.
#[derive(Clone)]
pub(super) struct Tls {
    connector: TlsConnector,
    acceptor: TlsAcceptor,
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tls")
    }
}

/// TLS cannot be set up: a library refuses its own defaults.
#[derive(Debug, thiserror::Error)]
pub enum TlsSetupError {
    /// The certificate cannot be made.
    #[error("cannot make the node's certificate: {0}")]
    Certificate(#[from] rcgen::Error),
    /// The configuration is refused.
    #[error("cannot set up TLS: {0}")]
    Config(#[from] TlsError),
}

/// Why a TLS handshake gave no peer.
#[derive(Debug, thiserror::Error)]
pub(super) enum TlsFault {
    #[error("TLS: {0}")]
    Io(#[from] std::io::Error),
    #[error("TLS: another protocol than {}", String::from_utf8_lossy(ALPN))]
    Alpn,
    #[error("TLS: the certificate is not one of a node")]
    Certificate,
}

impl Tls {
    pub(super) fn new(identity: &Identity) -> Result<Self, TlsSetupError> {
        let provider = Arc::new(crypto());
        let (certificate, key) = certificate(identity)?;
        let verifier = Arc::new(Verifier);
        let tls13 = &[&rustls::version::TLS13];
        let mut client = ClientConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(tls13)?
            .dangerous()
            .with_custom_certificate_verifier(verifier.clone())
            .with_client_auth_cert(vec![certificate.clone()], key.clone_key())?;
        client.alpn_protocols = vec![ALPN.to_vec()];
        client.resumption = Resumption::disabled();
        client.enable_sni = false;
        let mut server = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(tls13)?
            .with_client_cert_verifier(verifier)
            .with_single_cert(vec![certificate], key)?;
        server.alpn_protocols = vec![ALPN.to_vec()];
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.send_tls13_tickets = 0;
        Ok(Self { connector: Arc::new(client).into(), acceptor: Arc::new(server).into() })
    }

    /// The dialling side. Returns who answered.
    pub(super) async fn connect(&self, wire: Wire) -> Result<(TlsStream<Wire>, NodeId), TlsFault> {
        // Names say nothing here: the certificate's key is the peer. The field has to hold something.
        let name = ServerName::try_from("shoal").expect("a valid name");
        let stream = self.connector.connect(name, wire).await?;
        identified(stream.into())
    }

    /// The listening side. Returns who dialled.
    pub(super) async fn accept(&self, wire: Wire) -> Result<(TlsStream<Wire>, NodeId), TlsFault> {
        let stream = self.acceptor.accept(wire).await?;
        identified(stream.into())
    }
}

fn identified(stream: TlsStream<Wire>) -> Result<(TlsStream<Wire>, NodeId), TlsFault> {
    let (_, state) = stream.get_ref();
    if state.alpn_protocol() != Some(ALPN) {
        return Err(TlsFault::Alpn);
    }
    let certificate = state.peer_certificates().and_then(<[_]>::first).ok_or(TlsFault::Certificate)?;
    let node = node_of(certificate).map_err(|_| TlsFault::Certificate)?.node;
    Ok((stream, node))
}

/// The algorithms, AES-128-GCM first where the CPU has AES: there it costs a third of ChaCha20-Poly1305.
fn crypto() -> CryptoProvider {
    use provider::cipher_suite::{TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384, TLS13_CHACHA20_POLY1305_SHA256};
    let mut suites = vec![TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384, TLS13_CHACHA20_POLY1305_SHA256];
    if !cpu_has_aes() {
        suites.reverse();
    }
    CryptoProvider { cipher_suites: suites, ..provider::default_provider() }
}

#[cfg(target_arch = "x86_64")]
fn cpu_has_aes() -> bool {
    std::arch::is_x86_feature_detected!("aes") && std::arch::is_x86_feature_detected!("pclmulqdq")
}

#[cfg(target_arch = "aarch64")]
fn cpu_has_aes() -> bool {
    std::arch::is_aarch64_feature_detected!("aes")
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn cpu_has_aes() -> bool {
    false
}

fn certificate(identity: &Identity) -> Result<(CertificateDer<'static>, PrivateKeyDer<'static>), rcgen::Error> {
    use rcgen::PublicKeyData as _;
    let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
    let signature = identity.sign(&[SIGNED_PREFIX, &pair.subject_public_key_info()].concat());
    let node = identity.node();
    let content = [&EXTENSION_HEAD[..], &KEY_HEAD, &node.0, &SIGNATURE_HEAD, &signature].concat();
    let mut params = rcgen::CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.custom_extensions.push(rcgen::CustomExtension::from_oid_content(&EXTENSION, content));
    let certificate = params.self_signed(&pair)?;
    Ok((certificate.into(), PrivatePkcs8KeyDer::from(pair.serialize_der()).into()))
}

/// What a certificate proves, once its own signatures hold.
struct Shown {
    node: NodeId,
    /// The certificate's P-256 key.
    point: Vec<u8>,
}

/// Who shows a certificate: self-signed with a P-256 key that the node key has signed.
fn node_of(der: &CertificateDer<'_>) -> Result<Shown, TlsError> {
    let bad = || TlsError::InvalidCertificate(CertificateError::BadEncoding);
    let forged = || TlsError::InvalidCertificate(CertificateError::BadSignature);
    let (rest, certificate) = X509Certificate::from_der(der.as_ref()).map_err(|_| bad())?;
    if !rest.is_empty() || certificate.signature_algorithm.algorithm.as_bytes() != ECDSA_SHA256_DER {
        return Err(bad());
    }
    let mut found = None;
    for extension in certificate.extensions() {
        if extension.oid.as_bytes() == EXTENSION_DER {
            if found.replace(extension.value).is_some() {
                return Err(bad());
            }
        } else if extension.critical {
            return Err(bad());
        }
    }
    let (node, signature) = parse_extension(found.ok_or_else(bad)?).ok_or_else(bad)?;
    let spki = certificate.public_key();
    let key = VerifyingKey::from_bytes(&node).map_err(|_| bad())?;
    let signed = [SIGNED_PREFIX, spki.raw].concat();
    key.verify_strict(&signed, &Signature::from_bytes(&signature)).map_err(|_| forged())?;
    let point = spki.subject_public_key.data.to_vec();
    UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, &point)
        .verify(certificate.tbs_certificate.as_ref(), &certificate.signature_value.data)
        .map_err(|_| forged())?;
    Ok(Shown { node: NodeId(node), point })
}

/// Node key and signature. DER has one encoding for two strings of fixed length, so it is compared, not parsed.
fn parse_extension(value: &[u8]) -> Option<([u8; 32], [u8; 64])> {
    let rest = value.strip_prefix(&EXTENSION_HEAD)?.strip_prefix(&KEY_HEAD)?;
    let (key, rest) = rest.split_first_chunk::<32>()?;
    let signature = rest.strip_prefix(&SIGNATURE_HEAD)?.try_into().ok()?;
    Some((*key, signature))
}

/// Accepts whoever shows a node's certificate; whether that node is the one wanted, and a member, is asked afterwards.
#[derive(Debug)]
struct Verifier;

impl Verifier {
    fn verify(
        message: &[u8],
        der: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        if dss.scheme != SignatureScheme::ECDSA_NISTP256_SHA256 {
            return Err(TlsError::InvalidCertificate(CertificateError::BadSignature));
        }
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, node_of(der)?.point)
            .verify(message, dss.signature())
            .map_err(|_| TlsError::InvalidCertificate(CertificateError::BadSignature))?;
        Ok(HandshakeSignatureValid::assertion())
    }

    fn check(der: &CertificateDer<'_>, chain: &[CertificateDer<'_>]) -> Result<(), TlsError> {
        if !chain.is_empty() {
            return Err(TlsError::InvalidCertificate(CertificateError::UnknownIssuer));
        }
        node_of(der).map(|_| ())
    }
}

const NOT_TLS12: &str = "only TLS 1.3 is spoken";

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, TlsError> {
        Self::check(end_entity, intermediates).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        Err(TlsError::General(NOT_TLS12.into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        Self::verify(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ECDSA_NISTP256_SHA256]
    }
}

impl ClientCertVerifier for Verifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, TlsError> {
        Self::check(end_entity, intermediates).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        Err(TlsError::General(NOT_TLS12.into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        Self::verify(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ECDSA_NISTP256_SHA256]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(n: u8) -> Identity {
        Identity::from_secret(&[n; 32])
    }

    #[test]
    fn a_certificate_names_the_node_that_made_it() {
        let (der, _) = certificate(&identity(1)).unwrap();
        assert_eq!(node_of(&der).unwrap().node, identity(1).node());
    }

    #[test]
    fn a_certificate_of_another_key_names_nobody() {
        let (der, _) = certificate(&identity(1)).unwrap();
        let at = der.windows(32).position(|part| part == identity(1).node().0).unwrap();
        let mut forged = der.to_vec();
        forged[at..at + 32].copy_from_slice(&identity(2).node().0);
        assert!(node_of(&forged.into()).is_err());
        for flip in (0..der.len()).step_by(7) {
            let mut bent = der.to_vec();
            bent[flip] ^= 1;
            assert!(node_of(&bent.into()).is_err(), "byte {flip}");
        }
    }

    #[test]
    fn fuzz_certificate() {
        let seeds = [certificate(&identity(1)).unwrap().0.to_vec()];
        crate::mutate::fuzz("certificate", std::path::Path::new("fuzz/corpus/certificate"), &seeds, |data| {
            if let Ok(shown) = node_of(&data.into()) {
                assert_eq!(shown.node, identity(1).node(), "it was forged");
            }
        });
    }

    #[test]
    fn an_ordinary_certificate_names_nobody() {
        let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
        let der = rcgen::CertificateParams::default().self_signed(&pair).unwrap();
        assert!(node_of(der.der()).is_err());
    }
}
