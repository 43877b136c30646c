//! Where clients that are turned away get a token, and the token.

use http::{HeaderValue, StatusCode, header, uri::Authority};
use shoal_http::ApiError;
use shoal_proto::name::Repository;

use super::{Answer, Asked, Registry, json};
use crate::{access::Action, users::TOKEN_S};

/// Asks for a password.
const BASIC: HeaderValue = HeaderValue::from_static("Basic realm=\"shoal\", charset=\"UTF-8\"");

/// How clients reach this registry.
#[derive(Debug, Clone, Default)]
pub(crate) struct Realm {
    /// By this URL, whatever they say.
    pub(crate) url: Option<String>,
    /// Else by the name that they give, under TLS or not.
    pub(crate) secure: bool,
}

impl Realm {
    fn token_url(&self, asked: &Asked) -> Option<String> {
        let base = match &self.url {
            Some(url) => url.trim_end_matches('/').to_owned(),
            None => {
                let host: Authority = asked.host.as_ref()?.parse().ok()?;
                format!("{}://{host}", if self.secure { "https" } else { "http" })
            }
        };
        Some(format!("{base}/v2/_shoal/token"))
    }
}

impl Registry {
    /// A client that is turned away for want of a password is told where it gets a token by one.
    pub(super) fn challenged(
        &self,
        denied: ApiError,
        asked: &Asked,
        repository: Option<&Repository>,
        action: Action,
    ) -> ApiError {
        if denied.http_status() != StatusCode::UNAUTHORIZED {
            return denied;
        }
        let rights = match action {
            Action::Push => "pull,push",
            Action::Delete => "delete",
            Action::Pull | Action::Catalog | Action::Greet | Action::Login | Action::Join => "pull",
        };
        let scope = repository.map(|name| format!(",scope=\"repository:{name}:{rights}\"")).unwrap_or_default();
        let bearer = self
            .realm
            .token_url(asked)
            .and_then(|url| HeaderValue::from_str(&format!("Bearer realm=\"{url}\",service=\"shoal\"{scope}")).ok());
        denied.header(header::WWW_AUTHENTICATE, bearer.unwrap_or(BASIC))
    }

    /// What was asked for by a password, or by nothing, as a token.
    pub(super) fn token(&self, asked: &Asked) -> Answer {
        let subject = self.access.subject(&asked.headers);
        let token = self.access.token(&subject).map_err(|denied| denied.header(header::WWW_AUTHENTICATE, BASIC))?;
        let mut reply = json(&serde_json::json!({ "token": token, "access_token": token, "expires_in": TOKEN_S }));
        reply.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        Ok(reply)
    }
}
