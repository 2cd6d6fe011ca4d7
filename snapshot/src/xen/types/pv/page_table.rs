//! Page tables of a 64-bit PV guest: machine frames in them become page numbers. Pure functions.

use crate::page::PageBytes;

/// Entries in a table.
pub const TABLE: usize = 512;
/// The entries of a level 4 table that are the hypervisor's: addresses from 0xffff800000000000 to
/// 0xffff87ffffffffff (`HYPERVISOR_VIRT_START` of `xen/arch-x86/xen-x86_64.h`).
const XEN: std::ops::Range<usize> = 256..272;

const PRESENT: u64 = 1;
/// Above level 1: it is memory, not a table.
const LARGE: u64 = 1 << 7;
const FRAME: u64 = 0x000f_ffff_ffff_f000;

/// The frame that an entry refers to.
pub fn frame(entry: u64) -> u64 {
    (entry & FRAME) >> 12
}

/// Puts into a table of that level the page number for each frame, and takes the hypervisor's entries
/// out; false if it refers to a frame that is not the guest's (now), or to large pages, and then the
/// table is half done.
///
/// What the guest runs on changes while it is looked at, so that a table of a running guest may fail
/// for being none any more, or for a mapping that ends before the guest suspends (of a grant).
pub fn normalise(table: &mut PageBytes, level: u8, pfn_of: impl Fn(u64) -> Option<u64>) -> bool {
    let (entries, _) = table.0.as_chunks_mut::<8>();
    for (index, bytes) in entries.iter_mut().enumerate() {
        if level == 4 && XEN.contains(&index) {
            *bytes = [0; 8];
            continue;
        }
        let entry = u64::from_le_bytes(*bytes);
        if entry & PRESENT == 0 {
            continue;
        }
        if level > 1 && entry & LARGE != 0 {
            return false;
        }
        let Some(pfn) = pfn_of(frame(entry)) else {
            return false;
        };
        *bytes = (entry & !FRAME | pfn << 12 & FRAME).to_le_bytes();
    }
    true
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn table(entries: &[(usize, u64)]) -> PageBytes {
        let mut page = PageBytes::ZERO;
        let (words, _) = page.0.as_chunks_mut::<8>();
        for &(index, entry) in entries {
            words[index] = entry.to_le_bytes();
        }
        page
    }

    /// The guest's frames are 0x1000 to 0x1fff, its pages 0 to 0xfff.
    fn pfn_of(frame: u64) -> Option<u64> {
        (0x1000..0x2000).contains(&frame).then(|| frame - 0x1000)
    }

    #[test]
    fn frames_become_page_numbers_and_flags_stay() {
        let flags = 1 << 63 | 0x7ff;
        let mut page = table(&[
            (0, 0x1234 << 12 | flags),
            (7, 0x9999_9000),
            (511, 0x1000 << 12 | 0x67),
        ]);
        assert!(normalise(&mut page, 1, pfn_of));
        let want = [(0, 0x234 << 12 | flags), (7, 0x9999_9000), (511, 0x67)];
        assert!(page == table(&want));
    }

    #[test]
    fn the_hypervisors_entries_go_from_level_four_only() {
        let entries = [
            (255, 0x1001 << 12 | 0x67),
            (256, 0x5_0063),
            (271, 0x7777_7063),
            (272, 0x1002 << 12 | 0x67),
        ];
        let mut page = table(&entries);
        assert!(normalise(&mut page, 4, pfn_of));
        assert!(page == table(&[(255, 0x1067), (272, 0x2067)]));
        assert!(!normalise(&mut table(&entries), 3, pfn_of));
    }

    #[test]
    fn what_is_not_the_guests_fails_it() {
        for (level, entry) in [
            (1, 0x2000 << 12 | 0x67),
            (2, 0xfff << 12 | 0x67),
            (2, 0x1001 << 12 | 0xe7),
            (3, 1),
        ] {
            assert!(
                !normalise(&mut table(&[(3, entry)]), level, pfn_of),
                "{entry:#x}"
            );
        }
        // At level 1 that bit is one of the cache's.
        assert!(normalise(
            &mut table(&[(3, 0x1001 << 12 | 0xe7)]),
            1,
            pfn_of
        ));
    }

    proptest! {
        /// Whatever is taken for a table: no panic, and if it passes no frame is left in it.
        #[test]
        fn garbage_is_no_danger(
            words in prop::collection::vec(any::<u64>(), 512),
            level in 1u8..=4,
            sparse in any::<bool>(),
        ) {
            let mut page = PageBytes::ZERO;
            for (bytes, word) in page.0.as_chunks_mut::<8>().0.iter_mut().zip(&words) {
                let word = if sparse { word & !FRAME | 0x1abc << 12 } else { *word };
                *bytes = word.to_le_bytes();
            }
            if normalise(&mut page, level, pfn_of) {
                for bytes in page.0.as_chunks::<8>().0 {
                    let entry = u64::from_le_bytes(*bytes);
                    prop_assert!(entry & PRESENT == 0 || frame(entry) < 0x1000);
                }
            }
        }
    }
}
