//! The engine's port on it.

use std::time::Duration;

use xen_sys::EnableError;

use super::{NOTE, XenDomain, busy, span_limit};
use crate::fault;
use crate::guardian::Stop;
use crate::image::{Preamble, Tail};
use crate::lineage::ImageId;
use crate::page_set::PageSet;
use crate::ports::{Cancel, Cpu, Domain, DomainError, Identity, Meanwhile};
use crate::units::{CpuPercent, PageCount};
use crate::xen::config::GuestConfig;
use crate::xen::guest::call;
use crate::xen::mapper::XenMapper;
use crate::xen::suspend::{self, NotYet};
use crate::xen::{helper, memory_map, stamp, types};

impl Domain for XenDomain {
    type Mapper = XenMapper;

    fn identity(&self) -> &Identity {
        &self.identity
    }

    fn preamble(&mut self) -> Result<Preamble, DomainError> {
        if self.config_is_old {
            // It tells a restore how much memory the guest may have.
            self.config = GuestConfig::read(self.identity.domid, &self.cancel)?;
            self.config_is_old = false;
        }
        types::preamble(&self.guest, &mut *self.ops, self.config.text())
    }

    fn memory_map(&mut self) -> Result<Option<PageSet>, DomainError> {
        // Every map but the first follows a resize.
        self.config_is_old |= self.guest.target_changed()? || self.mapped_pages != 0;
        let info = self.guest.info()?;
        let before = info.tot_pages;
        self.span = self.ops.look(&self.guest)?;
        if self.span.0 > span_limit(info.max_pages) {
            return Err(DomainError::Unsupported(format!(
                "Domain {} has a page numbered {:#x}, far beyond its memory; its page map would \
                 take more of dom0's memory than it is worth",
                self.identity.name,
                self.span.0 - 1
            )));
        }
        let hints = self.ops.hints(&self.guest);
        let (guest, ops, keeper) = (&self.guest, &mut self.ops, &self.keeper);
        let pages = memory_map::find(self.span, PageCount(before), &hints, |pfns, answers| {
            keeper.beat();
            ops.exist(guest, pfns, answers)
        })?;
        let bitmap = self.guest.xen.dirty_bitmap(self.span.0);
        self.bitmap =
            Some(bitmap.map_err(|error| self.guest.failed("allocate a bitmap for", error))?);
        self.mapped_pages = before;
        self.ops.found(&pages);
        self.pages = Some(pages.clone());
        Ok(self.map_holds(&PageSet::new(self.span))?.then_some(pages))
    }

    fn map_holds(&mut self, stray: &PageSet) -> Result<bool, DomainError> {
        if self.guest.target_changed()?
            || self.guest.info()?.tot_pages != self.mapped_pages
            || !self.ops.map_holds(&self.guest)?
        {
            return Ok(false);
        }
        let mut answers = Vec::new();
        let stray: Vec<u64> = stray.iter().map(|pfn| pfn.0).collect();
        for pfns in stray.chunks(memory_map::QUERY) {
            self.keeper.beat();
            self.ops.exist(&self.guest, pfns, &mut answers)?;
            if answers.contains(&true) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn mapper(&self) -> Result<XenMapper, DomainError> {
        Ok(XenMapper::new(
            self.guest.xen.clone(),
            self.guest.id,
            self.keeper.journal(),
            self.ops.page_access(&self.guest)?,
        ))
    }

    fn log_dirty_on(&mut self) -> Result<(), DomainError> {
        self.see_to_guardian()?;
        self.arm()?;
        self.end_kept()?;
        let id = self.guest.id;
        let enabled = call("log-dirty-on", id, || {
            Ok(self.guest.xen.log_dirty_enable(id))
        })
        .unwrap_or_else(|error| Err(EnableError::Other(error)));
        match enabled {
            Ok(()) => {
                // Only now is it sure that nobody else has it on, and the emulator's with it.
                if let Err(error) = self.ops.tracking_begins(&self.guest) {
                    let off = self.ops.tracking_ended(&self.guest).is_ok();
                    if self.guest.xen.log_dirty_disable(id).is_ok() && off {
                        let _ = self.keeper.tell_tracking(false);
                    }
                    return Err(error);
                }
                fault::point("armed");
                Ok(())
            }
            Err(error) => {
                let error = match error {
                    EnableError::Other(error) => self.guest.failed("track the writes of", error),
                    EnableError::Unsupported(_) => DomainError::Unsupported(format!(
                        "Domain {} cannot be saved while it runs: {}",
                        self.identity.name,
                        types::NO_SHADOW_PAGING
                    )),
                    refused => DomainError::Unsupported(format!("{refused}; nothing was changed")),
                };
                // Not ours to switch off, so nothing is left behind.
                let _ = self.keeper.tell_tracking(false);
                Err(error)
            }
        }
    }

    fn log_dirty_continue(&mut self, since: &ImageId) -> Result<(), DomainError> {
        self.see_to_guardian()?;
        self.take_over(since)
    }

    fn log_dirty_holds(&mut self) -> Result<(), DomainError> {
        self.mark()
    }

    fn log_dirty_keep(&mut self, of: &ImageId) -> Result<(), DomainError> {
        self.keep(of)
    }

    fn fetch_dirty(&mut self, into: &mut PageSet, last: bool) -> Result<(), DomainError> {
        // Another tool's live migration must not lose bits to us: it saves beside us unawares.
        if !last && let Some(pid) = helper::saving(self.guest.id.get()) {
            return Err(self.disturbed(&busy(pid)));
        }
        self.keeper.beat();
        let Some(bitmap) = &mut self.bitmap else {
            return Ok(());
        };
        let (xen, id) = (&self.guest.xen, self.guest.id);
        let fetched = if last {
            // The guest stands still, so nothing need be forgotten, and no page is made read-only
            // again: that would cost the guest a fault for each while it comes back to life.
            call("last-fetch", id, || {
                xen.log_dirty_peek(id, bitmap, self.span.0, true)
            })
        } else {
            call("fetch", id, || {
                xen.log_dirty_clean(id, bitmap, self.span.0, last)
            })
        };
        fetched.map_err(|error| self.guest.failed("fetch the dirty pages of", error))?;
        into.insert_words(bitmap);
        fault::point(if last { "fetched" } else { "round" });
        self.marks_were_there(into)?;
        self.still_tracking()
    }

    fn peek_dirty(&mut self, into: &mut PageSet) -> Result<(), DomainError> {
        self.keeper.beat();
        let Some(bitmap) = &mut self.bitmap else {
            return Ok(());
        };
        let guest = &self.guest;
        guest
            .xen
            .log_dirty_peek(guest.id, bitmap, self.span.0, false)
            .map_err(|error| guest.failed("look at the dirty pages of", error))?;
        into.insert_words(bitmap);
        Ok(())
    }

    fn log_dirty_off(&mut self) -> Result<(), DomainError> {
        // A migration's bits are not ours to take; it switches its tracking off itself.
        if let Some(pid) = helper::saving(self.guest.id.get()) {
            let _ = self.keeper.tell_tracking(false);
            return Err(self.disturbed(&busy(pid)));
        }
        let guest = &self.guest;
        // Whatever comes of it, the guest's own writes are tracked no longer.
        let forgotten = self.ops.tracking_ended(guest);
        call("log-dirty-off", guest.id, || {
            guest.xen.log_dirty_disable(guest.id)
        })
        .map_err(|error| guest.failed("stop tracking the writes of", error))?;
        fault::point("off");
        forgotten?;
        stamp::remove(guest)?;
        self.bitmap = None;
        // Noted or not, to switch it off once more would do no harm.
        let _ = self.keeper.tell_tracking(false);
        Ok(())
    }

    fn cpu(&mut self) -> Result<Cpu, DomainError> {
        self.throttle.cpu(&self.guest)
    }

    fn cpu_time(&mut self) -> Result<Duration, DomainError> {
        // Who measures a throttled guest does not hang.
        self.keeper.beat();
        Ok(Duration::from_nanos(self.guest.info()?.cpu_time_ns))
    }

    fn throttle(&mut self, limit: CpuPercent) -> Result<(), DomainError> {
        self.see_to_guardian()?;
        self.throttle
            .throttle(&mut self.guest, &mut self.keeper, limit)
    }

    fn lift_own_cap(&mut self) -> Result<bool, DomainError> {
        self.see_to_guardian()?;
        self.throttle.lift(&mut self.guest, &mut self.keeper)
    }

    fn unthrottle(&mut self) -> Result<(), DomainError> {
        self.throttle.unthrottle(&mut self.guest, &mut self.keeper)
    }

    fn make_ready(&mut self) -> Result<(), DomainError> {
        let ready = self.ops.make_ready(&self.guest);
        if ready.is_err() {
            let _ = self.ops.wake(&self.guest);
        }
        ready
    }

    fn suspend(
        &mut self,
        timeout: Duration,
        cancel: &Cancel,
        meanwhile: &mut dyn Meanwhile,
    ) -> Result<(), DomainError> {
        let done = self.bring_to_suspend(timeout, cancel, meanwhile);
        if done.is_err() {
            // What was made ready holds nothing up.
            let _ = self.ops.wake(&self.guest);
        }
        done
    }

    fn quiesce(&mut self) -> Result<bool, DomainError> {
        let quiet = self.ops.quiesce(&self.guest);
        self.keeper.beat();
        quiet
    }

    fn final_state(&mut self) -> Result<Tail, DomainError> {
        let tail = self.ops.final_state(&self.guest)?;
        fault::point("captured");
        Ok(tail)
    }

    fn resume(&mut self) -> Result<(), DomainError> {
        // In the toolstack's order: a guest that runs finds its devices there.
        let awake = self.ops.wake(&self.guest);
        // That must not keep the guest from running, nor its disks from being let go: it fails the
        // announcement, before which it is tried again.
        self.guest.run_on()?;
        self.unwoken = awake.err();
        // If noting fails it stays "suspended", and a running guest is left to run.
        let _ = self.keeper.tell_stop(Stop::Resumed);
        fault::point("resumed");
        Ok(())
    }

    fn announce(&mut self) -> Result<(), DomainError> {
        // Nothing to do where it is awake, or where there is none.
        let awake = self.ops.wake(&self.guest);
        self.guest.announce()?;
        fault::point("announced");
        if awake.is_ok() {
            // Else it stays noted, for the guardian to wake the emulator.
            let _ = self.keeper.tell_stop(Stop::No);
        }
        match self.unwoken.take() {
            Some(error) => Err(error),
            None => awake,
        }
    }
}

impl XenDomain {
    /// The handshake, noted at every step.
    fn bring_to_suspend(
        &mut self,
        timeout: Duration,
        cancel: &Cancel,
        meanwhile: &mut dyn Meanwhile,
    ) -> Result<(), DomainError> {
        self.see_to_guardian()?;
        let suspension = self.ops.suspension(&self.guest)?;
        self.guest.begin_handshake(suspension);
        self.guest.watch_size(self.mapped_pages);
        let noted = self.keeper.tell_stop(Stop::Requested);
        noted.map_err(|error| self.noting_failed(NOTE, error.into()))?;
        fault::point("requesting");
        let (xen, id) = (self.guest.xen.clone(), self.guest.id);
        let (bitmap, span) = (&mut self.bitmap, self.span);
        let expected = meanwhile.expected();
        let ops = &mut self.ops;
        let mut moment = |since| {
            if suspend::is_long(since, expected) {
                ops.let_others();
            }
            if meanwhile.moment(since)
                && let Some(bitmap) = bitmap
                // A look that fails is one look less: the last fetch tells all.
                && xen.log_dirty_peek(id, bitmap, span.0, false).is_ok()
            {
                let mut dirty = PageSet::new(span);
                dirty.insert_words(bitmap);
                meanwhile.dirty(&dirty);
            }
            meanwhile.is_busy()
        };
        let done = suspend::wait(&mut self.guest, timeout, cancel, expected, &mut moment);
        if self.guest.was_resized() {
            meanwhile.resized();
        }
        let done = done.map_err(|not_yet| match not_yet {
            NotYet::Failed(error) => error,
            NotYet::GivenUp(why) => {
                // Nobody waits for us while the guest is watched, which may take a minute; nor is
                // it free of its own cap so long. What fails is tried again by the engine.
                self.ops.let_others();
                let _ = self.throttle.unthrottle(&mut self.guest, &mut self.keeper);
                suspend::give_up(&mut self.guest, why)
            }
        });
        fault::point("suspended");
        match done {
            // If noting fails it stays "requested", which is put right as well.
            Ok(()) => _ = self.keeper.tell_stop(Stop::Suspended),
            // The request may still stand; the guardian will see when we have ended.
            Err(DomainError::Call { .. }) if self.guest.is_asked() => {}
            Err(_) => _ = self.keeper.tell_stop(Stop::No),
        }
        fault::point("in-window");
        done
    }
}
