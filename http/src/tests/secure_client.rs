//! An authority for tests, and a client that speaks HTTP/1.1 or HTTP/2 under TLS.

use std::{io, net::SocketAddr, sync::Arc};

use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::{
    body::Incoming,
    client::conn::{http1, http2},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::{
    ClientConfig, RootCertStore,
    crypto::aws_lc_rs::default_provider,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _},
};
use tokio::{net::TcpStream, task::JoinSet};
use tokio_rustls::TlsConnector;

/// A certificate and its key, as PEM.
pub(crate) type Identity = (String, String);

/// Signs certificates.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pub(crate) pem: String,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let (mut params, key) = (CertificateParams::default(), KeyPair::generate().unwrap());
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    pub(crate) fn certify(&self, name: &str) -> Identity {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        (params.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem())
    }
}

enum Sender {
    Http1(http1::SendRequest<Full<Bytes>>),
    Http2(http2::SendRequest<Full<Bytes>>),
}

/// One connection.
pub(crate) struct Client {
    sender: Sender,
    /// The certificate that the server showed.
    pub(crate) shown: CertificateDer<'static>,
    /// Ends with the connection.
    pub(crate) tasks: JoinSet<hyper::Result<()>>,
}

impl Client {
    pub(crate) async fn connect(
        addr: SocketAddr,
        http2: bool,
        authority: &Authority,
        identity: Option<&Identity>,
    ) -> io::Result<Self> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(authority.pem.as_bytes()).unwrap()).unwrap();
        let builder = ClientConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let mut config = match identity {
            None => builder.with_no_client_auth(),
            Some((certificate, key)) => {
                let chain = vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()];
                builder.with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap()).unwrap()
            }
        };
        let protocol: &[u8] = if http2 { b"h2" } else { b"http/1.1" };
        config.alpn_protocols = vec![protocol.to_vec()];
        let tcp = TcpStream::connect(addr).await?;
        let name = ServerName::try_from(addr.ip().to_string()).unwrap();
        let tls = TlsConnector::from(Arc::new(config)).connect(name, tcp).await?;
        assert_eq!(tls.get_ref().1.alpn_protocol(), Some(protocol));
        let shown = tls.get_ref().1.peer_certificates().unwrap()[0].clone().into_owned();
        let mut tasks = JoinSet::new();
        let sender = if http2 {
            let shaken = http2::handshake(TokioExecutor::new(), TokioIo::new(tls)).await;
            let (sender, connection) = shaken.map_err(io::Error::other)?;
            tasks.spawn(connection);
            Sender::Http2(sender)
        } else {
            let (sender, connection) = http1::handshake(TokioIo::new(tls)).await.map_err(io::Error::other)?;
            tasks.spawn(connection);
            Sender::Http1(sender)
        };
        Ok(Self { sender, shown, tasks })
    }

    /// Sends a request, and gives the answer before its body is read.
    pub(crate) async fn begin(
        &mut self,
        method: Method,
        path: &str,
        body: impl Into<Bytes>,
    ) -> hyper::Result<Response<Incoming>> {
        let (uri, host) = match &self.sender {
            Sender::Http1(_) => (path.to_owned(), Some("server")),
            Sender::Http2(_) => (format!("https://server{path}"), None),
        };
        let mut request = Request::new(Full::new(body.into()));
        (*request.method_mut(), *request.uri_mut()) = (method, uri.parse().unwrap());
        if let Some(host) = host {
            request.headers_mut().insert("host", host.parse().unwrap());
        }
        match &mut self.sender {
            Sender::Http1(sender) => sender.send_request(request).await,
            Sender::Http2(sender) => sender.send_request(request).await,
        }
    }

    /// Sends a request and reads the whole answer.
    pub(crate) async fn send(
        &mut self,
        method: Method,
        path: &str,
        body: impl Into<Bytes>,
    ) -> hyper::Result<Response<Bytes>> {
        let (head, body) = self.begin(method, path, body).await?.into_parts();
        Ok(Response::from_parts(head, body.collect().await?.to_bytes()))
    }
}
