//! What a run on a Xen took, put together from what each of its sides has told.

use super::methods::Made;
use super::record::{Measured, Pass, work_lost};
use super::witness::Seen;
use crate::dom0::livesave::Report;
use std::time::Duration;

/// What the guest did meanwhile.
pub(super) struct Work {
    /// Writes per second before.
    pub pace: f64,
    /// How long it was.
    pub elapsed: Duration,
    /// Writes done.
    pub done: u64,
}

/// The record of a run that went well; `suspension_seen` tells whether the witness looked at its guest.
pub(super) fn put_together(
    made: &Made,
    gap: Duration,
    work: &Work,
    seen: Seen,
    host_cpu: Duration,
    suspension_seen: bool,
) -> Measured {
    let image = made
        .image
        .map_or((0, 0), |size| (size.bytes, size.allocated));
    let report = made.report.as_ref();
    let (rounds, pause_pages, pages_sent) = match (report, &made.passes) {
        (Some(report), _) => of_report(report),
        (None, Some(passes)) => of_passes(passes),
        // Of a migration nothing but the bytes are known.
        (None, None) => (Vec::new(), None, made.network_bytes / 4096),
    };
    let bytes_written = match report {
        Some(_) => pages_sent * 4096,
        None => image.0,
    };
    Measured {
        gap_s: gap.as_secs_f64(),
        suspended_s: suspension_seen.then_some(seen.suspended.as_secs_f64()),
        total_s: made.usage.seconds,
        rounds,
        pause_pages,
        pages_sent,
        bytes_written,
        writes_per_s: work.pace,
        dirty_pages_per_s: report.map(|report| report.window.dirty_rate),
        network_bytes: made.network_bytes,
        image_bytes: image.0,
        allocated_bytes: image.1,
        host_cpu_s: host_cpu.as_secs_f64(),
        peak_memory: made.usage.peak_memory,
        work_lost_s: Some(work_lost(work.pace, work.done, work.elapsed.as_secs_f64())),
        predicted_s: report.map(|report| report.window.predicted_s),
        window_s: report.map(|report| report.window.total_s),
        target_met: report.and_then(|report| report.target.as_ref().map(|target| target.met)),
        throttled_s: report.map(|report| report.brownout.as_ref().map_or(0.0, |b| b.seconds)),
        machine_stall_s: seen.stall.as_secs_f64(),
    }
}

fn of_report(report: &Report) -> (Vec<Pass>, Option<u64>, u64) {
    let rounds = report.rounds.iter().map(|round| Pass {
        pages: round.pages,
        bytes: Some(round.bytes),
        seconds: Some(round.seconds),
        dirty_pages: Some(round.dirty_pages),
    });
    (
        rounds.collect(),
        Some(report.window.pages),
        report.pages_written(),
    )
}

fn of_passes(passes: &[u64]) -> (Vec<Pass>, Option<u64>, u64) {
    let (last, rounds) = match passes.split_last() {
        Some((last, rounds)) => (Some(*last), rounds),
        None => (None, passes),
    };
    let rounds = rounds.iter().enumerate().map(|(number, &pages)| Pass {
        pages,
        bytes: Some(pages * 4096),
        seconds: None,
        // What a pass finds dirty is what the next one writes.
        dirty_pages: passes.get(number + 1).copied(),
    });
    (rounds.collect(), last, passes.iter().sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_pass_is_that_of_the_pause() {
        let (rounds, pause, sent) = of_passes(&[100, 40, 7]);
        assert_eq!((rounds.len(), pause, sent), (2, Some(7), 147));
        assert_eq!(rounds[0].dirty_pages, Some(40));
        assert_eq!(rounds[1].dirty_pages, Some(7));
        assert_eq!(of_passes(&[]), (vec![], None, 0));
        // A plain save has no round.
        assert_eq!(of_passes(&[100]).0, []);
    }
}
