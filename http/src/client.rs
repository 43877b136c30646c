//! The smallest client: one GET on a connection of its own, under TLS where the URL says so. For what is asked for seldom.

use std::{path::Path, sync::Arc};

use bytes::Bytes;
use http::{HeaderValue, Request, Uri, header};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, crypto::aws_lc_rs::default_provider, pki_types::ServerName};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    task::JoinSet,
};
use tokio_rustls::TlsConnector;

use crate::roots::{RootsError, roots};

/// Why there is no TLS.
#[derive(Debug, thiserror::Error)]
pub enum ClientTlsError {
    /// Nobody can be believed.
    #[error(transparent)]
    Roots(#[from] RootsError),
    /// The TLS library refuses its own defaults.
    #[error("cannot set up TLS: {0}")]
    Tls(#[from] rustls::Error),
}

/// TLS as a client speaks it. Clones share it.
#[derive(Clone)]
pub struct ClientTls(Arc<ClientConfig>);

impl std::fmt::Debug for ClientTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ClientTls")
    }
}

impl ClientTls {
    /// To servers for which the authorities in `ca` vouch; the system's where none is named. Blocks on the disk.
    ///
    /// # Errors
    /// There are none.
    pub fn load(ca: Option<&Path>) -> Result<Self, ClientTlsError> {
        let mut config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots(ca)?)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self(Arc::new(config)))
    }
}

/// Why nothing was got.
#[derive(Debug, thiserror::Error)]
pub enum GetError {
    /// No connection.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// Not a name that a certificate could be for.
    #[error(transparent)]
    Name(#[from] rustls::pki_types::InvalidDnsNameError),
    /// Not a request.
    #[error(transparent)]
    Request(#[from] http::Error),
    /// The exchange failed.
    #[error(transparent)]
    Http(#[from] hyper::Error),
    /// Another status than success.
    #[error("{0}")]
    Status(http::StatusCode),
    /// The body broke off, or is too long.
    #[error("{0}")]
    Body(Box<dyn std::error::Error + Send + Sync>),
}

/// The body of what is at `uri`, of at most `limit` bytes. No redirect is followed; `authorization` goes nowhere else. The
/// caller sets the time limit.
///
/// # Errors
/// There is none.
pub async fn get(
    uri: &Uri,
    tls: Option<&ClientTls>,
    authorization: Option<HeaderValue>,
    accept: HeaderValue,
    limit: usize,
) -> Result<Bytes, GetError> {
    let mut request = Request::get(uri.path_and_query().map_or("/", |path| path.as_str())).body(Empty::new())?;
    let authority = uri.authority().map_or("", |authority| authority.as_str());
    let host = HeaderValue::from_str(authority).map_err(http::Error::from)?;
    request.headers_mut().insert(header::HOST, host);
    request.headers_mut().insert(header::ACCEPT, accept);
    if let Some(authorization) = authorization {
        request.headers_mut().insert(header::AUTHORIZATION, authorization);
    }
    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
    let port = uri.port_u16().unwrap_or_else(|| if tls.is_some() { 443 } else { 80 });
    let tcp = TcpStream::connect((host, port)).await?;
    let Some(ClientTls(tls)) = tls else { return exchange(tcp, request, limit).await };
    let name = ServerName::try_from(host.to_owned())?;
    exchange(TlsConnector::from(Arc::clone(tls)).connect(name, tcp).await?, request, limit).await
}

async fn exchange<S>(stream: S, request: Request<Empty<Bytes>>, limit: usize) -> Result<Bytes, GetError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    // Ends with this function.
    let mut tasks = JoinSet::new();
    tasks.spawn(connection);
    let response = sender.send_request(request).await?;
    if !response.status().is_success() {
        return Err(GetError::Status(response.status()));
    }
    let body = Limited::new(response.into_body(), limit).collect().await;
    Ok(body.map_err(GetError::Body)?.to_bytes())
}
