//! The servers, and the figures that need more than a rate.

use std::{
    collections::BTreeMap,
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use hyper::Method;
use shoal_tests::{
    cluster::{Binaries, Daemon},
    daemons::Registry,
    http::Client,
    process::Process,
    wait,
};
use tokio::sync::Mutex;

use crate::{
    load::{self, Image, Layer},
    median,
};

const MIB: usize = 1 << 20;
/// How long a server may take to answer.
const READY_TIME_MAX: Duration = Duration::from_secs(30);
/// Names on a page of a list.
const PAGE: usize = 100;
/// Repositories that are pushed at once.
const AT_ONCE: usize = 64;

/// A registry as the clients see it.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) name: &'static str,
    pub(crate) address: SocketAddr,
    pub(crate) client: Client,
    /// One image of each size that is pulled.
    images: Mutex<BTreeMap<usize, Image>>,
}

impl Server {
    fn new(name: &'static str, address: SocketAddr) -> Self {
        Self { name, address, client: Client::new(address.to_string()), images: Mutex::default() }
    }

    /// The image of a size, pushed when it is first asked for.
    pub(crate) async fn image(&self, size: usize) -> Result<Image> {
        let mut images = self.images.lock().await;
        if let Some(image) = images.get(&size) {
            return Ok(image.clone());
        }
        let image = load::push_image(self, &Layer::new(size), false).await?;
        images.insert(size, image.clone());
        Ok(image)
    }
}

/// The two that are compared.
#[derive(Debug)]
pub(crate) struct Pair {
    pub(crate) seeder: Server,
    pub(crate) registry: Server,
    daemon: Daemon,
    other: Registry,
}

impl Pair {
    pub(crate) async fn start(directory: &Path) -> Result<Self> {
        let daemon = seeder(directory).await?;
        let other = Registry::start(directory).await?;
        let seeder = Server::new("shoal", daemon.addresses().registry);
        Ok(Self { seeder, registry: Server::new("docker-registry", other.address()), daemon, other })
    }

    pub(crate) async fn stop(mut self) -> Result<()> {
        self.daemon.stop().await?;
        self.other.stop().await
    }
}

async fn seeder(directory: &Path) -> Result<Daemon> {
    Daemon::seeder(&Binaries::find()?, directory, &[]).await
}

/// MiB a second of one large GET: the seeder's and nginx's.
pub(crate) async fn large_get(pair: &Pair, directory: &Path, rounds: usize) -> Result<(f64, f64)> {
    const SIZE: usize = 100 * MIB;
    let image = pair.seeder.image(SIZE).await?;
    let root = directory.join("nginx");
    std::fs::create_dir_all(&root)?;
    std::fs::write(root.join("blob"), vec![7; SIZE])?;
    let (nginx, address) = nginx(&root).await?;
    let target = image.layer_target();
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..10 * rounds {
        ours.push(load::read_all(pair.seeder.address, &target).await?);
        theirs.push(load::read_all(address, "/blob").await?);
    }
    nginx.stop().await?;
    #[expect(clippy::cast_precision_loss, reason = "a rate")]
    let mib = |rates| median(rates) / MIB as f64;
    Ok((mib(ours), mib(theirs)))
}

async fn nginx(root: &Path) -> Result<(Process, SocketAddr)> {
    let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let at = root.display();
    let user = if rustix::process::geteuid().is_root() { "user root;" } else { "" };
    let settings = format!(
        "daemon off; {user} worker_processes auto; pid {at}/pid; error_log stderr warn;\nevents {{}}\n\
         http {{ access_log off; sendfile on; tcp_nopush on; client_body_temp_path {at}/a; proxy_temp_path {at}/b;\n\
         fastcgi_temp_path {at}/c; uwsgi_temp_path {at}/d; scgi_temp_path {at}/e;\n\
         server {{ listen {address}; root {at}; }} }}\n"
    );
    let config = root.join("nginx.conf");
    std::fs::write(&config, settings)?;
    let arguments = [PathBuf::from("-p"), root.to_owned(), "-c".into(), config];
    let process = Process::start("nginx", Path::new("nginx"), arguments, &[], &root.join("log"))?;
    let client = Client::new(address.to_string());
    wait::until("nginx", READY_TIME_MAX, || {
        let client = client.clone();
        async move { Ok(client.fetch(Method::HEAD, "/blob", &[]).await.ok()) }
    })
    .await?;
    Ok((process, address))
}

/// The most memory of a fresh seeder while 64 clients pull and push, in MiB.
#[expect(clippy::cast_precision_loss, reason = "shown with decimals")]
pub(crate) async fn rss_of_64_clients(directory: &Path) -> Result<f64> {
    let directory = directory.join("rss");
    std::fs::create_dir_all(&directory)?;
    let mut daemon = seeder(&directory).await?;
    let server = Server::new("shoal", daemon.addresses().registry);
    let image = server.image(10 * MIB).await?;
    let layers: Vec<Option<Layer>> = (0..128).map(|at| (at % 4 == 0).then(|| Layer::new(4 * MIB))).collect();
    stream::iter(&layers)
        .map(|layer| {
            let (server, image) = (&server, &image);
            async move {
                match layer {
                    Some(layer) => load::push_image(server, layer, true).await.map(drop),
                    None => load::pull_image(server, image).await,
                }
            }
        })
        .buffer_unordered(64)
        .try_collect::<()>()
        .await?;
    let peak = daemon.rss_peak()?;
    daemon.stop().await?;
    Ok(peak as f64 / MIB as f64)
}

/// What long lists cost.
#[derive(Debug)]
pub(crate) struct Lists {
    /// Time of a page of the catalog of many repositories over that of one of a thousand.
    pub(crate) catalog: f64,
    /// The same of the tags of one repository.
    pub(crate) tags: f64,
    /// Milliseconds for deleting a manifest with one of so many tags.
    pub(crate) delete_ms: f64,
}

pub(crate) async fn lists(directory: &Path, many: usize) -> Result<Lists> {
    let mut daemon = seeder(directory).await?;
    let server = Server::new("shoal", daemon.addresses().registry);
    fill(&server, 0, 1000).await?;
    let few = page(&server, "/v2/_catalog", "repositories", "catalog/r000500").await?;
    fill(&server, 1000, many).await?;
    let middle = format!("catalog/r{:06}", many / 2);
    let catalog = page(&server, "/v2/_catalog", "repositories", &middle).await? / few;
    let image = server.image(1000).await?;
    let list = format!("/v2/{}/tags/list", image.repository);
    tag(&server, &image, 0, 1000).await?;
    let few = page(&server, &list, "tags", "t000500").await?;
    tag(&server, &image, 1000, many).await?;
    let tags = page(&server, &list, "tags", &format!("t{:06}", many / 2)).await? / few;
    let delete_ms = delete(&server, &image).await?;
    daemon.stop().await?;
    Ok(Lists { catalog, tags, delete_ms })
}

/// Gives an image so many tags, some with each of its manifests.
async fn tag(server: &Server, image: &Image, from: usize, to: usize) -> Result<()> {
    const AT_A_TIME: usize = 32;
    stream::iter((from..to).step_by(AT_A_TIME))
        .map(|first| async move {
            let (digest, body) = image.other_manifest();
            let tags: String = (first..to.min(first + AT_A_TIME)).map(|number| format!("tag=t{number:06}&")).collect();
            let target = format!("/v2/{}/manifests/{digest}?{tags}", image.repository);
            let reply = load::send(server, Method::PUT, &target, load::MANIFEST_TYPE, body).await?;
            ensure!(reply.status == 201, "PUT {target}: {} {}", reply.status, reply.text());
            Ok(())
        })
        .buffer_unordered(AT_ONCE)
        .try_collect()
        .await
}

/// Milliseconds of a deletion, a median.
async fn delete(server: &Server, image: &Image) -> Result<f64> {
    let mut times = Vec::new();
    for _ in 0..20 {
        let (digest, body) = image.other_manifest();
        let target = format!("/v2/{}/manifests/{digest}", image.repository);
        let reply = load::send(server, Method::PUT, &format!("{target}?tag=gone"), load::MANIFEST_TYPE, body).await?;
        ensure!(reply.status == 201, "PUT {target}: {} {}", reply.status, reply.text());
        let started = Instant::now();
        let reply = server.client.fetch(Method::DELETE, &target, &[]).await?;
        ensure!(reply.status == 202, "DELETE {target}: {} {}", reply.status, reply.text());
        times.push(started.elapsed().as_secs_f64() * 1000.0);
    }
    Ok(median(times))
}

async fn fill(server: &Server, from: usize, to: usize) -> Result<()> {
    let layer = &Layer::new(64);
    stream::iter(from..to)
        .map(|number| async move {
            let target = format!("/v2/catalog/r{number:06}/blobs/uploads/?digest={}", layer.digest);
            let reply = load::send(server, Method::POST, &target, "application/octet-stream", layer.bytes()).await?;
            ensure!(reply.status == 201, "POST {target}: {} {}", reply.status, reply.text());
            Ok(())
        })
        .buffer_unordered(AT_ONCE)
        .try_collect()
        .await
}

/// Seconds of one page of a list, a median.
async fn page(server: &Server, list: &str, what: &str, last: &str) -> Result<f64> {
    let target = format!("{list}?n={PAGE}&last={last}");
    let mut times = Vec::new();
    for _ in 0..200 {
        let started = Instant::now();
        let reply = server.client.get(&target).await?;
        times.push(started.elapsed().as_secs_f64());
        let names: serde_json::Value = serde_json::from_slice(&reply.body)?;
        let count = names[what].as_array().context("a list")?.len();
        ensure!(count == PAGE, "{count} names on a page");
    }
    Ok(median(times))
}
