//! containerd and `ctr`.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use tokio::net::UnixStream;

use super::{DAEMON_TIME_MAX, command, text, unshare};
use crate::{process::Process, wait};

/// How a client says who it is.
#[derive(Debug, Clone)]
pub enum Login {
    /// Not at all.
    None,
    /// By `name:password` of the pull, as a pod's pull secret gives them.
    User(String),
    /// By an `Authorization` header that the node's `hosts.toml` holds.
    Header(String),
}

/// A containerd of its own.
#[derive(Debug)]
pub struct Containerd {
    process: Process,
    directory: PathBuf,
}

impl Containerd {
    /// Starts one below `directory`.
    ///
    /// # Errors
    /// It does not answer in time.
    pub async fn start(directory: &Path) -> Result<Self> {
        let directory = directory.join("containerd");
        std::fs::create_dir_all(&directory).with_context(|| format!("create {}", directory.display()))?;
        let config = directory.join("config.toml");
        std::fs::write(&config, settings(&directory))?;
        let arguments = unshare("containerd", vec!["--config".into(), text(&config)]);
        let log = directory.join("log");
        let mut process = Process::start("containerd", Path::new("unshare"), arguments, &[], &log)?;
        let socket = directory.join("sock");
        wait::until("containerd", DAEMON_TIME_MAX, || {
            let state = process.check();
            let socket = socket.clone();
            async move {
                state?;
                Ok(UnixStream::connect(&socket).await.ok().map(drop))
            }
        })
        .await?;
        let daemon = Self { process, directory };
        daemon.ctr(&["version"]).await?;
        Ok(daemon)
    }

    /// Where it listens.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.directory.join("sock")
    }

    /// Runs `ctr`.
    ///
    /// # Errors
    /// It fails.
    pub async fn ctr(&self, arguments: &[&str]) -> Result<String> {
        let socket = text(&self.socket());
        let all: Vec<&str> = ["--address", &socket].into_iter().chain(arguments.iter().copied()).collect();
        command("ctr", &all, &[]).await
    }

    /// Loads an OCI layout whose one tag is `tag`, and pushes it as `image` (`127.0.0.1:5000/a/b:tag`).
    ///
    /// # Errors
    /// It fails.
    pub async fn push(&self, layout: &Path, tag: &str, image: &str) -> Result<()> {
        let archive = text(&self.directory.join("layout.tar"));
        command("tar", &["-C", &text(layout), "-cf", &archive, "."], &[]).await?;
        let base = image.strip_suffix(&format!(":{tag}")).context("the image has the layout's tag")?;
        self.ctr(&["images", "import", "--no-unpack", "--base-name", base, &archive]).await?;
        self.ctr(&["images", "push", "--plain-http", image]).await?;
        self.forget(image).await
    }

    /// Pulls over plain HTTP from the registry that the name says.
    ///
    /// # Errors
    /// It fails.
    pub async fn pull(&self, image: &str) -> Result<()> {
        self.ctr(&["images", "pull", "--snapshotter", "native", "--plain-http", image]).await.map(drop)
    }

    /// Pulls with a `hosts.toml` that names `mirror` for the image's registry, as a node's settings do. The registry
    /// itself is not asked: the file names no `server`, and nothing listens where the name points.
    ///
    /// # Errors
    /// It fails.
    pub async fn pull_through(&self, mirror: SocketAddr, image: &str) -> Result<()> {
        self.pull_through_as(mirror, image, &Login::None).await
    }

    /// The same with a client's credentials.
    ///
    /// # Errors
    /// It fails.
    pub async fn pull_through_as(&self, mirror: SocketAddr, image: &str, login: &Login) -> Result<()> {
        let (registry, _) = image.split_once('/').context("the image names its registry")?;
        let hosts = self.directory.join("certs.d");
        let directory = hosts.join(registry);
        std::fs::create_dir_all(&directory)?;
        let mut text_of_file = format!("[host.\"http://{mirror}\"]\n  capabilities = [\"pull\", \"resolve\"]\n");
        if let Login::Header(authorization) = login {
            text_of_file += &format!("[host.\"http://{mirror}\".header]\n  authorization = \"{authorization}\"\n");
        }
        std::fs::write(directory.join("hosts.toml"), text_of_file)?;
        let hosts = text(&hosts);
        let mut arguments = vec!["images", "pull", "--snapshotter", "native", "--hosts-dir", &hosts];
        if let Login::User(user) = login {
            arguments.extend(["--user", user]);
        }
        arguments.push(image);
        self.ctr(&arguments).await.map(drop)
    }

    /// Starts a container of the image and gives what it prints.
    ///
    /// # Errors
    /// It fails.
    pub async fn run(&self, image: &str) -> Result<String> {
        self.ctr(&["run", "--rm", "--snapshotter", "native", image, "shoal-test"]).await
    }

    /// Removes the image with its content.
    ///
    /// # Errors
    /// It fails.
    pub async fn forget(&self, image: &str) -> Result<()> {
        self.ctr(&["images", "rm", "--sync", image]).await.map(drop)
    }

    /// Stops it.
    ///
    /// # Errors
    /// It does not stop in time.
    pub async fn stop(self) -> Result<()> {
        self.process.stop().await.map(drop)
    }
}

/// Everything below `directory`, and none of the plugins that look at the machine.
fn settings(directory: &Path) -> String {
    let at = directory.display();
    format!(
        r#"version = 2
root = "{at}/root"
state = "{at}/state"
disabled_plugins = [
    "io.containerd.grpc.v1.cri",
    "io.containerd.snapshotter.v1.aufs",
    "io.containerd.snapshotter.v1.btrfs",
    "io.containerd.snapshotter.v1.devmapper",
    "io.containerd.snapshotter.v1.zfs",
]
[grpc]
address = "{at}/sock"
[ttrpc]
address = "{at}/ttrpc"
[plugins."io.containerd.internal.v1.opt"]
path = "{at}/opt"
"#
    )
}
