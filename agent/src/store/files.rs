//! Paths and the few file operations that the standard library lacks.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use rustix::fs::FallocateFlags;
use shoal_proto::Digest;

/// The lock file.
pub(super) const LOCK: &str = "lock";
/// Files on their way out: emptied at every start.
pub(super) const TRASH: &str = "trash";
/// Linux's number for file systems in memory (`TMPFS_MAGIC`).
const TMPFS: i64 = 0x0102_1994;
/// The folder of blob files.
pub(super) const BLOBS: &str = "blobs";

/// Makes `dir` (0700) and its parents where they are missing.
pub(super) fn make_dir(dir: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

pub(super) fn lock_file(dir: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(dir.join(LOCK))
}

/// `<dir>/blobs/<2 hex>/<hex>`. The two algorithms differ in length, so their names never meet.
pub(super) fn path(dir: &Path, digest: &Digest) -> PathBuf {
    let hex = digest.hex();
    dir.join(BLOBS).join(&hex[..2]).join(hex)
}

/// The digest that a file name in the folder of blobs stands for.
pub(super) fn digest_of(name: &str) -> Option<Digest> {
    let algorithm = match name.len() {
        64 => "sha256",
        128 => "sha512",
        _ => return None,
    };
    format!("{algorithm}:{name}").parse().ok()
}

/// Makes the file of `digest` anew, with `size` bytes reserved: `promised` bytes of other files are still to be written. A
/// file system without `fallocate` gets a sparse file: there a full disk shows at the write.
pub(super) fn create(dir: &Path, digest: &Digest, size: u64, promised: u64) -> io::Result<File> {
    let path = path(dir, digest);
    make_dir(path.parent().expect("a blob's path has a folder"))?;
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).mode(0o600).open(&path)?;
    let result = if size == 0 { Ok(()) } else { reserve(&file, size, promised) };
    if result.is_err() {
        remove(&path);
    }
    result.map(|()| file)
}

/// In memory there are no places on a disk to choose, and to reserve is to allocate page by page, and to zero what is then
/// written in parts: a sixth of all that a receiver does. There the room is counted instead.
fn reserve(file: &File, size: u64, promised: u64) -> io::Result<()> {
    let system = rustix::fs::fstatfs(file)?;
    if system.f_type == TMPFS {
        let free = system.f_bavail.saturating_mul(u64::try_from(system.f_bsize).unwrap_or(0));
        // Of no bound is one that was mounted so.
        if system.f_blocks > 0 && free < size.saturating_add(promised) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        return file.set_len(size);
    }
    match rustix::fs::fallocate(file, FallocateFlags::empty(), 0, size) {
        Ok(()) => Ok(()),
        Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => file.set_len(size),
        Err(error) => Err(error.into()),
    }
}

/// Opens the file of `digest`, if it is there with its full length.
pub(super) fn open(dir: &Path, digest: &Digest, size: u64) -> io::Result<File> {
    let file = OpenOptions::new().read(true).write(true).open(path(dir, digest))?;
    if file.metadata()?.len() == size {
        Ok(file)
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidData, "the file has another length than its blob"))
    }
}

/// Makes the name of a blob's file survive a power loss.
pub(super) fn sync_name(dir: &Path, digest: &Digest) -> io::Result<()> {
    let path = path(dir, digest);
    let folder = path.parent().expect("a blob's path has a folder");
    File::open(folder)?.sync_all()?;
    File::open(dir.join(BLOBS))?.sync_all()
}

/// Takes the name of a blob's file away; says where the file is now, if it was there.
pub(super) fn discard(dir: &Path, digest: &Digest) -> Option<PathBuf> {
    static DISCARDED: AtomicU64 = AtomicU64::new(0);
    let number = DISCARDED.fetch_add(1, Ordering::Relaxed);
    let to = dir.join(TRASH).join(format!("{number}-{}", digest.hex()));
    let from = path(dir, digest);
    match fs::rename(&from, &to) {
        Ok(()) => Some(to),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => {
            tracing::warn!(path = %from.display(), %error, "a blob's file cannot be moved away");
            None
        }
    }
}

/// Makes the trash folder, and empties it.
pub(super) fn empty_trash(dir: &Path) -> io::Result<()> {
    let trash = dir.join(TRASH);
    make_dir(&trash)?;
    for file in fs::read_dir(&trash)? {
        remove(&file?.path());
    }
    Ok(())
}

/// Removes a file that nobody reads any more; that it is missing is no matter, anything else is logged, since the next
/// start tries again.
pub(super) fn remove(path: &Path) {
    // A handle that is still open would keep the space taken, and the space is what is needed.
    if let Err(error) = OpenOptions::new().write(true).truncate(true).open(path) {
        tracing::debug!(path = %path.display(), %error, "a blob's file cannot be emptied before its removal");
    }
    match fs::remove_file(path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => tracing::warn!(path = %path.display(), %error, "a blob's file cannot be removed"),
    }
}

/// Whether the error says that there is no room.
pub(super) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}
