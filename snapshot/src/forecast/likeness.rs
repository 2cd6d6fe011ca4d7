//! How much an earlier save says of the next: what both were made under, and how old it is.
//!
//! The most of a pause, and all that makes it hard to foretell, is the guest freezing itself: that
//! hangs on its type and its vCPUs, on a CPU cap that stands meanwhile, and on the host's mood, which
//! the latest saves know best. So earlier saves count the less the farther they are from the one at hand.

use serde::{Deserialize, Serialize};

use super::PastWindow;
use crate::ports::GuestKind;
use crate::report::Window;
use crate::units::{CpuPercent, PageCount};

/// What a save is made under. What is not known is like anything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Circumstances {
    /// The guest's type.
    pub kind: Option<GuestKind>,
    /// Its vCPUs; 0 if not known.
    pub vcpus: u32,
    /// The memory that it has, as its balloon is set now; 0 if not known.
    pub memory: PageCount,
    /// The CPU cap of its own.
    pub cap: Option<CpuPercent>,
    /// It keeps that in the pause.
    pub cap_kept: bool,
}

/// One that has so many saves after it counts half.
const HALF_LIFE: f64 = 8.0;
/// For each doubling of the vCPUs, to more or fewer: Linux stops them one by one.
const VCPUS: f64 = 0.125;
/// For each doubling of the CPU that the guest has in its pause.
const CAP_KEPT: f64 = 0.125;
/// For each doubling of the CPU that it has outside of it.
const CAP_LIFTED: f64 = 0.7;
/// At most so many doublings of that: a guest at 1 % is as idle as one at 25.
const CAP_DOUBLINGS: f64 = 2.0;
/// For each doubling of the memory, whose bitmaps are part of the window.
const MEMORY: f64 = 0.9;
/// From here on a save is one of like circumstances.
const LIKE: f64 = 0.25;

fn doublings(a: f64, b: f64) -> f64 {
    if a > 0.0 && b > 0.0 {
        (a / b).log2().abs()
    } else {
        0.0
    }
}

impl Circumstances {
    /// As they turned out to be.
    #[must_use]
    pub(super) fn in_the_end(self, window: &Window) -> Self {
        Self {
            cap_kept: self.cap.is_some() && window.uncapped_s <= 0.0,
            ..self
        }
    }

    /// How like they are: 1 if they are the same.
    fn likeness(&self, other: &Self) -> f64 {
        let own = |c: &Self| {
            let all = 100 * c.vcpus.max(1);
            f64::from(c.cap.map_or(all, |cap| cap.0.min(all)))
        };
        let in_pause = |c: &Self| {
            if c.cap_kept {
                own(c)
            } else {
                f64::from(100 * c.vcpus.max(1))
            }
        };
        // More CPU for more vCPUs is not told twice.
        let each = |c: &Self, cpu: f64| cpu / f64::from(c.vcpus.max(1));
        let vcpus = doublings(f64::from(self.vcpus), f64::from(other.vcpus));
        let kept = doublings(each(self, in_pause(self)), each(other, in_pause(other)));
        let lifted = doublings(each(self, own(self)), each(other, own(other)));
        let memory = doublings(self.memory.0 as f64, other.memory.0 as f64);
        VCPUS.powf(vcpus)
            * CAP_KEPT.powf(kept)
            * CAP_LIFTED.powf(lifted.min(CAP_DOUBLINGS))
            * MEMORY.powf(memory)
    }
}

/// An earlier window, and what it counts.
pub(super) struct Weighed<'a> {
    pub window: &'a PastWindow,
    pub weight: f64,
    /// How like its circumstances were.
    likeness: f64,
}

impl Weighed<'_> {
    /// It is of like circumstances.
    pub fn is_like(&self) -> bool {
        self.likeness >= LIKE
    }
}

/// Weighs earlier windows, the latest last, for a save under these circumstances; the latest first.
pub(super) fn weigh<'a>(past: &'a [PastWindow], now: &Circumstances) -> Vec<Weighed<'a>> {
    let weighed = past.iter().rev().enumerate().map(|(age, window)| {
        let likeness = window.when.likeness(now);
        Weighed {
            window,
            weight: likeness * 0.5_f64.powf(age as f64 / HALF_LIFE),
            likeness,
        }
    });
    weighed.collect()
}

/// Those about as like as the one most like.
pub(super) fn most_like<'w, 'a>(weighed: &'w [Weighed<'a>]) -> Vec<&'w Weighed<'a>> {
    let best = weighed.iter().map(|w| w.likeness).fold(0.0, f64::max);
    let near = weighed.iter().filter(|w| w.likeness >= best / 2.0);
    near.collect()
}

/// The smallest value below which at least that share of the weight lies.
pub(super) fn quantile(values: impl Iterator<Item = (f64, f64)>, share: f64) -> Option<f64> {
    let mut sorted: Vec<_> = values.collect();
    sorted.sort_by(|a, b| a.0.total_cmp(&b.0));
    let half = share * sorted.iter().map(|(_, weight)| weight).sum::<f64>();
    let mut sum = 0.0;
    let found = sorted.iter().find(|(_, weight)| {
        sum += weight;
        // Adding up in another order rounds otherwise.
        sum >= half * (1.0 - 1e-9)
    });
    found.or(sorted.last()).map(|(value, _)| *value)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PVH: Circumstances = Circumstances {
        kind: Some(GuestKind::Pvh),
        vcpus: 1,
        memory: PageCount(131_072),
        cap: None,
        cap_kept: false,
    };

    #[test]
    fn what_is_less_like_counts_less() {
        let capped = |cap, cap_kept| Circumstances {
            cap: Some(CpuPercent(cap)),
            cap_kept,
            ..PVH
        };
        let at = |other: Circumstances| PVH.likeness(&other);
        let exactly = |a: f64, b: f64| (a - b).abs() < 1e-9;
        assert!(exactly(at(PVH), 1.0) && exactly(at(Circumstances::default()), 1.0));
        let vcpus = |vcpus| Circumstances { vcpus, ..PVH };
        assert!(at(vcpus(4)) < at(vcpus(2)) && at(vcpus(2)) < LIKE);
        // A cap out of the way in the pause matters little, one in it much.
        assert!(at(capped(5, false)) >= LIKE && at(capped(5, false)) < at(capped(80, false)));
        assert!(at(capped(25, true)) < LIKE);
        assert!(exactly(capped(25, true).likeness(&capped(25, true)), 1.0));
        assert!(capped(25, true).likeness(&capped(25, false)) < LIKE);
        let large = Circumstances {
            memory: PageCount(1 << 20),
            ..PVH
        };
        assert!((LIKE..1.0).contains(&at(large)));
    }

    #[test]
    fn the_latest_count_most_and_what_is_not_known_is_like_anything() {
        let window = |when| PastWindow {
            when,
            ..PastWindow::default()
        };
        let four = Circumstances { vcpus: 4, ..PVH };
        let past = [window(PVH), window(four), window(PVH)];
        let weighed = weigh(&past, &PVH);
        assert!(weighed[0].weight > weighed[2].weight && weighed[2].weight > weighed[1].weight);
        assert!(weighed[0].is_like() && !weighed[1].is_like());
        // As an older livesave has kept it.
        assert!(weigh(&[window(Circumstances::default())], &PVH)[0].is_like());
    }

    #[test]
    fn quantiles_go_by_weight() {
        let of = |values: &[(f64, f64)], share| quantile(values.iter().copied(), share);
        assert_eq!(of(&[], 0.5), None);
        // Of two alike the lower: what spoils a measurement makes it longer.
        assert_eq!(of(&[(2.0, 1.0), (1.0, 1.0)], 0.5), Some(1.0));
        assert_eq!(of(&[(2.0, 3.0), (1.0, 1.0)], 0.5), Some(2.0));
        let three = [(1.0, 1.0), (2.0, 1.0), (9.0, 1.0)];
        assert_eq!(of(&three, 0.25), Some(1.0));
        assert_eq!(of(&three, 0.75), Some(9.0));
    }
}
