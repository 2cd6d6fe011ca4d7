//! The one place where a foreign mapping's addresses become pages.

use xen_sys::ForeignMapping;

use crate::page::GuestPage;

/// A mapping of a domU's pages.
pub(super) struct Mapped<E: AsRef<[i32]>>(pub ForeignMapping<E>);

impl<E: AsRef<[i32]>> Mapped<E> {
    /// The `index`-th page; `None` if it could not be mapped.
    pub fn page(&self, index: usize) -> Option<GuestPage<'_>> {
        let address = self.0.page(index)?;
        // SAFETY: the mapping hands out addresses of whole mapped pages, readable until it is
        // dropped, and the result's lifetime is that of the borrow of `self`, which holds it.
        Some(unsafe { GuestPage::at(address) })
    }
}
