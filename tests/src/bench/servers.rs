//! Servers that hand out whole files, and `curl` that fetches them: what a registry without a swarm does.

use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use futures::future::try_join_all;
use tokio::process::Command;

use super::{accounting, content::Content, host::Host};
use crate::{http::Client, process::Process, push, wait};

/// How long a server may take to answer.
const READY_TIME_MAX: Duration = Duration::from_secs(60);
/// Where the registry keeps what is pushed.
const REPOSITORY: &str = "bench/image";

/// nginx or docker-registry.
#[derive(Debug)]
pub struct Server {
    process: Process,
    url: String,
}

impl Server {
    /// nginx with sendfile and one worker a CPU, serving `file`.
    ///
    /// # Errors
    /// It does not start.
    pub async fn nginx(host: &Arc<Host>, directory: &Path, file: &Path) -> Result<Self> {
        let directory = directory.join("nginx");
        std::fs::create_dir_all(&directory).with_context(|| format!("create {}", directory.display()))?;
        let address = free_port(host.ip())?;
        let (at, root) = (directory.display(), file.parent().context("a file lies in a directory")?.display());
        let config = directory.join("nginx.conf");
        let settings = format!(
            "daemon off; worker_processes auto; pid {at}/pid; error_log stderr warn; user root;\n\
             events {{ worker_connections 1024; }}\n\
             http {{ access_log off; sendfile on; tcp_nopush on; keepalive_timeout 65;\n\
             client_body_temp_path {at}/body; proxy_temp_path {at}/proxy; fastcgi_temp_path {at}/fastcgi;\n\
             uwsgi_temp_path {at}/uwsgi; scgi_temp_path {at}/scgi;\n\
             server {{ listen {address}; root {root}; }} }}\n"
        );
        // Who is not root runs nginx as himself, where the line would only be warned about.
        let settings = if rustix::process::geteuid().is_root() { settings } else { settings.replace("user root;", "") };
        std::fs::write(&config, settings)?;
        let arguments = ["-p".to_owned(), at.to_string(), "-c".to_owned(), config.display().to_string()];
        let name = file.file_name().context("a file has a name")?.to_string_lossy();
        Self::start("nginx", host, arguments.into(), &directory.join("log"), address, &format!("/{name}")).await
    }

    /// docker-registry, to which the layer has been pushed.
    ///
    /// # Errors
    /// It does not start, or refuses the push.
    pub async fn registry(host: &Arc<Host>, directory: &Path, content: &Content) -> Result<Self> {
        let directory = directory.join("registry");
        std::fs::create_dir_all(&directory).with_context(|| format!("create {}", directory.display()))?;
        let address = free_port(host.ip())?;
        let config = directory.join("config.yml");
        let settings = format!(
            "version: 0.1\nlog: {{level: warn, accesslog: {{disabled: true}}}}\n\
             storage: {{filesystem: {{rootdirectory: {}/data}}}}\nhttp: {{addr: \"{address}\"}}\n",
            directory.display()
        );
        std::fs::write(&config, settings)?;
        let arguments = ["serve".to_owned(), config.display().to_string()];
        let path = format!("/v2/{REPOSITORY}/blobs/{}", content.layer().digest);
        let server =
            Self::start("docker-registry", host, arguments.into(), &directory.join("log"), address, &path).await?;
        let (client, blob) = (Client::new(address.to_string()), content.layer().clone());
        let upload = async move { push::upload(&client, REPOSITORY, &blob).await };
        host.run(upload).await.context("push to docker-registry")?;
        Ok(server)
    }

    async fn start(
        program: &'static str,
        host: &Arc<Host>,
        arguments: Vec<String>,
        log: &Path,
        address: SocketAddr,
        path: &str,
    ) -> Result<Self> {
        let log = log.to_owned();
        let launch = async move {
            let mut process = Process::start(program, Path::new(program), arguments, &[], &log)?;
            wait::until(program, READY_TIME_MAX, || {
                let state = process.check();
                async move {
                    state?;
                    Ok(tokio::net::TcpStream::connect(address).await.ok().map(drop))
                }
            })
            .await?;
            Ok(process)
        };
        let process = host.run(launch).await.with_context(|| format!("{program}: is it installed?"))?;
        Ok(Self { process, url: format!("http://{address}{path}") })
    }

    /// Ends it, and the processes that it has started itself.
    ///
    /// # Errors
    /// It had ended before, or does not end.
    pub async fn stop(self) -> Result<()> {
        self.process.stop().await.map(drop)
    }

    /// Where the file is.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// CPU seconds that it has used so far.
    ///
    /// # Errors
    /// It has ended.
    pub fn cpu(&self) -> Result<f64> {
        accounting::cpu_of(self.process.pid()?)
    }
}

/// The server cannot say which port the kernel chose, so one is found for it first.
fn free_port(ip: Ipv4Addr) -> Result<SocketAddr> {
    if ip.is_loopback() {
        return Ok(TcpListener::bind((ip, 0))?.local_addr()?);
    }
    // A host apart has all ports for itself.
    Ok(SocketAddr::from((ip, 8000)))
}

/// What came of some fetches.
#[derive(Debug, Clone)]
pub struct Fetched {
    /// From the first request to the last byte.
    pub elapsed: Duration,
    /// From the first request of all to each one's last byte.
    pub each: Vec<Duration>,
    /// CPU seconds of all clients, their start included.
    pub cpu: f64,
}

/// Fetches `url` by one `curl` on each host at once, each into a file of `directory` (or nowhere).
///
/// # Errors
/// One fails, or takes longer than `limit`.
pub async fn fetch(hosts: &[Arc<Host>], url: &str, into: Option<&Path>, limit: Duration) -> Result<Fetched> {
    let cpu = accounting::cpu_of_ended_children()?;
    let fetches = hosts.iter().enumerate().map(|(n, host)| {
        let (url, file) = (url.to_owned(), into.map_or_else(|| PathBuf::from("/dev/null"), |into| target(into, n)));
        host.run(async move { curl(&url, &file, limit).await })
    });
    let times = try_join_all(fetches).await?;
    let cpu = accounting::cpu_of_ended_children()? - cpu;
    let start = times.iter().map(|&(start, _)| start).min().context("no hosts")?;
    let each: Vec<Duration> = times.iter().map(|&(_, end)| end - start).collect();
    Ok(Fetched { elapsed: each.iter().max().copied().unwrap_or_default(), each, cpu })
}

/// The n-th file that [`fetch`] writes.
#[must_use]
pub fn target(directory: &Path, n: usize) -> PathBuf {
    directory.join(format!("fetched{n}"))
}

/// When the request was sent and when the last byte had come. What `curl` needs to start and to end is left out.
async fn curl(url: &str, file: &Path, limit: Duration) -> Result<(Instant, Instant)> {
    let limit_s = limit.as_secs().to_string();
    let file = file.display().to_string();
    let output = Command::new("curl")
        .args(["--silent", "--show-error", "--fail", "--max-time", &limit_s, "--write-out", "%{time_total}"])
        .args(["--output", &file, url])
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .context("start curl")?;
    let now = Instant::now();
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "curl {url}: {}", said.trim());
    let text = String::from_utf8_lossy(&output.stdout);
    let total: f64 = text.trim().parse().with_context(|| format!("curl's time: {text:?}"))?;
    Ok((now - Duration::from_secs_f64(total), now))
}
