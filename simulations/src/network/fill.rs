//! Filling one link.

/// The level at which flows that cannot take more than `caps` use up `capacity`; infinite if they do not.
pub(super) fn fill(capacity: f64, caps: &mut [f64]) -> f64 {
    if caps.iter().sum::<f64>() <= capacity {
        return f64::INFINITY;
    }
    let (mut rest, mut open) = (capacity, caps.len());
    loop {
        let level = rest / open as f64;
        let mut index = 0;
        let before = open;
        while index < open {
            if caps[index] < level {
                rest -= caps[index];
                open -= 1;
                caps.swap(index, open);
            } else {
                index += 1;
            }
        }
        if open == before || open == 0 {
            return level;
        }
        rest = rest.max(0.0);
    }
}
