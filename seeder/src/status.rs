//! Health and metrics, on a port of their own.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use shoal_http::{Peer, Reply, RequestBody, Service, reply::full};

use crate::{metrics::Metrics, store::Store};

const OPEN_METRICS: HeaderValue =
    HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");

/// The status port's service.
#[derive(Debug)]
pub(crate) struct Status {
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) store: Arc<dyn Store>,
    /// False once the seeder drains: no new clients should be sent to it.
    pub(crate) ready: Arc<AtomicBool>,
}

impl Service for Status {
    async fn call(self: Arc<Self>, request: Request<RequestBody>, _: Peer) -> Reply {
        let text = |status: StatusCode, text: &'static str| {
            let mut response = Response::new(full(text));
            *response.status_mut() = status;
            response
        };
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            return text(StatusCode::METHOD_NOT_ALLOWED, "this path takes GET\n").into();
        }
        match request.uri().path() {
            "/healthz" => text(StatusCode::OK, "ok\n").into(),
            "/readyz" if self.ready.load(Ordering::Relaxed) => text(StatusCode::OK, "ready\n").into(),
            "/readyz" => text(StatusCode::SERVICE_UNAVAILABLE, "stopping\n").into(),
            "/metrics" => {
                self.metrics.quotas(&self.store.usage());
                let mut response = Response::new(full(self.metrics.text()));
                response.headers_mut().insert(header::CONTENT_TYPE, OPEN_METRICS);
                response.into()
            }
            _ => text(StatusCode::NOT_FOUND, "there are /healthz, /readyz and /metrics\n").into(),
        }
    }
}
