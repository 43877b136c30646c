//! How the seeder is connected to: TCP, and TLS over it where its URL says `https`.
//!
//! Whom this node believes is the seeder is said by a file of authorities, or by the system's; the fleet's root key, which
//! is pinned, is checked above in any case. Without TLS no password that a client sends is safe on the way.

use std::{
    io,
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures::{FutureExt as _, future::BoxFuture};
use http::Uri;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::{
    client::legacy::connect::{Connected, Connection, HttpConnector},
    rt::TokioIo,
};
use rustls::{
    ClientConfig, Error as TlsError,
    crypto::aws_lc_rs::default_provider,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _},
};
use shoal_http::roots::{RootsError, roots};
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tower_service::Service;

use super::CONNECT_TIMEOUT;
use crate::config::SeederTls;

/// Why no TLS can be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsSetupError {
    /// A file of certificates or a key cannot be read.
    #[error("cannot use {} for TLS to the seeder: {error}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        error: String,
    },
    /// Nobody can be believed.
    #[error("{0} (the seeder's: --seeder-ca FILE)")]
    Roots(#[from] RootsError),
    /// The library refuses what it was given: a key that is not the certificate's, for one.
    #[error("cannot set up TLS to the seeder: {0}")]
    Tls(#[from] TlsError),
}

/// TLS as a node speaks it to its seeder. Clones share it.
#[derive(Clone)]
pub struct Tls(Arc<ClientConfig>);

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tls")
    }
}

impl Tls {
    /// Reads the files that `files` names; those of the system's authorities where it names none.
    ///
    /// # Errors
    /// One cannot be read, or does not hold what it should.
    pub fn load(files: &SeederTls) -> Result<Self, TlsSetupError> {
        let roots = roots(files.ca.as_deref())?;
        let builder = ClientConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots);
        let mut config = match &files.identity {
            None => builder.with_no_client_auth(),
            Some((certificate, key)) => {
                let failed =
                    |error: &dyn std::fmt::Display| TlsSetupError::File { path: key.clone(), error: error.to_string() };
                let secret = PrivateKeyDer::from_pem_file(key).map_err(|error| failed(&error))?;
                builder.with_client_auth_cert(certificates(certificate)?, secret)?
            }
        };
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self(Arc::new(config)))
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsSetupError> {
    let failed = |error: String| TlsSetupError::File { path: path.to_owned(), error };
    let read = CertificateDer::pem_file_iter(path).map_err(|error| failed(error.to_string()))?;
    let found: Result<Vec<_>, _> = read.collect();
    let found = found.map_err(|error| failed(error.to_string()))?;
    if found.is_empty() { Err(failed("it holds no certificate".into())) } else { Ok(found) }
}

/// Makes connections to the seeder.
#[derive(Debug, Clone)]
pub(super) struct Connector {
    tcp: HttpConnector,
    tls: Option<Tls>,
}

type AnyError = Box<dyn std::error::Error + Send + Sync>;

impl Connector {
    pub(super) fn new(tls: Option<Tls>) -> Self {
        let mut tcp = HttpConnector::new();
        tcp.set_connect_timeout(Some(CONNECT_TIMEOUT));
        tcp.set_nodelay(true);
        tcp.enforce_http(false);
        Self { tcp, tls }
    }

    async fn connect(mut self, uri: Uri) -> Result<Wire, AnyError> {
        let secure = uri.scheme_str() == Some("https");
        let name = uri.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
        let tcp = self.tcp.call(uri).await?;
        if !secure {
            return Ok(Wire::Plain(tcp));
        }
        let tls = self.tls.ok_or("no TLS is set up for the seeder")?;
        let connecting = TlsConnector::from(tls.0).connect(ServerName::try_from(name)?, tcp.into_inner());
        Ok(Wire::Tls(Box::new(TokioIo::new(within(CONNECT_TIMEOUT, connecting).await?))))
    }
}

async fn within<T>(limit: Duration, work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    match timeout(limit, work).await {
        Ok(result) => result,
        Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "no TLS handshake in time")),
    }
}

impl Service<Uri> for Connector {
    type Response = Wire;
    type Error = AnyError;
    type Future = BoxFuture<'static, Result<Wire, AnyError>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), AnyError>> {
        self.tcp.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        self.clone().connect(uri).boxed()
    }
}

/// A connection to the seeder.
#[derive(Debug)]
pub(super) enum Wire {
    Plain(TokioIo<TcpStream>),
    Tls(Box<TokioIo<TlsStream<TcpStream>>>),
}

impl Connection for Wire {
    fn connected(&self) -> Connected {
        match self {
            Self::Plain(tcp) => tcp.connected(),
            Self::Tls(tls) => tls.inner().get_ref().0.connected(),
        }
    }
}

impl Read for Wire {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_read(cx, buf),
            Self::Tls(tls) => Pin::new(tls).poll_read(cx, buf),
        }
    }
}

impl Write for Wire {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_write(cx, buf),
            Self::Tls(tls) => Pin::new(tls).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_flush(cx),
            Self::Tls(tls) => Pin::new(tls).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_shutdown(cx),
            Self::Tls(tls) => Pin::new(tls).poll_shutdown(cx),
        }
    }
}
