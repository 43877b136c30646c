//! Conversions between the integers that count and the floats that measure. Kept in one place, so that nowhere else a
//! cast may cut something off.

/// As an index into a slice.
pub(crate) const fn at(index: u32) -> usize {
    index as usize
}

/// A count as `u32`.
///
/// # Panics
/// At 2^32: nodes, links, flows and pieces are all far fewer.
pub(crate) fn small(count: usize) -> u32 {
    u32::try_from(count).expect("everything simulated is counted in 32 bits")
}

/// A float as whole number, rounded down; what is negative or no number is 0.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "`as` saturates, which is what is wanted")]
pub(crate) const fn floor(value: f64) -> u64 {
    value as u64
}

/// A float as whole number, rounded up.
pub(crate) const fn ceil(value: f64) -> u64 {
    let below = floor(value);
    if (below as f64) < value { below.saturating_add(1) } else { below }
}

/// Nanoseconds as seconds.
pub(crate) const fn secs(nanos: u64) -> f64 {
    nanos as f64 / 1e9
}

/// The same of a span that is no longer than 292 years: faster, and rounded in another way.
#[expect(clippy::cast_possible_wrap, reason = "292 years")]
pub(crate) const fn span(nanos: u64) -> f64 {
    nanos as i64 as f64 * 1e-9
}

/// Seconds as nanoseconds.
pub(crate) const fn nanos(secs: f64) -> u64 {
    floor(secs * 1e9)
}

/// `part` of `whole`, 0 where there is nothing.
pub(crate) fn ratio(part: f64, whole: f64) -> f64 {
    if whole > 0.0 { part / whole } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_become_whole_numbers_without_surprise() {
        assert_eq!((floor(-1.0), floor(1.9), floor(f64::NAN), floor(f64::INFINITY)), (0, 1, 0, u64::MAX));
        assert_eq!((ceil(1.0), ceil(1.1), ceil(0.0)), (1, 2, 0));
    }
}
