//! The guest's memory.

use super::DomainError;
use crate::page::GuestPage;
use crate::units::Pfn;

/// Maps guest memory for reading; one per copier thread.
pub trait Mapper {
    /// A mapped batch; unmapped when dropped.
    type Batch<'a>: MappedPages
    where
        Self: 'a;
    /// A batch that stays mapped beside others.
    type Kept: MappedPages;

    /// Maps up to [`BATCH_PAGES`] pages, ascending, for reading.
    ///
    /// # Errors
    /// [`DomainError`] if the batch as a whole cannot be mapped. A single page that cannot is
    /// `None` in the batch.
    fn map<'a>(&'a mut self, pfns: &[Pfn]) -> Result<Self::Batch<'a>, DomainError>;

    /// The same, to be kept beside others; `None` where that gains nothing. It shows what the page
    /// holds now for as long as the guest does not give the page back: whatever is that page after
    /// that is another frame. (The old one stays the guest's and counts as its, so that nobody
    /// else's memory is ever shown.)
    ///
    /// # Errors
    /// [`DomainError`] if the batch as a whole cannot be mapped.
    fn keep(&mut self, pfns: &[Pfn]) -> Result<Option<Self::Kept>, DomainError>;
}

/// How many pages the engine maps at a time, at most.
pub const BATCH_PAGES: usize = 1024;

impl MappedPages for std::convert::Infallible {
    fn page(&self, _: usize) -> Option<GuestPage<'_>> {
        match *self {}
    }
}

/// A batch of mapped pages.
pub trait MappedPages {
    /// The page mapped for the `index`-th pfn of the request; `None` if it cannot be mapped now
    /// (ballooned out, in transit).
    fn page(&self, index: usize) -> Option<GuestPage<'_>>;
}
