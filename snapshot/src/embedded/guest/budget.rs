//! The CPU cap: so much CPU time per 10 ms for all threads together, as Xen's credit2 does it.

use std::sync::atomic::{AtomicI64, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

/// How often the budget is renewed.
pub const PERIOD: Duration = Duration::from_millis(10);

/// What the threads of the guest may use, shared by all.
///
/// Each thread reports the CPU time that it has used; when the quota of the period is used up, all
/// sleep until the next. Who used more than there was starts the next period in debt, so that the
/// average is kept however coarse the reports are.
#[derive(Debug)]
pub struct Budget {
    /// Percent of one CPU; 0: no cap.
    percent: AtomicU32,
    start: Instant,
    /// The number of the period last paid for.
    period: AtomicU64,
    /// What is left of it, in nanoseconds; negative: a debt.
    left: AtomicI64,
}

impl Budget {
    /// No cap.
    pub fn unlimited() -> Self {
        Self {
            percent: AtomicU32::new(0),
            start: Instant::now(),
            period: AtomicU64::new(0),
            left: AtomicI64::new(0),
        }
    }

    /// Sets the cap in percent of one CPU; 0 lifts it.
    pub fn set(&self, percent: u32) {
        self.period
            .store(self.period_at(Instant::now()), Ordering::SeqCst);
        self.left.store(quota(percent), Ordering::SeqCst);
        self.percent.store(percent, Ordering::SeqCst);
    }

    /// The cap in percent of one CPU; 0: none.
    pub fn percent(&self) -> u32 {
        self.percent.load(Ordering::SeqCst)
    }

    /// Whether there is a cap.
    #[inline]
    pub fn is_limited(&self) -> bool {
        self.percent.load(Ordering::Relaxed) != 0
    }

    /// Takes CPU time off the budget; until when to sleep if nothing is left. After the sleep the
    /// caller asks again, as there may still be a debt.
    pub fn spend(&self, used: Duration, now: Instant) -> Option<Instant> {
        let percent = self.percent.load(Ordering::SeqCst);
        if percent == 0 {
            return None;
        }
        let period = self.period_at(now);
        let paid = self.period.fetch_max(period, Ordering::SeqCst);
        if period > paid {
            let periods = i64::try_from(period - paid).unwrap_or(i64::MAX);
            let due = quota(percent).saturating_mul(periods);
            let renewed = |left: i64| Some(left.saturating_add(due).min(quota(percent)));
            let _ = self
                .left
                .fetch_update(Ordering::SeqCst, Ordering::SeqCst, renewed);
        }
        let used = i64::try_from(used.as_nanos()).unwrap_or(i64::MAX);
        let left = self
            .left
            .fetch_sub(used, Ordering::SeqCst)
            .saturating_sub(used);
        (left <= 0).then(|| self.start + PERIOD * u32::try_from(period + 1).unwrap_or(u32::MAX))
    }

    fn period_at(&self, now: Instant) -> u64 {
        (now.saturating_duration_since(self.start).as_nanos() / PERIOD.as_nanos()) as u64
    }
}

fn quota(percent: u32) -> i64 {
    i64::from(percent) * (PERIOD.as_nanos() / 100) as i64
}

/// Measures the CPU time of the thread that makes it.
#[derive(Debug)]
pub struct Meter {
    last: Option<Duration>,
}

impl Meter {
    /// A meter at zero.
    pub fn new() -> Self {
        Self { last: None }
    }

    /// The CPU time that the calling thread used since the last reading; zero at the first.
    pub fn read(&mut self) -> Duration {
        let time = clock_gettime(ClockId::ThreadCPUTime);
        let seconds = Duration::from_secs(time.tv_sec.unsigned_abs());
        let now = seconds + Duration::from_nanos(time.tv_nsec.unsigned_abs());
        let last = self.last.replace(now).unwrap_or(now);
        now.saturating_sub(last)
    }

    /// Whether the next reading will be zero.
    pub fn is_stopped(&self) -> bool {
        self.last.is_none()
    }

    /// Forgets the last reading: what comes now is not counted.
    pub fn stop(&mut self) {
        self.last = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_average_is_kept_whatever_is_reported() {
        for (percent, slice_us) in [(10, 50), (10, 3_000), (250, 700), (1, 25_000)] {
            let budget = Budget::unlimited();
            budget.set(percent);
            let end = budget.start + Duration::from_secs(100);
            let mut now = budget.start;
            let mut used = Duration::ZERO;
            while now < end {
                let slice = Duration::from_micros(slice_us);
                used += slice;
                // Several CPUs at once, for caps beyond one.
                now += slice / (percent / 100 + 1);
                let mut report = slice;
                while let Some(until) = budget.spend(report, now) {
                    assert!(until > now && until <= now + PERIOD);
                    (now, report) = (until, Duration::ZERO);
                }
            }
            let share = used.as_secs_f64() / 100.0 * 100.0;
            let percent = f64::from(percent);
            assert!(
                (share - percent).abs() < percent * 0.06,
                "{percent} %, {slice_us} us: {share}"
            );
        }
    }

    #[test]
    fn without_a_cap_nobody_sleeps() {
        let budget = Budget::unlimited();
        budget.set(5);
        assert!(
            budget
                .spend(Duration::from_secs(9), Instant::now())
                .is_some()
        );
        budget.set(0);
        assert_eq!(budget.spend(Duration::from_secs(9), Instant::now()), None);
    }

    #[test]
    fn the_meter_counts_work_and_not_sleep() {
        let mut meter = Meter::new();
        assert_eq!(meter.read(), Duration::ZERO);
        std::thread::sleep(Duration::from_millis(30));
        assert!(meter.read() < Duration::from_millis(10));
        let end = Instant::now() + Duration::from_millis(30);
        while Instant::now() < end {}
        assert!(meter.read() > Duration::from_millis(1));
    }
}
