//! How much of a piece goes to the kernel at once. Until it is on the wire nothing can be said past it: not a request,
//! not news, not that the peer is refused. On a slow connection that is a long time, and a swarm lives by such words; on
//! a fast one large strides save system calls and wake-ups.

use std::time::Duration;

use super::DATA_FRAME_LEN;

/// Bytes of blob in a frame at least: a TLS record holds as much.
const LEN_MIN: usize = 16 << 10;
/// At first: a few steps from either end.
const LEN_START: usize = 32 << 10;
/// What a stride may take. With what the kernel holds, the word of a peer is late by twice this.
const TIME: Duration = Duration::from_millis(20);
/// The rate is measured over so much, or the kernel's own buffer would pass for the network.
const SAMPLE_LEN: usize = 256 << 10;

/// The stride of a connection.
#[derive(Debug)]
pub(super) struct Stride {
    len: usize,
    /// Of this sample.
    bytes: usize,
    took: Duration,
}

impl Default for Stride {
    fn default() -> Self {
        Self { len: LEN_START, bytes: 0, took: Duration::ZERO }
    }
}

impl Stride {
    /// Bytes of blob in a frame, and bytes that the kernel may hold unsent; a power of two.
    pub(super) const fn len(&self) -> usize {
        self.len
    }

    /// A frame of `bytes` took so long until the kernel had it; true if the stride has changed.
    pub(super) fn took(&mut self, bytes: usize, time: Duration) -> bool {
        self.bytes += bytes;
        self.took += time;
        if self.bytes < SAMPLE_LEN {
            return false;
        }
        let fit = self.bytes as u128 * TIME.as_nanos() / self.took.as_nanos().max(1);
        let fit = usize::try_from(fit).unwrap_or(DATA_FRAME_LEN).clamp(LEN_MIN, DATA_FRAME_LEN);
        let len = 1 << fit.ilog2();
        (self.bytes, self.took) = (0, Duration::ZERO);
        std::mem::replace(&mut self.len, len) != len
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sends `bytes` at `rate` bytes a second.
    fn send(stride: &mut Stride, bytes: usize, rate: usize) {
        let mut left = bytes;
        while left > 0 {
            let len = stride.len().min(left);
            stride.took(len, Duration::from_secs_f64(len as f64 / rate as f64));
            left -= len;
        }
    }

    #[test]
    fn a_stride_takes_twenty_milliseconds_at_most_and_is_never_tiny() {
        let mut stride = Stride::default();
        for (rate, len) in [(1 << 30, 128 << 10), (2 << 20, 32 << 10), (1 << 10, 16 << 10), (6_400_000, 64 << 10)] {
            send(&mut stride, 1 << 20, rate);
            assert_eq!(stride.len(), len, "at {rate} bytes a second");
        }
    }

    #[test]
    fn what_the_kernel_takes_at_once_does_not_pass_for_a_fast_network() {
        let mut stride = Stride::default();
        for _ in 0..16 {
            // Each piece's first 64 KiB vanish into the kernel's buffer.
            stride.took(64 << 10, Duration::from_micros(10));
            send(&mut stride, 192 << 10, 1 << 20);
            assert!(stride.len() <= 32 << 10, "{}", stride.len());
        }
    }
}
