//! What a save of a guest would be like: the policy itself, run on a guest that dirties its memory
//! as the real one was seen to do. Pure.

use serde::Serialize;

use crate::forecast::{Circumstances, Costs, Doubt, PastWindow, median};
use crate::policy::{self, Decision, Goal, Limits, RoundStats, StopReason};
use crate::units::{Bytes, CpuPercent, PageCount};

/// Pages dirtied in a stretch of time; a page dirtied twice counts once.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Point {
    /// How long it was.
    pub seconds: f64,
    /// The pages.
    pub pages: PageCount,
}

/// How a guest was seen to be.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Sample {
    /// Pages that it has.
    pub pages: PageCount,
    /// One more than the highest page number.
    pub span: PageCount,
    /// The length of an image of it.
    pub image_bytes: Bytes,
    /// The share of its pages that are all zero.
    pub zero_share: f64,
    /// Seconds for mapping and copying a page.
    pub page_s: f64,
    /// Pages dirtied in stretches of time, the shortest first.
    pub points: Vec<Point>,
    /// CPU that it used, in percent of one CPU.
    pub cpu_percent: f64,
    /// Its vCPUs.
    pub vcpus: u32,
    /// Its own CPU limit, if it has one.
    pub own_cap: Option<CpuPercent>,
    /// Why it cannot be throttled, if it cannot.
    pub no_throttle: Option<String>,
}

impl Sample {
    /// Pages dirtied within so many seconds at so much of its pace: between the stretches watched
    /// in proportion, beyond the longest at the pace at which the last two differ.
    #[must_use]
    pub fn dirtied_in(&self, seconds: f64, pace: f64) -> f64 {
        // Slowed to a half, it does in two seconds what it did in one.
        let seconds = seconds * pace;
        let (mut at, mut pages, mut slope) = (0.0, 0.0, 0.0);
        for point in &self.points {
            let count = (point.pages.0 as f64).max(pages);
            slope = (count - pages) / (point.seconds - at).max(1e-9);
            if seconds <= point.seconds {
                break;
            }
            (at, pages) = (point.seconds, count);
        }
        (pages + slope * (seconds - at)).min(self.pages.0 as f64)
    }

    /// Pages dirtied per second over short stretches.
    #[must_use]
    pub fn rate(&self) -> f64 {
        let telling = self.points.iter().find(|point| point.seconds >= 0.045);
        let point = telling.or(self.points.last());
        point.map_or(0.0, |point| point.pages.0 as f64 / point.seconds.max(1e-9))
    }
}

/// What a save would be like.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Outlook {
    /// The limit that the guest has from the start; `None` for its own pace.
    pub cap: Option<CpuPercent>,
    /// The pause window, seconds.
    pub window_s: f64,
    /// Rounds while the guest runs.
    pub rounds: u32,
    /// Why they would end.
    pub stop: StopReason,
    /// From start to end but for making the image durable, seconds.
    pub total_s: f64,
    /// The lowest limit that livesave itself would set on the way.
    pub throttled_to: Option<CpuPercent>,
    /// Why the pause is known to be foretold poorly, if it is.
    pub doubt: Option<Doubt>,
}

/// A round takes at least that long: fetching the dirty set and looking after the guest.
const ROUND_S: f64 = 0.005;

/// Foretells a save of the guest, slowed to `cap` from the start if that is given.
#[must_use]
pub fn foretell(
    sample: &Sample,
    past: &[PastWindow],
    now: &Circumstances,
    limits: &Limits,
    goal: &Goal,
    cap: Option<CpuPercent>,
) -> Outlook {
    let use_of_cpu = sample.cpu_percent.max(1.0);
    let pace_of = |limit: CpuPercent| (f64::from(limit.0) / use_of_cpu).min(1.0);
    let own_pace = cap.map_or(1.0, pace_of);
    // Writing costs about as much as copying, where no save has told better.
    let known = |value: fn(&PastWindow) -> f64, guess: f64| {
        median(past.iter().map(value).filter(|s| *s > 0.0)).unwrap_or(guess)
    };
    let later_s = known(|w| w.later_pass_s, 2.0 * sample.page_s);
    let first_s = known(
        |w| w.first_pass_s,
        sample.page_s * (2.0 - sample.zero_share),
    );
    let mut rounds: Vec<RoundStats> = vec![];
    let mut held = false;
    let mut limit: Option<CpuPercent> = None;
    let mut throttled_to = None;
    let mut left = sample.pages.0 as f64;
    let mut total_s = 0.0;
    loop {
        let rate = policy::free_rate(&rounds);
        let costs = Costs::learn(past, now, rate, Some(sample.page_s));
        match policy::decide(&rounds, &costs, limits, goal) {
            Decision::Stop(stop) => {
                let window_s = costs.window_s(PageCount(left as u64));
                let doubt = costs.doubt(PageCount(left as u64));
                return Outlook {
                    cap,
                    window_s,
                    rounds: rounds.len() as u32,
                    stop,
                    total_s: total_s + window_s,
                    throttled_to,
                    doubt,
                };
            }
            Decision::Throttle(to) => {
                limit = Some(to);
                throttled_to = Some(throttled_to.unwrap_or(to).min(to));
            }
            Decision::Hold => held = true,
            Decision::Continue => {}
        }
        let per_page = match (rounds.is_empty(), held) {
            (true, _) => first_s,
            (false, true) => sample.page_s,
            (false, false) => later_s,
        };
        let seconds = ROUND_S + left * per_page;
        let pace = limit.map_or(own_pace, |to| pace_of(to).min(own_pace));
        let dirty = sample.dirtied_in(seconds, pace);
        rounds.push(RoundStats {
            sent: PageCount(left as u64),
            seconds,
            before_s: 0.0,
            left: PageCount(dirty as u64),
            hot: PageCount(0),
            dirty: PageCount(dirty as u64),
            held,
            cpu: use_of_cpu * pace,
            limit,
        });
        total_s += seconds;
        left = dirty;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A guest of 512 MiB that writes to 128 MiB in a ring.
    fn ring(rate: f64) -> Sample {
        let points = [0.025, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6]
            .iter()
            .map(|&seconds| Point {
                seconds,
                pages: PageCount((rate * seconds).min(32_768.0) as u64),
            })
            .collect();
        Sample {
            pages: PageCount(131_072),
            span: PageCount(131_072),
            image_bytes: Bytes::from_mib(514),
            zero_share: 0.5,
            page_s: 5e-6,
            points,
            cpu_percent: 100.0,
            vcpus: 1,
            own_cap: None,
            no_throttle: None,
        }
    }

    const GOAL: Goal = Goal {
        max_window_s: 0.12,
        best_effort: true,
        min_limit: None,
    };

    fn outlook(sample: &Sample, goal: &Goal, cap: Option<u32>) -> Outlook {
        let (now, limits) = (Circumstances::default(), Limits::default());
        foretell(sample, &[], &now, &limits, goal, cap.map(CpuPercent))
    }

    #[test]
    fn what_is_dirtied_follows_the_points_and_the_pace() {
        let sample = ring(20_000.0);
        for (seconds, pace, want) in [
            (0.0, 1.0, 0.0),
            (0.03, 1.0, 600.0),
            (0.3, 1.0, 6_000.0),
            (0.3, 0.5, 3_000.0),
            (1.6, 1.0, 32_000.0),
            // Beyond what was watched it goes on like that, but never beyond the memory.
            (100.0, 1.0, 131_072.0),
        ] {
            let pages = sample.dirtied_in(seconds, pace);
            assert!((pages - want).abs() < 2.0, "{seconds} s: {pages}");
        }
        // A ring that was written whole stays so.
        assert!((ring(100_000.0).dirtied_in(50.0, 1.0) - 32_768.0).abs() < 1.0);
        assert!((sample.rate() - 20_000.0).abs() < 1.0);
        let none = Sample {
            points: vec![],
            ..sample
        };
        assert!(none.dirtied_in(1.0, 1.0).abs() < 1e-9 && none.rate().abs() < 1e-9);
    }

    #[test]
    fn a_busier_guest_pauses_longer_and_a_cap_helps() {
        let idle = outlook(&ring(10.0), &GOAL, None);
        assert_eq!((idle.rounds, idle.stop), (1, StopReason::SmallEnough));
        let busy = outlook(&ring(300_000.0), &GOAL, None);
        assert_eq!(busy.stop, StopReason::NoGain);
        assert!(busy.window_s > 2.0 * idle.window_s && busy.total_s > idle.total_s);
        let capped = outlook(&ring(300_000.0), &GOAL, Some(20));
        assert!(capped.window_s < busy.window_s);
        assert_eq!(capped.throttled_to, None);
    }

    #[test]
    fn with_leave_to_throttle_it_says_how_far() {
        let past = [0.0, 1e6].map(|rate| PastWindow {
            rate,
            left: PageCount(0),
            pages: PageCount(400),
            copy_s: 0.002,
            fixed_s: 0.06,
            suspend_s: 0.05,
            first_pass_s: 8e-6,
            later_pass_s: 1e-5,
            ..PastWindow::default()
        });
        let goal = Goal {
            min_limit: Some(CpuPercent(20)),
            ..GOAL
        };
        let (sample, now) = (ring(150_000.0), Circumstances::default());
        let slowed = foretell(&sample, &past, &now, &Limits::default(), &goal, None);
        assert_eq!(slowed.stop, StopReason::OnTarget);
        assert!(slowed.window_s <= 0.12);
        let to = slowed.throttled_to.expect("throttled");
        assert!((20..95).contains(&to.0), "{to}");
    }
}
