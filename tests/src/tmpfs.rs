//! A small disk of its own: a tmpfs of a given size, for root only.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};

/// A mounted tmpfs; unmounted when dropped. Drop it after the processes that use it.
#[derive(Debug)]
pub struct Tmpfs {
    path: PathBuf,
}

impl Tmpfs {
    /// Mounts one of `mib` MiB at `path`, which is made.
    ///
    /// # Errors
    /// It cannot be mounted.
    pub fn mount(path: &Path, mib: u64) -> Result<Self> {
        Self::mount_with(path, mib, "nodev")
    }

    /// The same, with more of `mount`'s options.
    ///
    /// # Errors
    /// It cannot be mounted.
    pub fn mount_with(path: &Path, mib: u64, options: &str) -> Result<Self> {
        std::fs::create_dir_all(path).with_context(|| format!("create {}", path.display()))?;
        run(&["-t", "tmpfs", "-o", &format!("size={mib}m,{options}"), "shoal-test"], path)?;
        Ok(Self { path: path.to_owned() })
    }

    /// Leaves it mounted.
    pub fn keep(self) {
        std::mem::forget(self);
    }

    /// Gives it another size.
    ///
    /// # Errors
    /// It cannot be remounted.
    pub fn resize(&self, mib: u64) -> Result<()> {
        run(&["-o", &format!("remount,size={mib}m")], &self.path)
    }
}

fn run(arguments: &[&str], path: &Path) -> Result<()> {
    let status = Command::new("mount").args(arguments).arg(path).status().context("start mount")?;
    ensure!(status.success(), "mount {arguments:?} {} ended with {status}", path.display());
    Ok(())
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        // Lazily: a process that is being killed may still hold a file.
        let status = Command::new("umount").arg("--lazy").arg(&self.path).status();
        if !status.is_ok_and(|status| status.success()) {
            crate::report::note(&format!("{} stays mounted", self.path.display()));
        }
    }
}
