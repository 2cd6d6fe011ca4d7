//! A witness in the host: for how long the machine itself stood still.
//!
//! A guest's gap says nothing of its method while the whole machine was held up: by a hypervisor
//! above it, or by other work. A thread that only sleeps sees that, whatever the guest does.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};

/// How long it sleeps at a time.
const NAP: Duration = Duration::from_millis(1);
/// A stall of less spoils nothing: any thread waits so long for a CPU now and then.
const HARMLESS_S: f64 = 0.02;
/// A stall of more than this share of the gap may be what the gap is made of.
const SHARE: f64 = 0.25;

/// A thread that sleeps a millisecond at a time and remembers the longest oversleep.
pub struct Witness {
    end: Arc<AtomicBool>,
    thread: JoinHandle<Duration>,
}

impl Witness {
    /// Watches from now on.
    ///
    /// # Errors
    /// No thread is to be had.
    pub fn start() -> Result<Self> {
        let end = Arc::new(AtomicBool::new(false));
        let watched = Arc::clone(&end);
        let thread = std::thread::Builder::new()
            .name("witness".to_owned())
            .spawn(move || watch(&watched))
            .context("Failed to start the witness")?;
        Ok(Self { end, thread })
    }

    /// The longest oversleep, in seconds.
    ///
    /// # Errors
    /// The thread panicked.
    pub fn stop(self) -> Result<f64> {
        self.end.store(true, Ordering::Relaxed);
        let longest = self
            .thread
            .join()
            .map_err(|_| anyhow!("The witness died"))?;
        Ok(longest.as_secs_f64())
    }
}

fn watch(end: &AtomicBool) -> Duration {
    let mut longest = Duration::ZERO;
    let mut last = Instant::now();
    while !end.load(Ordering::Relaxed) {
        std::thread::sleep(NAP);
        let now = Instant::now();
        longest = longest.max((now - last).saturating_sub(NAP));
        last = now;
    }
    longest
}

/// Whether a stall of the machine, in seconds, spoils a gap of so many seconds.
#[must_use]
pub fn spoils(stall_s: f64, gap_s: f64) -> bool {
    stall_s > HARMLESS_S && stall_s > gap_s * SHARE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stall_counts_beside_the_gap_it_may_have_made() {
        for (stall, gap, spoilt) in [
            (0.019, 0.001, false),
            (0.021, 0.05, true),
            (0.021, 0.09, false),
            (0.3, 1.0, true),
            (0.2, 1.0, false),
        ] {
            assert_eq!(spoils(stall, gap), spoilt, "{stall} s beside {gap} s");
        }
    }

    #[test]
    fn it_ends_when_it_is_told_to() {
        let witness = Witness::start().unwrap();
        assert!(witness.stop().unwrap() >= 0.0);
    }
}
