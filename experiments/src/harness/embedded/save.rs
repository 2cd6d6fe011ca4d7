//! One save of an embedded guest, and what it is measured by.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use rustix::time::{ClockId, clock_gettime};
use snapshot::embedded::{EmbeddedDomain, EmbeddedGuest};
use snapshot::forecast::{Circumstances, PastWindow};
use snapshot::image::{Chain, Compression};
use snapshot::lineage::{Base, ImageId};
use snapshot::units::PageCount;
use snapshot::{Mode, Options, Report};

use super::guest::Wanted;
use crate::harness::case::Method;
use crate::harness::record::{Measured, Pass, work_lost};
use crate::native::{self, ZSTD, forget_peak, peak_resident};

/// A guest that runs shows it within this time, on a machine that is busy too.
const SIGN_OF_LIFE: Duration = Duration::from_secs(10);

/// Saves a guest as a case asks for.
pub(super) struct Saver<'a> {
    pub wanted: &'a Wanted,
    pub guest: &'a Arc<EmbeddedGuest>,
    pub directory: &'a Path,
}

/// Why a save failed.
type Failed = String;

impl Saver<'_> {
    /// A live save that is not measured; what it teaches of the pause.
    pub fn rehearse(&self) -> Result<PastWindow, Failed> {
        let options = Options {
            mode: Mode::Live,
            ..self.options(&[])
        };
        let path = self.directory.join("rehearsal.xl");
        let report = self.one(&path, None, options)?;
        std::fs::remove_file(&path).map_err(|error| error.to_string())?;
        Ok(learn(&report))
    }

    /// Of an increment: the image that it is to be built on.
    pub fn base(&self) -> Result<Option<Base>, Failed> {
        if self.wanted.method != Method::Increment {
            return Ok(None);
        }
        let options = Options {
            mode: Mode::Live,
            keep_tracking: true,
            ..self.options(&[])
        };
        let path = self.base_path();
        self.one(&path, None, options)?;
        let chain = Chain::open(&path).map_err(|error| error.to_string())?;
        chain.base().map_err(|error| error.to_string())
    }

    fn base_path(&self) -> PathBuf {
        self.directory.join("base.xl")
    }

    /// Saves and measures. `pace`: pages that the guest wrote per second before. The stall of the
    /// machine is left 0.
    pub fn save(
        &self,
        past: &[PastWindow],
        base: Option<Base>,
        pace: f64,
    ) -> Result<Result<(Measured, PastWindow), Failed>> {
        let (path, compression) = match self.wanted.method {
            // Increments are always compressed.
            Method::Increment => (self.directory.join("run.xli.zst"), Some(ZSTD)),
            _ => (self.directory.join("run.xl"), None),
        };
        let options = Options {
            base,
            ..self.options(past)
        };
        forget_peak()?;
        let cpu = cpu_time();
        self.guest.reset_gap()?;
        let (began, before) = (Instant::now(), self.guest.stats()?.written);
        let saved = self.one(&path, compression, options);
        let total_s = began.elapsed().as_secs_f64();
        let report = match saved {
            Ok(report) => report,
            Err(why) => return Ok(Err(why)),
        };
        let written = self.guest.stats()?.written - before;
        let elapsed_s = began.elapsed().as_secs_f64();
        let host_cpu_s = (cpu_time() - cpu).as_secs_f64();
        let peak_memory = peak_resident()?;
        let Some(gap_s) = self.gap()? else {
            return Ok(Err("the guest stands still after the save".to_owned()));
        };
        let measured = Measured {
            gap_s,
            total_s,
            writes_per_s: pace,
            host_cpu_s,
            peak_memory,
            work_lost_s: Some(work_lost(pace, written, elapsed_s)),
            ..told(&report)
        };
        Ok(Ok((measured, learn(&report))))
    }

    /// The largest gap that the guest's clock thread saw, in seconds, once it has seen the end of
    /// it; `None` if it does not go on.
    fn gap(&self) -> Result<Option<f64>> {
        let (began, before) = (Instant::now(), self.guest.stats()?.ticks);
        while began.elapsed() < SIGN_OF_LIFE {
            std::thread::sleep(Duration::from_millis(5));
            let now = self.guest.stats()?;
            // The first reading after the pause may have been under way.
            if now.ticks > before + 1 {
                return Ok(Some(now.largest_gap_ns as f64 / 1e9));
            }
        }
        Ok(None)
    }

    fn options(&self, past: &[PastWindow]) -> Options {
        Options {
            mode: match self.wanted.method {
                Method::Plain => Mode::Plain,
                Method::Live => Mode::Live,
                _ => Mode::Improved,
            },
            max_downtime: self.wanted.max_downtime,
            past: past.to_vec(),
            id: ImageId::random().ok(),
            ..native::options()
        }
    }

    fn one(
        &self,
        path: &Path,
        compression: Option<Compression>,
        options: Options,
    ) -> Result<Report, Failed> {
        let mut domain = EmbeddedDomain::new(Arc::clone(self.guest));
        if let Some(cap) = self.wanted.cap {
            domain = domain.with_own_cap(cap);
        }
        let saved = native::save_domain(&mut domain, path, compression, options);
        saved.map_err(|error| format!("{error:#}"))
    }
}

/// As livesave does after a save.
fn learn(report: &Report) -> PastWindow {
    let facts = &report.facts;
    let (increment, when) = (facts.parent.is_some(), Circumstances::default());
    PastWindow::of(&facts.window, &facts.rounds, increment, when)
}

/// CPU time of this process.
fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::from_secs(time.tv_sec.unsigned_abs())
        + Duration::from_nanos(time.tv_nsec.unsigned_abs())
}

/// What the report tells; what others measure is left 0.
fn told(report: &Report) -> Measured {
    let (facts, window) = (&report.facts, &report.facts.window);
    let plain = facts.mode == Mode::Plain.name();
    let mut pages = window.pages;
    let mut bytes = window.captured_bytes.0 + window.written_in_window_bytes.0;
    for round in &facts.rounds {
        pages += round.pages;
        bytes += round.bytes.0;
    }
    let pass = |round: &snapshot::report::Round| Pass {
        pages: round.pages.0,
        bytes: Some(round.bytes.0),
        seconds: Some(round.seconds),
        dirty_pages: Some(round.dirty_pages.0),
    };
    let PageCount(pages_sent) = pages;
    Measured {
        gap_s: 0.0,
        suspended_s: Some(window.suspended_s),
        total_s: 0.0,
        rounds: facts.rounds.iter().map(pass).collect(),
        pause_pages: Some(window.pages.0),
        pages_sent,
        bytes_written: bytes,
        writes_per_s: 0.0,
        dirty_pages_per_s: (!plain).then_some(window.dirty_rate),
        network_bytes: 0,
        image_bytes: report.image_bytes.0,
        allocated_bytes: report.allocated_bytes.0,
        host_cpu_s: 0.0,
        peak_memory: 0,
        work_lost_s: None,
        predicted_s: (!plain).then_some(window.predicted_s),
        window_s: Some(window.total_s),
        target_met: facts.target.map(|target| target.met),
        throttled_s: Some(facts.brownout.as_ref().map_or(0.0, |b| b.seconds)),
        machine_stall_s: 0.0,
    }
}
