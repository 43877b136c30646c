//! dockerd, with a containerd of its own, and the `docker` command.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use super::{Containerd, DAEMON_TIME_MAX, command, run, text, unshare};
use crate::{process::Process, wait};

/// A Docker of its own. It changes no firewall rule and makes no bridge: its containers have no network.
#[derive(Debug)]
pub struct Docker {
    process: Process,
    containerd: Containerd,
    directory: PathBuf,
}

impl Docker {
    /// Starts one below `directory`. Registries on loopback may be spoken to without TLS by Docker's own default.
    ///
    /// # Errors
    /// It does not answer in time.
    pub async fn start(directory: &Path) -> Result<Self> {
        let containerd = Containerd::start(directory).await?;
        let directory = directory.join("docker");
        std::fs::create_dir_all(&directory).with_context(|| format!("create {}", directory.display()))?;
        let config = directory.join("daemon.json");
        std::fs::write(&config, "{}")?;
        let at = directory.display();
        let arguments = [
            format!("--config-file={}", config.display()),
            format!("--containerd={}", containerd.socket().display()),
            format!("--data-root={at}/data"),
            format!("--exec-root={at}/exec"),
            format!("--pidfile={at}/pid"),
            format!("--host=unix://{at}/sock"),
            "--storage-driver=vfs".to_owned(),
            "--bridge=none".to_owned(),
            "--iptables=false".to_owned(),
            "--ip6tables=false".to_owned(),
            "--ip-forward=false".to_owned(),
            "--ip-masq=false".to_owned(),
        ];
        let log = directory.join("log");
        let arguments = unshare("dockerd", arguments.to_vec());
        let mut process = Process::start("dockerd", Path::new("unshare"), arguments, &[], &log)?;
        let environment = environment(&directory);
        wait::until("dockerd", DAEMON_TIME_MAX, || {
            let state = process.check();
            let environment = environment.clone();
            async move {
                state?;
                let output = run("docker", &["version", "--format", "{{.Server.Version}}"], &environment).await?;
                Ok((output.code == Some(0)).then_some(()))
            }
        })
        .await?;
        Ok(Self { process, containerd, directory })
    }

    /// Runs the `docker` command.
    ///
    /// # Errors
    /// It fails.
    pub async fn docker(&self, arguments: &[&str]) -> Result<String> {
        command("docker", arguments, &environment(&self.directory)).await
    }

    /// Makes an image of a root (tar, gzip) that prints `greeting` when started, pushes it as `image` and removes it.
    ///
    /// # Errors
    /// It fails.
    pub async fn push(&self, root: &Path, greeting: &str, image: &str) -> Result<()> {
        let run = format!("CMD [\"/bin/sh\",\"-c\",\"echo {greeting}\"]");
        self.docker(&["import", "--change", &run, &text(root), image]).await?;
        self.docker(&["push", image]).await?;
        self.forget(image).await
    }

    /// Pulls.
    ///
    /// # Errors
    /// It fails.
    pub async fn pull(&self, image: &str) -> Result<()> {
        self.docker(&["pull", image]).await.map(drop)
    }

    /// Starts a container of the image and gives what it prints.
    ///
    /// # Errors
    /// It fails.
    pub async fn run(&self, image: &str) -> Result<String> {
        self.docker(&["run", "--rm", "--network=none", image]).await
    }

    /// Removes the image with its layers.
    ///
    /// # Errors
    /// It fails.
    pub async fn forget(&self, image: &str) -> Result<()> {
        self.docker(&["rmi", image]).await.map(drop)
    }

    /// Stops it and its containerd.
    ///
    /// # Errors
    /// One of them does not stop in time.
    pub async fn stop(self) -> Result<()> {
        self.process.stop().await?;
        self.containerd.stop().await
    }
}

fn environment(directory: &Path) -> Vec<(&'static str, OsString)> {
    let host = format!("unix://{}/sock", directory.display());
    vec![("DOCKER_HOST", host.into()), ("DOCKER_CONFIG", directory.join("client").into())]
}
