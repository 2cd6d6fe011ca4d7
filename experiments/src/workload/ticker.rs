//! The 1 ms ticker: how long did this guest stand still?

use super::output::Output;
use super::sys;
use crate::lines::Line;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

/// Above the writers, below the fault test's hog.
const PRIORITY: i32 = 50;

/// The ticker's results.
#[derive(Clone)]
pub struct Ticker {
    ticks_per_us: f64,
    seen: Arc<Seen>,
}

/// What the ticking thread has seen.
#[derive(Default)]
struct Seen {
    /// The largest step, in TSC ticks.
    largest: AtomicU64,
    /// How often it has looked.
    looks: AtomicU64,
}

/// How many TSC ticks a microsecond has, measured against CLOCK_MONOTONIC.
fn calibrate() -> f64 {
    let (clock, tsc) = (Instant::now(), sys::tsc());
    thread::sleep(Duration::from_millis(500));
    let (ticks, time) = (sys::tsc().wrapping_sub(tsc), clock.elapsed());
    ticks as f64 / (time.as_secs_f64() * 1e6)
}

impl Ticker {
    /// Calibrates (half a second), then starts the ticking thread. Steps of
    /// `report_from` or more are printed, with what `seq` says then.
    pub fn start(
        report_from: Duration,
        out: &Output,
        seq: impl Fn() -> u64 + Send + 'static,
    ) -> Self {
        let ticker = Self {
            ticks_per_us: calibrate(),
            seen: Arc::default(),
        };
        let (sender, receiver) = sync_channel::<u64>(64);
        let printed = (report_from.as_secs_f64() * 1e6 * ticker.ticks_per_us) as u64;
        let seen = Arc::clone(&ticker.seen);
        let errors = out.clone();
        thread::spawn(move || tick(&seen, printed, &sender, &errors));
        let (ticks_per_us, out) = (ticker.ticks_per_us, out.clone());
        thread::spawn(move || {
            for ticks in receiver {
                let us = (ticks as f64 / ticks_per_us) as u64;
                out.say(Line::new("gap").with("us", us).with("seq", seq()));
            }
        });
        ticker
    }

    /// Largest step since the last call and until now, in microseconds. The caller may be thawed
    /// before the ticking thread is, which takes seconds in a slow guest: so that is waited for.
    #[must_use]
    pub fn take_largest_us(&self) -> u64 {
        let looks = self.seen.looks.load(Ordering::Acquire);
        while self.seen.looks.load(Ordering::Acquire) == looks {
            thread::sleep(Duration::from_millis(1));
        }
        (self.seen.largest.swap(0, Ordering::Relaxed) as f64 / self.ticks_per_us) as u64
    }

    /// Now, by the TSC, in microseconds.
    #[must_use]
    pub fn now_us(&self) -> u64 {
        (sys::tsc() as f64 / self.ticks_per_us) as u64
    }

    /// TSC frequency in kHz.
    #[must_use]
    pub fn tsc_khz(&self) -> u64 {
        (self.ticks_per_us * 1000.0) as u64
    }
}

fn tick(seen: &Seen, printed: u64, sender: &SyncSender<u64>, errors: &Output) {
    if let Err(err) = sys::set_fifo(PRIORITY) {
        errors.error("ticker priority", err);
    }
    let mut last = sys::tsc();
    loop {
        thread::sleep(Duration::from_millis(1));
        let now = sys::tsc();
        // A restored guest's TSC may have been set back: no gap then.
        let step = now.saturating_sub(last);
        last = now;
        seen.largest.fetch_max(step, Ordering::Relaxed);
        seen.looks.fetch_add(1, Ordering::Release);
        if step >= printed {
            // Never wait here: a full queue loses a line, not the measurement.
            let _ = sender.try_send(step);
        }
    }
}
