//! Filling one link.

/// The level at which flows that cannot take more than `limits` use up `capacity`; they could use more than that in all.
/// It rises from equal shares, as what those below leave goes to the others, until it leaves nobody behind.
pub(super) fn fill(capacity: f64, limits: &[f64]) -> f64 {
    let mut level = capacity / limits.len() as f64;
    let mut open = limits.len();
    loop {
        let (mut rest, mut above) = (capacity, 0);
        for &limit in limits {
            let below = limit < level;
            rest -= if below { limit } else { 0.0 };
            above += usize::from(!below);
        }
        if above == open || above == 0 {
            return level;
        }
        open = above;
        level = level.max(rest / open as f64);
    }
}
