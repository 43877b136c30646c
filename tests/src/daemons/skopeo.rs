//! skopeo: copies images between registries and directories; no daemon, and no root needed.

use std::path::Path;

use anyhow::Result;

use super::{command, text};

/// The `skopeo` command.
#[derive(Debug, Clone, Copy)]
pub struct Skopeo;

impl Skopeo {
    /// Runs `skopeo`.
    ///
    /// # Errors
    /// It fails.
    pub async fn skopeo(self, arguments: &[&str]) -> Result<String> {
        let all: Vec<&str> = ["--insecure-policy"].into_iter().chain(arguments.iter().copied()).collect();
        command("skopeo", &all, &[]).await
    }

    /// Pushes the one tag of an OCI layout as `image`, as it is.
    ///
    /// # Errors
    /// It fails.
    pub async fn push(self, layout: &Path, tag: &str, image: &str) -> Result<()> {
        let from = format!("oci:{}:{tag}", text(layout));
        let to = format!("docker://{image}");
        self.skopeo(&["copy", "--preserve-digests", "--dest-tls-verify=false", &from, &to]).await.map(drop)
    }

    /// Pulls into an OCI layout under the tag `tag`.
    ///
    /// # Errors
    /// It fails.
    pub async fn pull(self, image: &str, layout: &Path, tag: &str) -> Result<()> {
        let from = format!("docker://{image}");
        let to = format!("oci:{}:{tag}", text(layout));
        self.skopeo(&["copy", "--preserve-digests", "--src-tls-verify=false", &from, &to]).await.map(drop)
    }
}
