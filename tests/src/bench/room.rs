//! Where the bytes of a case end: a file system in memory, so that no disk's writeback is measured.

use std::{
    fs::File,
    io::Write,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};

use crate::{report, tmpfs::Tmpfs};

/// Where memory looks like a file system, for who may not mount one.
const SHARED: &str = "/dev/shm";
/// Large pages where a file is large enough: making room in pages of 4 KiB is the same work for every contender, and on a
/// machine of two processors more of it than all else that any of them does. Files of others' and ours lie in it alike.
const OPTIONS: &str = "huge=within_size";
/// Bytes written at once when memory is taken into use.
const CHUNK_LEN: usize = 1 << 20;

/// A directory in memory; gone when dropped. Drop it after the processes that use it.
#[derive(Debug)]
pub struct Room {
    // First: a directory with a mount on it cannot be removed.
    mount: Option<Tmpfs>,
    directory: tempfile::TempDir,
}

impl Room {
    /// Room for `bytes`: a tmpfs of its own for root, else a directory in `/dev/shm`. Its memory was in use before: on a
    /// virtual machine, what was never used or was given back costs whoever touches it first several times what copying
    /// into it does.
    ///
    /// # Errors
    /// So much memory is not free, or it cannot be mounted or written.
    pub fn new(bytes: u64) -> Result<Self> {
        let free = free_memory()?;
        ensure!(free >= bytes, "{} of memory are free, {} are needed", report::human(free), report::human(bytes));
        let room = if rustix::process::geteuid().is_root() { Self::mounted(bytes)? } else { Self::shared(bytes)? };
        room.touch(bytes)?;
        Ok(room)
    }

    fn mounted(bytes: u64) -> Result<Self> {
        let directory = directory(&std::env::temp_dir())?;
        let mount = Tmpfs::mount_with(directory.path(), bytes.div_ceil(1 << 20), OPTIONS)?;
        Ok(Self { mount: Some(mount), directory })
    }

    fn shared(bytes: u64) -> Result<Self> {
        let stat = rustix::fs::statvfs(SHARED).with_context(|| format!("look at {SHARED}"))?;
        let free = stat.f_bavail * stat.f_frsize;
        ensure!(free >= bytes, "{SHARED} has room for {}, {} are needed", report::human(free), report::human(bytes));
        Ok(Self { mount: None, directory: directory(Path::new(SHARED))? })
    }

    fn touch(&self, bytes: u64) -> Result<()> {
        let path = self.path().join("touched");
        let mut file = File::create(&path).context("create a file in memory")?;
        let chunk = vec![1; CHUNK_LEN];
        // Not quite to the brim: what keeps account of it takes room as well.
        for _ in 0..bytes / CHUNK_LEN as u64 * 15 / 16 {
            file.write_all(&chunk).context("write to memory")?;
        }
        drop(file);
        std::fs::remove_file(&path).context("remove it again")
    }

    /// Its path.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Leaves it where it is; gives its path.
    #[must_use]
    pub fn keep(self) -> PathBuf {
        if let Some(mount) = self.mount {
            mount.keep();
        }
        self.directory.keep()
    }
}

fn directory(within: &Path) -> Result<tempfile::TempDir> {
    tempfile::Builder::new().prefix("shoal-bench-").tempdir_in(within).context("make a directory")
}

fn free_memory() -> Result<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").context("read /proc/meminfo")?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:")).context("no MemAvailable")?;
    Ok(line.trim().trim_end_matches("kB").trim().parse::<u64>()? * 1024)
}
