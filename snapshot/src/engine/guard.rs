//! Holds the guest and remembers what was done to it, so that it can be put right.

use std::ops::{Deref, DerefMut};
use std::time::{Duration, Instant};

use super::error::{SaveError, chain};
use crate::lineage::ImageId;
use crate::page_set::PageSet;
use crate::ports::{Cancel, Domain, DomainError, Meanwhile};
use crate::units::CpuPercent;

/// How long a guest's memory may take to be resized, and how often it is looked at meanwhile.
const RESIZE_LIMIT: Duration = Duration::from_secs(60);
const RESIZE_LOOK: Duration = Duration::from_millis(100);

/// The guest, and what of it must be put right if the save ends here.
pub(super) struct Guard<'a, D: Domain> {
    domain: &'a mut D,
    suspended: bool,
    /// It was resumed, and nobody has been told.
    unannounced: bool,
    throttled: bool,
    log_dirty: bool,
    /// Scratch space: none is taken in the pause window.
    stray: Option<PageSet>,
}

impl<'a, D: Domain> Guard<'a, D> {
    pub fn new(domain: &'a mut D) -> Self {
        Self {
            domain,
            suspended: false,
            unannounced: false,
            throttled: false,
            log_dirty: false,
            stray: None,
        }
    }

    /// Starts dirty tracking unless it has been started.
    pub fn log_dirty_on(&mut self) -> Result<(), DomainError> {
        if !self.log_dirty {
            self.domain.log_dirty_on()?;
            self.log_dirty = true;
        }
        Ok(())
    }

    /// Takes over the tracking that an earlier save left on.
    pub fn log_dirty_continue(&mut self, since: &ImageId) -> Result<(), DomainError> {
        if !self.log_dirty {
            self.domain.log_dirty_continue(since)?;
            self.log_dirty = true;
        }
        Ok(())
    }

    /// Leaves tracking on for the next save.
    pub fn log_dirty_keep(&mut self, of: &ImageId) -> Result<(), DomainError> {
        self.domain.log_dirty_keep(of)?;
        self.log_dirty = false;
        Ok(())
    }

    pub fn log_dirty_off(&mut self) -> Result<(), DomainError> {
        if self.log_dirty {
            self.domain.log_dirty_off()?;
            self.log_dirty = false;
        }
        Ok(())
    }

    /// Limits its use of the CPU.
    pub fn throttle(&mut self, limit: CpuPercent) -> Result<(), DomainError> {
        self.throttled = true;
        self.domain.throttle(limit)
    }

    /// Takes its own limit away; says whether it had one.
    pub fn lift_own_cap(&mut self) -> Result<bool, DomainError> {
        // Before: it may have been done when it fails.
        let throttled = std::mem::replace(&mut self.throttled, true);
        let lifted = self.domain.lift_own_cap()?;
        self.throttled = throttled || lifted;
        Ok(lifted)
    }

    /// Puts its own limit back if it is throttled or was freed of it.
    pub fn unthrottle(&mut self) -> Result<(), DomainError> {
        if self.throttled {
            self.domain.unthrottle()?;
            self.throttled = false;
        }
        Ok(())
    }

    /// Which pages there are, once a balloon on its way has arrived.
    pub fn settled_map(&mut self, cancel: &Cancel) -> Result<PageSet, SaveError> {
        let began = Instant::now();
        loop {
            if let Some(pages) = self.domain.memory_map()? {
                return Ok(pages);
            }
            SaveError::if_raised(cancel)?;
            if began.elapsed() > RESIZE_LIMIT {
                return Err(SaveError::KeepsResizing);
            }
            std::thread::sleep(RESIZE_LOOK);
        }
    }

    /// Takes out of a dirty set what is not guest memory (shared frames of the hypervisor are
    /// marked too); says whether the guest's pages are still those of `pages`.
    pub fn confine(&mut self, dirty: &mut PageSet, pages: &PageSet) -> Result<bool, DomainError> {
        let stray = self.stray.get_or_insert_with(|| PageSet::new(pages.span()));
        stray.copy_from(dirty);
        stray.subtract(pages);
        dirty.intersect(pages);
        self.domain.map_holds(stray)
    }

    pub fn suspend(
        &mut self,
        timeout: Duration,
        cancel: &Cancel,
        meanwhile: &mut dyn Meanwhile,
    ) -> Result<(), DomainError> {
        self.domain.suspend(timeout, cancel, meanwhile)?;
        self.suspended = true;
        Ok(())
    }

    pub fn resume(&mut self) -> Result<(), DomainError> {
        self.domain.resume()?;
        self.suspended = false;
        self.unannounced = true;
        Ok(())
    }

    /// Tells others of the resumption, if there was one.
    pub fn announce(&mut self) -> Result<(), DomainError> {
        if self.unannounced {
            self.domain.announce()?;
            self.unannounced = false;
        }
        Ok(())
    }

    /// Resumes the guest, puts its CPU limit back and ends dirty tracking, as far as that is not
    /// done yet; says what could not be done.
    pub fn put_right(&mut self) -> Vec<String> {
        let mut failed = vec![];
        for done in [
            self.resume_if_suspended(),
            self.unthrottle(),
            self.log_dirty_off(),
            self.announce(),
        ] {
            match done {
                // A guest that is gone needs nothing.
                Ok(()) | Err(DomainError::Gone(_)) => {}
                Err(error) => failed.push(chain(&error)),
            }
        }
        failed
    }

    fn resume_if_suspended(&mut self) -> Result<(), DomainError> {
        if self.suspended {
            self.resume()
        } else {
            Ok(())
        }
    }
}

impl<D: Domain> Deref for Guard<'_, D> {
    type Target = D;
    fn deref(&self) -> &D {
        self.domain
    }
}

impl<D: Domain> DerefMut for Guard<'_, D> {
    fn deref_mut(&mut self) -> &mut D {
        self.domain
    }
}

impl<D: Domain> Drop for Guard<'_, D> {
    /// For a panic only: every ordinary way out has put the guest right before.
    fn drop(&mut self) {
        self.put_right();
    }
}
