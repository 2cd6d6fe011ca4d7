//! A domU on a real Xen as the engine sees it.

mod kept;

use std::sync::Arc;
use std::time::Duration;

use kept::Marks;
pub use kept::Tracked;
use xen_sys::{EnableError, HypercallBuffer, Store, Xen};

use super::config::{GuestConfig, GuestDisk};
use super::guardian::locks;
use super::guarding::Guarding;
use super::guest::{Guest, call};
use super::mapper::XenMapper;
use super::open::{self, OpenError};
use super::suspend::{self, NotYet};
use super::throttle::Throttle;
use super::types::{self, GuestOps};
use super::{disks, helper, memory_map, settle, stamp};
use crate::fault;
use crate::forecast::Circumstances;
use crate::guardian::{DiskCare, DiskState, Keeper, Notes, SaveLock, Stop};
use crate::image::{Preamble, Tail};
use crate::lineage::ImageId;
use crate::page_set::PageSet;
use crate::ports::{BoxError, Cancel, Cpu, Domain, DomainError, Identity, Meanwhile};
use crate::units::{CpuPercent, PageCount};

/// Page numbers up to that many times the guest's memory, and 4 GiB more, are mapped: a guest can
/// place pages anywhere, and every bitmap is as long as its highest number says.
const SPAN_PER_PAGE: u64 = 4;
const SPAN_BASE: u64 = 1 << 20;

/// How many page numbers a guest may have that may have so many pages.
pub(super) fn span_limit(max_pages: u64) -> u64 {
    SPAN_PER_PAGE
        .saturating_mul(max_pages)
        .saturating_add(SPAN_BASE)
}

/// A running domU, locked against another livesave.
pub struct XenDomain {
    guest: Guest,
    identity: Identity,
    config: GuestConfig,
    /// What its type needs.
    ops: Box<dyn GuestOps>,
    // Dropped before the keeper: no pause outlives the lock.
    throttle: Throttle,
    keeper: Keeper,
    /// The guest has been resized since its configuration was read.
    config_is_old: bool,
    cancel: Cancel,
    /// The hypervisor's dirty bitmap is fetched into this.
    bitmap: Option<HypercallBuffer>,
    /// For increments.
    marks: Marks,
    /// Number of pages when the memory map was made.
    mapped_pages: u64,
    /// The pages that were found then.
    pages: Option<PageSet>,
    span: PageCount,
    /// Why the emulator could not be woken when the guest was resumed.
    unwoken: Option<DomainError>,
}

impl XenDomain {
    /// Takes on the domain with that number or name. What a killed save has left of it is put right
    /// first, its disks by `care`.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(wanted: &str, care: &dyn DiskCare, cancel: &Cancel) -> Result<Self, OpenError> {
        Self::open_when_free(wanted, Duration::ZERO, care, cancel)
    }

    /// As [`XenDomain::open`], for up to `wait` after another livesave has been found to save it.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open_when_free(
        wanted: &str,
        wait: Duration,
        care: &dyn DiskCare,
        cancel: &Cancel,
    ) -> Result<Self, OpenError> {
        let xen = Xen::open()?;
        let store = Store::open()?;
        let (info, name) = open::resolve(&xen, &store, wanted)?;
        let refused = |why: String| OpenError::NotSavable {
            domain: name.clone(),
            why,
        };
        let lock = locks().take_within(info.domid.get(), wait, cancel);
        if let Some(signal) = cancel.raised() {
            return Err(DomainError::Interrupted(signal).into());
        }
        let lock = lock.map_err(|error| {
            let cause = std::error::Error::source(&error).map(|e| format!(": {e}"));
            refused(format!("{error}{}", cause.unwrap_or_default()))
        })?;
        // Again, for the wait may have been long.
        let (info, name) = open::resolve(&xen, &store, &info.domid.to_string())?;
        let uuid = open::uuid_text(&info.uuid);
        let mut guest = Guest::new(xen, store, info.domid, name.clone())?;
        settle_leftovers(&mut guest, &lock, care).map_err(refused)?;
        if let Some(pid) = helper::saving(info.domid.get()) {
            return Err(refused(busy(pid)));
        }
        let info = guest.info()?;
        if let Some(why) = open::refuse_by_state(&info) {
            return Err(refused(why));
        }
        // Watched first, so that a resize after the reading is seen.
        guest.watch_target()?;
        let config = GuestConfig::read(info.domid.get(), cancel)?;
        let mut ops = types::of(config.kind).map_err(refused)?;
        if let Some(why) = open::refuse_by_config(&config) {
            return Err(refused(why));
        }
        if let Some(request) = guest.pending_request()? {
            return Err(refused(format!(
                "it has been asked to {request} and has not yet"
            )));
        }
        if let Some(why) = ops.refusal(&guest, &config)? {
            return Err(refused(why));
        }
        let keeper = Keeper::new(lock, &uuid)
            .map_err(|error| refused(format!("its lock cannot be used: {error}")))?;
        Ok(Self {
            identity: Identity {
                domid: info.domid.get(),
                name,
                uuid,
            },
            guest,
            config,
            ops,
            throttle: Throttle::default(),
            keeper,
            config_is_old: false,
            cancel: cancel.clone(),
            bitmap: None,
            marks: Marks::default(),
            mapped_pages: 0,
            pages: None,
            span: PageCount(0),
            unwoken: None,
        })
    }

    /// Tells the user, through this, when something takes long.
    pub fn on_notice(&mut self, notice: Box<dyn FnMut(&str)>) {
        self.guest.notice = notice;
    }

    /// Has a second process look after the guest from here on, which puts it right if this one
    /// is killed or hangs with the guest held up.
    ///
    /// # Errors
    /// [`DomainError::Call`]; nothing has been done to the guest.
    pub fn guarded(&mut self, guarding: Guarding) -> Result<(), DomainError> {
        let arguments = guarding.arguments(self.identity.domid);
        let guarded = self.keeper.guard(
            guarding.program,
            arguments,
            guarding.partial,
            guarding.disks,
        );
        guarded.map_err(|source| self.noting_failed("start the guardian of", source))?;
        fault::point("guarded");
        Ok(())
    }

    /// Has the guest throttled by pauses even where its scheduler knows a cap; for tests.
    pub fn throttle_by_pauses(&mut self) {
        self.throttle.by_pauses();
    }

    fn noting_failed(&self, operation: &'static str, source: BoxError) -> DomainError {
        DomainError::Call {
            operation,
            domain: self.identity.name.clone(),
            source,
        }
    }

    /// Before anything is done to the guest: whoever is to put it right must be there.
    fn see_to_guardian(&mut self) -> Result<(), DomainError> {
        let replaced = self
            .keeper
            .see_to_guardian()
            .map_err(|source| self.noting_failed("replace the dead guardian of", source))?;
        if replaced {
            (self.guest.notice)("livesave: warning: the guardian process had died; a new one runs");
        }
        Ok(())
    }

    /// The save's journal, for those who hold the guest's disks.
    #[must_use]
    pub fn notes(&self) -> Arc<Notes> {
        self.keeper.notes().clone()
    }

    /// The guest's disks.
    #[must_use]
    pub fn disks(&self) -> Vec<GuestDisk> {
        self.config.disks()
    }

    /// How many pages it has now.
    ///
    /// # Errors
    /// [`DomainError`].
    pub fn memory(&self) -> Result<PageCount, DomainError> {
        Ok(PageCount(self.guest.info()?.tot_pages))
    }

    /// What a save of it would be made under; its own CPU cap is out of the way in the pause or not.
    /// What cannot be learned is left out: it is for forecasts only.
    #[must_use]
    pub fn circumstances(&self, lift_own_cap: bool) -> Circumstances {
        let cpu = self.throttle.cpu(&self.guest).ok();
        let cap = cpu.and_then(|cpu| cpu.own);
        Circumstances {
            kind: Some(self.config.kind),
            vcpus: cpu.map_or(0, |cpu| cpu.vcpus),
            memory: self.memory().unwrap_or_default(),
            cap,
            cap_kept: cap.is_some() && !lift_own_cap,
        }
    }

    /// Notes that tracking is going to be on: first, so that a kill between the two is put right.
    fn arm(&mut self) -> Result<(), DomainError> {
        let noted = self.keeper.tell_tracking(true);
        noted.map_err(|error| self.noting_failed(NOTE, error.into()))?;
        fault::point("arming");
        Ok(())
    }

    /// Sees to it that dirty tracking is on: a fetch succeeds and shows nothing where it is not,
    /// because another save or migration of the guest has ended and switched it off.
    fn still_tracking(&self) -> Result<(), DomainError> {
        if self.is_tracked()? {
            return Ok(());
        }
        Err(DomainError::Unsupported(format!(
            "Another tool (xl save, xl migrate?) ended the dirty tracking of domain {} in \
             mid-save; nothing was saved",
            self.identity.name
        )))
    }
}

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

    fn disturbed(&self, why: &str) -> DomainError {
        DomainError::Unsupported(format!(
            "Domain {} cannot be saved: {why}; the image would have holes",
            self.identity.name
        ))
    }
}

/// What is done when the journal is written, for an error's text.
pub(super) const NOTE: &str = "note in /run/livesave the save of";

fn busy(pid: u32) -> String {
    format!("it is being saved or migrated by another tool (process {pid})")
}

/// Puts right what a killed livesave left of this domain, or says why it cannot be. Another domain
/// of the same number is left alone.
fn settle_leftovers(guest: &mut Guest, lock: &SaveLock, care: &dyn DiskCare) -> Result<(), String> {
    let journal = lock.journal();
    let failed = |error: BoxError| format!("a killed save could not be put right: {error}");
    let Some((entry, mut state)) = journal.read().map_err(|error| failed(error.into()))? else {
        return Ok(());
    };
    // Milliseconds, and nothing of the rest keeps it from being done.
    let freed = disks::let_go(care, journal, &entry, &mut state);
    settle::settle(guest, journal, &entry, state).map_err(|error| failed(error.into()))?;
    freed.map_err(failed)?;
    if state.disks != DiskState::No {
        care.tidy(&entry.disks).map_err(failed)?;
    }
    entry
        .remove_partial()
        .and_then(|_| journal.clear())
        .map_err(|error| failed(error.into()))
}
