//! What a pause would cost the guest now: a pure function of what was measured.
//!
//! The pause window is foretold as
//!
//! ```text
//! fixed + page × (left + extra)
//! ```
//!
//! `fixed`: handshake, last fetch, state, disk cut and resume, which depend on the guest and the
//! host and hardly on the save; `page`: mapping and copying one page; `left`: what is dirty when
//! the guest is asked to suspend; `extra`: what it dirties until it stands, which is a bit for
//! freezing itself, and its working pace for as long as its tasks still run. All of it is learned from
//! the windows of earlier saves (which, [`crate::history`] says), each weighed by how like its
//! circumstances were ([`likeness`]); where there are none, from constants. The cost of a page is also
//! measured in the save itself.
//!
//! Freezing is most of `fixed`, and between saves that are alike in all that is known of them it
//! differed threefold on an emulated host. No rule foretells that; [`Costs::doubt`] says where it is so.

mod likeness;

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use self::likeness::Circumstances;
use self::likeness::{Weighed, most_like, quantile, weigh};
pub use crate::ports::GuestKind;
use crate::report::{Round, Window};
use crate::units::PageCount;

/// A pause window as it was, with what was known when the guest was asked to suspend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PastWindow {
    /// Pages that the guest dirtied per second before.
    pub rate: f64,
    /// Pages that were left then.
    pub left: PageCount,
    /// Pages captured.
    pub pages: PageCount,
    /// Seconds for copying them.
    pub copy_s: f64,
    /// Seconds for all else.
    pub fixed_s: f64,
    /// Seconds of these from the request to the standstill.
    #[serde(default)]
    pub suspend_s: f64,
    /// Seconds for each page of the first pass over all memory; 0 if it is not known.
    #[serde(default)]
    pub first_pass_s: f64,
    /// Seconds for each page of the largest later pass to the image; 0 if there was none.
    #[serde(default)]
    pub later_pass_s: f64,
    /// What the save was made under.
    #[serde(default)]
    pub when: Circumstances,
}

impl PastWindow {
    /// What a save made under these circumstances teaches. The first pass of an increment was not one
    /// over all memory.
    #[must_use]
    pub fn of(window: &Window, rounds: &[Round], increment: bool, when: Circumstances) -> Self {
        let per_page = |round: Option<&Round>| {
            round
                .filter(|round| round.pages.0 > 0)
                .map_or(0.0, |round| round.seconds / round.pages.0 as f64)
        };
        let later = rounds.iter().skip(1).filter(|round| !round.held);
        let later = later.max_by_key(|round| round.pages);
        Self {
            rate: window.dirty_rate,
            left: window.left_pages,
            first_pass_s: per_page(rounds.first().filter(|_| !increment)),
            later_pass_s: per_page(later),
            pages: window.pages,
            copy_s: window.copy_s,
            fixed_s: (window.total_s - window.copy_s).max(0.0),
            suspend_s: window.suspend_s,
            when: when.in_the_end(window),
        }
    }

    /// Pages dirtied between the request and the standstill.
    fn extra(&self) -> f64 {
        self.pages.0.saturating_sub(self.left.0) as f64
    }
}

/// Where nothing is known: freezing took 50 to 75 ms on an emulated host, all else some 15 ms;
/// real hardware is quicker.
const FIXED_S: f64 = 0.08;
/// Of an HVM guest, whose emulated devices freeze too, and whose emulator's state is taken: 0.6 to 1.3 s on
/// the emulated host.
const FIXED_HVM_S: f64 = 0.15;
const SUSPEND_S: f64 = 0.05;
/// Mapping, copying and unmapping a page; measured as soon as there is something to measure.
const PAGE_S: f64 = 10e-6;
/// Pages that a Linux guest dirties by freezing itself (300 to 500 were seen).
const FREEZE_PAGES: f64 = 400.0;
/// A guest's tasks were seen to work on for 20 to 40 ms on an emulated host.
const TAIL_S: f64 = 0.03;
/// The windows most like this one that are asked.
const NEAREST: usize = 5;
/// Rates must differ by that much before a slope is read from them.
const SPREAD: f64 = 2000.0;
/// A forecast is good if the pause is 0.8 to 1.25 of it; quartiles that are farther apart tell that
/// this is chance.
const APART: f64 = 1.25 / 0.8;

/// What a forecast is made from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Basis {
    /// Constants.
    Guess,
    /// Most saves were made with other vCPUs, or with another CPU cap in the pause.
    Unlike,
    /// Saves of like circumstances.
    Like,
}

/// Why a forecast is known to be poor.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Doubt {
    /// There is nothing to learn from.
    Guess,
    /// Only from saves that were otherwise.
    Unlike,
    /// Saves that were alike differed: of the pauses that they would make of this one, the middle
    /// half lies in between; seconds.
    Differ {
        /// Not shorter.
        from_s: f64,
        /// Not longer.
        to_s: f64,
    },
}

impl fmt::Display for Doubt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Guess => f.write_str(
                "it is a guess, no guest of its type was saved since this host was started",
            ),
            Self::Unlike => {
                f.write_str("it is a guess, earlier saves had other vCPUs or another CPU cap")
            }
            Self::Differ { from_s, to_s } => write!(
                f,
                "by earlier saves it is {:?} to {:?}",
                milliseconds(from_s),
                milliseconds(to_s)
            ),
        }
    }
}

/// Rounded to milliseconds, for people.
pub(crate) fn milliseconds(seconds: f64) -> Duration {
    Duration::from_secs_f64((seconds * 1000.0).round() / 1000.0)
}

/// What a pause costs.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Costs {
    /// Seconds, whatever is copied.
    pub fixed_s: f64,
    /// Seconds of these from the request to the standstill.
    pub suspend_s: f64,
    /// Seconds for each page.
    pub page_s: f64,
    /// Seconds that making memory ready takes for each page, for rounds that go there.
    #[serde(default)]
    pub touch_s: f64,
    /// Pages dirtied between the request and the standstill.
    pub extra: f64,
    /// The lower and the upper quartile of `fixed_s` in the windows learned from.
    pub fixed_range_s: (f64, f64),
    /// What all this is learned from.
    pub basis: Basis,
}

impl Costs {
    /// The costs for a guest that dirties `rate` pages per second; `page_s` is the cost of a page
    /// measured in this save, if it was. `past`: the latest last. What making memory ready takes is
    /// not learned.
    #[must_use]
    pub fn learn(past: &[PastWindow], now: &Circumstances, rate: f64, page_s: Option<f64>) -> Self {
        let weighed = weigh(past, now);
        let basis = basis(&weighed);
        let of = |part: fn(&PastWindow) -> f64, share| {
            quantile(weighed.iter().map(|w| (part(w.window), w.weight)), share)
        };
        let fixed = |share| of(|window| window.fixed_s, share);
        let page = weighed
            .iter()
            .filter(|w| w.window.pages.0 > 0)
            .map(|w| (w.window.copy_s / w.window.pages.0 as f64, w.weight));
        let page = quantile(page, 0.5);
        let page = match basis {
            Basis::Like => page.or(page_s),
            Basis::Unlike | Basis::Guess => page_s.or(page),
        };
        let guess = match now.kind {
            Some(GuestKind::Hvm) => FIXED_HVM_S,
            _ => FIXED_S,
        };
        let fixed_s = fixed(0.5).unwrap_or(guess);
        Self {
            fixed_s,
            suspend_s: of(|window| window.suspend_s, 0.5).unwrap_or(SUSPEND_S),
            page_s: page.unwrap_or(PAGE_S),
            touch_s: 0.0,
            extra: extra(&weighed, rate),
            fixed_range_s: (
                fixed(0.25).unwrap_or(fixed_s),
                fixed(0.75).unwrap_or(fixed_s),
            ),
            basis,
        }
    }

    /// Why the forecast with so many pages left is known to be poor, if it is.
    #[must_use]
    pub fn doubt(&self, left: PageCount) -> Option<Doubt> {
        let pages_s = self.window_s(left) - self.fixed_s;
        let (from_s, to_s) = (
            self.fixed_range_s.0 + pages_s,
            self.fixed_range_s.1 + pages_s,
        );
        match self.basis {
            Basis::Guess => Some(Doubt::Guess),
            Basis::Unlike => Some(Doubt::Unlike),
            Basis::Like => (to_s > from_s * APART).then_some(Doubt::Differ { from_s, to_s }),
        }
    }

    /// The window if the guest were asked to suspend with so many pages left.
    #[must_use]
    pub fn window_s(&self, left: PageCount) -> f64 {
        self.fixed_s + self.page_s * (left.0 as f64 + self.extra)
    }

    /// The same, as far as a save may be refused for it: how long an HVM guest takes that nothing is known
    /// of is no reason, and a save that is never made teaches nothing.
    #[must_use]
    pub fn known_s(&self, left: PageCount) -> f64 {
        let guessed = match self.basis {
            Basis::Guess => (self.fixed_s - FIXED_S).max(0.0),
            Basis::Unlike | Basis::Like => 0.0,
        };
        self.window_s(left) - guessed
    }

    /// The window that nothing can undercut: with no page left.
    #[must_use]
    pub fn floor_s(&self) -> f64 {
        self.window_s(PageCount(0))
    }

    /// How many pages may be left for a window of that length; `None` if even none is too many.
    #[must_use]
    pub fn pages_within(&self, window_s: f64) -> Option<f64> {
        let room = window_s - self.floor_s();
        (room >= 0.0).then(|| room / self.page_s.max(1e-9))
    }
}

fn basis(weighed: &[Weighed<'_>]) -> Basis {
    let weight = |like| {
        let of = weighed.iter().filter(|w| w.is_like() == like);
        of.map(|w| w.weight).sum::<f64>()
    };
    match weighed {
        [] => Basis::Guess,
        _ if weight(true) >= weight(false) => Basis::Like,
        _ => Basis::Unlike,
    }
}

/// Pages dirtied on the way to the standstill: from the windows most like this save, and of these
/// from those at the nearest rates.
fn extra(weighed: &[Weighed<'_>], rate: f64) -> f64 {
    let past: Vec<&PastWindow> = most_like(weighed).iter().map(|w| w.window).collect();
    let tail = tail(&past);
    let mut near = past;
    // Stable: of equally near ones the later comes first.
    near.sort_by(|a, b| {
        let far = |w: &PastWindow| (w.rate - rate).abs();
        far(a).total_cmp(&far(b))
    });
    near.truncate(NEAREST);
    let extra = median(near.iter().map(|w| w.extra() + tail * (rate - w.rate)));
    extra.unwrap_or(FREEZE_PAGES + TAIL_S * rate).max(0.0)
}

/// For how long a guest works on after the request: the slope of the extra pages over the rate.
fn tail(past: &[&PastWindow]) -> f64 {
    let n = past.len() as f64;
    let mean = |value: fn(&PastWindow) -> f64| {
        past.iter().map(|window| value(window)).sum::<f64>() / n.max(1.0)
    };
    let (rate, extra) = (mean(|w| w.rate), mean(PastWindow::extra));
    let spread: f64 = past.iter().map(|w| (w.rate - rate).powi(2)).sum();
    if spread < n * SPREAD.powi(2) {
        return TAIL_S;
    }
    let both = past
        .iter()
        .map(|w| (w.rate - rate) * (w.extra() - extra))
        .sum::<f64>();
    // A guest cannot stop before it is asked to, nor does any work on for so long.
    (both / spread).clamp(0.0, 1.0)
}

pub(crate) fn median(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut sorted: Vec<f64> = values.collect();
    sorted.sort_by(f64::total_cmp);
    // Of two in the middle the lower: what spoils a measurement makes it longer.
    sorted.get(sorted.len().checked_sub(1)? / 2).copied()
}

#[cfg(test)]
mod tests;
