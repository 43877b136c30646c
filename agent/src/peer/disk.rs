//! File accesses on the threads that carry the connections. What the page cache has, or takes, costs microseconds and is
//! done on the spot: to hand it to another thread would cost more than the access. What must wait for the disk is done
//! where it holds up nobody else, reads a bounded number at once.

use std::{
    fs::File,
    io::{self, IoSliceMut},
    os::unix::fs::FileExt,
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use rustix::io::{Errno, ReadWriteFlags, preadv2};
use tokio::{
    sync::{Semaphore, SemaphorePermit},
    task::block_in_place,
};

use super::COLD_READS_MAX;

/// An access that lasts so long has waited for the disk; the page cache takes a hundredth of it.
const SLOW: Duration = Duration::from_millis(5);
/// Quick accesses in a row after which one that was slow is forgotten.
const WARY: u32 = 8;

/// The accesses of all connections.
#[derive(Debug)]
pub(super) struct Disk {
    /// Places for reads that wait for the disk.
    reads: Semaphore,
    /// Accesses that are still expected to be slow.
    wary: AtomicU32,
}

/// Whether the page cache has something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cached {
    Yes,
    No,
    /// The file system does not say.
    Unknown,
}

impl Default for Disk {
    fn default() -> Self {
        Self { reads: Semaphore::new(COLD_READS_MAX), wary: AtomicU32::new(0) }
    }
}

impl Disk {
    /// Does what as a rule does not wait for the disk. From the first time on that it has, expects it to do so again.
    pub(super) fn promptly<T>(&self, access: impl FnOnce() -> T) -> T {
        let (wary, start) = (self.wary.load(Ordering::Relaxed), Instant::now());
        let done = if wary == 0 { access() } else { block_in_place(access) };
        let next = if start.elapsed() >= SLOW { WARY } else { wary.saturating_sub(1) };
        if next != wary {
            self.wary.store(next, Ordering::Relaxed);
        }
        done
    }

    /// Fills `buf` from a file.
    ///
    /// # Errors
    /// The file is shorter, or the disk fails.
    pub(super) async fn read(&self, file: &File, buf: &mut [u8], at: u64) -> io::Result<()> {
        match read_cached(file, buf, at)? {
            Cached::Yes => Ok(()),
            Cached::No => {
                let _place = self.place().await;
                block_in_place(|| file.read_exact_at(buf, at))
            }
            Cached::Unknown => self.promptly(|| file.read_exact_at(buf, at)),
        }
    }

    /// A system call that reads `len` bytes of a file. To be given to [`Disk::carry_out`].
    pub(super) async fn ready(&self, file: &File, at: u64, len: usize) -> io::Result<Ready<'_>> {
        let mut cached = Cached::Yes;
        for edge in [at, at + (len as u64).saturating_sub(1)] {
            if cached == Cached::Yes {
                cached = read_cached(file, &mut [0], edge)?;
            }
        }
        Ok(match cached {
            Cached::Yes => Ready::Cached,
            Cached::No => Ready::Cold { _place: self.place().await },
            Cached::Unknown => Ready::Unknown,
        })
    }

    /// Makes the call that [`Disk::ready`] was asked for.
    pub(super) fn carry_out<T>(&self, ready: &Ready<'_>, call: impl FnOnce() -> T) -> T {
        match ready {
            Ready::Cached => call(),
            Ready::Cold { .. } => block_in_place(call),
            Ready::Unknown => self.promptly(call),
        }
    }

    async fn place(&self) -> SemaphorePermit<'_> {
        self.reads.acquire().await.expect("the semaphore is never closed")
    }
}

/// The right to read a part of a file.
#[derive(Debug)]
pub(super) enum Ready<'a> {
    Cached,
    Cold { _place: SemaphorePermit<'a> },
    Unknown,
}

/// Fills `buf` if the page cache has all of it.
fn read_cached(file: &File, buf: &mut [u8], at: u64) -> io::Result<Cached> {
    let mut done = 0;
    while done < buf.len() {
        let part = &mut [IoSliceMut::new(&mut buf[done..])];
        match preadv2(file, part, at + done as u64, ReadWriteFlags::NOWAIT) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(len) => done += len,
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => return Ok(Cached::No),
            Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => return Ok(Cached::Unknown),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(Cached::Yes)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn reads_what_the_file_has_and_says_what_it_has_not() {
        let disk = Disk::default();
        let data: Vec<u8> = (0..100_000u32).map(|n| (n % 253) as u8).collect();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&data).unwrap();
        file.sync_all().unwrap();
        for cold in [false, true] {
            if cold {
                rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
            }
            let mut buf = vec![0; 70_000];
            let ready = disk.ready(&file, 30_000, buf.len()).await.unwrap();
            let whole = disk.carry_out(&ready, || file.read_at(&mut buf, 30_000)).unwrap();
            assert!(whole == buf.len() && buf == data[30_000..]);
            buf.fill(0);
            disk.read(&file, &mut buf, 30_000).await.unwrap();
            assert!(buf == data[30_000..]);
        }
        let error = disk.read(&file, &mut [0; 2], data.len() as u64 - 1).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn after_a_slow_access_the_next_ones_hold_up_nobody() {
        let disk = Disk::default();
        assert_eq!(disk.promptly(|| 1), 1);
        assert_eq!(disk.wary.load(Ordering::Relaxed), 0);
        let start = Instant::now();
        disk.promptly(|| while start.elapsed() < SLOW {});
        assert_eq!(disk.wary.load(Ordering::Relaxed), WARY);
        for _ in 0..200 {
            disk.promptly(|| ());
        }
        assert_eq!(disk.wary.load(Ordering::Relaxed), 0, "a disk that is quick again is believed");
    }
}
