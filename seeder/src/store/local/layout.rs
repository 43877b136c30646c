//! The directories of a store, and the lock that keeps others out.

use std::{
    fs::{self, File, OpenOptions},
    os::unix::fs::DirBuilderExt as _,
    path::Path,
};

use super::OpenError;

pub(super) fn make_dir(path: &Path) -> Result<(), OpenError> {
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(|error| OpenError::Dir { path: path.to_owned(), error })
}

/// Makes all directories of a store, and has them on the disk before anything is put into one: a blob that was placed
/// and synced would be lost to a power loss with a directory above it whose own name was not.
pub(super) fn make_layout(dir: &Path) -> Result<(), OpenError> {
    for part in ["uploads", "quarantine", "blobs", "blobs/sha256", "blobs/sha512"] {
        make_dir(&dir.join(part))?;
    }
    for algorithm in ["blobs/sha256", "blobs/sha512"] {
        for first in 0..=u8::MAX {
            make_dir(&dir.join(algorithm).join(format!("{first:02x}")))?;
        }
    }
    for made in ["blobs/sha256", "blobs/sha512", "blobs", ""] {
        let path = dir.join(made);
        let synced = File::open(&path).and_then(|open| open.sync_all());
        synced.map_err(|error| OpenError::Dir { path, error })?;
    }
    Ok(())
}

pub(super) fn lock(dir: &Path) -> Result<File, OpenError> {
    let path = dir.join("lock");
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
    let file = file.map_err(|error| OpenError::Dir { path: path.clone(), error })?;
    match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(OpenError::Locked(dir.to_owned())),
        Err(error) => Err(OpenError::Dir { path, error: error.into() }),
    }
}
