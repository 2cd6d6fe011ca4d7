//! How much an earlier save says of the next: what both were made under, and how old it is.
//!
//! The most of a pause, and all that makes it hard to foretell, is the guest freezing itself: that
//! hangs on its type and its vCPUs, on a CPU cap that stands meanwhile, and on the host's mood, which
//! the latest saves know best. So a guest's own saves count, the less the farther they are from the one at
//! hand; other guests are asked for its first, and of them those of its type only.

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
/// Those of the guest itself; of others only if it has none, and then of its type. (Guests that are alike in
/// all that is known here differ by more than one guest's saves do.)
pub(super) fn weigh<'a>(past: &'a [PastWindow], now: &Circumstances) -> Vec<Weighed<'a>> {
    let of = |wanted: &dyn Fn(&PastWindow) -> bool| -> Vec<&'a PastWindow> {
        past.iter().rev().filter(|window| wanted(window)).collect()
    };
    let mut windows = of(&|window| !window.of_another);
    if windows.is_empty() {
        windows = of(&|window| now.kind.is_none() || window.when.kind == now.kind);
    }
    // Kept by an older livesave, which did not say of what. HVM guests take several times as long.
    if windows.is_empty() && now.kind != Some(GuestKind::Hvm) {
        windows = of(&|window| window.when.kind.is_none());
    }
    let weighed = windows.into_iter().enumerate().map(|(age, window)| {
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

    fn window(when: Circumstances, of_another: bool) -> PastWindow {
        PastWindow {
            when,
            of_another,
            ..PastWindow::default()
        }
    }

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
    fn others_are_asked_only_for_a_first_save_and_of_the_same_type_only() {
        let hvm = Circumstances {
            kind: Some(GuestKind::Hvm),
            ..PVH
        };
        let past = [window(hvm, true), window(PVH, true), window(PVH, false)];
        let asked = |past: &[PastWindow], now| {
            let weighed = weigh(past, now);
            weighed.iter().map(|w| *w.window).collect::<Vec<_>>()
        };
        assert_eq!(asked(&past, &PVH), [past[2]]);
        assert_eq!(asked(&past[..2], &PVH), [past[1]]);
        assert_eq!(asked(&past[..2], &hvm), [past[0]]);
        assert_eq!(asked(&past[1..2], &hvm), []);
        // Its own, however it was then.
        let four = Circumstances { vcpus: 4, ..PVH };
        assert_eq!(asked(&past, &four), [past[2]]);
        assert!(!weigh(&past, &four)[0].is_like());
        // The latest first, which counts most.
        let own = [window(PVH, false); 2];
        let weighed = weigh(&own, &PVH);
        assert!(weighed[0].weight > weighed[1].weight);
    }

    #[test]
    fn windows_of_an_older_livesave_are_still_of_use() {
        let hvm = Circumstances {
            kind: Some(GuestKind::Hvm),
            ..PVH
        };
        let old = |of_another| [window(Circumstances::default(), of_another)];
        assert!(weigh(&old(false), &hvm)[0].is_like());
        assert!(weigh(&old(true), &hvm).is_empty());
        assert!(weigh(&old(true), &PVH)[0].is_like());
        // But where the type of another is known they say less.
        let mixed = [old(true)[0], window(PVH, true)];
        assert_eq!(weigh(&mixed, &PVH).len(), 1);
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
