//! Dirty tracking that is left on between two saves, for increments; see [`super::super::stamp`].

use xen_sys::{DeviceModel, EnableError};

use super::{XenDomain, busy};
use crate::fault;
use crate::lineage::ImageId;
use crate::page_set::PageSet;
use crate::ports::DomainError;
use crate::units::{PageCount, Pfn};
use crate::xen::guest::call;
use crate::xen::helper;
use crate::xen::stamp::{self, MARKS, Stamp};

/// Dirty tracking that was left on for an increment.
#[derive(Clone, Debug)]
pub struct Tracked {
    /// Since which image's cut.
    pub since: ImageId,
    /// How many pages are dirty by now.
    pub dirty: PageCount,
}

/// Pages that are dirty unless somebody else has fetched dirty pages.
#[derive(Debug, Default)]
pub(super) struct Marks {
    /// In the tracking taken over: they must be in the first fetch.
    before: Vec<Pfn>,
    /// Made for the next increment, or why they could not be.
    next: Option<Result<Vec<Pfn>, DomainError>>,
}

const FETCHED: &str = "another tool has fetched pages that it had written";

impl XenDomain {
    /// The image since whose cut the guest's writes have been tracked by our own doing; else why
    /// none is known. The guest is left as it is.
    ///
    /// # Errors
    /// [`DomainError`].
    pub fn tracked_since(&self) -> Result<Result<Tracked, String>, DomainError> {
        if let Some(why) = self.no_increments() {
            return Ok(Err(why.into()));
        }
        let Some(stamp) = stamp::read(&self.guest)? else {
            return Ok(Err(
                "its writes have not been tracked since its last image".into()
            ));
        };
        let dirty = self.dirty_now()?;
        if let Some(doubt) = self.doubt(&stamp, &dirty)? {
            return Ok(Err(doubt));
        }
        Ok(Ok(Tracked {
            since: stamp.image,
            dirty: dirty.count(),
        }))
    }

    /// Why the guest's writes cannot be tracked between saves, if they cannot.
    #[must_use]
    pub fn no_increments(&self) -> Option<&'static str> {
        self.ops.no_increments()
    }

    /// Why there are only full images of the guest, if there are.
    #[must_use]
    pub fn only_full_images(&self) -> Option<&'static str> {
        self.ops.only_full_images()
    }

    /// Ends the tracking that was left on for an increment; whether there was any.
    ///
    /// # Errors
    /// [`DomainError`]; `Unsupported` while another tool saves the guest, and may rely on it.
    pub fn untrack(&mut self) -> Result<bool, DomainError> {
        let guest = &self.guest;
        if !stamp::is_there(guest)? {
            return Ok(false);
        }
        if let Some(pid) = helper::saving(guest.id.get()) {
            return Err(DomainError::Unsupported(format!(
                "The tracking of domain {} cannot be ended now: {}",
                self.identity.name,
                busy(pid)
            )));
        }
        // In this order: a note without tracking is not believed, tracking without a note would
        // be taken for somebody else's.
        guest
            .xen
            .log_dirty_disable(guest.id)
            .map_err(|error| guest.failed("stop tracking the writes of", error))?;
        stamp::remove(guest)?;
        Ok(true)
    }

    /// As [`XenDomain::untrack`], for a save that would take part of the dirty pages.
    pub(super) fn end_kept(&mut self) -> Result<(), DomainError> {
        match self.untrack() {
            Ok(false) => Ok(()),
            Ok(true) => {
                (self.guest.notice)(
                    "livesave: the guest's next incremental image will be a full one",
                );
                Ok(())
            }
            Err(error) => {
                if matches!(error, DomainError::Unsupported(_)) {
                    // Not ours to end.
                    let _ = self.keeper.tell_tracking(false);
                }
                Err(error)
            }
        }
    }

    /// Takes over what was left on since that image's cut.
    pub(super) fn take_over(&mut self, since: &ImageId) -> Result<(), DomainError> {
        self.arm()?;
        let believed = stamp::read(&self.guest).and_then(|stamp| {
            let Some(stamp) = stamp.filter(|stamp| stamp.image == *since) else {
                return Ok(Err(
                    "its writes have not been tracked since that image".into()
                ));
            };
            Ok(match self.doubt(&stamp, &self.dirty_now()?)? {
                Some(doubt) => Err(doubt),
                None => Ok(stamp),
            })
        });
        let error = match believed {
            Ok(Ok(stamp)) => {
                // From here on dirty pages are fetched: a save that does not end well leaves no
                // note, and tracking off.
                stamp::remove(&self.guest)?;
                self.marks.before = stamp.marks;
                fault::point("armed");
                return Ok(());
            }
            Ok(Err(doubt)) => DomainError::Unsupported(doubt),
            Err(error) => error,
        };
        let _ = self.keeper.tell_tracking(false);
        Err(error)
    }

    /// Sees to it that the first fetch of tracking that was taken over shows its marks.
    pub(super) fn marks_were_there(&mut self, fetched: &PageSet) -> Result<(), DomainError> {
        let mut marks = std::mem::take(&mut self.marks.before).into_iter();
        if marks.all(|pfn| fetched.contains(pfn)) {
            return Ok(());
        }
        Err(DomainError::Unsupported(FETCHED.into()))
    }

    /// Right after the cut: sees that nobody has fetched since, and makes the marks by which it is
    /// seen from here on.
    pub(super) fn mark(&mut self) -> Result<(), DomainError> {
        if let Some(pid) = helper::saving(self.guest.id.get()) {
            return Err(self.disturbed(&busy(pid)));
        }
        self.still_tracking()?;
        let now = self.dirty_now()?;
        // The last fetch forgot nothing.
        if let Some(bitmap) = &self.bitmap {
            let mut last = PageSet::new(self.span);
            last.insert_words(bitmap);
            if last.iter().any(|pfn| !now.contains(pfn)) {
                return Err(self.disturbed(FETCHED));
            }
        }
        if self.no_increments().is_some() {
            return Ok(());
        }
        // That it fails spoils no image.
        self.marks.next = Some(self.make_marks(&now));
        Ok(())
    }

    fn make_marks(&self, dirty: &PageSet) -> Result<Vec<Pfn>, DomainError> {
        let guest = &self.guest;
        let emulator = DeviceModel::open();
        let failed = |error| guest.failed("mark pages as written of", error);
        let emulator = emulator.map_err(failed)?;
        let marks = self.pages.as_ref();
        let marks = marks.map_or_else(Vec::new, |pages| stamp::choose_marks(pages, dirty));
        for mark in &marks {
            call("mark", guest.id, || emulator.mark_written(guest.id, mark.0)).map_err(failed)?;
        }
        Ok(marks)
    }

    /// Leaves tracking on for an increment on that image.
    pub(super) fn keep(&mut self, of: &ImageId) -> Result<(), DomainError> {
        let marks = match self.marks.next.take() {
            Some(marks) => marks?,
            None => vec![],
        };
        let refused = |why: &str| {
            DomainError::Unsupported(format!(
                "Dirty tracking of domain {} cannot be left on: {why}",
                self.identity.name
            ))
        };
        if let Some(why) = self.no_increments() {
            return Err(refused(why));
        }
        let guest = &self.guest;
        if let Some(pid) = helper::saving(guest.id.get()) {
            return Err(refused(&busy(pid)));
        }
        if guest.info()?.tot_pages != self.mapped_pages {
            return Err(refused("its memory has been resized"));
        }
        let Some(target) = guest.read_target()?.filter(|target| !target.contains(' ')) else {
            return Err(refused("its memory target is not known"));
        };
        if marks.len() < MARKS {
            return Err(refused("too few of its pages can be marked as written"));
        }
        let stamp = Stamp {
            image: of.clone(),
            pages: self.mapped_pages,
            target,
            marks,
        };
        if !stamp::marks_hold(&stamp, &self.dirty_now()?) || !self.is_tracked()? {
            return Err(refused(FETCHED));
        }
        fault::point("keeping");
        stamp::write(guest, &stamp)?;
        fault::point("kept");
        self.bitmap = None;
        // If noting fails it is switched off, and the next image is a full one.
        let _ = self.keeper.tell_tracking(false);
        Ok(())
    }

    /// Why what the note says is not to be believed, these pages being dirty.
    fn doubt(&self, stamp: &Stamp, dirty: &PageSet) -> Result<Option<String>, DomainError> {
        let guest = &self.guest;
        if let Some(pid) = helper::saving(guest.id.get()) {
            return Ok(Some(busy(pid)));
        }
        let pages = guest.info()?.tot_pages;
        if let Some(doubt) = stamp::doubt(stamp, pages, guest.read_target()?.as_deref()) {
            return Ok(Some(doubt));
        }
        // Where tracking is off nothing is dirty, and nothing need be switched to see that.
        let holds = stamp::marks_hold(stamp, dirty) && self.is_tracked()?;
        Ok((!holds).then(|| {
            "another tool (xl save, xl migrate?) has ended the tracking of its writes".into()
        }))
    }

    /// Whether dirty tracking is on.
    pub(super) fn is_tracked(&self) -> Result<bool, DomainError> {
        let (xen, id) = (&self.guest.xen, self.guest.id);
        match xen.log_dirty_enable(id) {
            Err(EnableError::AlreadyOnOrPassthrough(_)) => Ok(true),
            Err(EnableError::Other(error)) => Err(self.guest.failed("track the writes of", error)),
            // As it was, then.
            Ok(()) => xen
                .log_dirty_disable(id)
                .map(|()| false)
                .map_err(|error| self.guest.failed("stop tracking the writes of", error)),
            Err(_) => Ok(false),
        }
    }

    /// The pages that are dirty now.
    fn dirty_now(&self) -> Result<PageSet, DomainError> {
        let (guest, failed) = (&self.guest, "look at the dirty pages of");
        let highest = guest.xen.maximum_gpfn(guest.id);
        let span = PageCount(highest.map_err(|error| guest.failed(failed, error))? + 1);
        let bitmap = guest.xen.dirty_bitmap(span.0);
        let mut bitmap = bitmap.map_err(|error| guest.failed("allocate a bitmap for", error))?;
        guest
            .xen
            .log_dirty_peek(guest.id, &mut bitmap, span.0, false)
            .map_err(|error| guest.failed(failed, error))?;
        let mut dirty = PageSet::new(span);
        dirty.insert_words(&bitmap);
        Ok(dirty)
    }
}
