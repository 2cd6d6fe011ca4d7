use proptest::prelude::*;

use super::*;
use crate::forecast::Basis;

fn round(sent: u64, left: u64) -> RoundStats {
    RoundStats {
        sent: PageCount(sent),
        seconds: 1.0,
        before_s: 0.0,
        left: PageCount(left),
        hot: PageCount(0),
        dirty: PageCount(left),
        held: false,
        cpu: 100.0,
        limit: None,
    }
}

/// A pause costs 60 ms and 5 µs for each page.
const COSTS: Costs = Costs {
    fixed_s: 0.06,
    suspend_s: 0.05,
    page_s: 5e-6,
    touch_s: 0.0,
    extra: 400.0,
    fixed_range_s: (0.06, 0.06),
    basis: Basis::Like,
};

const GOAL: Goal = Goal {
    max_window_s: 0.3,
    best_effort: false,
    min_limit: Some(CpuPercent(20)),
};

fn decide_on(rounds: &[RoundStats]) -> Decision {
    let limits = Limits {
        max_rounds: 4,
        ..Limits::default()
    };
    decide(rounds, &COSTS, &limits, &GOAL)
}

#[test]
fn decisions() {
    use Decision::{Continue, Stop};
    let hot = RoundStats {
        hot: PageCount(4000),
        ..round(300, 4090)
    };
    let cases: [(&str, &[RoundStats], Decision); 9] = [
        ("before the first round", &[], Continue),
        (
            "idle guest",
            &[round(131_072, 40)],
            Stop(StopReason::SmallEnough),
        ),
        (
            "a few pages, not felt in a window of 60 ms",
            &[round(131_072, 119)],
            Stop(StopReason::SmallEnough),
        ),
        (
            "first round of a busy guest",
            &[round(131_072, 32_768)],
            Continue,
        ),
        (
            "shrinking",
            &[round(131_072, 32_768), round(32_768, 9_000)],
            Continue,
        ),
        (
            "ring dirtied whole every round, and it fits",
            &[round(131_072, 32_768), round(32_768, 32_768)],
            Stop(StopReason::NoGain),
        ),
        (
            "growing",
            &[round(1_000, 500), round(500, 700)],
            Stop(StopReason::NoGain),
        ),
        (
            "only the hot ones are left",
            &[round(131_072, 5000), hot],
            Stop(StopReason::SmallEnough),
        ),
        (
            "too many",
            &[
                round(8_000, 4_000),
                round(4_000, 2_000),
                round(2_000, 1_000),
                round(1_000, 500),
            ],
            Stop(StopReason::MaxRounds),
        ),
    ];
    for (name, rounds, want) in cases {
        assert_eq!(decide_on(rounds), want, "{name}");
    }
}

/// 100 000 pages/s over 100 000 pages, copied at 100 000 pages/s: no round leaves less.
fn too_busy() -> Vec<RoundStats> {
    vec![round(131_072, 100_000), round(100_000, 100_000)]
}

#[test]
fn a_guest_too_busy_for_the_target_is_throttled_as_far_as_needed() {
    let Decision::Throttle(limit) = decide_on(&too_busy()) else {
        panic!("{:?}", decide_on(&too_busy()));
    };
    // Some 41 000 pages may be left, at a pace of 100 000/s: nearly the full rate is bearable.
    assert!((85..=95).contains(&limit.0), "{limit}");
}

#[test]
fn a_target_that_cannot_be_met_or_needs_nothing_throttles_nobody() {
    let limits = Limits::default();
    for (name, goal) in [
        (
            "shorter than the window's fixed part",
            Goal {
                max_window_s: 0.06,
                ..GOAL
            },
        ),
        (
            "not allowed",
            Goal {
                min_limit: None,
                ..GOAL
            },
        ),
        (
            "the lowest limit is more than it uses",
            Goal {
                min_limit: Some(CpuPercent(100)),
                ..GOAL
            },
        ),
        (
            "met anyway",
            Goal {
                max_window_s: 1.0,
                ..GOAL
            },
        ),
    ] {
        let decision = decide(&too_busy(), &COSTS, &limits, &goal);
        assert_eq!(decision, Decision::Stop(StopReason::NoGain), "{name}");
    }
}

#[test]
fn where_the_target_cannot_be_had_the_best_effort_comes_near_it() {
    let goal = Goal {
        max_window_s: 0.001,
        best_effort: true,
        ..GOAL
    };
    let model = Model {
        rate: 150_000.0,
        region: 100_000.0,
        pace: 100_000.0,
    };
    let (rounds, reason, set) = model.run(&Limits::default(), &goal);
    assert_eq!(reason, StopReason::OnTarget);
    assert!(!set.is_empty());
    let left = rounds.last().expect("a round").left;
    assert!(COSTS.window_s(left) <= COSTS.floor_s() * NEAR);
}

#[test]
fn the_rate_is_that_of_the_last_rounds_long_enough_to_tell() {
    let short = RoundStats {
        seconds: 0.001,
        ..round(50, 30)
    };
    let rounds = [round(131_072, 9_000), round(9_000, 5_000), short];
    assert!((dirty_rate(&rounds) - 5_030.0 / 1.001).abs() < 1.0);
    // What was dirtied before a round began was not dirtied in no time.
    let late = RoundStats {
        before_s: 1.0,
        ..round(9_000, 5_000)
    };
    assert!((dirty_rate(&[late]) - 2_500.0).abs() < 1.0);
    let throttled = RoundStats {
        limit: Some(CpuPercent(20)),
        ..round(5_000, 700)
    };
    let rounds = [round(9_000, 5_000), throttled];
    assert!((dirty_rate(&rounds) - 700.0).abs() < 1.0);
    assert!((free_rate(&rounds) - 5_000.0).abs() < 1.0);
    assert!(dirty_rate(&[]) < 1.0);
}

#[test]
fn a_slow_disk_sends_the_rounds_to_memory_where_there_is_room() {
    let limits = Limits {
        room: PageCount(65_536),
        ..Limits::default()
    };
    let decide = |rounds: &[RoundStats], limits: &Limits| decide(rounds, &COSTS, limits, &GOAL);
    // 20 000 pages in a second to the disk, dirtied as fast: in memory that takes 100 ms.
    let slow = [round(131_072, 30_000), round(30_000, 20_000)];
    assert_eq!(decide(&slow, &limits), Decision::Hold);
    assert_eq!(decide(&slow, &Limits::default()), Decision::Continue);
    // No room for the window's own.
    let tight = Limits {
        room: PageCount(20_100),
        ..limits
    };
    assert_eq!(decide(&slow, &tight), Decision::Continue);
    // Making memory ready would take longer than writing to the disk does.
    let dear = Costs {
        touch_s: 60e-6,
        ..COSTS
    };
    let decision = super::decide(&slow, &dear, &limits, &GOAL);
    assert_eq!(decision, Decision::Continue);
    // The disk is as fast as memory is: it is not worth the memory.
    let fast = [round(131_072, 1_000)];
    assert_eq!(decide(&fast, &limits), Decision::Continue);
    // Dirtied faster than memory can be copied.
    let busy = [RoundStats {
        seconds: 0.05,
        ..round(30_000, 30_000)
    }];
    assert_ne!(decide(&busy, &limits), Decision::Hold);
    // In memory they go on there, as long as they help.
    let held = RoundStats {
        held: true,
        seconds: 0.1,
        ..round(20_000, 2_000)
    };
    assert_eq!(
        decide(&[slow[0], slow[1], held], &limits),
        Decision::Continue
    );
    // A throttled guest too is released the sooner.
    let throttled = RoundStats {
        limit: Some(CpuPercent(50)),
        seconds: 4.0,
        ..round(60_000, 50_000)
    };
    assert_eq!(decide(&[slow[0], throttled], &limits), Decision::Hold);
}

/// A guest that writes at random to so many pages, at a rate that follows its CPU.
struct Model {
    rate: f64,
    region: f64,
    pace: f64,
}

impl Model {
    /// Runs rounds as decided; what they did, and the limits in their order.
    fn run(&self, limits: &Limits, goal: &Goal) -> (Vec<RoundStats>, StopReason, Vec<u32>) {
        let mut rounds: Vec<RoundStats> = vec![];
        let mut limit = None;
        let mut set = vec![];
        let mut held = false;
        let mut left = 200_000.0;
        loop {
            match decide(&rounds, &COSTS, limits, goal) {
                Decision::Stop(reason) => return (rounds, reason, set),
                Decision::Throttle(to) => {
                    limit = Some(to);
                    set.push(to.0);
                }
                Decision::Continue => {}
                Decision::Hold => held = true,
            }
            let cpu = limit.map_or(100.0, |to: CpuPercent| f64::from(to.0));
            let page_s = if held { COSTS.page_s } else { 1.0 / self.pace };
            let seconds = 0.004 + left * page_s;
            let writes = self.rate * cpu / 100.0 * seconds;
            let dirty = self.region * (1.0 - (-writes / self.region).exp());
            rounds.push(RoundStats {
                sent: PageCount(left as u64),
                seconds,
                before_s: 0.0,
                left: PageCount(dirty as u64),
                hot: PageCount(0),
                dirty: PageCount(dirty as u64),
                held,
                cpu,
                limit,
            });
            left = dirty;
        }
    }
}

proptest! {
    /// However the guest behaves, the rounds end, and without a throttle none is run that is
    /// expected to leave more than there was.
    #[test]
    fn the_rounds_end_and_each_promises_less(
        left in prop::collection::vec(0u64..200_000, 1..80)
    ) {
        let limits = Limits::default();
        let goal = Goal { min_limit: None, ..GOAL };
        let mut rounds = vec![];
        let mut sent = 200_000;
        for &left in &left {
            rounds.push(round(sent, left));
            match decide(&rounds, &COSTS, &limits, &goal) {
                Decision::Stop(_) => break,
                Decision::Throttle(_) | Decision::Hold => prop_assert!(false, "throttled or held"),
                Decision::Continue => prop_assert!(left < sent),
            }
            sent = left;
        }
        prop_assert!(rounds.len() <= limits.max_rounds as usize);
    }

    /// Limits only fall, stay between the floor and what the guest uses, and where the model says
    /// that the floor is enough, the window fits in the end.
    #[test]
    fn a_throttle_is_bounded_and_reaches_what_can_be_reached(
        rate in 1_000.0..2e6f64,
        region in 1_000.0..500_000.0f64,
        pace in 10_000.0..1e6f64,
        target in 0.07..0.5f64,
    ) {
        let limits = Limits::default();
        let goal = Goal { max_window_s: target, ..GOAL };
        let model = Model { rate, region, pace };
        let (rounds, reason, set) = model.run(&limits, &goal);
        let roomy = Limits { room: PageCount(65_536), ..limits };
        let (held, _, milder) = model.run(&roomy, &goal);
        prop_assert!(held.len() <= limits.max_rounds as usize);
        prop_assert!(milder.windows(2).all(|pair| pair[1] <= pair[0]), "{milder:?}");
        prop_assert!(rounds.len() <= limits.max_rounds as usize);
        prop_assert!(set.windows(2).all(|pair| pair[1] <= pair[0]), "{set:?}");
        prop_assert!(set.iter().all(|&limit| (20..=95).contains(&limit)), "{set:?}");
        let left = rounds.last().expect("a round").left;
        if reason == StopReason::OnTarget {
            prop_assert!(COSTS.window_s(left) <= target);
        }
        // At the floor's rate a fitting set is dirtied in well less time than it is copied in.
        if let Some(fitting) = COSTS.pages_within(target * 0.8) {
            let at_floor = rate * 0.2;
            if at_floor * (0.005 + fitting / pace) < 0.7 * fitting && fitting > 200.0 {
                prop_assert!(
                    COSTS.window_s(left) <= target,
                    "left {left}, {reason:?}, {set:?}"
                );
            }
        }
    }
}
