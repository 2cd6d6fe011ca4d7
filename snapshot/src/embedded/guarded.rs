//! A guest of another process, saved so that it is put right whoever is killed.

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::domain::{EmbeddedBatch, EmbeddedDomain, EmbeddedMapper};
use crate::fault;
use crate::guardian::{Journal, Keeper, SaveLock, Stop};
use crate::image::{Preamble, Tail};
use crate::lineage::ImageId;
use crate::page_set::PageSet;
use crate::ports::{BoxError, Cancel, Cpu, Domain, DomainError, Identity, Mapper, Meanwhile};
use crate::units::{CpuPercent, Pfn};

/// What is done when the journal is written, for an error's text.
const NOTE: &str = "note the save of";

/// How a save is guarded.
#[derive(Clone, Debug)]
pub struct Guarding {
    /// The program that is the guardian when it is given these arguments.
    pub program: PathBuf,
    /// The arguments.
    pub arguments: Vec<OsString>,
    /// The name that the unfinished image may have.
    pub partial: Option<PathBuf>,
}

/// An embedded guest to be saved, each step noted before it is done, as it is for a domU.
#[derive(Debug)]
pub struct GuardedDomain {
    domain: EmbeddedDomain,
    keeper: Keeper,
}

impl GuardedDomain {
    /// Takes on the guest, whose lock this process has, with a guardian process from here on.
    ///
    /// # Errors
    /// [`DomainError::Call`]; nothing has been done to the guest.
    pub fn new(
        domain: EmbeddedDomain,
        lock: SaveLock,
        guarding: Guarding,
    ) -> Result<Self, DomainError> {
        let failed = |operation, source| noting_failed(&domain, operation, source);
        let mut keeper = Keeper::new(lock, &domain.identity().uuid)
            .map_err(|error| failed(NOTE, error.into()))?;
        keeper
            .guard(
                guarding.program,
                guarding.arguments,
                guarding.partial,
                String::new(),
            )
            .map_err(|error| failed("start the guardian of", error))?;
        fault::point("guarded");
        Ok(Self { domain, keeper })
    }

    fn note(
        &mut self,
        step: impl FnOnce(&mut Keeper) -> std::io::Result<()>,
    ) -> Result<(), DomainError> {
        step(&mut self.keeper).map_err(|error| noting_failed(&self.domain, NOTE, error.into()))
    }

    fn see_to_guardian(&mut self) -> Result<(), DomainError> {
        self.keeper
            .see_to_guardian()
            .map_err(|error| noting_failed(&self.domain, "replace the dead guardian of", error))?;
        Ok(())
    }
}

fn noting_failed(
    domain: &EmbeddedDomain,
    operation: &'static str,
    source: BoxError,
) -> DomainError {
    DomainError::Call {
        operation,
        domain: domain.identity().name.clone(),
        source,
    }
}

impl Domain for GuardedDomain {
    type Mapper = GuardedMapper;

    fn identity(&self) -> &Identity {
        self.domain.identity()
    }

    fn preamble(&mut self) -> Result<Preamble, DomainError> {
        self.domain.preamble()
    }

    fn memory_map(&mut self) -> Result<Option<PageSet>, DomainError> {
        self.domain.memory_map()
    }

    fn map_holds(&mut self, stray: &PageSet) -> Result<bool, DomainError> {
        self.domain.map_holds(stray)
    }

    fn mapper(&self) -> Result<GuardedMapper, DomainError> {
        Ok(GuardedMapper {
            mapper: self.domain.mapper()?,
            journal: self.keeper.journal(),
        })
    }

    fn log_dirty_on(&mut self) -> Result<(), DomainError> {
        self.see_to_guardian()?;
        self.note(|keeper| keeper.tell_tracking(true))?;
        fault::point("arming");
        let done = self.domain.log_dirty_on();
        match done {
            Ok(()) => fault::point("armed"),
            // Half on is not on: the handle has seen to that.
            Err(_) => _ = self.keeper.tell_tracking(false),
        }
        done
    }

    fn log_dirty_continue(&mut self, since: &ImageId) -> Result<(), DomainError> {
        self.see_to_guardian()?;
        self.note(|keeper| keeper.tell_tracking(true))?;
        let done = self.domain.log_dirty_continue(since);
        if done.is_err() {
            let _ = self.keeper.tell_tracking(false);
        }
        done
    }

    fn log_dirty_holds(&mut self) -> Result<(), DomainError> {
        self.domain.log_dirty_holds()
    }

    fn log_dirty_keep(&mut self, of: &ImageId) -> Result<(), DomainError> {
        self.domain.log_dirty_keep(of)?;
        let _ = self.keeper.tell_tracking(false);
        Ok(())
    }

    fn fetch_dirty(&mut self, into: &mut PageSet, last: bool) -> Result<(), DomainError> {
        self.domain.fetch_dirty(into, last)?;
        fault::point(if last { "fetched" } else { "round" });
        Ok(())
    }

    fn peek_dirty(&mut self, into: &mut PageSet) -> Result<(), DomainError> {
        self.domain.peek_dirty(into)
    }

    fn log_dirty_off(&mut self) -> Result<(), DomainError> {
        self.domain.log_dirty_off()?;
        fault::point("off");
        // Noted or not, to switch it off once more would do no harm.
        let _ = self.keeper.tell_tracking(false);
        Ok(())
    }

    fn cpu(&mut self) -> Result<Cpu, DomainError> {
        self.domain.cpu()
    }

    fn cpu_time(&mut self) -> Result<Duration, DomainError> {
        self.domain.cpu_time()
    }

    // A cap is not noted: whoever puts the guest right puts its own cap back in any case.
    fn throttle(&mut self, limit: CpuPercent) -> Result<(), DomainError> {
        self.see_to_guardian()?;
        self.domain.throttle(limit)?;
        fault::point("throttled");
        Ok(())
    }

    fn lift_own_cap(&mut self) -> Result<bool, DomainError> {
        let lifted = self.domain.lift_own_cap()?;
        fault::point("cap-lifted");
        Ok(lifted)
    }

    fn unthrottle(&mut self) -> Result<(), DomainError> {
        self.domain.unthrottle()?;
        fault::point("unthrottled");
        Ok(())
    }

    fn suspend(
        &mut self,
        timeout: Duration,
        cancel: &Cancel,
        meanwhile: &mut dyn Meanwhile,
    ) -> Result<(), DomainError> {
        self.see_to_guardian()?;
        self.note(|keeper| keeper.tell_stop(Stop::Requested))?;
        fault::point("requesting");
        let done = self.domain.suspend(timeout, cancel, meanwhile);
        fault::point("suspended");
        match done {
            // If noting fails it stays "requested", which is put right as well.
            Ok(()) => _ = self.keeper.tell_stop(Stop::Suspended),
            // The request may still stand; the guardian will see when we have ended.
            Err(DomainError::Call { .. }) => {}
            Err(_) => _ = self.keeper.tell_stop(Stop::No),
        }
        fault::point("in-window");
        done
    }

    fn final_state(&mut self) -> Result<Tail, DomainError> {
        let tail = self.domain.final_state()?;
        fault::point("captured");
        Ok(tail)
    }

    fn resume(&mut self) -> Result<(), DomainError> {
        self.domain.resume()?;
        fault::point("resumed");
        // If noting fails it stays "suspended", and a running guest is left to run.
        let _ = self.keeper.tell_stop(Stop::No);
        Ok(())
    }

    fn announce(&mut self) -> Result<(), DomainError> {
        self.domain.announce()
    }
}

/// Reads batches of pages and shows with each that the save lives.
#[derive(Debug)]
pub struct GuardedMapper {
    mapper: EmbeddedMapper,
    journal: Arc<Journal>,
}

impl Mapper for GuardedMapper {
    type Batch<'a> = EmbeddedBatch<'a>;
    type Kept = <EmbeddedMapper as Mapper>::Kept;

    fn keep(&mut self, pfns: &[Pfn]) -> Result<Option<Self::Kept>, DomainError> {
        self.mapper.keep(pfns)
    }

    fn map<'a>(&'a mut self, pfns: &[Pfn]) -> Result<EmbeddedBatch<'a>, DomainError> {
        self.journal.beat();
        self.mapper.map(pfns)
    }
}
