//! Which pfns of the guest have a page behind them.

use std::ops::Range;

use super::spec::SpecError;
use crate::page_set::PageSet;
use crate::units::{PageCount, Pfn};

/// The pages that exist, as a set and as runs.
#[derive(Clone, Debug)]
pub struct Layout {
    present: PageSet,
    runs: Vec<Range<u64>>,
    /// How many pages exist below each run.
    below: Vec<u64>,
    pages: PageCount,
}

impl Layout {
    /// The pfns `0..span` without the holes.
    ///
    /// # Errors
    /// [`SpecError::Hole`] for a hole outside the span, [`SpecError::Empty`] if nothing is left.
    pub fn new(span: PageCount, absent: &[Range<u64>]) -> Result<Self, SpecError> {
        let mut present = PageSet::new(span);
        present.insert_range(0..span.0);
        let mut holes = PageSet::new(span);
        for hole in absent {
            if hole.start > hole.end || hole.end > span.0 {
                return Err(SpecError::Hole(hole.clone()));
            }
            holes.insert_range(hole.clone());
        }
        present.subtract(&holes);
        let runs: Vec<_> = present.ranges().collect();
        let mut pages = 0;
        let below = runs
            .iter()
            .map(|run| {
                let below = pages;
                pages += run.end - run.start;
                below
            })
            .collect();
        if pages == 0 {
            return Err(SpecError::Empty);
        }
        Ok(Self {
            present,
            runs,
            below,
            pages: PageCount(pages),
        })
    }

    /// The pages that exist.
    #[must_use]
    pub fn present(&self) -> &PageSet {
        &self.present
    }

    /// The same as runs of consecutive pfns, ascending.
    #[must_use]
    pub fn runs(&self) -> &[Range<u64>] {
        &self.runs
    }

    /// How many pfns there are, holes included.
    #[must_use]
    pub fn span(&self) -> PageCount {
        self.present.span()
    }

    /// How many pages exist.
    #[must_use]
    pub fn pages(&self) -> PageCount {
        self.pages
    }

    /// The pfn of the `index`-th page that exists.
    #[must_use]
    pub fn nth(&self, index: u64) -> Option<Pfn> {
        // The first run always begins with nothing below it, so that there is one to take.
        let run = self
            .below
            .partition_point(|&below| below <= index)
            .checked_sub(1)?;
        let pfn = self.runs[run].start + (index - self.below[run]);
        (pfn < self.runs[run].end).then_some(Pfn(pfn))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_counted_past_the_holes() {
        let layout = Layout::new(PageCount(20), &[15..20, 3..5, 4..6, 9..9]).expect("a layout");
        assert_eq!(layout.runs(), [0..3, 6..15]);
        assert_eq!(layout.pages(), PageCount(12));
        let pfns: Vec<_> = (0..13).map(|i| layout.nth(i).map(|pfn| pfn.0)).collect();
        let want: Vec<_> = layout
            .present()
            .iter()
            .map(|pfn| Some(pfn.0))
            .chain([None])
            .collect();
        assert_eq!(pfns, want);
    }
}
