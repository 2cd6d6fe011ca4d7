//! What a sweep says while it runs: a line for each run, and on a terminal a bar with the time left.

use super::case::{Case, Planned};
use super::record::{Outcome, Run};
use indicatif::{HumanDuration, ProgressBar, ProgressStyle};
use std::io::IsTerminal;
use std::time::Duration;

/// Tells of a sweep on standard error.
pub struct Progress {
    bar: ProgressBar,
    quiet: bool,
    terminal: bool,
    /// Runs of the plan.
    all: usize,
    /// Of them still to be made.
    left: usize,
    made: u32,
    took: Duration,
}

impl Progress {
    /// On standard error.
    #[must_use]
    pub fn new() -> Self {
        Self {
            bar: ProgressBar::hidden(),
            quiet: false,
            terminal: std::io::stderr().is_terminal(),
            all: 0,
            left: 0,
            made: 0,
            took: Duration::ZERO,
        }
    }

    /// Nowhere.
    #[must_use]
    pub fn silent() -> Self {
        let mut progress = Self::new();
        (progress.quiet, progress.terminal) = (true, false);
        progress
    }

    /// So many runs does the plan have, and so many of them are still to be made.
    pub fn begin(&mut self, all: usize, left: usize) {
        (self.all, self.left) = (all, left);
        if self.terminal {
            // The template is a constant: a test would see that it is wrong.
            let style = ProgressStyle::with_template("{bar:30} {pos}/{len}  {msg}")
                .unwrap_or_else(|_| ProgressStyle::default_bar());
            self.bar = ProgressBar::new(all as u64).with_style(style);
            self.bar.set_position((all - left) as u64);
        }
        if left < all {
            self.say(&format!("{} of {all} runs are stored already", all - left));
        }
    }

    /// A run begins.
    pub fn starts(&mut self, planned: &Planned) {
        self.bar
            .set_message(format!("{}{}", describe(&planned.case), self.time_left()));
    }

    /// A run has ended.
    pub fn ended(&mut self, run: &Run, took: Duration) {
        self.made += 1;
        self.took += took;
        // What the machine spoilt is still to be made.
        if !matches!(run.outcome, Outcome::Machine(_)) {
            self.left = self.left.saturating_sub(1);
            self.bar.inc(1);
        }
        let how = match (&run.outcome, &run.measured) {
            (Outcome::Good, Some(measured)) => format!(
                "gap {:.0} ms, total {:.1} s",
                1e3 * measured.gap_s,
                measured.total_s
            ),
            (Outcome::Good, None) => "nothing measured".to_owned(),
            (Outcome::Method(why), _) => format!("FAILED: {why}"),
            (Outcome::Refused(why), _) => format!("refused: {why}"),
            (Outcome::Machine(why), _) => format!("spoilt by the machine: {why}"),
        };
        let done = self.all.saturating_sub(self.left);
        self.say(&format!(
            "[{done}/{}] {}: {how}{}",
            self.all,
            describe(&run.planned.case),
            if self.terminal {
                String::new()
            } else {
                self.time_left()
            }
        ));
    }

    /// What is left, from how long runs have taken so far.
    fn time_left(&self) -> String {
        if self.made == 0 || self.left == 0 {
            return String::new();
        }
        let left = (self.took / self.made) * u32::try_from(self.left).unwrap_or(u32::MAX);
        format!(" (about {} left)", HumanDuration(left))
    }

    fn say(&self, line: &str) {
        if self.quiet {
        } else if self.terminal {
            self.bar.println(line);
        } else {
            eprintln!("{line}");
        }
    }
}

impl Default for Progress {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// The case in a few words.
fn describe(case: &Case) -> String {
    let mut text = format!("{} {} MiB", case.guest, case.memory_mib);
    if case.vcpus > 1 {
        text.push_str(&format!(" {} vCPUs", case.vcpus));
    }
    text.push_str(&format!(", {}", case.load));
    for (what, value, unit) in [
        ("cap", case.cap, "%"),
        ("target", case.target_ms, " ms"),
        ("dirty", case.dirty_percent, "%"),
    ] {
        if let Some(value) = value {
            text.push_str(&format!(", {what} {value}{unit}"));
        }
    }
    format!("{text}, {}", case.method)
}

#[cfg(test)]
mod tests {
    use super::super::case::Method;
    use super::super::record::tests::run;
    use super::*;

    #[test]
    fn the_time_left_is_of_what_is_left() {
        let mut progress = Progress::silent();
        progress.begin(10, 4);
        let mut spoilt = run(Method::Live, "100", 0, 0.1);
        spoilt.outcome = Outcome::Machine("away".into());
        progress.ended(&spoilt, Duration::from_secs(60));
        assert_eq!(progress.time_left(), " (about 4 minutes left)");
        for _ in 0..4 {
            progress.ended(&run(Method::Live, "100", 0, 0.1), Duration::from_secs(60));
        }
        assert_eq!(progress.time_left(), "");
    }

    #[test]
    fn a_case_is_described_by_what_it_is() {
        let mut case = run(Method::StockLive, "5000", 0, 0.1).planned.case;
        assert_eq!(describe(&case), "PVH 256 MiB, 5000, stock live loop");
        (case.vcpus, case.cap) = (2, Some(40));
        assert_eq!(
            describe(&case),
            "PVH 256 MiB 2 vCPUs, 5000, cap 40%, stock live loop"
        );
    }
}
