//! The middle of several runs, and how far they are apart.
//!
//! Quartiles are interpolated between the sorted values: of `n` values numbered from 0, quantile `p`
//! stands at `p * (n - 1)`. That is what R calls type 7 and NumPy does by default, and the quantile of
//! one half is the median. Of one value all quartiles are that value.

use crate::suite::table;
use serde::Serialize;

/// What several values come to.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// How many values there are.
    pub n: usize,
    /// The least of them.
    pub min: f64,
    /// A quarter of them lie below.
    pub q1: f64,
    /// The middle.
    pub median: f64,
    /// A quarter of them lie above.
    pub q3: f64,
    /// The greatest of them.
    pub max: f64,
}

impl Summary {
    /// Of these values, those that are no numbers left out; `None` if nothing is left.
    #[must_use]
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut sorted: Vec<_> = values.into_iter().filter(|v| v.is_finite()).collect();
        sorted.sort_by(f64::total_cmp);
        let (&min, &max) = (sorted.first()?, sorted.last()?);
        Some(Self {
            n: sorted.len(),
            min,
            q1: quantile(&sorted, 0.25),
            median: table::median(&sorted),
            q3: quantile(&sorted, 0.75),
            max,
        })
    }
}

/// The quantile of sorted values; 0 of none.
#[must_use]
pub fn quantile(sorted: &[f64], p: f64) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else {
        return 0.0;
    };
    let at = p.clamp(0.0, 1.0) * last as f64;
    let below = (at.floor() as usize).min(last);
    let above = (below + 1).min(last);
    sorted[below] + (sorted[above] - sorted[below]) * (at - below as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(a: f64, b: f64) -> bool {
        (a - b).abs() < 1e-9
    }

    #[test]
    fn quartiles_as_numpy_has_them() {
        let four = Summary::of([4.0, 1.0, 3.0, 2.0]).unwrap();
        assert!(near(four.q1, 1.75) && near(four.median, 2.5) && near(four.q3, 3.25));
        let five = Summary::of([10.0, 20.0, 30.0, 40.0, 100.0]).unwrap();
        assert!(near(five.q1, 20.0) && near(five.median, 30.0) && near(five.q3, 40.0));
        assert_eq!((five.n, five.min, five.max), (5, 10.0, 100.0));
    }

    #[test]
    fn one_value_is_all_of_its_quartiles() {
        let one = Summary::of([7.0]).unwrap();
        assert!(near(one.q1, 7.0) && near(one.median, 7.0) && near(one.q3, 7.0));
    }

    #[test]
    fn the_middle_quantile_is_the_median() {
        for len in 1..9 {
            let values: Vec<_> = (0..len).map(|i| f64::from(i * i)).collect();
            assert!(near(quantile(&values, 0.5), table::median(&values)));
        }
    }

    #[test]
    fn what_is_no_number_is_left_out() {
        assert_eq!(Summary::of([]), None);
        assert_eq!(Summary::of([f64::NAN, f64::INFINITY]), None);
        assert_eq!(Summary::of([f64::NAN, 2.0]).unwrap().n, 1);
    }
}
