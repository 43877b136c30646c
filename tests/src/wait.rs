//! Waiting for another process: the one place that looks again and again.

use std::{
    future::Future,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

/// Between two looks. What is waited for lies in another process that tells nobody, so it is looked at often enough
/// not to add to what is measured.
const INTERVAL: Duration = Duration::from_millis(20);

/// Looks until `look` gives a value, at most for `limit`.
///
/// # Errors
/// `look` failed (at once), or gave nothing in time.
pub async fn until<T, F>(what: &str, limit: Duration, mut look: impl FnMut() -> F) -> Result<T>
where
    F: Future<Output = Result<Option<T>>>,
{
    let deadline = Instant::now() + limit;
    let mut ticks = tokio::time::interval(INTERVAL);
    loop {
        ticks.tick().await;
        if let Some(value) = look().await? {
            return Ok(value);
        }
        if Instant::now() >= deadline {
            bail!("{what}: nothing after {limit:?}");
        }
    }
}
