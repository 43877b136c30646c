//! Debian's `docker-registry`: a registry that is not ours, to hold the clients and the harness against.

use std::{
    net::{SocketAddr, TcpListener},
    path::Path,
};

use anyhow::{Context, Result};

use super::DAEMON_TIME_MAX;
use crate::{http::Client, process::Process, wait};

/// A running `docker-registry`.
#[derive(Debug)]
pub struct Registry {
    process: Process,
    address: SocketAddr,
}

impl Registry {
    /// Starts one below `directory`. It cannot say which port the kernel chose, so one is found for it first.
    ///
    /// # Errors
    /// It does not answer in time.
    pub async fn start(directory: &Path) -> Result<Self> {
        let directory = directory.join("registry");
        std::fs::create_dir_all(&directory).with_context(|| format!("create {}", directory.display()))?;
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let at = directory.display();
        let settings = format!(
            "version: 0.1\nlog: {{level: warn, accesslog: {{disabled: true}}}}\n\
             storage: {{filesystem: {{rootdirectory: {at}/data}}, delete: {{enabled: true}}}}\n\
             validation: {{manifests: {{urls: {{allow: ['^http://']}}}}}}\nhttp: {{addr: \"{address}\"}}\n"
        );
        let config = directory.join("config.yml");
        std::fs::write(&config, settings)?;
        let (program, log) = (Path::new("docker-registry"), directory.join("log"));
        let mut process =
            Process::start("docker-registry", program, ["serve".as_ref(), config.as_os_str()], &[], &log)?;
        let client = Client::new(address.to_string());
        wait::until("docker-registry", DAEMON_TIME_MAX, || {
            let state = process.check();
            let client = client.clone();
            async move {
                state?;
                Ok(client.get("/v2/").await.ok().map(drop))
            }
        })
        .await?;
        Ok(Self { process, address })
    }

    /// Where it listens.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// A client of it.
    #[must_use]
    pub fn client(&self) -> Client {
        Client::new(self.address.to_string())
    }

    /// Stops it.
    ///
    /// # Errors
    /// It does not stop in time.
    pub async fn stop(self) -> Result<()> {
        self.process.stop().await.map(drop)
    }
}
