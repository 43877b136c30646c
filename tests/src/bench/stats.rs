//! Medians and what surrounds them.

use serde::{Deserialize, Serialize};

/// A median with the whole range around it. With the few rounds of a bench nothing narrower can be said: of three
/// values the range covers the true median with 75 %, of five with 94 %.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// The middle value; the mean of both where there are two.
    pub median: f64,
    /// The lowest.
    pub low: f64,
    /// The highest.
    pub high: f64,
    /// How many values.
    pub runs: usize,
}

impl Spread {
    /// Of no values there is none.
    #[must_use]
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_unstable_by(f64::total_cmp);
        let (&low, &high) = (values.first()?, values.last()?);
        let (middle, runs) = (values.len() / 2, values.len());
        let median = if runs % 2 == 1 { values[middle] } else { f64::midpoint(values[middle - 1], values[middle]) };
        Some(Self { median, low, high, runs })
    }

    /// As people read it.
    #[must_use]
    pub fn text(&self, decimals: usize) -> String {
        let Self { median, low, high, runs } = self;
        if *runs == 1 {
            return format!("{median:.decimals$}");
        }
        format!("{median:.decimals$} [{low:.decimals$}–{high:.decimals$}]")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_even_count_lies_between_the_middle_two() {
        let spread = Spread::of([4.0, 1.0, 3.0, 2.0]).unwrap();
        assert_eq!((spread.median, spread.low, spread.high, spread.runs), (2.5, 1.0, 4.0, 4));
        assert_eq!(Spread::of([5.0]).unwrap().text(1), "5.0");
        assert_eq!(Spread::of([3.0, 1.0, 2.0]).unwrap().text(1), "2.0 [1.0–3.0]");
        assert!(Spread::of([]).is_none());
    }
}
