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
//! the windows of this guest's earlier saves; where there are none, from other guests of this
//! host; and where there are none either, from constants that are on the safe side. The cost of
//! a page is also measured in the save itself.

use serde::{Deserialize, Serialize};

use crate::report::{Round, Window};
use crate::units::PageCount;

/// A pause window as it was, with what was known when the guest was asked to suspend.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
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
}

impl PastWindow {
    /// What a save teaches.
    #[must_use]
    pub fn of(window: &Window, rounds: &[Round]) -> Self {
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
            first_pass_s: per_page(rounds.first()),
            later_pass_s: per_page(later),
            pages: window.pages,
            copy_s: window.copy_s,
            fixed_s: (window.total_s - window.copy_s).max(0.0),
            suspend_s: window.suspend_s,
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
    /// Whether earlier windows were there to learn from.
    pub learned: bool,
}

impl Costs {
    /// The costs for a guest that dirties `rate` pages per second; `page_s` is the cost of a page
    /// measured in this save, if it was. What making memory ready takes is not learned.
    #[must_use]
    pub fn learn(past: &[PastWindow], rate: f64, page_s: Option<f64>) -> Self {
        let mut like: Vec<&PastWindow> = past.iter().collect();
        // Stable: of equally near ones the later comes first.
        like.reverse();
        like.sort_by(|a, b| {
            let far = |w: &PastWindow| (w.rate - rate).abs();
            far(a).total_cmp(&far(b))
        });
        like.truncate(NEAREST);
        let tail = tail(past);
        let extra = median(like.iter().map(|w| w.extra() + tail * (rate - w.rate)));
        let page = median(
            like.iter()
                .filter(|w| w.pages.0 > 0)
                .map(|w| w.copy_s / w.pages.0 as f64),
        );
        Self {
            fixed_s: median(like.iter().map(|w| w.fixed_s)).unwrap_or(FIXED_S),
            suspend_s: median(like.iter().map(|w| w.suspend_s)).unwrap_or(SUSPEND_S),
            page_s: page.or(page_s).unwrap_or(PAGE_S),
            touch_s: 0.0,
            extra: extra.unwrap_or(FREEZE_PAGES + TAIL_S * rate).max(0.0),
            learned: !past.is_empty(),
        }
    }

    /// The window if the guest were asked to suspend with so many pages left.
    #[must_use]
    pub fn window_s(&self, left: PageCount) -> f64 {
        self.fixed_s + self.page_s * (left.0 as f64 + self.extra)
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

/// For how long a guest works on after the request: the slope of the extra pages over the rate.
fn tail(past: &[PastWindow]) -> f64 {
    let n = past.len() as f64;
    let mean = |value: fn(&PastWindow) -> f64| past.iter().map(value).sum::<f64>() / n.max(1.0);
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
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn past(rate: f64, left: u64, pages: u64) -> PastWindow {
        PastWindow {
            rate,
            left: PageCount(left),
            pages: PageCount(pages),
            copy_s: pages as f64 * 5e-6,
            fixed_s: 0.06,
            suspend_s: 0.05,
            first_pass_s: 0.0,
            later_pass_s: 0.0,
        }
    }

    fn near(a: f64, b: f64) -> bool {
        (a - b).abs() < 1e-6 * b.abs().max(1e-6)
    }

    #[test]
    fn with_nothing_known_the_guess_is_on_the_safe_side() {
        let costs = Costs::learn(&[], 10_000.0, None);
        assert!(!costs.learned);
        assert!(near(costs.extra, FREEZE_PAGES + 10_000.0 * TAIL_S));
        assert!(costs.window_s(PageCount(0)) > FIXED_S);
        // What was measured wins over the constant.
        assert!(near(Costs::learn(&[], 0.0, Some(2e-6)).page_s, 2e-6));
    }

    #[test]
    fn one_earlier_window_tells_the_next_like_it() {
        let costs = Costs::learn(&[past(5000.0, 60, 460)], 5000.0, Some(99.0));
        assert!(costs.learned && near(costs.extra, 400.0) && near(costs.page_s, 5e-6));
        assert!(near(costs.window_s(PageCount(100)), 0.06 + 500.0 * 5e-6));
        // At another pace the guess of its tail is used.
        let busy = Costs::learn(&[past(5000.0, 60, 460)], 65_000.0, None);
        assert!(near(busy.extra, 400.0 + 60_000.0 * TAIL_S));
    }

    #[test]
    fn how_long_the_guest_works_on_is_read_from_windows_at_other_rates() {
        let past: Vec<_> = [0.0, 10_000.0, 40_000.0]
            .iter()
            .map(|&rate| past(rate, 100, 500 + (rate * 0.02) as u64))
            .collect();
        let costs = Costs::learn(&past, 20_000.0, None);
        assert!(near(costs.extra, 800.0), "{}", costs.extra);
    }

    #[test]
    fn pages_within_a_window_are_its_inverse() {
        let costs = Costs::learn(&[past(0.0, 0, 400)], 0.0, None);
        assert_eq!(costs.pages_within(0.01), None);
        let pages = costs.pages_within(0.1).expect("room");
        assert!(near(costs.window_s(PageCount(pages as u64)), 0.1));
    }

    proptest! {
        /// Whatever was seen, a forecast is a length of time that grows with what is left.
        #[test]
        fn forecasts_are_sane(
            seen in prop::collection::vec((0.0..1e6f64, 0u64..1_000_000, 0u64..1_000_000), 0..20),
            rate in 0.0..1e6f64,
            left in 0u64..1_000_000,
        ) {
            let seen: Vec<_> = seen.into_iter().map(|(r, l, p)| past(r, l, p)).collect();
            let costs = Costs::learn(&seen, rate, None);
            let window = costs.window_s(PageCount(left));
            prop_assert!(window.is_finite() && window >= costs.floor_s());
            prop_assert!(costs.window_s(PageCount(left + 1000)) >= window);
        }
    }
}
