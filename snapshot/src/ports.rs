//! What the engine needs from the world, as small traits on the consumer's side.
//!
//! [`Domain`] and [`Mapper`] are the guest, [`ImageSink`] is the image, [`Disks`] cuts the disks,
//! [`Observer`] hears how it goes, [`Cancel`] asks to stop. Back-ends implement them; the engine
//! knows nothing else.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::disks::DiskFacts;
use crate::image::trailer::Facts;
use crate::image::{Preamble, Tail};
use crate::lineage::ImageId;
use crate::page::GuestPage;
use crate::page_set::PageSet;
use crate::policy::Decision;
use crate::report::{Round, Window};
use crate::units::{Bytes, CpuPercent, PageCount, Pfn};

/// An error of a back-end, boxed so that the engine stays free of back-end types.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Who the guest is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The domain's number.
    pub domid: u32,
    /// Its name.
    pub name: String,
    /// Its UUID in the usual text form.
    pub uuid: String,
}

/// What kind of guest the toolstack started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum GuestKind {
    /// Hardware virtualised without an emulator.
    Pvh,
    /// Hardware virtualised with an emulator.
    Hvm,
    /// Paravirtualised.
    Pv,
}

/// Why a call on the guest failed, as far as the engine and the exit code care.
#[derive(Debug, thiserror::Error)]
pub enum DomainError {
    /// The guest is no more: destroyed, crashed or shut down in mid-save. The text is its name
    /// and what became of it ("db1 was destroyed").
    #[error("Domain {0} during the save")]
    Gone(String),
    /// The guest did not answer, or answered and did not suspend, within the time allowed. The
    /// request has been taken back and the guest runs.
    #[error("{0}")]
    NotSuspended(String),
    /// The user asked to stop while the guest was waited for; the request has been taken back.
    #[error("Interrupted by signal {0}")]
    Interrupted(i32),
    /// This guest cannot be saved (so): the text says why and what to do.
    #[error("{0}")]
    Unsupported(String),
    /// A call failed.
    #[error("Failed to {operation} domain {domain}")]
    Call {
        /// What was being done, to stand after "failed to".
        operation: &'static str,
        /// The domain's name or number.
        domain: String,
        /// Why.
        #[source]
        source: BoxError,
    },
}

/// How a guest's use of the CPU can be limited, and how it is before livesave does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cpu {
    /// Its vCPUs.
    pub vcpus: u32,
    /// The limit that its administrator has set; `None` is no limit.
    pub own: Option<CpuPercent>,
    /// How it would be throttled: `credit cap`, `credit2 cap`, `pauses`.
    pub means: &'static str,
}

/// The guest.
///
/// The engine calls in this order: `log_dirty_on`, `memory_map`, `preamble`, then any number of passes
/// (through [`Mapper`]s) and `fetch_dirty`, some of them between `throttle` and `unthrottle`, then
/// `make_ready`, `lift_own_cap`, `suspend`, `quiesce`, the last `fetch_dirty`, `final_state`, `resume`, `announce`, `log_dirty_off`. On any error
/// it calls `resume` and `announce` if `suspend` had returned `Ok`, `unthrottle` if `throttle` or `lift_own_cap` had been called, and
/// `log_dirty_off` if `log_dirty_on` had returned `Ok`. For increments `log_dirty_continue` may stand for
/// `log_dirty_on`, and `log_dirty_keep` for `log_dirty_off`.
pub trait Domain {
    /// Maps pages for one thread of the copier.
    type Mapper: Mapper + Send;

    /// Who it is.
    fn identity(&self) -> &Identity;

    /// What stands in the image before the memory, fitting the last `memory_map`. May take a
    /// while: the guest runs.
    ///
    /// # Errors
    /// [`DomainError`].
    fn preamble(&mut self) -> Result<Preamble, DomainError>;

    /// Which pages exist now; `None` if that changed while it was looked at, to be asked again a
    /// little later. May be called again when [`Domain::map_holds`] said no.
    ///
    /// # Errors
    /// [`DomainError`].
    fn memory_map(&mut self) -> Result<Option<PageSet>, DomainError>;

    /// Whether the pages that exist are still those of the last `memory_map`. `stray` holds dirty
    /// pages outside that map (empty where there are none). Cheap: called after every round and
    /// once in the pause window.
    ///
    /// # Errors
    /// [`DomainError`].
    fn map_holds(&mut self, stray: &PageSet) -> Result<bool, DomainError>;

    /// A new mapper. The engine makes all it needs before the first pass.
    ///
    /// # Errors
    /// [`DomainError`].
    fn mapper(&self) -> Result<Self::Mapper, DomainError>;

    /// Starts dirty tracking. From its return on every write to guest memory is seen by
    /// `fetch_dirty`. Refuses, changing nothing, where somebody else has it on.
    ///
    /// # Errors
    /// [`DomainError`]; tracking is off then.
    fn log_dirty_on(&mut self) -> Result<(), DomainError>;

    /// Takes over the dirty tracking that [`Domain::log_dirty_keep`] left on for the image `since`:
    /// the next fetch shows every page written since that image's cut (and perhaps more). Nobody
    /// else can take it over from then on.
    ///
    /// # Errors
    /// [`DomainError`]; `Unsupported` if there is any doubt, and then nothing is ours to end.
    fn log_dirty_continue(&mut self, since: &ImageId) -> Result<(), DomainError>;

    /// Whether all that was written since tracking began has come to us, or will. Right after the
    /// resume of a save whose tracking is to stay on: who fetches from then on is found out by
    /// [`Domain::log_dirty_keep`].
    ///
    /// # Errors
    /// [`DomainError`]; `Unsupported` if somebody else may have fetched dirty pages meanwhile, so
    /// that the image must be given up.
    fn log_dirty_holds(&mut self) -> Result<(), DomainError>;

    /// Leaves dirty tracking on for the next increment: what was written since the cut of the
    /// image `of`, which is complete and has its name, is in the next fetch. The guest runs.
    ///
    /// # Errors
    /// [`DomainError`]; tracking is on and still to be ended.
    fn log_dirty_keep(&mut self, of: &ImageId) -> Result<(), DomainError>;

    /// Adds to `into` all pages written since tracking began or since the last fetch, and forgets
    /// them. A page written while this runs is in this fetch or in the next. `last` says that the
    /// guest is suspended and that no fetch need follow: then they need not be forgotten.
    ///
    /// # Errors
    /// [`DomainError`], also when tracking has been switched off by somebody else meanwhile; some
    /// dirty bits may then be lost, so that the image must be given up.
    fn fetch_dirty(&mut self, into: &mut PageSet, last: bool) -> Result<(), DomainError>;

    /// Adds to `into` the pages written since tracking began or since the last fetch, and forgets
    /// nothing. For choosing what to copy later; what it says decides nothing that must be right.
    ///
    /// # Errors
    /// [`DomainError`].
    fn peek_dirty(&mut self, into: &mut PageSet) -> Result<(), DomainError>;

    /// Ends dirty tracking. Called once per successful `log_dirty_on`, the guest running.
    ///
    /// # Errors
    /// [`DomainError`]; `Unsupported` if somebody else may have fetched dirty pages meanwhile, so
    /// that the image must be given up; tracking is then theirs, and no longer ours to end.
    fn log_dirty_off(&mut self) -> Result<(), DomainError>;

    /// How its use of the CPU can be limited, and how it is; not called while throttled.
    ///
    /// # Errors
    /// [`DomainError`].
    fn cpu(&mut self) -> Result<Cpu, DomainError>;

    /// CPU time that it has used so far, all vCPUs together. Cheap.
    ///
    /// # Errors
    /// [`DomainError`].
    fn cpu_time(&mut self) -> Result<Duration, DomainError>;

    /// Limits it to so much CPU at most, which is less than its own limit. May be called again
    /// with another limit.
    ///
    /// # Errors
    /// [`DomainError`]; `unthrottle` is called all the same.
    fn throttle(&mut self, limit: CpuPercent) -> Result<(), DomainError>;

    /// Takes its own limit away for the pause, so that it is not made to wait for its turn while it
    /// freezes and thaws; says whether it had one. Not called while throttled. A `suspend` that is
    /// given up may put it back.
    ///
    /// # Errors
    /// [`DomainError`]; `unthrottle` is called all the same.
    fn lift_own_cap(&mut self) -> Result<bool, DomainError>;

    /// Puts its own limit back, unless somebody else has changed it meanwhile. Nothing to do if it
    /// is neither throttled nor free of its limit.
    ///
    /// # Errors
    /// [`DomainError`]; may be called again.
    fn unthrottle(&mut self) -> Result<(), DomainError>;

    /// Does what can be done ahead of a `suspend`, which follows at once, with `lift_own_cap` between
    /// them at most. The guest runs.
    ///
    /// # Errors
    /// [`DomainError`]; nothing is held up then, nor is it when `suspend` fails.
    fn make_ready(&mut self) -> Result<(), DomainError> {
        Ok(())
    }

    /// Asks the guest to suspend and waits until it has: at most `timeout`, and no longer than
    /// `cancel` stays quiet. On `Ok` nothing writes to guest memory any more until `resume`. Where
    /// the wait is long enough for it, `meanwhile` is called; it hears of it if the guest was seen
    /// with another number of pages than at its memory map.
    ///
    /// # Errors
    /// [`DomainError`]; the request has been taken back and the guest runs (or is gone).
    fn suspend(
        &mut self,
        timeout: Duration,
        cancel: &Cancel,
        meanwhile: &mut dyn Meanwhile,
    ) -> Result<(), DomainError>;

    /// Stops whatever else writes to the suspended guest's memory (an emulator of its devices), and
    /// takes its state; whether there is any. Called right after `suspend`: nothing is written from
    /// its return on until `resume`.
    ///
    /// # Errors
    /// [`DomainError`]; `resume` puts it right.
    fn quiesce(&mut self) -> Result<bool, DomainError> {
        Ok(false)
    }

    /// What stands in the image after the memory: vCPU and device state at the cut. Called while
    /// suspended, before `resume`.
    ///
    /// # Errors
    /// [`DomainError`].
    fn final_state(&mut self) -> Result<Tail, DomainError>;

    /// Lets the suspended guest run on where it stands. Nothing slow: the pause window ends here.
    ///
    /// # Errors
    /// [`DomainError`]: the guest stands still; may be called again. What else goes wrong (an
    /// emulator that does not run on) is told by `announce`.
    fn resume(&mut self) -> Result<(), DomainError>;

    /// Tells the host's other tools that the guest runs on. Called after `resume`; may take as long
    /// as they do.
    ///
    /// # Errors
    /// Also of `resume`, if the guest runs but something beside it does not.
    /// [`DomainError`]; may be called again.
    fn announce(&mut self) -> Result<(), DomainError>;
}

/// What is made ready while a guest that was asked to suspend is on its way.
pub trait Meanwhile {
    /// How long it is expected to take; zero if nothing is known.
    fn expected(&self) -> Duration;

    /// A moment to do something short in, so long after the request. Whether the dirty set is
    /// wanted.
    fn moment(&mut self, since: Duration) -> bool;

    /// Whether there is something to do in the next moment already.
    fn is_busy(&self) -> bool {
        false
    }

    /// The pages that are dirty by now (or a part of them).
    fn dirty(&mut self, pages: &PageSet);

    /// The guest had another number of pages on its way than when its pages were looked at; it may
    /// have the old one again by now.
    fn resized(&mut self) {}
}

/// Makes nothing ready.
#[derive(Clone, Copy, Debug, Default)]
pub struct Idle;

impl Meanwhile for Idle {
    fn expected(&self) -> Duration {
        Duration::ZERO
    }
    fn moment(&mut self, _: Duration) -> bool {
        false
    }
    fn dirty(&mut self, _: &PageSet) {}
}

/// Maps guest memory for reading; one per copier thread.
pub trait Mapper {
    /// A mapped batch; unmapped when dropped.
    type Batch<'a>: MappedPages
    where
        Self: 'a;
    /// A batch that stays mapped beside others.
    type Kept: MappedPages;

    /// Maps up to [`BATCH_PAGES`] pages, ascending, for reading.
    ///
    /// # Errors
    /// [`DomainError`] if the batch as a whole cannot be mapped. A single page that cannot is
    /// `None` in the batch.
    fn map<'a>(&'a mut self, pfns: &[Pfn]) -> Result<Self::Batch<'a>, DomainError>;

    /// The same, to be kept beside others; `None` where that gains nothing. It shows what the page
    /// holds now for as long as the guest does not give the page back: whatever is that page after
    /// that is another frame. (The old one stays the guest's and counts as its, so that nobody
    /// else's memory is ever shown.)
    ///
    /// # Errors
    /// [`DomainError`] if the batch as a whole cannot be mapped.
    fn keep(&mut self, pfns: &[Pfn]) -> Result<Option<Self::Kept>, DomainError>;
}

/// How many pages the engine maps at a time, at most.
pub const BATCH_PAGES: usize = 1024;

impl MappedPages for std::convert::Infallible {
    fn page(&self, _: usize) -> Option<GuestPage<'_>> {
        match *self {}
    }
}

/// A batch of mapped pages.
pub trait MappedPages {
    /// The page mapped for the `index`-th pfn of the request; `None` if it cannot be mapped now
    /// (ballooned out, in transit).
    fn page(&self, index: usize) -> Option<GuestPage<'_>>;
}

/// How a pass over pages went into the image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Written {
    /// Pages taken.
    pub pages: PageCount,
    /// Those of them that are all zero.
    pub zero_pages: PageCount,
    /// Bytes of data in them, before compression.
    pub bytes: Bytes,
}

impl Written {
    /// Adds another pass's share.
    pub fn add(&mut self, more: Self) {
        self.pages += more.pages;
        self.zero_pages += more.zero_pages;
        self.bytes += more.bytes;
    }
}

/// The room that an image may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// If every page held data; of an increment what is needed in any case.
    pub needed: Bytes,
    /// What the file system has left.
    pub free: Bytes,
}

/// What became of a finished image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finished {
    /// Its size.
    pub size: Bytes,
    /// What the file system allocated for it.
    pub allocated: Bytes,
}

/// Where the image goes. Nothing is seen under the final name before `commit`, and nothing is
/// left when it is dropped instead.
pub trait ImageSink: Sync {
    /// Starts the image: the records before the memory, and a place for every page of `pages`.
    /// Called again, it starts over. Says how much room it may take. All pages are written then, or
    /// for an increment (the preamble says so) those that the guest wrote since its parent's cut.
    ///
    /// # Errors
    /// [`SinkError`].
    fn begin(&mut self, preamble: &Preamble, pages: &PageSet) -> Result<Room, SinkError>;

    /// Takes pages, newest copy wins; the pfns ascend and are members of the set given to
    /// `begin`. Called from several threads at once, never for the same page.
    ///
    /// # Errors
    /// [`SinkError`]; the image must be given up.
    fn write(&self, pages: &[(Pfn, GuestPage<'_>)]) -> Result<Written, SinkError>;

    /// The guest is about to be suspended: what was taken is out of memory when this returns.
    ///
    /// # Errors
    /// [`SinkError`]; the image must be given up.
    fn settle(&self) -> Result<(), SinkError> {
        Ok(())
    }

    /// As `write`, but the guest stands still meanwhile, so that nothing is done that can be done
    /// later. By one thread, after `settle`.
    ///
    /// # Errors
    /// [`SinkError`]; the image must be given up.
    fn write_suspended(&self, pages: &[(Pfn, GuestPage<'_>)]) -> Result<Written, SinkError> {
        self.write(pages)
    }

    /// Ends the image with the final state and livesave's own facts and makes it durable. May take
    /// long; it has no name yet.
    ///
    /// # Errors
    /// [`SinkError`].
    fn finish(&mut self, tail: &Tail, facts: &Facts) -> Result<Finished, SinkError>;

    /// Gives the finished image its name.
    ///
    /// # Errors
    /// [`SinkError`]; what stood under the name before still does.
    fn commit(&mut self) -> Result<(), SinkError>;

    /// How many pages are all zero in what has been written so far.
    fn zero_pages(&self) -> PageCount;

    /// How many pages the image holds: all, or those that an increment was given so far.
    fn held_pages(&self) -> PageCount;

    /// The image's final path, for messages and the report.
    fn path(&self) -> &Path;
}

/// The image could not be written.
#[derive(Debug, thiserror::Error)]
#[error("Failed to {operation} image {path}")]
pub struct SinkError {
    /// What was being done, to stand after "failed to".
    pub operation: &'static str,
    /// The image's final path.
    pub path: String,
    /// Why.
    #[source]
    pub source: std::io::Error,
}

/// The guest's disks, cut at the same instant as its memory.
///
/// Order: `prepare`, then in the pause window `begin_cut` and `cut`, then `resumed`, `commit`, `keep`,
/// and once the image has its name `settle`. A cut that is not used ends by `let_go`, and another may
/// follow. On any error after `prepare` has been called `undo`, instead of what is left.
///
/// From `begin_cut` until `commit` has returned the guest's I/O may wait. That ends by itself within
/// a limit of the implementation's, whatever the caller does.
pub trait Disks {
    /// Checks that the cut will be possible and does all that can be done before. The guest runs.
    ///
    /// # Errors
    /// Any; `undo` follows.
    fn prepare(&mut self) -> Result<(), BoxError>;

    /// Begins to fix the disks' content, beside whatever the caller does next. The guest is
    /// suspended: returns at once.
    fn begin_cut(&mut self);

    /// The disks' content is fixed when this returns. The guest is suspended: milliseconds only, no
    /// process started.
    ///
    /// # Errors
    /// Any; `let_go` follows after the resume.
    fn cut(&mut self) -> Result<(), BoxError>;

    /// Begins to make the cut lasting. The guest runs again: returns at once.
    fn resumed(&mut self);

    /// The cut is not used: nothing is held any longer. Milliseconds.
    ///
    /// # Errors
    /// Any; what may still be held ends by itself.
    fn let_go(&mut self) -> Result<(), BoxError>;

    /// Waits until the cut is lasting and the guest's I/O waits no more.
    ///
    /// # Errors
    /// Any; nothing is held, `undo` follows.
    fn commit(&mut self) -> Result<(), BoxError>;

    /// Brings the disks' content to where it is kept, which may take as long as the disks are large,
    /// and says how it is kept; `None` where the disks are left out. `progress` is told how much of
    /// which disk has been done.
    ///
    /// # Errors
    /// Any; `undo` follows.
    fn keep(
        &mut self,
        progress: &mut dyn FnMut(&str, Bytes, Bytes),
    ) -> Result<Option<DiskFacts>, BoxError>;

    /// The image has its name: from here on what was kept is the image's.
    ///
    /// # Errors
    /// Any; the image stands for all that.
    fn settle(&mut self) -> Result<(), BoxError>;

    /// Takes back whatever was done; may be called at any point and more than once.
    ///
    /// # Errors
    /// Any; something that was made is left, and nothing is held.
    fn undo(&mut self) -> Result<(), BoxError>;
}

/// Leaves the disks out of the image.
#[derive(Clone, Copy, Debug, Default)]
pub struct MemoryOnly;

impl Disks for MemoryOnly {
    fn prepare(&mut self) -> Result<(), BoxError> {
        Ok(())
    }
    fn begin_cut(&mut self) {}
    fn cut(&mut self) -> Result<(), BoxError> {
        Ok(())
    }
    fn resumed(&mut self) {}
    fn let_go(&mut self) -> Result<(), BoxError> {
        Ok(())
    }
    fn commit(&mut self) -> Result<(), BoxError> {
        Ok(())
    }
    fn keep(
        &mut self,
        _: &mut dyn FnMut(&str, Bytes, Bytes),
    ) -> Result<Option<DiskFacts>, BoxError> {
        Ok(None)
    }
    fn settle(&mut self) -> Result<(), BoxError> {
        Ok(())
    }
    fn undo(&mut self) -> Result<(), BoxError> {
        Ok(())
    }
}

/// What happens during a save, in order.
#[derive(Debug)]
pub enum Event<'a> {
    /// The guest was looked at; the save begins.
    Started {
        /// Who is saved.
        identity: &'a Identity,
        /// How many pages it has.
        pages: PageCount,
    },
    /// A pass begins.
    RoundStarted {
        /// Its number, from 0.
        round: u32,
        /// Pages to copy in it.
        pages: PageCount,
    },
    /// A pass goes on.
    Progress {
        /// Pages copied in it so far.
        pages: PageCount,
    },
    /// A pass ended.
    RoundEnded {
        /// How it went.
        round: &'a Round,
        /// What follows.
        decision: Decision,
    },
    /// The guest's memory was resized; the save starts over.
    StartedOver,
    /// The guest is asked to suspend.
    Suspending,
    /// The guest runs again.
    Resumed {
        /// How the pause window went.
        window: &'a Window,
    },
    /// What was captured is being written, and the image made durable.
    Flushing {
        /// Pages still to write.
        pages: PageCount,
    },
    /// A disk's content is being copied.
    CopyingDisk {
        /// Its name in the guest.
        vdev: &'a str,
        /// So much has been.
        done: Bytes,
        /// Of so much.
        total: Bytes,
    },
    /// Something went wrong that does not fail the save, or that happened while a failed save was
    /// put right. To be told to the user.
    Warning(&'a str),
}

/// Hears how a save goes. Never called inside the pause window: a terminal that takes no more
/// output would hold the guest suspended.
pub trait Observer {
    /// Something happened.
    fn event(&mut self, event: &Event<'_>);
}

/// Hears nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Observer for Silent {
    fn event(&mut self, _: &Event<'_>) {}
}

/// A request to stop, raised by a signal handler and looked at everywhere the save may wait.
#[derive(Clone, Debug, Default)]
pub struct Cancel(Arc<AtomicUsize>);

impl Cancel {
    /// A request not raised yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Asks to stop because of a signal.
    pub fn raise(&self, signal: i32) {
        self.0
            .store(signal.unsigned_abs() as usize, Ordering::SeqCst);
    }

    /// The word itself, for a signal handler to store the signal's number in.
    #[must_use]
    pub fn flag(&self) -> Arc<AtomicUsize> {
        self.0.clone()
    }

    /// The signal that asked to stop, if one did.
    #[must_use]
    pub fn raised(&self) -> Option<i32> {
        match self.0.load(Ordering::SeqCst) {
            0 => None,
            signal => Some(signal as i32),
        }
    }
}
