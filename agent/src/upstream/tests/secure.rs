//! The seeder behind TLS, and where a client's password never goes.

use std::{net::SocketAddr, path::PathBuf};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::{
    RootCertStore, ServerConfig,
    crypto::aws_lc_rs::default_provider,
    pki_types::{CertificateDer, PrivatePkcs8KeyDer},
    server::WebPkiClientVerifier,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use tokio_rustls::TlsAcceptor;

use super::*;
use crate::{config::SeederTls, upstream::connect::Tls};

/// An authority that signs certificates, and a folder for files.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    root: CertificateDer<'static>,
    dir: tempfile::TempDir,
}

/// A certificate and its key.
type Identity = (CertificateDer<'static>, KeyPair);

impl Authority {
    fn new() -> Self {
        let (mut params, key) = (CertificateParams::default(), KeyPair::generate().unwrap());
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).unwrap();
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("ca.pem"), certificate.pem()).unwrap();
        Self { issuer: Issuer::new(params, key), root: certificate.der().clone(), dir }
    }

    fn certify(&self, name: &str, adapt: impl FnOnce(&mut CertificateParams)) -> Identity {
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        adapt(&mut params);
        let key = KeyPair::generate().unwrap();
        (params.signed_by(&key, &self.issuer).unwrap().der().clone(), key)
    }

    fn ca(&self) -> PathBuf {
        self.dir.path().join("ca.pem")
    }

    /// Writes a certificate and its key for a client.
    fn files(&self, identity: &Identity) -> (PathBuf, PathBuf) {
        let (certificate, key) = (self.dir.path().join("cert.pem"), self.dir.path().join("key.pem"));
        let pem = x509(&identity.0);
        std::fs::write(&certificate, pem).unwrap();
        std::fs::write(&key, identity.1.serialize_pem()).unwrap();
        (certificate, key)
    }
}

fn x509(der: &[u8]) -> String {
    use base64::Engine as _;
    let body = base64::engine::general_purpose::STANDARD.encode(der);
    format!("-----BEGIN CERTIFICATE-----\n{body}\n-----END CERTIFICATE-----\n")
}

/// Speaks TLS before a seeder that does not. `clients`: whose certificates a client must have.
async fn front(tasks: &mut JoinSet<()>, to: SocketAddr, shown: Identity, clients: Option<&Authority>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let provider = Arc::new(default_provider());
    let builder = ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions().unwrap();
    let builder = match clients {
        None => builder.with_no_client_auth(),
        Some(authority) => {
            let mut roots = RootCertStore::empty();
            roots.add(authority.root.clone()).unwrap();
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build().unwrap();
            builder.with_client_cert_verifier(verifier)
        }
    };
    let key = PrivatePkcs8KeyDer::from(shown.1.serialize_der()).into();
    let acceptor = TlsAcceptor::from(Arc::new(builder.with_single_cert(vec![shown.0], key).unwrap()));
    tasks.spawn(async move {
        let mut sessions = JoinSet::new();
        while let Ok((socket, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            sessions.spawn(async move {
                let Ok(mut tls) = acceptor.accept(socket).await else { return };
                let mut tcp = TcpStream::connect(to).await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut tls, &mut tcp).await;
            });
        }
    });
    address
}

async fn connect(stage: &Stage, address: SocketAddr, files: &SeederTls) -> Result<Upstream, TrustError> {
    let seeder = format!("https://{address}").parse().unwrap();
    let tls = Some(Tls::load(files).unwrap());
    Upstream::connect(&UpstreamConfig { seeder, tls, ..upstream_config(stage.address) }, &fresh_store()).await
}

/// A store that knows no seeder yet, so that one out of reach is an error.
fn fresh_store() -> Store {
    let dir = tempfile::tempdir().unwrap().keep();
    Store::open(StoreConfig { dir, quota_bytes: 1 << 20, boot_id: "b".into() }).unwrap()
}

fn believes(authority: &Authority) -> SeederTls {
    SeederTls { ca: Some(authority.ca()), identity: None }
}

#[tokio::test]
async fn a_seeder_is_believed_by_its_pinned_authority_under_its_name_and_in_time_alone() {
    let mut stage = Stage::set().await;
    let (ours, foreign) = (Authority::new(), Authority::new());
    let past = |params: &mut CertificateParams| params.not_after = rcgen::date_time_ymd(2001, 1, 1);
    let cases = [
        (ours.certify("127.0.0.1", |_| {}), None),
        (foreign.certify("127.0.0.1", |_| {}), Some("BadSignature")),
        (ours.certify("other.example", |_| {}), Some("not valid for name")),
        (ours.certify("127.0.0.1", past), Some("expired")),
    ];
    for (shown, refused) in cases {
        let address = front(&mut stage.tasks, stage.address, shown, None).await;
        match (connect(&stage, address, &believes(&ours)).await, refused) {
            (Ok(upstream), None) => {
                upstream.set_self(stage.upstream.me.read().unwrap().clone().unwrap());
                stage.seeder.push("app", "latest", &[content(1, 100)]);
                upstream.pull(&repository(), &tag(), &Credentials::none()).await.unwrap();
            }
            (Err(TrustError::Upstream(UpstreamError::Unreachable { error, .. })), Some(why)) => {
                assert!(error.contains(why), "{why}: {error}");
            }
            (result, expected) => panic!("{expected:?}: {result:?}"),
        }
    }
    // A seeder that speaks no TLS is not spoken to without it.
    let plain = connect(&stage, stage.address, &believes(&ours)).await;
    assert!(matches!(plain, Err(TrustError::Upstream(UpstreamError::Unreachable { .. }))), "{plain:?}");
}

#[tokio::test]
async fn a_seeder_that_asks_for_a_clients_certificate_gets_the_nodes() {
    let mut stage = Stage::set().await;
    let (ours, foreign) = (Authority::new(), Authority::new());
    let address = front(&mut stage.tasks, stage.address, ours.certify("127.0.0.1", |_| {}), Some(&ours)).await;
    let mine = ours.files(&ours.certify("node", |_| {}));
    let good = SeederTls { identity: Some(mine.clone()), ..believes(&ours) };
    connect(&stage, address, &good).await.unwrap();
    let theirs = foreign.files(&foreign.certify("node", |_| {}));
    for files in [believes(&ours), SeederTls { identity: Some(theirs), ..believes(&ours) }] {
        let refused = connect(&stage, address, &files).await;
        assert!(matches!(refused, Err(TrustError::Upstream(UpstreamError::Unreachable { .. }))), "{refused:?}");
    }
    let mixed = SeederTls { identity: Some((mine.0, foreign.dir.path().join("key.pem"))), ..believes(&ours) };
    assert!(Tls::load(&mixed).is_err(), "a key of another certificate");
    let missing = SeederTls { ca: Some(ours.dir.path().join("none.pem")), identity: None };
    assert!(Tls::load(&missing).unwrap_err().to_string().contains("none.pem"));
}

#[tokio::test]
async fn no_redirect_is_followed_and_no_password_goes_elsewhere() {
    let mut stage = Stage::set().await;
    let elsewhere = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target = elsewhere.local_addr().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    stage.tasks.spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let _ = socket.read(&mut [0; 4096]).await;
            let answer = format!(
                "HTTP/1.1 307 Temporary Redirect\r\nLocation: http://{target}/\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
            );
            let _ = socket.write_all(answer.as_bytes()).await;
        }
    });
    let config = UpstreamConfig { seeder: format!("http://{address}").parse().unwrap(), ..upstream_config(address) };
    let trust = Trust::in_memory(*stage.upstream.trust().root(), &stage.seeder.key_set()).unwrap();
    let upstream = Upstream::new(&config, trust);
    let mut headers = HeaderMap::new();
    headers.insert(header::AUTHORIZATION, HeaderValue::from_static("Basic c2VjcmV0"));
    let secret = Credentials::of(&headers);
    let head = upstream.head_manifest(&repository(), &tag(), &[], None, &secret).await;
    assert!(matches!(head, Err(UpstreamError::Protocol { .. })), "{head:?}");
    let forwarded = upstream.forward(Method::GET, "/v2/app/tags/list", &headers, &secret).await;
    assert!(matches!(forwarded, Err(UpstreamError::Protocol { .. })), "{forwarded:?}");
    let came = tokio::time::timeout(Duration::from_millis(300), elsewhere.accept()).await;
    assert!(came.is_err(), "somebody came there: {came:?}");
}
