//! Where each page stands in an image: one fixed slot, known before the save starts.
//!
//! The existing pages are cut into PAGE_DATA records, ascending. A record's header always takes
//! [`RECORD_HEAD`] bytes (three pages): 16 bytes of framing and room for [`ENTRIES`] entries, of
//! which the unused ones say "absent", which readers skip. So page data is page aligned, and a
//! record holds up to [`ENTRIES`] pages.
//!
//! The unused entries stand first: stock restore of a PV guest takes "absent" for the type of the page
//! that they name, until that page's own entry says otherwise (`process_page_data` of
//! `xg_sr_restore.c`).
//!
//! ```text
//! memory_start                 +12288                      +12288 + 4096·pages
//! | type length count 0 | absent… entries… | page | page | … | next record
//! ```
//!
//! A 2 MiB-aligned group of 512 pfns is never split over two records: from 4.21 on stock restore
//! gives such a group a superpage. Contiguous memory so gets two groups to a record, 0.29 % of
//! overhead; a scattered one fills a record beyond two thirds at worst, with no more.

use crate::page::{PAGE_SIZE, PageKind};
use crate::page_set::PageSet;
use crate::units::{PageCount, Pfn};

use super::libxc::{entry, page_type, record};

/// Entries in every record's header.
pub const ENTRIES: u64 = 1534;
/// Bytes from a record's start to its page data.
pub const RECORD_HEAD: u64 = 16 + 8 * ENTRIES;

const GROUP: u64 = 512;
const PAGE: u64 = PAGE_SIZE as u64;
const NO_SLOT: u64 = u64::MAX;

/// One PAGE_DATA record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Batch {
    /// File offset of the record.
    offset: u64,
    /// The pfns it covers; the existing ones among them are its pages.
    first_pfn: u64,
    end_pfn: u64,
    pages: u64,
}

/// The place of every existing page in the file.
#[derive(Clone, Debug)]
pub struct Layout {
    pages: PageSet,
    batches: Vec<Batch>,
    /// For each group of pfns, the file offset of its first page's data.
    groups: Vec<u64>,
    start: u64,
    end: u64,
}

impl Layout {
    /// Lays the pages out from `start` on, which is a multiple of the page size.
    #[must_use]
    pub fn new(start: u64, pages: &PageSet) -> Self {
        let mut layout = Self {
            pages: pages.clone(),
            batches: vec![],
            groups: vec![NO_SLOT; pages.span().0.div_ceil(GROUP) as usize],
            start,
            end: start,
        };
        for group in 0..layout.groups.len() as u64 {
            let range = group * GROUP..((group + 1) * GROUP).min(pages.span().0);
            let count = pages.count_in(range.clone()).0;
            if count == 0 {
                continue;
            }
            match layout.batches.last_mut() {
                Some(batch) if batch.pages + count <= ENTRIES => {
                    batch.pages += count;
                    batch.end_pfn = range.end;
                }
                _ => {
                    layout.batches.push(Batch {
                        offset: layout.end,
                        first_pfn: range.start,
                        end_pfn: range.end,
                        pages: count,
                    });
                    layout.end += RECORD_HEAD;
                }
            }
            layout.groups[group as usize] = layout.end;
            layout.end += count * PAGE;
        }
        layout
    }

    /// The existing pages.
    #[must_use]
    pub fn pages(&self) -> &PageSet {
        &self.pages
    }

    /// The file offset of a page's data; `None` for a page that does not exist.
    #[must_use]
    pub fn offset(&self, pfn: Pfn) -> Option<u64> {
        if !self.pages.contains(pfn) {
            return None;
        }
        let group = pfn.0 / GROUP;
        let before = self.pages.count_in(group * GROUP..pfn.0).0;
        Some(self.groups[group as usize] + before * PAGE)
    }

    /// Where the memory begins.
    #[must_use]
    pub fn start(&self) -> u64 {
        self.start
    }

    /// Where the memory ends and the final records begin.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.end
    }

    /// How many pages have a slot.
    #[must_use]
    pub fn page_count(&self) -> PageCount {
        PageCount(self.batches.iter().map(|batch| batch.pages).sum())
    }

    /// Every record's header with its file offset, all pages being ordinary ones.
    pub fn record_heads(&self) -> impl Iterator<Item = (u64, Vec<u8>)> + '_ {
        let ordinary = |_| PageKind::ORDINARY;
        self.batches
            .iter()
            .map(move |batch| (batch.offset, self.head(batch, ordinary)))
    }

    /// The headers of those records that have other pages too.
    pub fn typed_heads(
        &self,
        kind: impl Fn(Pfn) -> PageKind + Copy,
    ) -> impl Iterator<Item = (u64, Vec<u8>)> {
        let typed = move |batch: &&Batch| {
            self.pages_of(batch)
                .any(|pfn| kind(pfn) != PageKind::ORDINARY)
        };
        self.batches
            .iter()
            .filter(typed)
            .map(move |batch| (batch.offset, self.head(batch, kind)))
    }

    fn pages_of(&self, batch: &Batch) -> impl Iterator<Item = Pfn> {
        let pfns = (batch.first_pfn..batch.end_pfn).map(Pfn);
        pfns.filter(|&pfn| self.pages.contains(pfn))
    }

    fn head(&self, batch: &Batch, kind: impl Fn(Pfn) -> PageKind) -> Vec<u8> {
        let mut head = Vec::with_capacity(RECORD_HEAD as usize);
        let length = RECORD_HEAD - super::RECORD_HEADER + batch.pages * PAGE;
        head.extend_from_slice(&record::PAGE_DATA.to_le_bytes());
        head.extend_from_slice(&(length as u32).to_le_bytes());
        head.extend_from_slice(&(ENTRIES as u32).to_le_bytes());
        head.extend_from_slice(&[0; 4]);
        let absent = batch.first_pfn | u64::from(page_type::ABSENT) << 60;
        for _ in batch.pages..ENTRIES {
            head.extend_from_slice(&absent.to_le_bytes());
        }
        for pfn in self.pages_of(batch) {
            head.extend_from_slice(&entry(pfn, kind(pfn)).to_le_bytes());
        }
        head
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pages(span: u64, ranges: &[std::ops::Range<u64>]) -> PageSet {
        let mut pages = PageSet::new(PageCount(span));
        for range in ranges {
            pages.insert_range(range.clone());
        }
        pages
    }

    #[test]
    fn contiguous_memory_takes_a_third_of_a_percent_more() {
        let layout = Layout::new(8192, &pages(131_072, &[0..131_072]));
        let memory = 131_072 * PAGE;
        assert_eq!(layout.end() - layout.start(), memory + 128 * RECORD_HEAD);
        assert_eq!(layout.offset(Pfn(0)), Some(8192 + RECORD_HEAD));
        assert_eq!(
            layout.offset(Pfn(1024)),
            Some(8192 + 2 * RECORD_HEAD + 1024 * PAGE)
        );
    }

    #[test]
    fn absent_pages_have_no_slot() {
        let layout = Layout::new(
            4096,
            &pages(0x10_0000, &[0..160, 256..1000, 0xf_f000..0xf_f004]),
        );
        assert_eq!(layout.offset(Pfn(200)), None);
        assert_eq!(layout.offset(Pfn(0x20_0000)), None);
        assert_eq!(
            layout.offset(Pfn(256)),
            Some(4096 + RECORD_HEAD + 160 * PAGE)
        );
        assert_eq!(layout.page_count(), PageCount(160 + 744 + 4));
    }

    proptest! {
        /// Slots are page aligned, ascend without overlap, and what they cost beyond the pages
        /// stays below 1 % and one record.
        #[test]
        fn slots_are_disjoint_and_cheap(
            runs in prop::collection::vec((0u64..60_000, 1u64..3_000), 1..60)
        ) {
            let ranges: Vec<_> = runs.iter().map(|&(at, len)| at..at + len).collect();
            let pages = pages(63_000, &ranges);
            let layout = Layout::new(4096, &pages);
            let mut last = 4096;
            for pfn in pages.iter() {
                let offset = layout.offset(pfn).expect("an existing page has a slot");
                prop_assert_eq!(offset % PAGE, 0);
                prop_assert!(offset >= last);
                last = offset + PAGE;
            }
            prop_assert_eq!(last, layout.end());
            let bytes = pages.count().bytes().0;
            prop_assert!(layout.end() - layout.start() <= bytes + bytes / 100 + RECORD_HEAD);
            let heads: Vec<_> = layout.record_heads().collect();
            for (offset, head) in &heads {
                prop_assert_eq!(offset % PAGE, 0);
                prop_assert_eq!(head.len() as u64, RECORD_HEAD);
            }
            prop_assert_eq!(layout.page_count(), pages.count());
        }
    }
}
