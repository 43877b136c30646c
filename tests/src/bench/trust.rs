//! A fleet that lets in only whom it knows, in place of one that is open: a seeder with TLS and users, agents that join by
//! token, and a repository that nobody but its user may read, so that no piece moves without a capability.

use std::{
    net::Ipv4Addr,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use hyper::{Method, StatusCode};
use serde::{Deserialize, Serialize};

use super::{
    content::{REPOSITORY, TAG},
    fleet::{Node, Start},
};
use crate::{certificates, cluster::Binaries, http::Client, process};

/// Who pushes and pulls what is moved, and nobody else.
pub const USER: &str = "bench";
/// How long an administrator's command may take on a loaded machine.
const ORDER_TIME_MAX: Duration = Duration::from_secs(30);

/// What a fleet's agents are let in by.
#[derive(Debug, Clone)]
pub struct Trust {
    directory: PathBuf,
}

/// What one agent needs to join. Files, so that no list of processes shows a secret.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Pass {
    /// The authority that vouches for the seeder.
    pub ca: PathBuf,
    /// The join token.
    pub token: PathBuf,
}

impl Pass {
    /// The agent's flags.
    #[must_use]
    pub fn flags(&self) -> [String; 4] {
        let Self { ca, token } = self;
        ["--seeder-ca", &text(ca), "--join-token-file", &text(token)].map(str::to_owned)
    }
}

impl Trust {
    /// Makes what a seeder known as `ip` needs, and how it is started then: `flags` are those of TLS and nothing else.
    pub(super) fn establish(directory: &Path, ip: Ipv4Addr, start: &Start) -> Result<(Self, Start)> {
        let name = ip.to_string();
        certificates::issue(directory, &[&name])?;
        let file = |extension: &str| text(&directory.join(format!("{name}.{extension}")));
        let tls = ["--tls-certificate", &file("pem"), "--tls-key", &file("key")].map(str::to_owned);
        let config = format!("access_rules = true\n{}", start.config);
        let start = Start { flags: [start.flags.clone(), tls.into()].concat(), config, ..start.clone() };
        Ok((Self { directory: directory.to_owned() }, start))
    }

    /// Makes the user; gives its password.
    pub(super) async fn user(&self, seeder: &Node) -> Result<String> {
        Ok(order(seeder, &["user", "put", USER, "--push", REPOSITORY]).await?.trim().to_owned())
    }

    pub(super) async fn admit(&self, seeder: &Node, agents: usize, region: Option<&str>) -> Result<Pass> {
        let labels = region.map(|region| format!("region={region}")).unwrap_or_default();
        let uses = agents.to_string();
        let secret = order(seeder, &["join-token", "create", "--uses", &uses, "--labels", &labels]).await?;
        let mut token = tempfile::Builder::new();
        let (_, token) = token.prefix("token-").tempfile_in(&self.directory).context("make a file")?.keep()?;
        std::fs::write(&token, secret).with_context(|| format!("write {}", token.display()))?;
        Ok(Pass { ca: self.directory.join(certificates::AUTHORITY), token })
    }
}

/// Makes sure that what is measured is private: nothing of it goes out through an agent to who is nobody's user.
pub(super) async fn refuses_strangers(agent: &Node) -> Result<()> {
    let stranger = Client::new(agent.addresses().registry.to_string());
    let target = format!("/v2/{REPOSITORY}/manifests/{TAG}");
    let ask = async move { stranger.fetch(Method::GET, &target, &[]).await };
    let status = agent.host().run(ask).await?.status;
    ensure!(status == StatusCode::UNAUTHORIZED, "a stranger is answered {status}");
    Ok(())
}

/// What the seeder's administrator is answered to a command.
async fn order(seeder: &Node, command: &[&str]) -> Result<String> {
    let (program, data) = (text(&Binaries::find()?.seeder), text(&seeder.directory().join("data")));
    let arguments = command.iter().copied().chain(["--data-dir", &data]);
    process::run(&program, arguments, &[], ORDER_TIME_MAX).await?.success(&command.join(" "))
}

fn text(path: &Path) -> String {
    path.display().to_string()
}
