//! A cap on bytes a second, shared by all connections.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// A cap, or none. Whoever wants to move bytes waits its turn first; turns are as long as their bytes take at the cap,
/// so the bytes of all together keep to it, and a burst is one turn.
#[derive(Debug, Default)]
pub struct Rate {
    bytes_per_s: Option<u64>,
    /// When the next turn begins.
    next: Mutex<Option<Instant>>,
}

impl Rate {
    /// At most so many bytes a second; any number, if `None`.
    #[must_use]
    pub const fn new(bytes_per_s: Option<u64>) -> Self {
        Self { bytes_per_s, next: Mutex::new(None) }
    }

    /// Waits until `bytes` may be moved. Cancelled, the turn is lost.
    pub async fn turn(&self, bytes: usize) {
        let Some(bytes_per_s) = self.bytes_per_s else { return };
        let span = Duration::from_secs(bytes as u64).div_f64(bytes_per_s.max(1) as f64);
        let start = {
            let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
            let now = Instant::now();
            let start = next.unwrap_or(now).max(now);
            *next = Some(start + span);
            start
        };
        tokio::time::sleep_until(start).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn bytes_keep_to_the_cap() {
        let rate = Rate::new(Some(100_000));
        let start = Instant::now();
        for _ in 0..11 {
            rate.turn(500).await;
        }
        assert!(start.elapsed() >= Duration::from_millis(50));
        Rate::new(None).turn(usize::MAX).await;
    }
}
