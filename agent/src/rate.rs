//! Caps on bytes a second, shared by all who move bytes of a kind.

use std::{
    sync::{Arc, Mutex, PoisonError},
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
    /// Wider caps that the same bytes count for.
    within: Vec<Arc<Self>>,
}

impl Rate {
    /// At most so many bytes a second; any number, if `None`.
    #[must_use]
    pub const fn new(bytes_per_s: Option<u64>) -> Self {
        Self { bytes_per_s, next: Mutex::new(None), within: Vec::new() }
    }

    /// The same bytes count for these caps too.
    #[must_use]
    pub fn within(mut self, wider: impl IntoIterator<Item = Arc<Self>>) -> Self {
        self.within.extend(wider.into_iter().filter(|wider| wider.is_capped()));
        self
    }

    /// Whether there is any cap.
    #[must_use]
    pub const fn is_capped(&self) -> bool {
        self.bytes_per_s.is_some() || !self.within.is_empty()
    }

    /// Waits until `bytes` may be moved. Cancelled, the turn is lost.
    pub async fn turn(&self, bytes: usize) {
        let all = std::iter::once(self).chain(self.within.iter().map(|wider| &**wider));
        if let Some(start) = all.filter_map(|rate| rate.book(bytes)).max() {
            tokio::time::sleep_until(start).await;
        }
    }

    /// Takes the next turn; when it begins.
    fn book(&self, bytes: usize) -> Option<Instant> {
        let bytes_per_s = self.bytes_per_s?;
        let span = Duration::from_secs(bytes as u64).div_f64(bytes_per_s.max(1) as f64);
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let start = next.unwrap_or(now).max(now);
        *next = Some(start + span);
        Some(start)
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

    #[tokio::test]
    async fn two_that_share_a_wider_cap_keep_to_it_together() {
        let both = Arc::new(Rate::new(Some(100_000)));
        let [one, other] = [(); 2].map(|()| Rate::new(Some(1_000_000)).within([both.clone()]));
        let start = Instant::now();
        for _ in 0..6 {
            tokio::join!(one.turn(500), other.turn(500));
        }
        assert!(start.elapsed() >= Duration::from_millis(55));
        assert!(!Rate::new(None).within([Arc::new(Rate::default())]).is_capped());
    }
}
