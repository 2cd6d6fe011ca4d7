//! How much an earlier save says of the next: what both were made under, and how old it is.
//!
//! The most of a pause, and all that makes it hard to foretell, is the guest freezing itself: that
//! hangs on its type and its vCPUs, on a CPU cap that stands meanwhile, and on the host's mood, which
//! the latest saves know best. What is far from the save at hand counts little; nothing is left out
//! as long as there is nothing better, but for other types of guests, which are another matter.

use serde::{Deserialize, Serialize};

use super::PastWindow;
use crate::report::Window;
use crate::units::{CpuPercent, PageCount};

/// Types of guests, as far as their pauses differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum GuestKind {
    /// Hardware virtualised without an emulator.
    Pvh,
    /// Hardware virtualised; its emulated devices freeze too, and their emulator is stopped.
    Hvm,
    /// Paravirtualised.
    Pv,
}

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

/// A save of another guest counts so much.
const ANOTHER: f64 = 0.5;
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
/// HVM guests took 3 to 8 times as long as PVH guests of the same host on the same day.
const HVM_SLOWER: f64 = 5.0;

/// How much longer a guest of a type takes than a PVH guest.
pub(super) fn slowness(kind: Option<GuestKind>) -> f64 {
    match kind {
        Some(GuestKind::Hvm) => HVM_SLOWER,
        _ => 1.0,
    }
}

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
    /// What its times are to be multiplied with.
    pub scale: f64,
    /// It is of like circumstances.
    pub like: bool,
    /// Of the same guest, or of another just as like.
    likeness: f64,
}

/// Weighs earlier windows, the latest last, for a save under these circumstances; the latest first.
/// Of another type only if there is none of the same.
pub(super) fn weigh<'a>(past: &'a [PastWindow], now: &Circumstances) -> Vec<Weighed<'a>> {
    let same_type = |window: &&PastWindow| match (window.when.kind, now.kind) {
        (Some(then), Some(now)) => then == now,
        // Kept by an older livesave; a guest's type does not change.
        (None, Some(GuestKind::Hvm)) => !window.of_another,
        _ => true,
    };
    let same = past.iter().rev().filter(same_type).collect::<Vec<_>>();
    let none = same.is_empty();
    let (windows, of_type) = if none {
        (past.iter().rev().collect(), false)
    } else {
        (same, true)
    };
    let weighed = windows.into_iter().enumerate().map(|(age, window)| {
        let likeness = window.when.likeness(now);
        let scale = if of_type {
            1.0
        } else {
            slowness(now.kind) / slowness(window.when.kind)
        };
        let known = likeness * if window.of_another { ANOTHER } else { 1.0 };
        Weighed {
            window,
            weight: known * 0.5_f64.powf(age as f64 / HALF_LIFE),
            scale,
            like: of_type && likeness >= LIKE,
            likeness: known,
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
    fn other_types_are_asked_only_where_there_is_none_of_the_same() {
        let hvm = Circumstances {
            kind: Some(GuestKind::Hvm),
            ..PVH
        };
        let past = [window(hvm, true), window(PVH, true), window(PVH, false)];
        let for_hvm = weigh(&past, &hvm);
        assert_eq!(for_hvm.len(), 1);
        assert!(for_hvm[0].like && (for_hvm[0].scale - 1.0).abs() < 1e-9);
        // No HVM guest was saved yet: the others' figures are scaled, and it is told.
        let guessed = weigh(&past[1..], &hvm);
        assert_eq!(guessed.len(), 2);
        assert!(
            guessed
                .iter()
                .all(|w| !w.like && (w.scale - HVM_SLOWER).abs() < 1e-9)
        );
        let for_pvh = weigh(&past, &PVH);
        // The latest first; an own one counts more than another's.
        assert_eq!(for_pvh.len(), 2);
        assert!(for_pvh[0].weight > 1.9 * for_pvh[1].weight);
    }

    #[test]
    fn windows_of_an_older_livesave_are_still_of_use() {
        let hvm = Circumstances {
            kind: Some(GuestKind::Hvm),
            ..PVH
        };
        let old = |of_another| [window(Circumstances::default(), of_another)];
        assert!(weigh(&old(false), &hvm)[0].like);
        assert!(!weigh(&old(true), &hvm)[0].like);
        assert!(weigh(&old(true), &PVH)[0].like);
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
