//! Large buffers, used again and again: memory fresh from the kernel costs a page fault for every 4 KiB, which is more
//! than all that is done with the bytes of a piece.

use std::{
    fmt,
    ops::{Deref, DerefMut},
    sync::{Arc, Mutex, PoisonError},
};

use shoal_proto::message::DATA_HEADER_LEN;

use super::DATA_FRAME_LEN;

/// Bytes of a buffer: one data frame. BLAKE3 and pwrite are at their best from 64 KiB on.
pub(super) const LARGE_LEN: usize = DATA_HEADER_LEN + DATA_FRAME_LEN;
/// Kept for the next user whatever goes on: what a single transfer needs.
const KEPT_MIN: usize = 4;

/// The buffers of an endpoint. Beyond [`KEPT_MIN`] no more wait to be used than are in use: a node that has nothing to do
/// gives its memory back.
#[derive(Debug, Default)]
pub(super) struct Buffers(Mutex<Shelf>);

#[derive(Debug, Default)]
struct Shelf {
    free: Vec<Box<[u8]>>,
    in_use: usize,
}

impl Buffers {
    /// A buffer with bytes of no meaning.
    pub(super) fn take(self: &Arc<Self>) -> Buffer {
        let bytes = {
            let mut shelf = self.shelf();
            shelf.in_use += 1;
            shelf.free.pop()
        };
        Buffer { bytes: bytes.unwrap_or_else(|| vec![0; LARGE_LEN].into()), home: Arc::clone(self) }
    }

    fn shelf(&self) -> std::sync::MutexGuard<'_, Shelf> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A buffer of [`LARGE_LEN`] bytes.
pub(super) struct Buffer {
    bytes: Box<[u8]>,
    home: Arc<Buffers>,
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Buffer").field("len", &self.bytes.len()).finish_non_exhaustive()
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let bytes = std::mem::take(&mut self.bytes);
        let mut shelf = self.home.shelf();
        shelf.in_use -= 1;
        shelf.free.push(bytes);
        let most = shelf.in_use.max(KEPT_MIN);
        let surplus = if shelf.free.len() > most { shelf.free.split_off(most) } else { Vec::new() };
        drop(shelf);
        drop(surplus);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_used_again_and_given_back_when_nothing_goes_on() {
        let buffers = Arc::new(Buffers::default());
        let mut first = buffers.take();
        first[0] = 7;
        drop(first);
        assert_eq!(buffers.take()[0], 7, "the same buffer");
        let many: Vec<Buffer> = (0..40).map(|_| buffers.take()).collect();
        assert!(many.iter().all(|buffer| buffer.len() == LARGE_LEN));
        drop(many);
        let shelf = buffers.shelf();
        assert_eq!((shelf.free.len(), shelf.in_use), (KEPT_MIN, 0));
    }
}
