//! A sweep: all runs of a plan that are not stored yet, one after the other.

use super::case::Planned;
use super::plan::Plan;
use super::progress::Progress;
use super::record::{Measured, Outcome, Run, Store};
use anyhow::Result;
use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Instant, SystemTime};

/// A run that the machine spoils is made so often at most.
pub const ATTEMPTS: u32 = 3;

/// What makes runs.
pub trait Runner {
    /// Makes a run. What went wrong with it is in the outcome; an error is one of the harness itself,
    /// and ends the sweep.
    fn measure(&mut self, planned: &Planned) -> Result<(Outcome, Option<Measured>)>;
}

/// How a sweep ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Every run is stored, or was spoilt as often as it may be.
    Complete,
    /// It was asked to stop; what it has is stored.
    Interrupted,
}

/// The runs of the plan that are still to be made.
#[must_use]
pub fn open_runs(plan: &Plan, store: &Store) -> Vec<Planned> {
    let settled: HashSet<String> = store.settled().into_iter().map(str::to_owned).collect();
    let mut runs = plan.runs();
    runs.retain(|run| {
        let id = run.id();
        !settled.contains(&id) && store.attempts(&id) < ATTEMPTS
    });
    runs
}

/// Makes what is still to be made; each run is stored when it has ended. A run during which `stop`
/// was set is not: whoever was interrupted may have failed for it.
pub fn sweep(
    plan: &Plan,
    runner: &mut dyn Runner,
    store: &mut Store,
    progress: &mut Progress,
    stop: &AtomicBool,
) -> Result<Ended> {
    progress.begin(plan.runs().len(), open_runs(plan, store).len());
    loop {
        // What was spoilt comes again when all others have been made.
        let runs = open_runs(plan, store);
        if runs.is_empty() {
            return Ok(Ended::Complete);
        }
        for planned in runs {
            if stop.load(Ordering::Relaxed) {
                return Ok(Ended::Interrupted);
            }
            progress.starts(&planned);
            let (began, clock) = (seconds_since_1970(), Instant::now());
            let (outcome, measured) = runner.measure(&planned)?;
            if stop.load(Ordering::Relaxed) {
                return Ok(Ended::Interrupted);
            }
            let id = planned.id();
            let run = Run {
                attempt: store.attempts(&id) + 1,
                id,
                planned,
                began,
                outcome,
                measured,
            };
            progress.ended(&run, clock.elapsed());
            store.add(run)?;
        }
    }
}

/// A clock that is before 1970 is as good as any.
#[must_use]
pub fn seconds_since_1970() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::super::record::tests::run;
    use super::*;
    use std::collections::HashMap;

    const PLAN: &str = r#"
        repeats = 2
        [[study]]
        name = "rates"
        guests = ["pvh"]
        memory = [256]
        loads = ["100", "5000"]
        methods = ["plain", "live"]
    "#;

    /// Spoils the first attempt of all live saves, and every one at 5000.
    #[derive(Default)]
    struct Fake {
        made: HashMap<String, u32>,
        stop_after: Option<(u32, &'static AtomicBool)>,
    }

    impl Runner for Fake {
        fn measure(&mut self, planned: &Planned) -> Result<(Outcome, Option<Measured>)> {
            let made = self.made.entry(planned.id()).or_default();
            *made += 1;
            let spoilt =
                planned.case.method.is_ours() && (*made == 1 || planned.case.load.rate == "5000");
            if let Some((runs, stop)) = &mut self.stop_after {
                *runs -= 1;
                if *runs == 0 {
                    stop.store(true, Ordering::Relaxed);
                }
            }
            let outcome = if spoilt {
                Outcome::Machine("away".into())
            } else {
                Outcome::Good
            };
            let sample = run(planned.case.method, "100", 0, 0.1);
            Ok((outcome, sample.measured))
        }
    }

    #[test]
    fn spoilt_runs_come_again_and_are_given_up_at_last() {
        let dir = tempfile::tempdir().unwrap();
        let plan = Plan::parse(PLAN).unwrap();
        let mut store = Store::open(dir.path()).unwrap();
        let mut fake = Fake::default();
        let (mut progress, stop) = (Progress::silent(), AtomicBool::new(false));
        let ended = sweep(&plan, &mut fake, &mut store, &mut progress, &stop).unwrap();
        assert_eq!(ended, Ended::Complete);
        let good = store.runs.iter().filter(|run| run.good().is_some());
        // 4 plain ones, 2 live ones in their second attempt; 2 were given up.
        assert_eq!(good.count(), 6);
        assert_eq!(store.runs.len(), 4 + 2 * 2 + 2 * ATTEMPTS as usize);
        assert!(open_runs(&plan, &store).is_empty());
    }

    #[test]
    fn an_interrupted_sweep_goes_on_where_it_was() {
        static STOP: AtomicBool = AtomicBool::new(false);
        let dir = tempfile::tempdir().unwrap();
        let plan = Plan::parse(PLAN).unwrap();
        let mut store = Store::open(dir.path()).unwrap();
        let mut fake = Fake {
            stop_after: Some((3, &STOP)),
            ..Fake::default()
        };
        let mut progress = Progress::silent();
        let ended = sweep(&plan, &mut fake, &mut store, &mut progress, &STOP).unwrap();
        assert_eq!(ended, Ended::Interrupted);
        // The third was under way.
        assert_eq!(store.runs.len(), 2);
        drop(store);
        let mut store = Store::open(dir.path()).unwrap();
        let stop = AtomicBool::new(false);
        let mut fake = Fake::default();
        let ended = sweep(&plan, &mut fake, &mut store, &mut progress, &stop).unwrap();
        assert_eq!(ended, Ended::Complete);
        let settled = store.settled().len();
        assert_eq!(settled, 6);
    }
}
