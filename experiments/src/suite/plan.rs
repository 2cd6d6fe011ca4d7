//! Which tests are run, in what order, and how many of them there is time for.

use super::Test;
use std::time::Duration;

/// When a test is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum When {
    /// In every suite: what a user is most likely to meet.
    Core,
    /// In every suite that has the time; where it has not, in turn.
    InTurn,
    /// With `--bench`, or named by a filter: it takes long, or others show nearly the same.
    Asked,
}

/// The guest that a test begins with. Tests that follow each other with the same one share it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// None, or its own.
    Other,
    /// [`Spec::small`](crate::dom0::spec::Spec::small).
    Small,
    /// The one whose writes a save has to slow.
    Busy,
    /// [`Spec::medium`](crate::dom0::spec::Spec::medium).
    Medium,
    /// The default, which is of a size that a save takes ten seconds of.
    Large,
    /// [`super::hvm::hvm`].
    Hvm,
    /// The same, reading from an emulated disk.
    HvmReads,
    /// [`super::pv::pv`].
    Pv,
}

/// The order to run tests in: the core first, then the others from another one on each day, so that
/// all have their turn where there is time for a part of them only. Tests with the same guest follow
/// each other.
#[must_use]
pub fn order(mut tests: Vec<Test>, day: u64) -> Vec<Test> {
    // Stable: within a kind they stay as they are.
    tests.sort_by_key(|test| (test.when != When::Core, test.kind));
    let core = tests.partition_point(|test| test.when == When::Core);
    let others = &mut tests[core..];
    if !others.is_empty() {
        let len = others.len() as u64;
        others.rotate_left((day % len * stride(len) % len) as usize);
    }
    tests
}

/// From one day's start to the next: about three fifths of them all, so that what one day had no
/// time for comes soon, and without a common divisor, so that each is the first at some time.
fn stride(len: u64) -> u64 {
    let common = |mut a: u64, mut b: u64| {
        while b != 0 {
            (a, b) = (b, a % b);
        }
        a
    };
    let most = (len * 3 / 5).max(1);
    let coprime = (1..=most).rev().find(|&step| common(step, len) == 1);
    coprime.unwrap_or(1)
}

/// The time that a suite has.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    /// All of it; without, everything is run.
    total: Option<Duration>,
    /// What a test out of turn may take: as much as the longest so far.
    estimate: Duration,
}

impl Budget {
    /// Before any test has run, each of those in turn is taken to need this part of the budget.
    const FIRST_ESTIMATE: u32 = 15;

    /// Nothing of it is spent.
    #[must_use]
    pub fn new(total: Option<Duration>) -> Self {
        Self {
            total,
            estimate: total.map_or(Duration::ZERO, |total| total / Self::FIRST_ESTIMATE),
        }
    }

    /// Whether a test may begin now. The core always may, on the slowest machine too.
    #[must_use]
    pub fn admits(&self, when: When, spent: Duration) -> bool {
        self.total.is_none_or(|total| match when {
            When::Core => true,
            When::InTurn | When::Asked => spent + self.estimate <= total,
        })
    }

    /// A test has taken so long.
    pub fn learn(&mut self, when: When, took: Duration) {
        if when != When::Core {
            self.estimate = self.estimate.max(took);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: [&str; 12] = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l"];

    fn tests(core: usize, others: usize) -> Vec<Test> {
        let kinds = [Kind::Small, Kind::Large];
        let test = |i: usize| Test {
            name: NAMES[i],
            when: if i < others { When::InTurn } else { When::Core },
            kind: kinds[i % 2],
            run: |_| Ok(String::new()),
        };
        (0..core + others).map(test).collect()
    }

    fn names(tests: &[Test]) -> String {
        tests.iter().map(|test| test.name).collect()
    }

    #[test]
    fn the_core_comes_first_and_guests_are_shared() {
        assert_eq!(names(&order(tests(4, 6), 0)), "gihjacebdf");
        assert_eq!(names(&order(tests(3, 0), 5)), "acb");
        assert!(order(Vec::new(), 5).is_empty());
    }

    #[test]
    fn each_day_begins_elsewhere_and_all_are_run() {
        for others in 1..10 {
            let mut first: Vec<_> = (0..others as u64)
                .map(|day| {
                    let ordered = order(tests(2, others), day);
                    let mut all: Vec<_> = ordered.iter().map(|test| test.name).collect();
                    all.sort_unstable();
                    assert_eq!(all, NAMES[..2 + others]);
                    ordered[2].name
                })
                .collect();
            first.sort_unstable();
            assert_eq!(first, NAMES[..others]);
        }
    }

    #[test]
    fn a_third_of_the_time_is_enough_for_all_within_a_week() {
        let run = |day| names(&order(tests(2, 10), day)[2..5]);
        let week: String = (20_000..20_007).map(run).collect();
        assert!(NAMES[..10].iter().all(|name| week.contains(name)), "{week}");
    }

    #[test]
    fn what_would_not_end_in_time_is_not_begun() {
        let second = Duration::from_secs;
        let mut budget = Budget::new(Some(second(150)));
        assert!(budget.admits(When::InTurn, second(140)));
        assert!(!budget.admits(When::InTurn, second(141)));
        budget.learn(When::InTurn, second(30));
        budget.learn(When::InTurn, second(20));
        budget.learn(When::Core, second(100));
        assert!(budget.admits(When::InTurn, second(120)));
        assert!(!budget.admits(When::InTurn, second(121)));
        assert!(budget.admits(When::Core, second(9999)));
        assert!(Budget::new(None).admits(When::InTurn, second(9999)));
    }
}
