//! A domU on a real Xen as the engine sees it.

mod kept;
mod port;

use std::sync::Arc;
use std::time::Duration;

use kept::Marks;
pub use kept::Tracked;
use xen_sys::{HypercallBuffer, Store, Xen};

use super::config::{GuestConfig, GuestDisk};
use super::guardian::locks;
use super::guarding::Guarding;
use super::guest::Guest;
use super::open::{self, OpenError};
use super::throttle::Throttle;
use super::types::{self, GuestOps};
use super::{disks, helper, settle};
use crate::fault;
use crate::forecast::Circumstances;
use crate::guardian::{DiskCare, DiskState, Keeper, Notes, SaveLock};
use crate::page_set::PageSet;
use crate::ports::{BoxError, Cancel, DomainError, Identity};
use crate::units::PageCount;

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
