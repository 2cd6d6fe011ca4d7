//! The pause window: the guest is suspended, what is left is captured, the guest runs on.
//!
//! Nothing slow happens here: no file is written (unless the capture budget is used up), nothing
//! is made durable, no process is started, dirty tracking is not switched.

use std::time::{Duration, Instant};

use jiff::Timestamp;

use super::capture::Capture;
use super::guard::Guard;
use super::premap::Premap;
use super::{Mode, Phase, Rounds, Save, SaveError, Tail, Window};
use crate::page_set::PageSet;
use crate::ports::{
    BATCH_PAGES, Cancel, Disks, Domain, Event, ImageSink, MappedPages, Mapper, Observer,
};
use crate::units::PageCount;

/// The instant that an image shows.
type Moment = Timestamp;

/// What the pause window took from the guest.
pub(super) struct Cut {
    pub window: Window,
    pub tail: Tail,
    pub moment: Moment,
}

/// Cuts a stretch of time into laps, seconds each.
struct Laps {
    began: Instant,
    last: Instant,
}

impl Laps {
    fn start() -> Self {
        let now = Instant::now();
        Self {
            began: now,
            last: now,
        }
    }

    fn lap(&mut self) -> f64 {
        let now = Instant::now();
        let lap = now.duration_since(self.last).as_secs_f64();
        self.last = now;
        lap
    }

    fn total(&self) -> f64 {
        self.last.duration_since(self.began).as_secs_f64()
    }
}

impl<D: Domain, S: ImageSink> Save<'_, D, S> {
    /// Suspends the guest, captures the pages left by the rounds and what was dirtied since, the
    /// state and the disks, and lets the guest run on. It is free of its own CPU cap meanwhile: at a
    /// small one it would stand still for seconds, waiting for the few turns in which it freezes
    /// and thaws.
    pub(super) fn cut(
        &mut self,
        pages: &PageSet,
        rounds: &Rounds,
    ) -> Result<Phase<Cut>, SaveError> {
        let mut left = rounds.left.clone();
        let Some(mapper) = self.mappers.first_mut() else {
            unreachable!("preflight makes a mapper");
        };
        let room = if self.options.mode == Mode::Plain {
            PageCount(0)
        } else {
            self.options.capture_memory.whole_pages()
        };
        let mut premap = Premap::new(mapper, &left, rounds.extra, rounds.suspend_s, room);
        self.sink.settle()?;
        self.observer.event(&Event::Suspending);

        let mut window = Window {
            predicted_s: rounds.window_s,
            left_pages: left.count(),
            dirty_rate: rounds.dirty_rate,
            ..Window::default()
        };
        // Before the cap is lifted: it may have to wait for others.
        self.guest.make_ready()?;
        let since = Instant::now();
        let uncap = self.options.lift_own_cap && self.options.mode != Mode::Plain;
        let uncapped = uncap && uncap_or_warn(&mut self.guest, &mut *self.observer)?;
        let mut laps = Laps::start();
        self.guest
            .suspend(self.options.suspend_timeout, self.cancel, &mut premap)?;
        window.suspend_s = laps.lap();
        let moment = Timestamp::now();
        // Whatever comes of it, the guest runs on before anything else is done about it.
        let mut scene = Scene {
            guest: &mut self.guest,
            sink: &*self.sink,
            disks: &mut *self.disks,
            cancel: self.cancel,
            capture: &mut self.capture,
            threads: self.options.threads,
            hold: self.options.mode != Mode::Plain,
            window: &mut window,
            laps: &mut laps,
        };
        let captured = scene.capture(pages, &mut left, &mut premap);
        laps.lap();
        if let Err(error) = self.guest.resume() {
            // It is tried again, and the guest is not to find its disks held then.
            let_go(&mut *self.disks, &mut *self.observer);
            return Err(error.into());
        }
        window.resume_s = laps.lap();
        window.total_s = laps.total();
        window.suspended_s = window.total_s - window.suspend_s;
        // Before anything that may wait for others: the guest's I/O waits for this.
        if matches!(captured, Ok(Phase::Done(_))) {
            self.disks.resumed();
        } else {
            let_go(&mut *self.disks, &mut *self.observer);
        }
        // The pages mapped for it, too, go after the resume only.
        drop(premap);
        self.guest.announce()?;
        let thaws = Instant::now();
        if uncapped {
            std::thread::sleep(thawing(window.suspend_s, UNCAPPED));
            self.guest.unthrottle()?;
            window.uncapped_s = since.elapsed().as_secs_f64();
        }
        // Its devices come back by the emulator's work, with which ours would compete for dom0's CPUs.
        if window.emulator_s > 0.0 && captured.is_ok() {
            std::thread::sleep(thawing(window.suspend_s, WAITED).saturating_sub(thaws.elapsed()));
        }

        Ok(match captured? {
            Phase::Done(tail) => Phase::Done(Cut {
                window,
                tail,
                moment,
            }),
            Phase::Resized => Phase::Resized,
        })
    }
}

/// The disks of a cut that is not used.
fn let_go(disks: &mut dyn Disks, observer: &mut dyn Observer) {
    if let Err(error) = disks.let_go() {
        observer.event(&Event::Warning(&super::error::chain(&*error)));
    }
}

/// Frees the guest of its own cap, if it has one. That it cannot be freed is no reason to save nothing.
fn uncap_or_warn<D: Domain>(
    guest: &mut Guard<'_, D>,
    observer: &mut dyn Observer,
) -> Result<bool, SaveError> {
    let error = match guest.lift_own_cap() {
        Ok(lifted) => return Ok(lifted),
        Err(error) => super::error::chain(&error),
    };
    observer.event(&Event::Warning(&format!(
        "the guest keeps its own CPU cap in its pause, which may be long by it: {error}"
    )));
    guest.unthrottle()?;
    Ok(false)
}

/// A guest's own cap is not to be lifted for longer after the resume.
const UNCAPPED: Duration = Duration::from_millis(250);
/// What was captured does not wait for longer to be written.
const WAITED: Duration = Duration::from_secs(1);

/// How long a guest thaws that took so many seconds to freeze, up to `most`. It thaws about as long: the
/// same tasks and devices, in turn. Nothing tells when it has.
fn thawing(froze_s: f64, most: Duration) -> Duration {
    let froze = Duration::try_from_secs_f64(froze_s).unwrap_or(most);
    froze.clamp(Duration::from_millis(20), most)
}

/// All that is at hand while the guest stands still.
struct Scene<'s, 'd, D: Domain, S: ImageSink> {
    guest: &'s mut Guard<'d, D>,
    sink: &'s S,
    disks: &'s mut dyn Disks,
    cancel: &'s Cancel,
    capture: &'s mut Capture,
    threads: usize,
    /// Pages are held in memory; a plain save writes them straight on.
    hold: bool,
    window: &'s mut Window,
    laps: &'s mut Laps,
}

impl<D: Domain, S: ImageSink> Scene<'_, '_, D, S> {
    fn capture(
        &mut self,
        pages: &PageSet,
        left: &mut PageSet,
        premap: &mut Premap<'_, D::Mapper>,
    ) -> Result<Phase<Tail>, SaveError> {
        // Before anything is looked at: what it has under way ends in the guest's memory and disks.
        if self.guest.quiesce()? {
            self.window.emulator_s = self.laps.lap();
        }
        if self.hold {
            // Beside all that follows.
            self.disks.begin_cut();
            self.guest.fetch_dirty(left, true)?;
        }
        // With all that is kept still mapped, which has the guest's number of pages tell of frames
        // that are no longer its pages (see `premap`). Nor does it do to map those anew: up to Xen
        // 4.18 writes to a page that has come back are not tracked.
        if !self.guest.confine(left, pages)? || premap.was_resized() {
            return Ok(Phase::Resized);
        }
        self.window.dirty_fetch_s = self.laps.lap();
        self.window.pages = left.count();
        if self.hold {
            premap.complete(left)?;
            premap.copy_out(left, self.capture, self.threads);
        }
        self.write_rest(left, premap.mapper())?;
        self.window.captured_bytes = self.capture.count().bytes();
        self.window.copy_s = self.laps.lap();
        if !self.hold {
            // All of the memory was written meanwhile: they are not held for so long.
            self.disks.begin_cut();
        }
        let tail = self.guest.final_state()?;
        self.window.state_s = self.laps.lap();
        self.disks.cut().map_err(SaveError::disks("hold"))?;
        self.window.disks_s = self.laps.lap();
        Ok(Phase::Done(tail))
    }

    /// Pages that are not mapped yet, or for which there is no room: captured as far as there is,
    /// the rest written to the image.
    fn write_rest(&mut self, left: &PageSet, mapper: &mut D::Mapper) -> Result<(), SaveError> {
        let mut todo = left.iter();
        let mut pfns = Vec::with_capacity(BATCH_PAGES);
        loop {
            pfns.clear();
            pfns.extend(todo.by_ref().take(BATCH_PAGES));
            if pfns.is_empty() {
                return Ok(());
            }
            SaveError::if_raised(self.cancel)?;
            let batch = mapper.map(&pfns)?;
            let mut overflow = vec![];
            for (index, &pfn) in pfns.iter().enumerate() {
                let page = batch.page(index).ok_or(SaveError::PageLost(pfn))?;
                if !self.hold || !self.capture.take(pfn, page) {
                    overflow.push((pfn, page));
                }
            }
            if !overflow.is_empty() {
                self.window.written_in_window_bytes += self.sink.write_suspended(&overflow)?.bytes;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_thaws_as_long_as_it_froze_within_bounds() {
        for (froze_s, most, want_ms) in [
            (0.0, WAITED, 20),
            (0.4, WAITED, 400),
            (0.4, UNCAPPED, 250),
            (9.0, WAITED, 1000),
            (f64::NAN, WAITED, 1000),
        ] {
            let want = Duration::from_millis(want_ms);
            assert_eq!(thawing(froze_s, most), want, "{froze_s}");
        }
    }
}
