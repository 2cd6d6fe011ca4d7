//! The pages that a guest had, as an increment's trailer lists them: ranges of page numbers,
//! ascending, with a gap between any two; for each the first and the number of pages, u64 both.

use std::ops::Range;

use crate::page_set::PageSet;
use crate::units::{PageCount, Pfn};

/// No page has a higher number: an entry of a page record has room for 52 bits.
const MAX_PFN: u64 = 1 << 52;

/// Ranges of page numbers, ascending and apart. As a set of bits they would take memory by their
/// highest number, which a damaged file may choose; so they take it by their number.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ranges(Vec<Range<u64>>);

impl Ranges {
    /// Those of a set.
    #[must_use]
    pub fn of(pages: &PageSet) -> Self {
        Self(pages.ranges().collect())
    }

    /// Of ranges that ascend, and may touch.
    #[must_use]
    pub fn joined(ranges: impl Iterator<Item = Range<u64>>) -> Self {
        let mut joined: Vec<Range<u64>> = vec![];
        for range in ranges {
            match joined.last_mut() {
                Some(last) if last.end == range.start => last.end = range.end,
                _ => joined.push(range),
            }
        }
        Self(joined)
    }

    /// The ranges.
    pub fn iter(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        self.0.iter().cloned()
    }

    /// How many pages.
    #[must_use]
    pub fn count(&self) -> PageCount {
        PageCount(self.0.iter().map(|range| range.end - range.start).sum())
    }

    /// Whether a page is among them.
    #[must_use]
    pub fn contains(&self, pfn: Pfn) -> bool {
        let before = self.0.partition_point(|range| range.end <= pfn.0);
        self.0
            .get(before)
            .is_some_and(|range| range.contains(&pfn.0))
    }

    /// The section's body.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(16 * self.0.len());
        for range in &self.0 {
            out.extend_from_slice(&range.start.to_le_bytes());
            out.extend_from_slice(&(range.end - range.start).to_le_bytes());
        }
        out
    }

    /// Reads the section's body, for a guest of so many pages.
    ///
    /// # Errors
    /// A text that says what is wrong.
    pub fn decode(body: &[u8], count: PageCount) -> Result<Self, &'static str> {
        let (entries, rest) = body.as_chunks::<16>();
        if !rest.is_empty() {
            return Err("the list of the guest's pages is cut off");
        }
        let mut ranges: Vec<Range<u64>> = Vec::with_capacity(entries.len());
        for entry in entries {
            let (longs, _) = entry.as_chunks::<8>();
            let (first, pages) = (u64::from_le_bytes(longs[0]), u64::from_le_bytes(longs[1]));
            let apart = ranges.last().is_none_or(|last| last.end < first);
            let end = first.checked_add(pages).filter(|end| *end <= MAX_PFN);
            let end = end.filter(|_| pages > 0 && apart);
            ranges.push(first..end.ok_or("the list of the guest's pages is out of order")?);
        }
        let ranges = Self(ranges);
        if ranges.count() != count {
            return Err("the list of the guest's pages has not as many as livesave says");
        }
        Ok(ranges)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn some() -> PageSet {
        let mut pages = PageSet::new(PageCount(5000));
        pages.insert_range(0..160);
        pages.insert_range(256..1000);
        pages.insert_range(4999..5000);
        pages
    }

    #[test]
    fn what_is_written_is_read() {
        let pages = some();
        let ranges = Ranges::of(&pages);
        let body = ranges.encode();
        assert_eq!(body.len(), 48);
        assert_eq!(Ranges::decode(&body, pages.count()), Ok(ranges.clone()));
        for pfn in (0..5002).map(Pfn) {
            assert_eq!(ranges.contains(pfn), pages.contains(pfn), "{pfn}");
        }
    }

    #[test]
    fn nonsense_is_refused() {
        let pages = some();
        let body = Ranges::of(&pages).encode();
        let count = pages.count();
        assert!(Ranges::decode(&body[..47], count).is_err());
        assert!(Ranges::decode(&body, PageCount(count.0 + 1)).is_err());
        let entry = |first: u64, pages: u64| [first.to_le_bytes(), pages.to_le_bytes()].concat();
        for (body, count) in [
            ([entry(5, 2), entry(6, 1)].concat(), 3),
            ([entry(5, 2), entry(7, 1)].concat(), 3),
            ([entry(5, 2), entry(1, 1)].concat(), 3),
            (entry(5, 0), 0),
            (entry(u64::MAX, 2), 2),
            (entry(MAX_PFN, 1), 1),
        ] {
            assert!(Ranges::decode(&body, PageCount(count)).is_err(), "{body:?}");
        }
    }

    /// Found by a fuzzer: as a set of bits it would have taken 15 GiB.
    #[test]
    fn a_huge_guest_takes_no_memory_before_its_pages_are_seen() {
        let body = [0x0018_394d_2a5e_u64, 0x001c_ffff_ff5e]
            .map(u64::to_le_bytes)
            .concat();
        let read = Ranges::decode(&body, PageCount(0x001c_ffff_ff5e)).expect("two numbers");
        assert_eq!(read.iter().count(), 1);
    }
}
