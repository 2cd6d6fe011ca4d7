//! From values to places on an axis, and the ticks of it.

use super::super::tables::number_with;

/// From this ratio of the greatest to the least value on, an axis is logarithmic.
const LOG_FROM: f64 = 20.0;

/// Where values stand on an axis.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scale {
    /// Equal ratios are equally far apart, not equal differences.
    pub log: bool,
    /// The value at its beginning.
    pub lo: f64,
    /// The value at its end, above `lo`.
    pub hi: f64,
}

impl Scale {
    /// For measured values: from 0, or by decades where they are far apart; its ends are round. `None`
    /// without values.
    #[must_use]
    pub fn of_values(values: &[f64]) -> Option<Self> {
        let (least, greatest) = ends(values)?;
        let positive: Vec<_> = values.iter().copied().filter(|v| *v > 0.0).collect();
        match ends(&positive) {
            Some((lo, hi)) if least >= 0.0 && hi / lo >= LOG_FROM => Some(Self {
                log: true,
                lo: round(lo * 0.98, f64::floor),
                hi: round(hi * 1.02, f64::ceil),
            }),
            _ => {
                let step = step((greatest.max(0.0) - least.min(0.0)).max(1e-9), 5.0);
                let (lo, hi) = (least.min(0.0) / step, (greatest * 1.02).max(0.0) / step);
                let (lo, hi) = (lo.floor() * step, hi.ceil() * step);
                Some(Self {
                    log: false,
                    lo,
                    hi: if hi > lo { hi } else { lo + step },
                })
            }
        }
    }

    /// For what was set by the plan: no longer than needed, with a margin; logarithmic from that ratio
    /// of its ends on.
    #[must_use]
    pub fn of_settings(values: &[f64], log_from: f64) -> Option<Self> {
        let (lo, hi) = ends(values)?;
        if lo > 0.0 && hi / lo >= log_from {
            let margin = ((hi.ln() - lo.ln()) * 0.05).exp();
            return Some(Self {
                log: true,
                lo: (lo / margin).max(f64::MIN_POSITIVE),
                hi: hi * margin,
            });
        }
        let margin = if hi > lo {
            (hi - lo) * 0.06
        } else {
            (hi.abs() * 0.5).max(1.0)
        };
        Some(Self {
            log: false,
            lo: lo - margin,
            hi: hi + margin,
        })
    }

    /// Where a value stands: 0 at the beginning, 1 at the end. What lies beyond stands at the end.
    #[must_use]
    pub fn at(&self, value: f64) -> f64 {
        let at = if self.log {
            // What is not above 0 is below every decade.
            (value.max(f64::MIN_POSITIVE) / self.lo).ln() / (self.hi / self.lo).ln()
        } else {
            (value - self.lo) / (self.hi - self.lo)
        };
        if at.is_finite() {
            at.clamp(0.0, 1.0)
        } else {
            0.0
        }
    }

    /// Round values within it, with their labels. Some of a logarithmic axis have none.
    #[must_use]
    pub fn ticks(&self) -> Vec<(f64, String)> {
        let inside = |v: &f64| *v >= self.lo * 0.999 - 1e-12 && *v <= self.hi * 1.001;
        if !self.log {
            let step = step(self.hi - self.lo, 5.0);
            let first = (self.lo / step - 1e-9).ceil() as i64;
            let count = ((self.hi - self.lo) / step + 1e-9).floor().clamp(0.0, 40.0) as i64;
            let values = (first..=first.saturating_add(count)).map(|i| i as f64 * step);
            let decimals = (-step.log10().floor()).clamp(0.0, 9.0) as usize;
            let label = |v| (v, number_with(v, decimals));
            return values.filter(inside).map(label).collect();
        }
        let (first, last) = (
            self.lo.log10().floor() as i32,
            self.hi.log10().ceil() as i32,
        );
        // With many decades there is no room for more than the decades.
        let labelled: &[f64] = match last.saturating_sub(first) {
            ..=3 => &[1.0, 2.0, 5.0],
            _ => &[1.0],
        };
        let mut ticks = Vec::new();
        for exponent in first..=last.min(first.saturating_add(40)) {
            for digit in [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0] {
                let value = digit * 10f64.powi(exponent);
                let label = if labelled.contains(&digit) {
                    number_with(value, (-exponent).max(0) as usize)
                } else {
                    String::new()
                };
                ticks.push((value, label));
            }
        }
        ticks.retain(|(value, _)| inside(value));
        ticks
    }
}

/// The least and the greatest of the values that are numbers.
fn ends(values: &[f64]) -> Option<(f64, f64)> {
    let mut values = values.iter().copied().filter(|v| v.is_finite());
    let first = values.next()?;
    let ends = values.fold((first, first), |(lo, hi), v| (lo.min(v), hi.max(v)));
    Some(ends)
}

/// The step of 1, 2 or 5 that makes about so many of a length.
fn step(length: f64, about: f64) -> f64 {
    let raw = length / about;
    let power = 10f64.powf(raw.log10().floor());
    let steps = [1.0, 2.0, 5.0, 10.0].map(|step| step * power);
    let enough = steps.into_iter().find(|step| *step >= raw * 0.999);
    enough.unwrap_or(power)
}

/// The next value of 1, 2 or 5 in a decade, below or above.
fn round(value: f64, to: fn(f64) -> f64) -> f64 {
    let power = 10f64.powf(value.log10().floor());
    let digit = value / power;
    let digits = [1.0, 2.0, 5.0, 10.0];
    let digit = if to(0.5) < 0.5 {
        digits.into_iter().rev().find(|d| *d <= digit * 1.000_001)
    } else {
        digits.into_iter().find(|d| *d >= digit * 0.999_999)
    };
    digit.unwrap_or(1.0) * power
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(scale: Scale) -> Vec<String> {
        let ticks = scale.ticks().into_iter();
        ticks.map(|(_, l)| l).filter(|l| !l.is_empty()).collect()
    }

    #[test]
    fn values_that_are_far_apart_make_decades() {
        let scale = Scale::of_values(&[0.07, 4.6]).unwrap();
        assert!(scale.log);
        assert!((scale.lo - 0.05).abs() < 1e-9 && (scale.hi - 5.0).abs() < 1e-9);
        let ticks = ["0.05", "0.1", "0.2", "0.5", "1", "2", "5"];
        assert_eq!(labels(scale), ticks);
        assert!((scale.at(0.5) - 0.5).abs() < 1e-9);
        assert_eq!((scale.at(0.0), scale.at(1e9)), (0.0, 1.0));
    }

    #[test]
    fn values_that_are_near_begin_at_zero() {
        let scale = Scale::of_values(&[3.0, 9.2]).unwrap();
        assert_eq!((scale.log, scale.lo, scale.hi), (false, 0.0, 10.0));
        assert_eq!(labels(scale), ["0", "2", "4", "6", "8", "10"]);
        let scale = Scale::of_values(&[-0.3, 0.9]).unwrap();
        assert!(scale.lo <= -0.3 && scale.hi >= 0.9);
    }

    #[test]
    fn odd_values_do_no_harm() {
        assert_eq!(Scale::of_values(&[]), None);
        assert_eq!(Scale::of_values(&[f64::NAN]), None);
        let values: [&[f64]; 5] = [
            &[0.0],
            &[-5.0],
            &[1e-300, 1e300],
            &[0.0, 1e-3, 1.0],
            &[1e18],
        ];
        for values in values {
            for scale in [Scale::of_values(values), Scale::of_settings(values, 10.0)] {
                let scale = scale.unwrap();
                assert!(scale.hi > scale.lo, "{values:?}: {scale:?}");
                assert!(scale.ticks().len() < 500);
                assert!(values.iter().all(|v| scale.at(*v).is_finite()));
            }
        }
    }
}
