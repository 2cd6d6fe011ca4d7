//! The guest's own clock: what a program in it notices of a pause.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::super::sys;
use super::budget::Meter;
use super::machine::Machine;

/// How long the thread sleeps between two readings.
const TICK: Duration = Duration::from_micros(500);

/// What the thread has seen.
#[derive(Debug, Default)]
pub struct Ticks {
    count: AtomicU64,
    largest_gap_ns: AtomicU64,
}

impl Ticks {
    /// How many readings were taken.
    pub fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// The largest gap between two readings, in nanoseconds.
    pub fn largest_gap_ns(&self) -> u64 {
        self.largest_gap_ns.load(Ordering::Relaxed)
    }

    /// Forgets the largest gap.
    pub fn reset(&self) {
        self.largest_gap_ns.store(0, Ordering::Relaxed);
    }
}

/// Reads the clock again and again until the process ends. It stands still with the others while
/// the guest is suspended and shares their CPU cap, as any program in a guest does.
pub fn run(machine: &Machine) -> ! {
    sys::punctual_timers();
    machine.gate.pass();
    let mut meter = Meter::new();
    let mut last = Instant::now();
    loop {
        machine.gate.sleep_until(last + TICK);
        if machine.budget.is_limited() {
            while let Some(until) = machine.budget.spend(meter.read(), Instant::now()) {
                machine.gate.sleep_until(until);
            }
        } else {
            meter.stop();
        }
        let now = Instant::now();
        let gap = u64::try_from((now - last).as_nanos()).unwrap_or(u64::MAX);
        machine
            .ticks
            .largest_gap_ns
            .fetch_max(gap, Ordering::Relaxed);
        machine.ticks.count.fetch_add(1, Ordering::Relaxed);
        last = now;
    }
}
