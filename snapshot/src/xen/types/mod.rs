//! What differs between PVH, HVM and PV guests: one table of operations for each, as Xen's own
//! saver has it (`struct xc_sr_save_ops` of `xg_sr_common.h`).
//!
//! [`super::domain`] is the save of any guest; it calls these where the type matters. Everything
//! here is called per batch of pages or more rarely, never per page.

mod emulated;
mod hardware;
mod hvm;
mod pv;
mod pvh;
mod records;

use super::config::{GuestConfig, Kind};
use super::guest::Guest;
use crate::image::{GuestType, Preamble, Record, Tail};
use crate::page::{PageBytes, PageKind};
use crate::page_set::PageSet;
use crate::ports::DomainError;
use crate::units::{PageCount, Pfn};

pub(super) use pv::NO_SHADOW_PAGING;
pub(super) use records::preamble;

/// How a guest is brought to suspend.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Suspension {
    /// It is asked through xenstore and suspends itself.
    Handshake,
    /// It knows nothing of Xen: the hypervisor stops it where it stands.
    Hypervisor,
}

/// The operations of one guest type. Made for one guest, with whatever it has to remember of it.
///
/// Order of the calls: `refusal`; `tracking_begins`; for each memory map `look`, `exist` (many),
/// `found`, `map_holds`, `static_data`, `before_memory`; `map_holds` after every round and in the window;
/// for a window `make_ready` and `suspension`, then, the guest suspended, `quiesce`, `map_holds`,
/// `final_state`, and in any case `wake`; at the end `tracking_ended`. `page_access` is called
/// before the first memory map, once for each thread.
pub(super) trait GuestOps: Send {
    /// What stands in the image's domain header.
    fn stream_type(&self) -> GuestType;

    /// Why this guest cannot be saved, and the way out. Nothing has been done to it.
    ///
    /// # Errors
    /// [`DomainError`].
    fn refusal(
        &mut self,
        guest: &Guest,
        config: &GuestConfig,
    ) -> Result<Option<String>, DomainError>;

    /// Why its dirty tracking cannot be left on for increments; `None` if it can.
    fn no_increments(&self) -> Option<&'static str> {
        None
    }

    /// Why there are only full images of it, by whatever way; `None` if there are increments.
    fn only_full_images(&self) -> Option<&'static str> {
        None
    }

    /// How it is to be brought to suspend; asked anew for each window.
    ///
    /// # Errors
    /// [`DomainError`].
    fn suspension(&mut self, _guest: &Guest) -> Result<Suspension, DomainError> {
        Ok(Suspension::Handshake)
    }

    /// Has whoever writes to the guest's memory beside it (HVM: the emulator) note what it writes.
    /// Called right after the hypervisor's dirty tracking went on, before any page is copied; that
    /// it may be on is noted.
    ///
    /// # Errors
    /// [`DomainError`]; `tracking_ended` follows.
    fn tracking_begins(&mut self, _guest: &Guest) -> Result<(), DomainError> {
        Ok(())
    }

    /// Ends what `tracking_begins` began, if it did; called before the hypervisor's dirty tracking
    /// goes off.
    ///
    /// # Errors
    /// [`DomainError`]; may be called again.
    fn tracking_ended(&mut self, _guest: &Guest) -> Result<(), DomainError> {
        Ok(())
    }

    /// Does what can be done ahead of a pause window. The guest runs.
    ///
    /// # Errors
    /// [`DomainError`]; `wake` follows.
    fn make_ready(&mut self, _guest: &Guest) -> Result<(), DomainError> {
        Ok(())
    }

    /// Lets go of what `make_ready` holds against others: the guest is not going to suspend soon, if
    /// at all. `quiesce` may follow, and takes it anew.
    fn let_others(&mut self) {}

    /// Stops whoever writes to the suspended guest's memory beside it, and takes its state; whether
    /// there is any. In the pause window, before the last dirty pages are fetched.
    ///
    /// # Errors
    /// [`DomainError`]; `wake` follows.
    fn quiesce(&mut self, _guest: &Guest) -> Result<bool, DomainError> {
        Ok(false)
    }

    /// Undoes `quiesce`, right before the guest is resumed, and `make_ready`, as far as they were
    /// called.
    ///
    /// # Errors
    /// [`DomainError`]; may be called again.
    fn wake(&mut self, _guest: &Guest) -> Result<(), DomainError> {
        Ok(())
    }

    /// Looks at the guest's memory as a whole (PV: walks its P2M) for the calls of `exist` that
    /// follow, and says how many page numbers there are: one more than the highest in use.
    ///
    /// # Errors
    /// [`DomainError`].
    fn look(&mut self, guest: &Guest) -> Result<PageCount, DomainError>;

    /// Page numbers that are likely to exist and that a sample of every 64th could miss.
    fn hints(&self, guest: &Guest) -> Vec<Pfn>;

    /// Which of up to [`super::memory_map::QUERY`] pages have data, in their order.
    ///
    /// # Errors
    /// [`DomainError`].
    fn exist(
        &mut self,
        guest: &Guest,
        pfns: &[u64],
        answers: &mut Vec<bool>,
    ) -> Result<(), DomainError>;

    /// These are the pages that were found.
    fn found(&mut self, _pages: &PageSet) {}

    /// Whether what `look` found still holds, beside the number of pages (PV: the generation of
    /// the P2M). Cheap.
    ///
    /// # Errors
    /// [`DomainError`].
    fn map_holds(&mut self, _guest: &Guest) -> Result<bool, DomainError> {
        Ok(true)
    }

    /// How pages are reached and read, for one thread; `None` if a page's number is its frame and
    /// it is copied as it is, which is the fast way.
    ///
    /// # Errors
    /// [`DomainError`].
    fn page_access(&self, _guest: &Guest) -> Result<Option<Box<dyn PageAccess>>, DomainError> {
        Ok(None)
    }

    /// Records that stand before the CPU policy (PV: X86_PV_INFO). What the final state needs room
    /// for is made ready here too: the guest runs.
    ///
    /// # Errors
    /// [`DomainError`].
    fn static_data(&mut self, guest: &Guest) -> Result<Vec<Record>, DomainError>;

    /// Records between the static data and the memory (PV: X86_PV_P2M_FRAMES).
    ///
    /// # Errors
    /// [`DomainError`].
    fn before_memory(&mut self, _guest: &Guest) -> Result<Vec<Record>, DomainError> {
        Ok(vec![])
    }

    /// The records behind the memory. The guest is suspended and quiesced.
    ///
    /// # Errors
    /// [`DomainError`].
    fn final_state(&mut self, guest: &Guest) -> Result<Tail, DomainError>;
}

/// How the pages of a guest are reached whose page numbers are not frames, or whose pages do not
/// go into the image as they are (PV). One for each copier thread. Batches are then not kept mapped
/// ahead of the window ([`crate::ports::Mapper::keep`]).
pub(super) trait PageAccess: Send {
    /// The frames of these pages, to be mapped, in their order; what has no frame now is any
    /// number that cannot be mapped (`u64::MAX`), and is deferred.
    ///
    /// # Errors
    /// [`DomainError`] if the save must be given up.
    fn frames(&mut self, pfns: &[Pfn], frames: &mut Vec<u64>) -> Result<(), DomainError>;

    /// Looks at the batch just mapped; `page` copies the page at an index (false if it is not mapped).
    /// For each page that is not to be copied as it is, an entry, by ascending index.
    ///
    /// # Errors
    /// [`DomainError`] if the save must be given up.
    fn normalise(
        &mut self,
        pfns: &[Pfn],
        frames: &[u64],
        page: &mut dyn FnMut(usize, &mut PageBytes) -> bool,
    ) -> Result<Vec<(usize, Normalised)>, DomainError>;
}

/// What becomes of a page that is not copied as it is.
pub(super) enum Normalised {
    /// This is what the image gets, and of which kind it is there.
    Rewritten(Box<PageBytes>, PageKind),
    /// It is between two states: taken in a later round, at the latest in the window.
    Deferred,
}

/// The operations for a guest of that kind, or why there are none.
pub(super) fn of(kind: Kind) -> Result<Box<dyn GuestOps>, String> {
    match kind {
        Kind::Pvh => Ok(Box::new(pvh::Pvh::default())),
        Kind::Hvm => Ok(Box::new(hvm::Hvm::default())),
        Kind::Pv => Ok(Box::new(pv::Pv::default())),
    }
}
