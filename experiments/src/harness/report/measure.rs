//! The measures: what is taken of a run, and in which unit it is shown.

use super::super::record::Measured;
use super::stats::Summary;

/// One thing that is taken of a run.
#[derive(Clone, Copy, Debug)]
pub struct Measure {
    /// In JSON, with its unit.
    pub key: &'static str,
    /// In tables and plots.
    pub title: &'static str,
    /// Its unit; empty of a count.
    pub unit: &'static str,
    of: fn(&Measured) -> Option<f64>,
}

impl Measure {
    const fn new(
        key: &'static str,
        title: &'static str,
        unit: &'static str,
        of: fn(&Measured) -> Option<f64>,
    ) -> Self {
        Self {
            key,
            title,
            unit,
            of,
        }
    }

    /// The value of a run, where it has one.
    #[must_use]
    pub fn of(self, run: &Measured) -> Option<f64> {
        (self.of)(run)
    }

    /// Of several runs.
    #[must_use]
    pub fn summary(self, runs: &[&Measured]) -> Option<Summary> {
        Summary::of(runs.iter().filter_map(|run| self.of(run)))
    }

    /// Title and unit.
    #[must_use]
    pub fn header(self) -> String {
        if self.unit.is_empty() {
            self.title.to_owned()
        } else {
            format!("{} ({})", self.title, self.unit)
        }
    }
}

const MEGABYTE: f64 = 1e6;

/// Longest time for which the guest stood still, by its own clock.
pub const GAP: Measure = Measure::new("gap_ms", "gap", "ms", |m| Some(m.gap_s * 1e3));
/// The same in seconds, as plots show it.
pub const GAP_S: Measure = Measure::new("gap_s", "gap in the guest", "s", |m| Some(m.gap_s));
/// Time for which the host saw it suspended.
pub const SUSPENDED: Measure = Measure::new("suspended_ms", "suspended", "ms", |m| {
    m.suspended_s.map(|s| s * 1e3)
});
/// From the command's start to its end.
pub const TOTAL: Measure = Measure::new("total_s", "total time", "s", |m| Some(m.total_s));
/// Pages written or sent.
pub const PAGES: Measure = Measure::new("pages_sent", "pages sent", "", |m| {
    Some(m.pages_sent as f64)
});
/// Bytes written to the image.
pub const WRITTEN: Measure = Measure::new("written_mb", "written", "MB", |m| {
    Some(m.bytes_written as f64 / MEGABYTE)
});
/// Length of the image.
pub const IMAGE: Measure = Measure::new("image_mb", "image size", "MB", |m| {
    Some(m.image_bytes as f64 / MEGABYTE)
});
/// What its file system has allocated for it.
pub const ALLOCATED: Measure = Measure::new("allocated_mb", "allocated", "MB", |m| {
    Some(m.allocated_bytes as f64 / MEGABYTE)
});
/// Bytes over a network.
pub const NETWORK: Measure = Measure::new("network_mb", "network", "MB", |m| {
    Some(m.network_bytes as f64 / MEGABYTE)
});
/// CPU time of the host's side.
pub const CPU: Measure = Measure::new("host_cpu_s", "host CPU", "s", |m| Some(m.host_cpu_s));
/// Largest resident memory of a process.
pub const PEAK: Measure = Measure::new("peak_memory_mb", "peak memory", "MB", |m| {
    Some(m.peak_memory as f64 / MEGABYTE)
});
/// Work that the guest did not do.
pub const LOST: Measure = Measure::new("work_lost_s", "work lost", "s", |m| m.work_lost_s);
/// Number of passes while the guest ran.
pub const ROUNDS: Measure = Measure::new("rounds", "rounds", "", |m| Some(m.rounds.len() as f64));
/// Mean time of a pass; of runs that tell it.
pub const ROUND_TIME: Measure =
    Measure::new("mean_round_s", "mean round time", "s", mean_round_time);
/// The pause as livesave measured it.
pub const PAUSE: Measure = Measure::new("pause_ms", "pause", "ms", |m| m.window_s.map(|s| s * 1e3));
/// Its forecast.
pub const PREDICTED: Measure = Measure::new("predicted_ms", "predicted", "ms", |m| {
    m.predicted_s.map(|s| s * 1e3)
});
/// How long the guest was throttled.
pub const THROTTLED: Measure = Measure::new("throttled_s", "throttled", "s", |m| m.throttled_s);
/// Writes of the guest.
pub const WRITES: Measure = Measure::new("writes_per_s", "writes per second", "", |m| {
    Some(m.writes_per_s)
});
/// Different pages dirtied.
pub const DIRTIED: Measure = Measure::new("dirty_pages_per_s", "dirty pages per second", "", |m| {
    m.dirty_pages_per_s
});
/// Pages copied in the pause.
pub const PAUSE_PAGES: Measure = Measure::new("pause_pages", "pages in the pause", "", |m| {
    m.pause_pages.map(|pages| pages as f64)
});
/// How long the machine itself stood still.
pub const STALL: Measure = Measure::new("machine_stall_ms", "machine stall", "ms", |m| {
    Some(m.machine_stall_s * 1e3)
});

/// All that `summary.json` has.
pub const ALL: [Measure; 20] = [
    GAP,
    SUSPENDED,
    TOTAL,
    PAGES,
    PAUSE_PAGES,
    WRITTEN,
    IMAGE,
    ALLOCATED,
    NETWORK,
    CPU,
    PEAK,
    LOST,
    ROUNDS,
    ROUND_TIME,
    PAUSE,
    PREDICTED,
    THROTTLED,
    WRITES,
    DIRTIED,
    STALL,
];

/// The mean over all passes of a run, the first over the whole memory among them; `None` if the time
/// of one is not known.
fn mean_round_time(run: &Measured) -> Option<f64> {
    let times: Option<Vec<f64>> = run.rounds.iter().map(|pass| pass.seconds).collect();
    let times = times.filter(|times| !times.is_empty())?;
    Some(times.iter().sum::<f64>() / times.len() as f64)
}

/// Pages that were dirty at the end of a pass. What a method does not say itself is told by what it
/// sent next.
#[must_use]
pub fn dirty_after(run: &Measured, round: usize) -> Option<f64> {
    let pass = run.rounds.get(round)?;
    let next = || match run.rounds.get(round + 1) {
        Some(next) => Some(next.pages),
        None => run.pause_pages,
    };
    pass.dirty_pages.or_else(next).map(|pages| pages as f64)
}

#[cfg(test)]
mod tests {
    use super::super::super::case::Method;
    use super::super::super::record::tests::run;
    use super::*;

    #[test]
    fn units() {
        let run = run(Method::Live, "100", 0, 0.25);
        let run = run.good().unwrap();
        assert_eq!(GAP.of(run), Some(250.0));
        assert_eq!(GAP_S.of(run), Some(0.25));
        assert_eq!(IMAGE.of(run), Some(66_000.0 * 4096.0 / 1e6));
        assert_eq!(GAP.header(), "gap (ms)");
        assert_eq!(PAGES.header(), "pages sent");
    }

    #[test]
    fn dirty_pages_are_what_is_said_or_what_is_sent_next() {
        let mut run = run(Method::Live, "100", 0, 0.25);
        let run = run.measured.as_mut().unwrap();
        assert_eq!(dirty_after(run, 0), Some(5000.0));
        run.rounds[0].dirty_pages = None;
        assert_eq!(dirty_after(run, 0), Some(200.0));
        run.rounds.push(run.rounds[0]);
        assert_eq!(dirty_after(run, 0), Some(65_536.0));
        assert_eq!(dirty_after(run, 2), None);
    }

    #[test]
    fn a_round_without_a_time_leaves_no_mean() {
        let mut run = run(Method::Live, "100", 0, 0.25);
        let run = run.measured.as_mut().unwrap();
        run.rounds.push(run.rounds[0]);
        run.rounds[1].seconds = Some(1.0);
        assert_eq!(ROUND_TIME.of(run), Some(2.0));
        run.rounds[1].seconds = None;
        assert_eq!(ROUND_TIME.of(run), None);
        run.rounds.clear();
        assert_eq!(ROUND_TIME.of(run), None);
    }
}
