//! Copies of a store: made while it serves, put back where none is.
//!
//! A backup is a checkpoint of the database and every blob's file. The checkpoint comes first: files are named before
//! their records are written, so what the checkpoint names is there to be copied, and the collector waits meanwhile.
//! `backup.json` is written last; without it, it is no backup. In the same way `restoring` marks a data directory into
//! which a backup is being put back; no seeder starts on it.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    os::unix::fs::DirBuilderExt as _,
    path::Path,
};

use serde::{Deserialize, Serialize};

use super::{Inner, format, uploads::sync_dir};
use crate::store::StoreError;

/// The version of a backup's layout.
const FORMAT: u32 = 1;
const MANIFEST: &str = "backup.json";
const RESTORING: &str = "restoring";

/// What a backup holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backup {
    format: u32,
    /// Files of blobs; small blobs are in the database.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// Why a backup is not put back.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// Not a backup, or one that was not finished.
    #[error("{0} holds no whole backup: its backup.json is not there or not understood")]
    NoBackup(String),
    /// Something is there already.
    #[error("{0} is not empty; a backup is restored into a directory of its own")]
    NotEmpty(String),
    /// Files are missing from it, or are shorter or longer than they were.
    #[error(
        "the backup is not whole: {expected} files of blobs were written and {found} are there, or their lengths differ"
    )]
    Incomplete {
        /// Files when it was made.
        expected: u64,
        /// Files now.
        found: u64,
    },
    /// Copying failed.
    #[error("cannot restore: {0}")]
    Io(#[from] io::Error),
}

impl Inner {
    pub(super) fn backup(&self, to: &Path) -> Result<Backup, StoreError> {
        if std::path::absolute(to).is_ok_and(|to| to.starts_with(&self.dir)) {
            let error = io::Error::other("the backup's directory is inside the data directory");
            return Err(StoreError::io("make the backup's directory")(error));
        }
        let _nothing_is_deleted = self.collecting.lock().expect("nobody panics while collecting");
        make(to).map_err(StoreError::io("make the backup's directory (it must not be there)"))?;
        self.tables.checkpoint(&to.join("db"))?;
        let mut done = Backup { format: FORMAT, files: 0, bytes: 0 };
        let copied = copy_tree(&self.dir.join("blobs"), &to.join("blobs"), &mut done);
        copied.map_err(StoreError::io("copy blobs into the backup"))?;
        copy_singles(&self.dir, to).map_err(StoreError::io("copy the root key into the backup"))?;
        sync_dir(to)?;
        let text = serde_json::to_string(&done).map_err(StoreError::failed("describe the backup"))?;
        write_file(&to.join(MANIFEST), &text).map_err(StoreError::io("write backup.json"))?;
        sync_dir(to)?;
        Ok(done)
    }
}

/// Whether a restore into `dir` was begun and not finished.
pub(super) fn is_unfinished(dir: &Path) -> bool {
    dir.join(RESTORING).exists()
}

/// Marks a restore into `dir` as finished: a seeder may start on it.
///
/// # Errors
/// The mark cannot be taken away.
pub fn finish_restore(dir: &Path) -> Result<(), RestoreError> {
    fs::remove_file(dir.join(RESTORING))?;
    Ok(File::open(dir)?.sync_all()?)
}

/// Puts the backup in `from` into `to`, which is empty or not there. Until [`finish_restore`] the store opens for nobody
/// but whoever restores.
///
/// # Errors
/// `from` is no whole backup, `to` is in use, or copying failed.
pub fn restore(from: &Path, to: &Path) -> Result<Backup, RestoreError> {
    let text = fs::read_to_string(from.join(MANIFEST)).unwrap_or_default();
    let found = serde_json::from_str::<Backup>(&text).ok().filter(|backup| backup.format == FORMAT);
    let found = found.ok_or_else(|| RestoreError::NoBackup(from.display().to_string()))?;
    if to.exists() && fs::read_dir(to)?.next().is_some() {
        return Err(RestoreError::NotEmpty(to.display().to_string()));
    }
    let mut copied = Backup { format: FORMAT, files: 0, bytes: 0 };
    fs::DirBuilder::new().recursive(true).mode(0o700).create(to)?;
    write_file(&to.join(RESTORING), "")?;
    File::open(to)?.sync_all()?;
    copy_tree(&from.join("blobs"), &to.join("blobs"), &mut copied)?;
    if copied != found {
        return Err(RestoreError::Incomplete { expected: found.files, found: copied.files });
    }
    copy_tree(&from.join("db"), &to.join("db"), &mut copied)?;
    copy_singles(from, to)?;
    File::open(to)?.sync_all()?;
    Ok(found)
}

fn make(dir: &Path) -> io::Result<()> {
    fs::DirBuilder::new().mode(0o700).create(dir)
}

/// Copies the files beside the database and the blobs.
fn copy_singles(from: &Path, to: &Path) -> io::Result<()> {
    for name in [format::FILE, "root.key"] {
        if from.join(name).exists() {
            copy_file(&from.join(name), &to.join(name))?;
        }
    }
    Ok(())
}

fn write_file(path: &Path, text: &str) -> io::Result<()> {
    let mut file = File::create_new(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

/// Copies a file with its permissions; on the disk when this returns.
fn copy_file(from: &Path, to: &Path) -> io::Result<u64> {
    let len = fs::copy(from, to)?;
    File::open(to)?.sync_all()?;
    Ok(len)
}

fn copy_tree(from: &Path, to: &Path, done: &mut Backup) -> io::Result<()> {
    make(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_tree(&entry.path(), &target, done)?;
        } else {
            match copy_file(&entry.path(), &target) {
                Ok(len) => {
                    done.files += 1;
                    done.bytes += len;
                }
                // Damaged content was put aside meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
    }
    File::open(to)?.sync_all()
}
