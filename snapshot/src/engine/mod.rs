//! The pre-copy engine: one save from start to end, as its list of phases.
//!
//! It knows the guest, the image and the disks only as [`crate::ports`]. Whatever fails, the guest
//! runs on, its dirty tracking is off, the disks are as they were and no image has appeared.

mod brownout;
mod capture;
mod error;
mod guard;
mod hot;
mod pass;
mod premap;
mod rounds;
mod sample;
#[cfg(test)]
mod tests;
mod window;

use std::time::{Duration, Instant};

use capture::Capture;
pub use error::SaveError;
use guard::Guard;
use rounds::Rounds;
pub use sample::sample;
use window::Cut;

use crate::forecast::{Circumstances, PastWindow};
use crate::image::Tail;
use crate::image::existing::Ranges;
use crate::image::trailer::Facts;
use crate::lineage::{Base, ImageId};
use crate::page_set::PageSet;
use crate::policy::Limits;
use crate::ports::{Cancel, Disks, Domain, DomainError, Event, Finished, ImageSink, Observer};
use crate::report::{Report, Target, Window};
use crate::units::{Bytes, PageCount};

/// How memory is copied.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// Suspend first, then copy everything.
    Plain,
    /// Copy while the guest runs, suspend for the rest.
    Live,
    /// The same, and slow the guest where it writes too fast for the pause that was asked for.
    Improved,
}

impl Mode {
    /// Its name on the command line and in reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Live => "live",
            Self::Improved => "improved",
        }
    }
}

/// What happens if the pause is foretold to be longer than asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OnMiss {
    /// The guest is saved all the same, and the user warned.
    Proceed,
    /// Nothing is saved, and the guest is not paused.
    Abort,
}

/// How a save is to go.
#[derive(Clone, Debug)]
pub struct Options {
    /// How memory is copied.
    pub mode: Mode,
    /// When to stop copying rounds.
    pub limits: Limits,
    /// How long the guest may take to suspend.
    pub suspend_timeout: Duration,
    /// How much memory captured pages may take; more is written inside the window.
    pub capture_memory: Bytes,
    /// Threads that copy while the guest runs.
    pub threads: usize,
    /// Name of the back-end, for the report.
    pub backend: &'static str,
    /// How long the pause window may be.
    pub max_downtime: Duration,
    /// What happens if it would be longer.
    pub on_miss: OnMiss,
    /// The lowest limit that a guest is throttled to, in percent of all its vCPUs.
    pub min_cap: u32,
    /// The guest is free of its own CPU cap while it freezes and thaws.
    pub lift_own_cap: bool,
    /// The windows of earlier saves, the latest last.
    pub past: Vec<PastWindow>,
    /// What this save is made under, as far as it is known.
    pub now: Circumstances,
    /// Which image it is to be; `None` where that cannot be made at random.
    pub id: Option<ImageId>,
    /// Only what was written since that image is saved; if its writes were not tracked, the sink
    /// compares.
    pub base: Option<Base>,
    /// Dirty tracking stays on afterwards, for an increment on this image; needs an `id`.
    pub keep_tracking: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            mode: Mode::Improved,
            limits: Limits::default(),
            suspend_timeout: Duration::from_secs(60),
            capture_memory: Bytes::from_mib(256),
            threads: 1,
            backend: "",
            max_downtime: Duration::from_millis(300),
            on_miss: OnMiss::Proceed,
            min_cap: 20,
            lift_own_cap: true,
            past: vec![],
            now: Circumstances::default(),
            id: ImageId::random().ok(),
            base: None,
            keep_tracking: false,
        }
    }
}

/// How often a save starts over because the guest's memory was resized.
const MAX_STARTS: u32 = 4;
/// How long it is left alone after it was seen to change.
const RESIZE_PAUSE: Duration = Duration::from_secs(1);

/// One save.
pub struct Save<'a, D: Domain, S: ImageSink> {
    guest: Guard<'a, D>,
    sink: &'a mut S,
    disks: &'a mut dyn Disks,
    observer: &'a mut dyn Observer,
    cancel: &'a Cancel,
    options: Options,
    mappers: Vec<D::Mapper>,
    capture: Capture,
}

/// A phase is done, or the guest's memory was resized under it.
enum Phase<T> {
    Done(T),
    Resized,
}

impl<'a, D: Domain, S: ImageSink> Save<'a, D, S> {
    /// A save of `domain` into `sink`.
    pub fn new(
        domain: &'a mut D,
        sink: &'a mut S,
        disks: &'a mut dyn Disks,
        observer: &'a mut dyn Observer,
        cancel: &'a Cancel,
        mut options: Options,
    ) -> Self {
        options.limits.room = options.capture_memory.whole_pages();
        let capture = Capture::new(options.capture_memory);
        let guest = Guard::new(domain);
        Self {
            guest,
            sink,
            disks,
            observer,
            cancel,
            options,
            mappers: vec![],
            capture,
        }
    }

    /// Runs it.
    ///
    /// # Errors
    /// [`SaveError`]. The guest then runs on with dirty tracking off (unless it is gone), the disk
    /// cut is undone and no image has appeared; what could not be put right was told as
    /// [`Event::Warning`].
    pub fn run(mut self) -> Result<Report, SaveError> {
        let started = Instant::now();
        match self.phases() {
            Ok((facts, finished)) => Ok(Report {
                facts,
                image: self.sink.path().display().to_string(),
                image_bytes: finished.size,
                allocated_bytes: finished.allocated,
                total_s: started.elapsed().as_secs_f64(),
            }),
            Err(error) => {
                for warning in self.guest.put_right() {
                    self.observer.event(&Event::Warning(&warning));
                }
                if let Err(left) = self.disks.undo() {
                    self.observer.event(&Event::Warning(&error::chain(&*left)));
                }
                Err(error)
            }
        }
    }

    fn phases(&mut self) -> Result<(Facts, Finished), SaveError> {
        self.preflight()?;
        for start in 1.. {
            let pages = self.arm()?;
            let Phase::Done(rounds) = self.rounds(&pages)? else {
                self.start_over(start)?;
                continue;
            };
            let Phase::Done(cut) = self.cut(&pages, &rounds)? else {
                self.start_over(start)?;
                continue;
            };
            let facts = self.facts(&pages, rounds, &cut);
            return self.flush(facts, &cut.tail);
        }
        unreachable!("starting over is bounded");
    }

    /// Everything slow that needs no dirty tracking.
    fn preflight(&mut self) -> Result<(), SaveError> {
        for _ in 0..self.options.threads.max(1) {
            self.mappers.push(self.guest.mapper()?);
        }
        self.disks.prepare().map_err(SaveError::disks("prepare"))?;
        Ok(())
    }

    /// Tracks writes from here on, sees which pages there are, and gives each its place.
    fn arm(&mut self) -> Result<PageSet, SaveError> {
        match &self.options.base {
            _ if self.options.mode == Mode::Plain => {}
            Some(base) if base.tracked => {
                let taken = self.guest.log_dirty_continue(&base.parent.id);
                taken.map_err(SaveError::base_lost)?;
            }
            _ => self.guest.log_dirty_on()?,
        }
        let pages = self.guest.settled_map(self.cancel)?;
        if let Some(base) = self.tracked_base()
            && base.pages != Ranges::of(&pages)
        {
            return Err(SaveError::resized_since());
        }
        // After the map: a resize in between would be noticed.
        let mut preamble = self.guest.preamble()?;
        preamble.increment = self.options.base.is_some();
        self.capture.clear();
        let room = self.sink.begin(&preamble, &pages)?;
        if room.free < room.needed {
            self.observer.event(&Event::Warning(&format!(
                "the image may take {} and its file system has {} left (zero pages take nothing)",
                room.needed, room.free
            )));
        }
        let identity = self.guest.identity();
        self.observer.event(&Event::Started {
            identity,
            pages: pages.count(),
        });
        Ok(pages)
    }

    /// The image since whose cut the guest's writes have been tracked.
    fn tracked_base(&self) -> Option<&Base> {
        self.options.base.as_ref().filter(|base| base.tracked)
    }

    /// The pages that the first pass copies.
    fn first_pages(&mut self, pages: &PageSet) -> Result<Phase<PageSet>, SaveError> {
        if self.tracked_base().is_none() {
            return Ok(Phase::Done(pages.clone()));
        }
        let mut written = PageSet::new(pages.span());
        let fetched = self.guest.fetch_dirty(&mut written, false);
        fetched.map_err(SaveError::base_lost)?;
        let holds = self.guest.confine(&mut written, pages)?;
        Ok(if holds {
            Phase::Done(written)
        } else {
            Phase::Resized
        })
    }

    fn start_over(&mut self, starts: u32) -> Result<(), SaveError> {
        if self.tracked_base().is_some() {
            return Err(SaveError::resized_since());
        }
        if starts == MAX_STARTS {
            return Err(SaveError::KeepsResizing);
        }
        self.observer.event(&Event::StartedOver);
        // A balloon on its way takes steps; give it time to arrive.
        std::thread::sleep(RESIZE_PAUSE);
        Ok(())
    }

    fn facts(&self, pages: &PageSet, rounds: Rounds, cut: &Cut) -> Facts {
        let wanted = self.options.max_downtime.as_secs_f64();
        let target = (self.options.mode != Mode::Plain).then_some(Target {
            max_downtime_s: wanted,
            met: cut.window.total_s <= wanted,
        });
        Facts {
            livesave: env!("CARGO_PKG_VERSION").to_owned(),
            backend: self.options.backend.to_owned(),
            domain: self.guest.identity().clone(),
            mode: self.options.mode.name().to_owned(),
            cut: cut.moment.to_string(),
            memory_pages: pages.count(),
            zero_pages: PageCount(0),
            rounds: rounds.done,
            stop: rounds.stop,
            window: cut.window.clone(),
            target,
            brownout: rounds.brownout,
            id: self.options.id.clone(),
            parent: self.options.base.as_ref().map(|base| base.parent.clone()),
            held_pages: None,
            disks: None,
        }
    }

    /// Everything slow that follows the window. The guest runs.
    fn flush(&mut self, mut facts: Facts, tail: &Tail) -> Result<(Facts, Finished), SaveError> {
        self.observer.event(&Event::Resumed {
            window: &facts.window,
        });
        let keeps = self
            .options
            .id
            .clone()
            .filter(|_| self.options.keep_tracking);
        if keeps.is_some() {
            self.guest.log_dirty_holds()?;
        } else if let Err(error) = self.guest.log_dirty_off() {
            // Another tool took part of the dirty pages.
            if matches!(error, DomainError::Unsupported(_)) {
                return Err(error.into());
            }
            self.observer.event(&Event::Warning(&error::chain(&error)));
        }
        self.disks.commit().map_err(SaveError::disks("keep"))?;
        self.observer.event(&Event::Flushing {
            pages: self.capture.count(),
        });
        self.capture.write_to(&*self.sink, self.cancel)?;
        let (disks, observer) = (&mut *self.disks, &mut *self.observer);
        let kept = disks.keep(&mut |vdev, done, total| {
            observer.event(&Event::CopyingDisk { vdev, done, total });
        });
        facts.disks = kept.map_err(SaveError::disks("keep"))?;
        facts.zero_pages = self.sink.zero_pages();
        facts.held_pages = facts.parent.is_some().then(|| self.sink.held_pages());
        let finished = self.sink.finish(tail, &facts)?;
        // The last moment to stop: the fsync may have taken long.
        SaveError::if_raised(self.cancel)?;
        self.sink.commit()?;
        // The image stands.
        if let Err(error) = self.disks.settle() {
            self.observer.event(&Event::Warning(&error::chain(&*error)));
        }
        if let Some(id) = keeps {
            self.keep_tracking(&id);
        }
        Ok((facts, finished))
    }

    /// The image stands: if it cannot be built on, the next one is a full one.
    fn keep_tracking(&mut self, id: &ImageId) {
        let Err(error) = self.guest.log_dirty_keep(id) else {
            return;
        };
        self.observer.event(&Event::Warning(&format!(
            "the next image of this guest will be a full one: {}",
            error::chain(&error)
        )));
        if let Err(error) = self.guest.log_dirty_off() {
            self.observer.event(&Event::Warning(&error::chain(&error)));
        }
    }
}
