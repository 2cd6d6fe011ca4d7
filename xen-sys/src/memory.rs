//! Which pages a domain has.

use crate::bindings::xenctrl::{
    XEN_DOMCTL_PFINFO_BROKEN, XEN_DOMCTL_PFINFO_LTAB_MASK, XEN_DOMCTL_PFINFO_LTABTYPE_MASK,
    XEN_DOMCTL_PFINFO_NOTAB, XEN_DOMCTL_PFINFO_XALLOC, XEN_DOMCTL_PFINFO_XTAB,
};
use crate::control::Xen;
use crate::domain::DomainId;
use crate::error::Error;

/// The most pages whose types can be asked for at once.
pub const MAX_PAGE_TYPES: usize = 1024;

/// The type of one page, as the stream of `xl save` has it: in bits 63 to 60 of a 64-bit word
/// (`XEN_DOMCTL_PFINFO_*` of `xen/domctl.h`, 32 bits further up).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct PageType(pub u64);

impl PageType {
    /// The bits of a word that hold the type.
    pub const MASK: u64 = widen(XEN_DOMCTL_PFINFO_LTAB_MASK);
    /// An ordinary page.
    pub const NOTAB: Self = Self(widen(XEN_DOMCTL_PFINFO_NOTAB));
    /// No page there (a hole, ballooned out), or one that the domain does not own itself.
    pub const XTAB: Self = Self(widen(XEN_DOMCTL_PFINFO_XTAB));
    /// In a stream only: allocate the page, its contents do not matter.
    pub const XALLOC: Self = Self(widen(XEN_DOMCTL_PFINFO_XALLOC));
    /// A page on broken memory.
    pub const BROKEN: Self = Self(widen(XEN_DOMCTL_PFINFO_BROKEN));

    /// The type in a word that may hold a frame number too.
    #[must_use]
    pub fn of(word: u64) -> Self {
        Self(word & Self::MASK)
    }

    /// Whether there is a page with contents: an ordinary one or a page table.
    #[must_use]
    pub fn has_data(self) -> bool {
        // The topmost bit only says that a page table is pinned; without a level it is XTAB & co.
        self == Self::NOTAB
            || (1..=4).contains(&((self.0 & widen(XEN_DOMCTL_PFINFO_LTABTYPE_MASK)) >> 60))
    }
}

/// From the hypervisor's place for page types (bits 31 to 28) to the stream's (63 to 60).
const fn widen(bits: u32) -> u64 {
    (bits as u64) << 32
}

/// Populate-on-demand: memory that a guest believes it has and that is given on first use
/// (`struct xen_pod_target` of `xen/memory.h`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PodTarget {
    /// Pages of the domain, its cache included.
    pub tot_pages: u64,
    /// Pages kept ready for first uses.
    pub cache_pages: u64,
    /// Pages promised and not given yet; 0 for a domain without populate-on-demand.
    pub entries: u64,
}

impl Xen {
    /// The highest guest frame number in use; there may be large holes below.
    /// (`xc_domain_maximum_gpfn` of `xenctrl.h`.)
    ///
    /// # Errors
    /// [`Error::DomainCall`].
    pub fn maximum_gpfn(&self, domain: DomainId) -> Result<u64, Error> {
        let mut highest = 0;
        self.domain_call("read the highest page of", domain, |interface, domid| {
            // SAFETY: `highest` is written on success.
            unsafe {
                (interface.libraries().control.xc_domain_maximum_gpfn)(
                    interface.handle(),
                    domid,
                    &raw mut highest,
                )
            }
            .into()
        })?;
        Ok(highest)
    }

    /// Replaces each frame number (a guest frame of an HVM or PVH guest, a machine frame of a PV
    /// guest) by the type of that page: the type bits alone, to be read with
    /// [`PageType::of`]. For a guest with populate-on-demand memory asking gives it the page.
    /// (`xc_get_pfn_type_batch` of libxenctrl, `XEN_DOMCTL_getpageframeinfo3`.)
    ///
    /// # Errors
    /// [`Error::Argument`] for more than [`MAX_PAGE_TYPES`] pages; [`Error::DomainCall`], `pages`
    /// are undefined then.
    pub fn page_types(&self, domain: DomainId, pages: &mut [u64]) -> Result<(), Error> {
        let operation = "read the page types of";
        if pages.len() > MAX_PAGE_TYPES {
            return Err(Error::Argument {
                operation,
                what: "more than 1024 pages",
            });
        }
        if pages.is_empty() {
            return Ok(());
        }
        self.domain_call(operation, domain, |interface, domid| {
            // SAFETY: `pages.len()` entries are read and written; the length fits by the check.
            unsafe {
                (interface.libraries().control.xc_get_pfn_type_batch)(
                    interface.handle(),
                    domid,
                    pages.len() as u32,
                    pages.as_mut_ptr(),
                )
            }
            .into()
        })?;
        for page in pages {
            *page = widen(*page as u32) & PageType::MASK;
        }
        Ok(())
    }

    /// How many bytes long the addresses of a PV guest are: 8, or 4 for a 32-bit one.
    /// (`xc_domain_get_guest_width` of `xenctrl.h`.)
    ///
    /// # Errors
    /// [`Error::DomainCall`].
    pub fn guest_width(&self, domain: DomainId) -> Result<u32, Error> {
        let mut width = 0;
        self.domain_call("read the width of", domain, |interface, domid| {
            // SAFETY: an integer to write to.
            unsafe {
                (interface.libraries().control.xc_domain_get_guest_width)(
                    interface.handle(),
                    domid,
                    &raw mut width,
                )
            }
            .into()
        })?;
        Ok(width)
    }

    /// How much populate-on-demand memory a domain has. (`xc_domain_get_pod_target` of
    /// `xenctrl.h`.)
    ///
    /// # Errors
    /// [`Error::DomainCall`]: for a PV guest, too.
    pub fn pod_target(&self, domain: DomainId) -> Result<PodTarget, Error> {
        let mut target = PodTarget::default();
        self.domain_call(
            "read the populate-on-demand target of",
            domain,
            |interface, domid| {
                // SAFETY: three integers to write to.
                unsafe {
                    (interface.libraries().control.xc_domain_get_pod_target)(
                        interface.handle(),
                        domid,
                        &raw mut target.tot_pages,
                        &raw mut target.cache_pages,
                        &raw mut target.entries,
                    )
                }
                .into()
            },
        )?;
        Ok(target)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_stand_where_the_stream_has_them() {
        assert_eq!(PageType::MASK, 0xF << 60);
        assert_eq!(PageType::XTAB.0, 0xF << 60);
        assert_eq!(PageType::BROKEN.0, 0xD << 60);
        assert_eq!(PageType::XALLOC.0, 0xE << 60);
        assert_eq!(PageType::of(0xF << 60 | 0x1234), PageType::XTAB);
    }

    #[test]
    fn ordinary_pages_and_page_tables_have_data() {
        let with_data: Vec<u64> = (0..16).filter(|&t| PageType(t << 60).has_data()).collect();
        // NOTAB, L1 to L4, and the same four pinned.
        assert_eq!(with_data, [0, 1, 2, 3, 4, 9, 10, 11, 12]);
    }
}
