//! Which pages of an image hold data, kept while threads write it.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::page_set::PageSet;
use crate::units::{PageCount, Pfn};

/// One bit per page that holds data; the others are zero. Threads write different pages, but their
/// bits may share a word.
#[derive(Debug, Default)]
pub struct Filled(Box<[AtomicU64]>);

impl Filled {
    /// Nothing yet, of the pfns that `pages` ranges over.
    #[must_use]
    pub fn none_of(pages: &PageSet) -> Self {
        Self(pages.words().iter().map(|_| AtomicU64::new(0)).collect())
    }

    /// Whether the page holds data.
    #[must_use]
    pub fn contains(&self, pfn: Pfn) -> bool {
        self.0[(pfn.0 / 64) as usize].load(Ordering::Relaxed) >> (pfn.0 % 64) & 1 == 1
    }

    /// Notes whether the page holds data; says whether it did before.
    pub fn set(&self, pfn: Pfn, filled: bool) -> bool {
        let word = &self.0[(pfn.0 / 64) as usize];
        let bit = 1 << (pfn.0 % 64);
        let before = if filled {
            word.fetch_or(bit, Ordering::Relaxed)
        } else {
            word.fetch_and(!bit, Ordering::Relaxed)
        };
        before & bit != 0
    }

    /// How many pages hold data.
    #[must_use]
    pub fn count(&self) -> PageCount {
        let ones = |word: &AtomicU64| u64::from(word.load(Ordering::Relaxed).count_ones());
        PageCount(self.0.iter().map(ones).sum())
    }
}
