//! What kind each page of a PV guest is, kept while threads write an image: a page becomes a page
//! table, is pinned and becomes an ordinary page again, all while it is saved, and the newest counts.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::page::PageKind;
use crate::page_set::PageSet;
use crate::units::Pfn;

/// Four bits for each page.
const BITS: u64 = 4;
const PER_WORD: u64 = u64::BITS as u64 / BITS;

/// The kind of each page; 128 KiB per GiB of page numbers.
#[derive(Debug)]
pub struct Kinds(Box<[AtomicU64]>);

impl Kinds {
    /// Ordinary pages all of them, of the pfns that `pages` ranges over.
    #[must_use]
    pub fn ordinary(pages: &PageSet) -> Self {
        let words = pages.span().0.div_ceil(PER_WORD);
        Self((0..words).map(|_| AtomicU64::new(0)).collect())
    }

    /// The kind of a page of the set.
    #[must_use]
    pub fn get(&self, pfn: Pfn) -> PageKind {
        let word = self.0[(pfn.0 / PER_WORD) as usize].load(Ordering::Relaxed);
        let bits = (word >> (pfn.0 % PER_WORD * BITS)) as u8 & 0xf;
        PageKind::of_bits(bits).unwrap_or_default()
    }

    /// Notes the kind of a page of the set. No two threads do so for the same page.
    pub fn set(&self, pfn: Pfn, kind: PageKind) {
        let word = &self.0[(pfn.0 / PER_WORD) as usize];
        let shift = pfn.0 % PER_WORD * BITS;
        let (old, new) = (self.get(pfn).bits(), kind.bits());
        if old != new {
            // The bits in which they differ, and nothing of the neighbours'.
            word.fetch_xor(u64::from(old ^ new) << shift, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::PageCount;

    #[test]
    fn each_page_has_its_own_and_the_newest() {
        let kinds = Kinds::ordinary(&PageSet::new(PageCount(40)));
        let kind = |bits| PageKind::of_bits(bits).expect("a kind");
        for (pfn, bits) in [(0, 1), (15, 12), (16, 4), (39, 9), (15, 4), (0, 0), (39, 2)] {
            kinds.set(Pfn(pfn), kind(bits));
        }
        let found: Vec<_> = (0..40)
            .map(|pfn| (pfn, kinds.get(Pfn(pfn)).bits()))
            .filter(|(_, bits)| *bits != 0)
            .collect();
        assert_eq!(found, [(15, 4), (16, 4), (39, 2)]);
    }
}
