//! A witness in the host: when the guest was suspended, and how long the machine itself stood still.
//!
//! It looks every other millisecond, in front of everything else, the same for every method. What it
//! is late by, the machine was away for: on an emulator the host of which had other things to do, or
//! in a kernel that could not be interrupted.

use super::record::{Measured, Outcome};
use crate::dom0::hypervisor::Domain;
use crate::workload;
use anyhow::{Context, Result};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

const STEP: Duration = Duration::from_millis(2);
const PRIORITY: i32 = 60;
/// A stall of more than this share of the gap may be what the gap is made of.
const SHARE: f64 = 0.3;

/// What it saw.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Seen {
    /// How long the guest was suspended, all times together; to the step.
    pub suspended: Duration,
    /// The longest time for which it could not look.
    pub stall: Duration,
}

/// A witness that looks.
pub struct Witness {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Seen>,
}

impl Witness {
    /// Looks at the machine, and at the domain if there is one, until [`Self::end`].
    pub fn start(domid: Option<u32>) -> Result<Self> {
        let domain = domid.map(Domain::of).transpose()?;
        let stop = Arc::new(AtomicBool::new(false));
        let until = Arc::clone(&stop);
        let thread = thread::Builder::new()
            .name("witness".to_owned())
            .spawn(move || watch(domain.as_ref(), &until))
            .context("cannot start the witness")?;
        Ok(Self { stop, thread })
    }

    /// What it has seen.
    pub fn end(self) -> Result<Seen> {
        self.stop.store(true, Ordering::Relaxed);
        let seen = self.thread.join();
        seen.map_err(|_| anyhow::anyhow!("the witness panicked"))
    }
}

/// Whether the machine spoilt what was measured. What stall is harmless depends on it: on an emulated
/// one hypercalls take milliseconds, in which nobody else runs.
#[must_use]
pub fn judge(measured: &Measured, harmless: Duration) -> Outcome {
    let [stall, gap] = [measured.machine_stall_s, measured.gap_s].map(Duration::from_secs_f64);
    if spoils(stall, gap, harmless) {
        return Outcome::Machine(format!("it stood still for {} ms", stall.as_millis()));
    }
    Outcome::Good
}

/// Whether a stall spoils a gap: it is a good part of it, and not harmless.
fn spoils(stall: Duration, gap: Duration, harmless: Duration) -> bool {
    stall >= harmless && stall >= gap.mul_f64(SHARE)
}

fn watch(domain: Option<&Domain>, until: &AtomicBool) -> Seen {
    // Without the right to it, what it sees is less exact.
    let _ = workload::real_time(PRIORITY);
    let mut seen = Seen::default();
    let mut last = Instant::now();
    let mut suspended_since = None;
    while !until.load(Ordering::Relaxed) {
        thread::sleep(STEP);
        let now = Instant::now();
        seen.stall = seen.stall.max((now - last).saturating_sub(STEP));
        // A guest that is gone is not suspended.
        let info = domain.and_then(|domain| domain.info().ok());
        let suspended = info.is_some_and(|info| info.is_suspended());
        match (suspended, suspended_since) {
            (true, None) => suspended_since = Some(now),
            (false, Some(since)) => {
                seen.suspended += now - since;
                suspended_since = None;
            }
            _ => {}
        }
        last = now;
    }
    if let Some(since) = suspended_since {
        seen.suspended += since.elapsed();
    }
    seen
}

#[cfg(test)]
mod tests {
    use super::super::case::Method;
    use super::*;

    #[test]
    fn a_stall_counts_beside_the_gap_it_may_have_made() {
        for (stall, gap, spoilt) in [
            (19, 1, false),
            (20, 50, true),
            (21, 90, false),
            (300, 1000, true),
            (200, 1000, false),
        ] {
            let ms = Duration::from_millis;
            assert_eq!(
                spoils(ms(stall), ms(gap), ms(20)),
                spoilt,
                "{stall} ms beside {gap} ms"
            );
        }
    }

    #[test]
    fn a_stall_spoils_a_gap_that_it_is_large_beside() {
        let run = super::super::record::tests::run(Method::Live, "100", 0, 0.1);
        let mut measured = run.measured.unwrap();
        let mut judged = |stall_s, gap_s| {
            (measured.machine_stall_s, measured.gap_s) = (stall_s, gap_s);
            judge(&measured, Duration::from_millis(40))
        };
        assert_eq!(judged(0.039, 0.1), Outcome::Good);
        assert!(matches!(judged(0.050, 0.1), Outcome::Machine(_)));
        assert_eq!(judged(0.050, 4.0), Outcome::Good);
    }

    #[test]
    fn without_a_domain_it_sees_the_machine() {
        let witness = Witness::start(None).unwrap();
        thread::sleep(Duration::from_millis(30));
        let seen = witness.end().unwrap();
        assert_eq!(seen.suspended, Duration::ZERO);
        assert!(seen.stall > Duration::ZERO, "{seen:?}");
    }
}
