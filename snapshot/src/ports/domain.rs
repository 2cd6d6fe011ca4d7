//! The guest.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{BoxError, Cancel, Mapper};
use crate::image::{Preamble, Tail};
use crate::lineage::ImageId;
use crate::page_set::PageSet;
use crate::units::CpuPercent;

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
