//! Which pages are dirtied in every round.
//!
//! Copying such a page again is no use: it will be dirty once more when the guest is asked to
//! suspend. It is left for the window until a round passes in which it is not dirtied. Xen's first
//! live migration did so with a look at the dirty bits just before each page.

use crate::page_set::PageSet;
use crate::units::PageCount;

/// Dirtied in that many rounds in a row, a page is hot.
const STREAK: usize = 3;

/// The dirty sets of the last rounds.
pub(super) struct Hot {
    span: PageCount,
    last: Vec<PageSet>,
}

impl Hot {
    pub fn new(span: PageCount) -> Self {
        Self { span, last: vec![] }
    }

    /// Takes in what a round found dirty; the pages that have been dirtied in each of the last
    /// rounds.
    pub fn after(&mut self, dirty: &PageSet) -> PageSet {
        if self.last.len() == STREAK {
            self.last.remove(0);
        }
        self.last.push(dirty.clone());
        if self.last.len() < STREAK {
            return PageSet::new(self.span);
        }
        let mut hot = dirty.clone();
        for set in &self.last[..STREAK - 1] {
            hot.intersect(set);
        }
        hot
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::Pfn;

    #[test]
    fn a_page_is_hot_after_three_rounds_and_cool_after_one_without_it() {
        let set = |pfns: &[u64]| {
            let mut set = PageSet::new(PageCount(100));
            pfns.iter().for_each(|&pfn| set.insert(Pfn(pfn)));
            set
        };
        let mut hot = Hot::new(PageCount(100));
        for (dirty, want) in [
            (&[1, 2, 3][..], &[][..]),
            (&[2, 3, 4], &[]),
            (&[2, 3, 5], &[2, 3]),
            (&[3, 5], &[3]),
            (&[5], &[5]),
            (&[], &[]),
            (&[5], &[]),
        ] {
            assert_eq!(hot.after(&set(dirty)), set(want), "{dirty:?}");
        }
    }
}
