//! What is measured: the operations of zot's `zb`, and rows of our own. All count whole images or requests a second.

use std::{pin::Pin, time::Instant};

use anyhow::{Result, ensure};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use hyper::{Method, StatusCode};

use crate::{
    load::{self, Layer},
    servers::Server,
};

const MIB: usize = 1 << 20;
/// Clients at once in the operations of `zb`, as in its published runs.
const ZB_CLIENTS: usize = 2;
/// Clients at once in the rows of our own.
const CLIENTS: usize = 16;

/// The layers of a run, as shares of a whole.
pub(crate) type Sizes = &'static [usize];
const MB_1: Sizes = &[MIB; 24];
const MB_10: Sizes = &[10 * MIB; 6];
const MB_100: Sizes = &[100 * MIB; 2];
/// 20 % of 1 MB, 70 % of 10 MB, 10 % of 100 MB.
const MIXED: Sizes = &[MIB, 10 * MIB, 10 * MIB, 10 * MIB, 100 * MIB, 10 * MIB, 10 * MIB, MIB, 10 * MIB, 10 * MIB];
const THIRDS: Sizes = &[MIB, 10 * MIB, 100 * MIB];

/// The row of images with small layers.
pub(crate) const SMALL_PUSH: &str = "small push";

type Rate<'a> = Pin<Box<dyn Future<Output = Result<f64>> + 'a>>;

/// One row.
pub(crate) struct Operation {
    pub(crate) name: &'static str,
    /// Whether it is one of the operations of `zb`.
    pub(crate) zb: bool,
    sizes: Sizes,
    pub(crate) run: for<'a> fn(&'a Server, &'a Self) -> Rate<'a>,
}

const fn zb(name: &'static str, sizes: Sizes, run: for<'a> fn(&'a Server, &'a Operation) -> Rate<'a>) -> Operation {
    Operation { name, zb: true, sizes, run }
}

const fn own(name: &'static str, run: for<'a> fn(&'a Server, &'a Operation) -> Rate<'a>) -> Operation {
    Operation { name, zb: false, sizes: &[], run }
}

/// All of them. The catalog comes last, when there is something to list.
pub(crate) const OPERATIONS: [Operation; 21] = [
    zb("push monolith 1MB", MB_1, |s, o| Box::pin(push(s, o, false))),
    zb("push monolith 10MB", MB_10, |s, o| Box::pin(push(s, o, false))),
    zb("push monolith 100MB", MB_100, |s, o| Box::pin(push(s, o, false))),
    zb("push chunk streamed 1MB", MB_1, |s, o| Box::pin(push(s, o, true))),
    zb("push chunk streamed 10MB", MB_10, |s, o| Box::pin(push(s, o, true))),
    zb("push chunk streamed 100MB", MB_100, |s, o| Box::pin(push(s, o, true))),
    zb("pull 1MB", &[MIB; 200], |s, o| Box::pin(pull(s, o))),
    zb("pull 10MB", &[10 * MIB; 40], |s, o| Box::pin(pull(s, o))),
    // More of them: a pull is over in a moment.
    zb("pull 100MB", &[100 * MIB; 10], |s, o| Box::pin(pull(s, o))),
    zb("pull mixed", MIXED, |s, o| Box::pin(pull(s, o))),
    zb("push monolith mixed", MIXED, |s, o| Box::pin(push(s, o, false))),
    zb("push chunk mixed", THIRDS, |s, o| Box::pin(push(s, o, true))),
    zb("pull 75% push 25% 1MB", MB_1, |s, o| Box::pin(both(s, o))),
    zb("pull 75% push 25% 10MB", &[10 * MIB; 8], |s, o| Box::pin(both(s, o))),
    zb("pull 75% push 25% 100MB", &[100 * MIB; 4], |s, o| Box::pin(both(s, o))),
    own("manifest head", |s, _| Box::pin(manifest(s, "HEAD"))),
    own("manifest get", |s, _| Box::pin(manifest(s, "GET"))),
    own("manifest put", |s, _| Box::pin(put(s))),
    own("tags list", |s, _| Box::pin(tags(s))),
    own(SMALL_PUSH, |s, _| Box::pin(small_push(s))),
    zb("get catalog", &[], |s, _| Box::pin(catalog(s))),
];

#[expect(clippy::cast_precision_loss, reason = "a rate")]
fn rate(count: usize, since: Instant) -> f64 {
    count as f64 / since.elapsed().as_secs_f64()
}

/// Pushes an image of each size; what each costs the client to make is not measured.
async fn push(server: &Server, operation: &Operation, chunked: bool) -> Result<f64> {
    let layers: Vec<Layer> = operation.sizes.iter().map(|size| Layer::new(*size)).collect();
    let count = layers.len();
    let started = Instant::now();
    stream::iter(layers)
        .map(|layer| async move { load::push_image(server, &layer, chunked).await.map(drop) })
        .buffer_unordered(ZB_CLIENTS)
        .try_collect::<()>()
        .await?;
    Ok(rate(count, started))
}

async fn pull(server: &Server, operation: &Operation) -> Result<f64> {
    for size in operation.sizes {
        server.image(*size).await?;
    }
    let started = Instant::now();
    stream::iter(operation.sizes)
        .map(|size| async move { load::pull_image(server, &server.image(*size).await?).await })
        .buffer_unordered(ZB_CLIENTS)
        .try_collect::<()>()
        .await?;
    Ok(rate(operation.sizes.len(), started))
}

/// Every fourth is a push.
async fn both(server: &Server, operation: &Operation) -> Result<f64> {
    server.image(operation.sizes[0]).await?;
    let layers: Vec<Option<Layer>> =
        operation.sizes.iter().enumerate().map(|(at, size)| (at % 4 == 0).then(|| Layer::new(*size))).collect();
    let started = Instant::now();
    stream::iter(layers.iter().zip(operation.sizes))
        .map(|(layer, size)| async move {
            match layer {
                Some(layer) => load::push_image(server, layer, false).await.map(drop),
                None => load::pull_image(server, &server.image(*size).await?).await,
            }
        })
        .buffer_unordered(ZB_CLIENTS)
        .try_collect::<()>()
        .await?;
    Ok(rate(operation.sizes.len(), started))
}

async fn manifest(server: &Server, method: &str) -> Result<f64> {
    let image = server.image(MIB).await?;
    let accept = "Accept: application/vnd.oci.image.manifest.v1+json\r\n";
    load::repeated(
        server.address,
        method,
        &format!("/v2/{}/manifests/{}", image.repository, image.tag),
        accept,
        CLIENTS,
    )
    .await
}

async fn tags(server: &Server) -> Result<f64> {
    let image = server.image(MIB).await?;
    load::repeated(server.address, "GET", &format!("/v2/{}/tags/list", image.repository), "", CLIENTS).await
}

async fn catalog(server: &Server) -> Result<f64> {
    load::repeated(server.address, "GET", "/v2/_catalog?n=100", "", ZB_CLIENTS).await
}

/// A manifest of its own each time, over blobs that are there.
async fn put(server: &Server) -> Result<f64> {
    const COUNT: usize = 200;
    let image = server.image(MIB).await?;
    let manifests: Vec<_> = (0..COUNT).map(|_| image.other_manifest()).collect();
    let started = Instant::now();
    stream::iter(manifests)
        .map(|(reference, body)| {
            let target = format!("/v2/{}/manifests/{reference}", image.repository);
            async move {
                let status = load::send(server, Method::PUT, &target, load::MANIFEST_TYPE, body).await?.status;
                ensure!(status == StatusCode::CREATED, "PUT {target}: {status}");
                Ok(())
            }
        })
        .buffer_unordered(CLIENTS)
        .try_collect::<()>()
        .await?;
    Ok(rate(COUNT, started))
}

/// An image whose layer has 4 KiB.
async fn small_push(server: &Server) -> Result<f64> {
    const COUNT: usize = 120;
    let layers: Vec<Layer> = (0..COUNT).map(|_| Layer::new(4096)).collect();
    let started = Instant::now();
    stream::iter(layers)
        .map(|layer| async move { load::push_image(server, &layer, false).await.map(drop) })
        .buffer_unordered(CLIENTS)
        .try_collect::<()>()
        .await?;
    Ok(rate(COUNT, started))
}
