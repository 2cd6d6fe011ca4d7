//! What to do after a round: a pure function of the rounds so far and of what a pause would cost.
//!
//! The judging measure is that of the 2020 paper: no round is run that would not reduce what is
//! left. What a further round will leave is foretold from the last one: what moved in it, at the
//! pace it was copied, times the rate at which the guest dirtied pages meanwhile. When rounds do
//! not help any more and the pause would still be longer than was asked for, the guest is slowed
//! through its CPU, just as far as the foretold window needs, and only where that can help at
//! all: what a guest dirties after it has been asked to suspend, no limit changes, for that is
//! lifted before.
//!
//! Rounds go to the image at first. Where its file system is what makes them long, and what is left
//! fits in the memory for captured pages, they go there: copied at the pace of memory, it is
//! dirtied less meanwhile, and no guest need be slowed for a slow disk.

use serde::{Deserialize, Serialize};

use crate::forecast::Costs;
use crate::units::{CpuPercent, PageCount};

/// The figures of one finished round.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RoundStats {
    /// Pages that it set out to copy.
    pub sent: PageCount,
    /// Seconds it took.
    pub seconds: f64,
    /// Seconds from the fetch before to its beginning: the guest went on dirtying meanwhile.
    pub before_s: f64,
    /// Pages left after it.
    pub left: PageCount,
    /// Those of them that are dirtied in every round: copying them again is no use.
    pub hot: PageCount,
    /// Pages dirtied in it.
    pub dirty: PageCount,
    /// It copied to memory, not to the image.
    pub held: bool,
    /// CPU that the guest used meanwhile, in percent of one CPU.
    pub cpu: f64,
    /// The limit that livesave had set, if it had.
    pub limit: Option<CpuPercent>,
}

impl RoundStats {
    /// What a further round would copy.
    fn movable(&self) -> f64 {
        self.left.0.saturating_sub(self.hot.0) as f64
    }
}

/// The bounds within which rounds are run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// At most that many rounds, the first pass over all memory included.
    pub max_rounds: u32,
    /// That many pages or fewer are left for the window.
    pub small_enough: PageCount,
    /// So are pages that make it longer by at most this share of its fixed part.
    pub small_share: f64,
    /// A round must be expected to leave at most this share of what could be copied in it. Smaller
    /// where taking the dirty bits makes the guest fault on every page that it touches next.
    pub worthwhile: f64,
    /// Pages that rounds may hold in memory, the window's included.
    pub room: PageCount,
}

impl Limits {
    /// Where the hypervisor looks at every page again after the dirty bits were taken (AMD): fewer
    /// rounds, longer ones.
    #[must_use]
    pub fn for_costly_fetches() -> Self {
        Self {
            worthwhile: 0.6,
            ..Self::default()
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_rounds: 30,
            small_enough: PageCount(50),
            small_share: 0.01,
            worthwhile: 0.9,
            room: PageCount(0),
        }
    }
}

/// What the pause is to be like, and what may be done for it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Goal {
    /// The window is not to be longer; seconds.
    pub max_window_s: f64,
    /// Where that cannot be had, come as near to it as can be; else nothing is done for it.
    pub best_effort: bool,
    /// The lowest limit that the guest may be given; `None`: it must not be throttled.
    pub min_limit: Option<CpuPercent>,
}

/// So much of the time asked for is planned with; the rest is for what was not foreseen.
const PLANNED: f64 = 0.9;
/// A window of this many times the shortest possible is near enough to it.
const NEAR: f64 = 1.1;
/// A limit that does not lower the guest's use of the CPU by so much changes nothing.
const FELT: f64 = 0.95;
/// When the guest has dirtied more under a limit than was foretold, the next is at most this share
/// of it.
const NEXT: f64 = 0.7;
/// Rounds to memory must leave at most this share of what rounds to the image do.
const MUCH_LESS: f64 = 0.25;
/// Room is left for so many times the pages that are dirtied on the way to the suspension.
const HELD_EXTRA: f64 = 2.0;
/// Rounds shorter than that say little of the dirty rate.
const TELLING_S: f64 = 0.05;

impl Goal {
    /// The window to aim at, seconds.
    fn aim_s(&self, costs: &Costs) -> f64 {
        let planned = self.max_window_s * PLANNED;
        if self.best_effort && planned < costs.floor_s() * NEAR {
            costs.floor_s() * NEAR
        } else {
            planned
        }
    }
}

/// Why the rounds ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StopReason {
    /// The dirty set is small enough.
    SmallEnough,
    /// The guest was throttled until the window fitted.
    OnTarget,
    /// A further round would leave as much as there is now.
    NoGain,
    /// The guest is throttled as far as allowed.
    LowestLimit,
    /// The allowed number of rounds was reached.
    MaxRounds,
    /// No rounds were asked for.
    Plain,
}

/// What to do after a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Another round, to where the last one went.
    Continue,
    /// Another round, from now on to memory.
    Hold,
    /// Another round, with the guest limited to so much CPU.
    Throttle(CpuPercent),
    /// Suspend and capture the rest.
    Stop(StopReason),
}

/// Decides after a round. `rounds` holds all finished ones, the last one last.
#[must_use]
pub fn decide(rounds: &[RoundStats], costs: &Costs, limits: &Limits, goal: &Goal) -> Decision {
    let Some(last) = rounds.last() else {
        return Decision::Continue;
    };
    let fits = costs.window_s(last.left) <= goal.aim_s(costs);
    let spent = rounds.len() as u64 >= u64::from(limits.max_rounds);
    if let Some(limit) = last.limit {
        if fits {
            return Decision::Stop(StopReason::OnTarget);
        }
        if spent {
            return Decision::Stop(StopReason::MaxRounds);
        }
        if holding_helps(rounds, costs, limits) {
            return Decision::Hold;
        }
        return tighten(rounds, limit, costs, goal);
    }
    if last.movable() <= small_enough(costs, limits) {
        return Decision::Stop(StopReason::SmallEnough);
    }
    if spent {
        return Decision::Stop(StopReason::MaxRounds);
    }
    if holding_helps(rounds, costs, limits) {
        return Decision::Hold;
    }
    if remaining_share(last) <= limits.worthwhile {
        return Decision::Continue;
    }
    match first_limit(rounds, costs, goal) {
        Some(limit) if !fits => Decision::Throttle(limit),
        _ => Decision::Stop(StopReason::NoGain),
    }
}

/// Pages that are not worth a round.
fn small_enough(costs: &Costs, limits: &Limits) -> f64 {
    let unfelt = limits.small_share * costs.fixed_s / costs.page_s.max(1e-9);
    unfelt.max(limits.small_enough.0 as f64)
}

/// The share of what can be copied now that one more round is expected to leave: it takes its
/// share of the last round's time, and pages are dirtied at the last round's rate meanwhile. The
/// rate of a long round is underestimated (a page dirtied twice counts once), so this errs on the
/// side of one round more, which then measures better.
fn remaining_share(last: &RoundStats) -> f64 {
    last.movable() / (last.sent.0 as f64).max(1.0)
}

/// Whether rounds to memory, to which none has gone yet, are expected to leave much less than
/// further ones to the image, even the first, for which that memory is made ready, to leave no more
/// than one to the image, and there is room for them and for the window.
fn holding_helps(rounds: &[RoundStats], costs: &Costs, limits: &Limits) -> bool {
    let Some(last) = rounds.last().filter(|last| !last.held) else {
        return false;
    };
    let needed = last.left.0 as f64 + HELD_EXTRA * costs.extra;
    // In the time that a page takes, so many are dirtied.
    let rate = dirty_rate(rounds);
    let (first, share) = (rate * (costs.page_s + costs.touch_s), rate * costs.page_s);
    needed <= limits.room.0 as f64
        && first <= remaining_share(last)
        && share <= limits.worthwhile.min(MUCH_LESS * remaining_share(last))
}

/// Pages that the guest dirties per second, from the last rounds that say enough of it, under
/// whatever limit the last one had.
#[must_use]
pub fn dirty_rate(rounds: &[RoundStats]) -> f64 {
    let Some(last) = rounds.last() else {
        return 0.0;
    };
    let (mut pages, mut seconds) = (0.0, 0.0);
    for round in rounds.iter().rev().filter(|r| r.limit == last.limit) {
        pages += round.dirty.0 as f64;
        seconds += round.before_s + round.seconds;
        if seconds >= TELLING_S {
            break;
        }
    }
    pages / f64::max(seconds, 1e-6)
}

/// The rate that the guest had before it was throttled, if it was.
#[must_use]
pub fn free_rate(rounds: &[RoundStats]) -> f64 {
    let free = rounds.iter().take_while(|r| r.limit.is_none()).count();
    dirty_rate(&rounds[..free])
}

/// The limit under which the rounds come to an end that fits the goal; `None` if none does, or
/// none may be set.
fn first_limit(rounds: &[RoundStats], costs: &Costs, goal: &Goal) -> Option<CpuPercent> {
    let lowest = goal.min_limit?;
    let last = rounds.last()?;
    let rate = dirty_rate(rounds);
    let bearable = bearable_rate(rounds, costs, goal)?;
    // Its work, and so its dirtying, follows its share of the CPU.
    let wanted = last.cpu * (bearable / rate.max(1.0)).min(FELT);
    let limit = CpuPercent((wanted as u32).max(lowest.0).max(1));
    (f64::from(limit.0) <= last.cpu * FELT).then_some(limit)
}

/// The next limit, from what the last one did.
fn tighten(rounds: &[RoundStats], limit: CpuPercent, costs: &Costs, goal: &Goal) -> Decision {
    let (Some(lowest), Some(bearable)) = (goal.min_limit, bearable_rate(rounds, costs, goal))
    else {
        return Decision::Stop(StopReason::NoGain);
    };
    let at_this = rounds.iter().rev().take_while(|r| r.limit == Some(limit));
    let mut at_this = at_this.take(2);
    let (last, before) = (at_this.next(), at_this.next());
    let shrinks = match (last, before) {
        (Some(last), Some(before)) => last.left.0 as f64 <= 0.9 * before.left.0 as f64,
        // The first round under it had a full set to copy.
        _ => true,
    };
    let rate = dirty_rate(rounds);
    if rate <= bearable && shrinks {
        return Decision::Throttle(limit);
    }
    if limit <= lowest {
        return if shrinks {
            Decision::Throttle(limit)
        } else {
            Decision::Stop(StopReason::LowestLimit)
        };
    }
    let wanted = f64::from(limit.0) * (bearable / rate.max(1.0)).min(NEXT);
    Decision::Throttle(CpuPercent((wanted as u32).max(lowest.0).max(1)))
}

/// The dirty rate at which rounds shrink to a set that fits the goal: such a set of pages must be
/// dirtied no faster than it is copied. `None` if no rate is low enough.
fn bearable_rate(rounds: &[RoundStats], costs: &Costs, goal: &Goal) -> Option<f64> {
    let pages = costs.pages_within(goal.aim_s(costs))?;
    if pages < 1.0 {
        return None;
    }
    let (fixed, page) = round_costs(rounds);
    Some(pages / (fixed + pages * page))
}

/// What a round costs: seconds whatever is copied, and seconds for each page. From the pace of the
/// largest round but the first, whose zero pages cost less than others, and the last; of those that
/// went to where the last one did.
fn round_costs(rounds: &[RoundStats]) -> (f64, f64) {
    let later = if rounds.len() > 1 {
        &rounds[1..]
    } else {
        rounds
    };
    let alike = |r: &&RoundStats| later.last().is_some_and(|last| r.held == last.held);
    let pace = later
        .iter()
        .filter(alike)
        .max_by_key(|r| r.sent)
        .map_or(0.0, |r| r.seconds / (r.sent.0 as f64).max(1.0));
    let fixed = later
        .last()
        .map_or(0.0, |r| r.seconds - pace * r.sent.0 as f64);
    // Even the quickest fetch takes a moment.
    (fixed.max(0.002), pace)
}

#[cfg(test)]
#[path = "policy/tests.rs"]
mod tests;
