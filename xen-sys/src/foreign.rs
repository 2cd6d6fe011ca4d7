//! Another domain's memory, mapped into this process.

use std::io;
use std::marker::PhantomData;
use std::ptr::NonNull;
use std::sync::Arc;

use crate::control::{Interface, PAGE_SIZE, Xen};
use crate::domain::DomainId;
use crate::error::{CallError, Error};
use crate::logger;

/// How mapped pages may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protection {
    /// Reading only.
    Read,
    /// Reading and writing.
    ReadWrite,
}

/// Pages of a domain, mapped side by side in the order asked for; unmapped when dropped.
///
/// The domain may write to them at any time, so they are never shown as Rust references: only as
/// addresses, which stay valid for as long as the mapping lives. The kernel keeps the pages
/// themselves alive, even if the domain frees them or ends meanwhile. They can be read by the CPU
/// and by buffered `write`; `O_DIRECT`, `vmsplice` and the like refuse them, because the mapping
/// has no pages of this kernel behind it (`VM_PFNMAP`).
#[derive(Debug)]
pub struct ForeignMapping<E: AsRef<[i32]>> {
    interface: Arc<Interface>,
    base: NonNull<u8>,
    pages: usize,
    errors: E,
    // Not Sync: nothing here hinders two threads from writing to one page.
    _not_sync: PhantomData<*mut u8>,
}

// SAFETY: unmapping is a plain munmap, which any thread may do.
unsafe impl<E: AsRef<[i32]> + Send> Send for ForeignMapping<E> {}

impl Xen {
    /// Maps pages of a domain for reading word by word. Some of them may not be mapped.
    ///
    /// # Errors
    /// As [`Xen::map`].
    pub fn map_words(&self, domain: DomainId, frames: &[u64]) -> Result<ForeignWords, Error> {
        let errors = vec![0; frames.len()];
        self.map(domain, Protection::Read, frames, errors)
            .map(ForeignWords)
    }

    /// Maps pages of a domain by their frame numbers (guest frames of an HVM or PVH guest, machine
    /// frames of a PV guest). `errors` gets one entry per page and must
    /// have room for all; it is kept (or borrowed) for as long as the mapping lives, so that no
    /// allocation is needed per call. A page that cannot be mapped (a hole, ballooned out) does not fail the
    /// whole: [`ForeignMapping::page`] is `None` for it.
    /// (`xenforeignmemory_map` of `xenforeignmemory.h`.)
    ///
    /// # Errors
    /// [`Error::Argument`] for no pages or too little room in `errors`; [`Error::DomainCall`] if
    /// the domain does not exist (`ESRCH`) or nothing could be mapped at all (`ENOMEM`).
    pub fn map<E: AsRef<[i32]> + AsMut<[i32]>>(
        &self,
        domain: DomainId,
        protection: Protection,
        pfns: &[u64],
        mut errors: E,
    ) -> Result<ForeignMapping<E>, Error> {
        let operation = "map memory of";
        if pfns.is_empty() {
            return Err(Error::Argument {
                operation,
                what: "no pages",
            });
        }
        let Some(slots) = errors.as_mut().get_mut(..pfns.len()) else {
            return Err(Error::Argument {
                operation,
                what: "fewer error slots than pages",
            });
        };
        let prot = match protection {
            Protection::Read => libc::PROT_READ,
            Protection::ReadWrite => libc::PROT_READ | libc::PROT_WRITE,
        };
        let interface = Arc::clone(self.interface());
        logger::clear();
        // SAFETY: both arrays have `pfns.len()` entries; the handle is open.
        let address = unsafe {
            (interface.libraries().foreign.xenforeignmemory_map)(
                interface.foreign_handle(),
                domain.get(),
                prot,
                pfns.len(),
                pfns.as_ptr(),
                slots.as_mut_ptr(),
            )
        };
        let Some(base) = NonNull::new(address.cast()) else {
            return Err(Error::DomainCall {
                operation,
                domain,
                source: CallError::of(-1),
            });
        };
        let mapping = ForeignMapping {
            interface,
            base,
            pages: pfns.len(),
            errors,
            _not_sync: PhantomData,
        };
        // A domain that does not exist (any more) is reported page by page.
        if mapping.errors().contains(&-libc::ESRCH) {
            let source = CallError::from(io::Error::from_raw_os_error(libc::ESRCH));
            return Err(Error::DomainCall {
                operation,
                domain,
                source,
            });
        }
        Ok(mapping)
    }
}

impl<E: AsRef<[i32]>> ForeignMapping<E> {
    fn errors(&self) -> &[i32] {
        let errors = self.errors.as_ref();
        &errors[..self.pages.min(errors.len())]
    }

    /// How many pages were asked for, those included that could not be mapped.
    #[must_use]
    pub fn pages(&self) -> usize {
        self.pages
    }

    /// The address of the first page. Touching a page that is not mapped raises `SIGBUS`.
    #[must_use]
    pub fn base(&self) -> NonNull<u8> {
        self.base
    }

    /// The address of the `index`-th page, 4096 bytes long and aligned; `None` if it could not be
    /// mapped or was not asked for.
    #[must_use]
    pub fn page(&self, index: usize) -> Option<NonNull<u8>> {
        match self.errors().get(index) {
            // SAFETY: the index is within the mapping.
            Some(0) => Some(unsafe { self.base.add(index * PAGE_SIZE) }),
            _ => None,
        }
    }

    /// Why the `index`-th page could not be mapped; `None` if it was.
    #[must_use]
    pub fn error(&self, index: usize) -> Option<io::Error> {
        match self.errors().get(index) {
            None | Some(0) => None,
            // The header promises errno values; they are negative ones.
            Some(&error) => Some(io::Error::from_raw_os_error(error.wrapping_abs())),
        }
    }

    /// Copies the `index`-th page into `to`; false, leaving `to` alone, if it is not mapped.
    /// Bytes that the domain writes meanwhile may be old or new.
    pub fn copy_page(&self, index: usize, to: &mut [u8; PAGE_SIZE]) -> bool {
        let Some(page) = self.page(index) else {
            return false;
        };
        // SAFETY: `page` is mapped readable for 4096 bytes and cannot overlap memory of ours. A
        // write by the domain meanwhile only tears bytes, all of which are valid.
        unsafe { std::ptr::copy_nonoverlapping(page.as_ptr(), to.as_mut_ptr(), PAGE_SIZE) };
        true
    }
}

/// Mapped pages that are read word by word, from any number of threads.
#[derive(Debug)]
pub struct ForeignWords(ForeignMapping<Vec<i32>>);

// SAFETY: it is mapped for reading only, and read by single loads.
unsafe impl Sync for ForeignWords {}

impl ForeignWords {
    /// Words in a page.
    pub const PER_PAGE: usize = PAGE_SIZE / 8;

    /// The word at an index of 64-bit words, as it is now; `None` behind the end and in a page that
    /// is not mapped.
    #[must_use]
    pub fn get(&self, index: usize) -> Option<u64> {
        let page = self.0.page(index / Self::PER_PAGE)?.cast::<u64>();
        // SAFETY: within the page, which is mapped readable and aligned. Volatile: others write to
        // it; an aligned load of a word is not torn.
        Some(unsafe { page.add(index % Self::PER_PAGE).read_volatile() })
    }
}

impl<E: AsRef<[i32]>> Drop for ForeignMapping<E> {
    fn drop(&mut self) {
        // A failing munmap of a range that is mapped would be a bug of ours; nothing to be done.
        // SAFETY: mapped by the matching call with the same handle and size; no address handed
        // out is valid any more, as documented.
        unsafe {
            (self.interface.libraries().foreign.xenforeignmemory_unmap)(
                self.interface.foreign_handle(),
                self.base.as_ptr().cast(),
                self.pages,
            );
        }
    }
}
