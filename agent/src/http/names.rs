//! Which repositories of the seeder a request may mean.

use http::{HeaderValue, Uri};
use shoal_http::ApiError;
use shoal_proto::{name::Repository, oci::ErrorCode};

/// The names under which the seeder may know a request's repository, in the order in which they are tried. Never empty
/// where the path names a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Names {
    asked: Option<Repository>,
    list: Vec<Repository>,
    namespace: Option<HeaderValue>,
}

impl Names {
    pub(super) fn iter(&self) -> impl Iterator<Item = &Repository> {
        self.list.iter()
    }

    /// What `ns` said, for the answer.
    pub(super) fn namespace(&self) -> Option<HeaderValue> {
        self.namespace.clone()
    }

    /// The request's path under each name; the seeder sees no `ns`.
    pub(super) fn paths(&self, path_and_query: &str) -> Vec<String> {
        let (path, query) = path_and_query.split_once('?').unwrap_or((path_and_query, ""));
        let query: Vec<_> = query.split('&').filter(|pair| !pair.is_empty() && !pair.starts_with("ns=")).collect();
        let query = if query.is_empty() { String::new() } else { format!("?{}", query.join("&")) };
        let Some(asked) = &self.asked else { return vec![format!("{path}{query}")] };
        let rest = path.strip_prefix("/v2/").and_then(|path| path.strip_prefix(asked.as_str())).unwrap_or_default();
        self.list.iter().map(|name| format!("/v2/{name}{rest}{query}")).collect()
    }
}

/// The names that `uri` may mean.
pub(super) fn candidates(uri: &Uri, asked: Option<&Repository>, seeder: &str) -> Result<Names, ApiError> {
    let mut names = Names { asked: asked.cloned(), list: asked.cloned().into_iter().collect(), namespace: None };
    let pairs = uri.query().unwrap_or_default().split('&');
    let Some(namespace) = pairs.filter_map(|pair| pair.strip_prefix("ns=")).find(|value| !value.is_empty()) else {
        return Ok(names);
    };
    let namespace = namespace.replace("%3A", ":").replace("%3a", ":");
    let good = namespace.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b':' | b'[' | b']'));
    let value = HeaderValue::from_str(&namespace).ok().filter(|_| good);
    let message = || ApiError::new(ErrorCode::NameInvalid, "`ns` must be a registry's host name, with its port if any");
    names.namespace = Some(value.ok_or_else(message)?);
    let own = seeder.split_once("://").map_or(seeder, |(_, own)| own);
    let here = host(&namespace) == "localhost" || host(&namespace).parse::<std::net::IpAddr>().is_ok();
    if let Some(asked) = asked
        && namespace != own
        && !here
        // A registry with a port has no form as part of a name.
        && let Ok(full) = format!("{}/{asked}", namespace.to_ascii_lowercase()).parse()
    {
        names.list.insert(0, full);
    }
    Ok(names)
}

/// `host:port`, `[v6]:port` → the host.
pub(super) fn host(authority: &str) -> &str {
    if let Some(rest) = authority.strip_prefix('[') {
        return rest.split(']').next().unwrap_or_default();
    }
    authority.rsplit_once(':').map_or(authority, |(host, _)| host)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(uri: &str, asked: &str) -> Vec<String> {
        let asked = asked.parse().unwrap();
        let names = candidates(&uri.parse().unwrap(), Some(&asked), "http://seeder.example:5000").unwrap();
        names.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_registry_in_the_query_or_the_path_selects_a_repository() {
        assert_eq!(names("/v2/app/tags/list", "app"), ["app"]);
        assert_eq!(names("/v2/org/app/tags/list?ns=ghcr.io", "org/app"), ["ghcr.io/org/app", "org/app"]);
        assert_eq!(names("/v2/ghcr.io/org/app/tags/list", "ghcr.io/org/app"), ["ghcr.io/org/app"]);
        for own in ["seeder.example:5000", "localhost:5000", "127.0.0.1:5000", "[::1]:5000"] {
            assert_eq!(
                names(&format!("/v2/app/tags/list?ns={}", own.replace(['[', ']'], "")), "app"),
                ["app"],
                "{own}"
            );
        }
        assert_eq!(names("/v2/app/tags/list?ns=other:5000", "app"), ["app"]);
    }

    #[test]
    fn the_seeder_is_asked_without_ns() {
        let asked = "a/b".parse().unwrap();
        let uri = "/v2/a/b/tags/list?n=5&ns=ghcr.io&last=x";
        let names = candidates(&uri.parse().unwrap(), Some(&asked), "http://s:1").unwrap();
        assert_eq!(names.paths(uri), ["/v2/ghcr.io/a/b/tags/list?n=5&last=x", "/v2/a/b/tags/list?n=5&last=x"]);
        assert_eq!(names.namespace().unwrap(), "ghcr.io");
    }

    #[test]
    fn a_namespace_that_is_no_host_is_refused() {
        let asked = "a".parse().unwrap();
        let error = candidates(&"/v2/a/tags/list?ns=a%20b".parse().unwrap(), Some(&asked), "http://s:1").unwrap_err();
        assert_eq!(error.code(), ErrorCode::NameInvalid);
    }

    #[test]
    fn fuzz_target() {
        crate::mutate::fuzz("target", std::path::Path::new("fuzz/corpus/target"), &[], |data| {
            let Ok(uri) = Uri::try_from(data) else { return };
            let Ok(route) = shoal_proto::oci::Route::parse(uri.path()) else { return };
            let app: Repository = "app".parse().expect("a name");
            let asked = route.repository().unwrap_or(&app);
            if let Ok(names) = candidates(&uri, Some(asked), "http://s:1") {
                assert!(names.iter().all(|name| !name.as_str().contains("..")), "{uri}");
                assert!(names.paths(&uri.to_string()).iter().all(|path| path.len() <= 2 * data.len() + 300), "{uri}");
            }
        });
    }
}
