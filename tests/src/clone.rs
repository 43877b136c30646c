//! Where the clone is that this run belongs to.

use std::path::PathBuf;

use anyhow::{Context as _, Result};

/// The nearest folder, from the current one upwards, that holds the workspace. It is looked for when the program runs:
/// a path from build time would be another clone's wherever two clones share one target folder.
///
/// # Errors
/// The current folder lies in no clone.
pub fn root() -> Result<PathBuf> {
    let current = std::env::current_dir().context("the current folder")?;
    let found =
        current.ancestors().find(|folder| folder.join(".ci/setup").exists() && folder.join("Cargo.toml").exists());
    found.map(Into::into).with_context(|| format!("{} is not inside a clone of the project", current.display()))
}
