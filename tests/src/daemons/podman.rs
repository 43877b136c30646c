//! podman: no daemon, a store of its own.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::{command, text};

/// A podman with a store of its own.
#[derive(Debug)]
pub struct Podman {
    directory: PathBuf,
}

impl Podman {
    /// One below `directory`.
    ///
    /// # Errors
    /// The directory cannot be written.
    pub fn new(directory: &Path) -> Result<Self> {
        let directory = directory.join("podman");
        std::fs::create_dir_all(&directory).with_context(|| format!("create {}", directory.display()))?;
        std::fs::write(directory.join("registries.conf"), "")?;
        Ok(Self { directory })
    }

    /// Runs `podman`.
    ///
    /// # Errors
    /// It fails.
    pub async fn podman(&self, arguments: &[&str]) -> Result<String> {
        let at = self.directory.display();
        let own = [
            format!("--root={at}/root"),
            format!("--runroot={at}/run"),
            format!("--tmpdir={at}/tmp"),
            "--storage-driver=vfs".to_owned(),
            "--cgroup-manager=cgroupfs".to_owned(),
            "--events-backend=none".to_owned(),
        ];
        let all: Vec<&str> = own.iter().map(String::as_str).chain(arguments.iter().copied()).collect();
        let environment = [("CONTAINERS_REGISTRIES_CONF", self.directory.join("registries.conf").into())];
        command("podman", &all, &environment).await
    }

    /// Makes an image of a root (tar, gzip) that prints `greeting` when started, pushes it as `image` and removes it.
    ///
    /// # Errors
    /// It fails.
    pub async fn push(&self, root: &Path, greeting: &str, image: &str) -> Result<()> {
        let run = format!("CMD [\"/bin/sh\",\"-c\",\"echo {greeting}\"]");
        self.podman(&["import", "--change", &run, &text(root), image]).await?;
        self.podman(&["push", "--tls-verify=false", image]).await?;
        self.forget(image).await
    }

    /// Pulls over plain HTTP.
    ///
    /// # Errors
    /// It fails.
    pub async fn pull(&self, image: &str) -> Result<()> {
        self.podman(&["pull", "--tls-verify=false", image]).await.map(drop)
    }

    /// Makes `mirror` the mirror of `registry`: an address, with a path if names get one in front.
    ///
    /// # Errors
    /// The settings cannot be written.
    pub fn mirror(&self, registry: &str, mirror: &str) -> Result<()> {
        let settings = format!(
            "[[registry]]\nprefix = \"{registry}\"\nlocation = \"{registry}\"\n\
             [[registry.mirror]]\nlocation = \"{mirror}\"\ninsecure = true\n"
        );
        Ok(std::fs::write(self.directory.join("registries.conf"), settings)?)
    }

    /// Starts a container of the image and gives what it prints.
    ///
    /// # Errors
    /// It fails.
    pub async fn run(&self, image: &str) -> Result<String> {
        // podman raises limits to a million by default, which not every root may do.
        let limits = ["--ulimit=nofile=1024:1024", "--ulimit=nproc=1024:1024"];
        self.podman(&["run", "--rm", "--pull=never", "--network=none", limits[0], limits[1], image]).await
    }

    /// Removes the image with its layers.
    ///
    /// # Errors
    /// It fails.
    pub async fn forget(&self, image: &str) -> Result<()> {
        self.podman(&["rmi", image]).await.map(drop)
    }
}
