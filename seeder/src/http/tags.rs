//! Lists: tags of a repository, repositories.

use http::{StatusCode, header};
use shoal_http::ApiError;
use shoal_proto::{name::Repository, oci::ErrorCode};

use super::{Answer, Asked, Registry, json, query::encode, store_failed, value};
use crate::store::Page;

/// Most names on a page, whatever a client asks for. Without a wish it gets so many, too.
const PAGE_MAX: usize = 1000;

impl Registry {
    pub(super) async fn list_tags(&self, name: &Repository, asked: &Asked) -> Answer {
        let n = page_len(asked)?;
        let page = self.store.tags(name, n, asked.query.first("last")).await.map_err(|e| store_failed(&e))?;
        let page = page.ok_or_else(|| ApiError::new(ErrorCode::NameUnknown, "there is no such repository"))?;
        let reply = json(&serde_json::json!({ "name": name, "tags": page.items }));
        Ok(linked(reply, &format!("/v2/{name}/tags/list"), n, &page))
    }

    pub(super) async fn catalog(&self, asked: &Asked) -> Answer {
        let n = page_len(asked)?;
        let page = self.store.repositories(n, asked.query.first("last")).await.map_err(|e| store_failed(&e))?;
        let reply = json(&serde_json::json!({ "repositories": page.items }));
        Ok(linked(reply, "/v2/_catalog", n, &page))
    }
}

pub(super) fn page_len(asked: &Asked) -> Result<usize, ApiError> {
    match asked.query.first("n") {
        None => Ok(PAGE_MAX),
        Some(n) if !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()) => {
            // A number too large to read is over the limit as well.
            Ok(n.parse().unwrap_or(usize::MAX).min(PAGE_MAX))
        }
        Some(_) => {
            Err(ApiError::new(ErrorCode::Unsupported, "n is the number of names on a page")
                .status(StatusCode::BAD_REQUEST))
        }
    }
}

/// Says where the next page is, if there is one.
fn linked(mut reply: shoal_http::Reply, path: &str, n: usize, page: &Page<String>) -> shoal_http::Reply {
    if let (true, Some(last)) = (page.more, page.items.last()) {
        let link = format!("<{path}?n={n}&last={}>; rel=\"next\"", encode(last));
        reply.headers_mut().insert(header::LINK, value(&link));
    }
    reply
}
