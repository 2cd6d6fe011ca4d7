//! Keeps the books while the guest is throttled.

use std::time::{Duration, Instant};

use crate::report::{Brownout, CapStep};
use crate::units::CpuPercent;

/// A brownout under way.
pub(super) struct Books {
    means: &'static str,
    /// CPU that the guest used before, in percent of one CPU.
    before: f64,
    began: Instant,
    cpu_at_start: Duration,
    steps: Vec<(CpuPercent, Instant)>,
}

impl Books {
    /// Opened when the first limit is set; `before` is what the guest used until then.
    pub fn open(means: &'static str, before: f64, cpu_time: Duration) -> Self {
        Self {
            means,
            before,
            began: Instant::now(),
            cpu_at_start: cpu_time,
            steps: vec![],
        }
    }

    /// Another limit stands from now on.
    pub fn step(&mut self, cap: CpuPercent) {
        self.steps.push((cap, Instant::now()));
    }

    /// Closed when the guest's own limit is back.
    pub fn close(self, cpu_time: Duration) -> Brownout {
        let end = Instant::now();
        let seconds = (end - self.began).as_secs_f64();
        let used = cpu_time.saturating_sub(self.cpu_at_start).as_secs_f64();
        let ends = self.steps.iter().skip(1).map(|step| step.1).chain([end]);
        let caps = self
            .steps
            .iter()
            .zip(ends)
            .map(|(&(cap, from), to)| CapStep {
                cap,
                seconds: (to - from).as_secs_f64(),
            })
            .collect();
        Brownout {
            means: self.means.to_owned(),
            seconds,
            caps,
            cpu_lost_s: (self.before / 100.0 * seconds - used).max(0.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_books_tell_each_limit_and_what_was_lost() {
        let mut books = Books::open("cap", 100.0, Duration::from_secs(7));
        books.step(CpuPercent(50));
        std::thread::sleep(Duration::from_millis(20));
        books.step(CpuPercent(20));
        std::thread::sleep(Duration::from_millis(10));
        let brownout = books.close(Duration::from_secs(7) + Duration::from_millis(5));
        let caps: Vec<_> = brownout.caps.iter().map(|step| step.cap.0).collect();
        assert_eq!(caps, [50, 20]);
        assert!(brownout.caps[0].seconds >= 0.02 && brownout.caps[1].seconds >= 0.01);
        let lost = brownout.seconds - 0.005;
        assert!((brownout.cpu_lost_s - lost).abs() < 1e-9);
    }
}
