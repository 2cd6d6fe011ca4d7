use std::collections::HashMap;

use proptest::prelude::*;

use super::*;

const END: u64 = 1 << 24;
const PRESENT: u64 = 0x67;

/// A guest's memory: the pages in some frames.
#[derive(Default)]
struct Guest {
    pages: HashMap<u64, Box<Words>>,
    reads: usize,
    next: u64,
}

impl Guest {
    fn page(&mut self) -> u64 {
        self.next += 1;
        let frame = 0x1000 + self.next;
        self.pages.insert(frame, Box::new([0; TABLE]));
        frame
    }

    fn set(&mut self, frame: u64, index: u64, word: u64) {
        self.pages.get_mut(&frame).expect("a page")[index as usize] = word;
    }

    /// The table below an entry, made if there is none.
    fn below(&mut self, frame: u64, index: u64) -> u64 {
        let entry = self.pages[&frame][index as usize];
        if entry != 0 {
            return page_table::frame(entry);
        }
        let table = self.page();
        self.set(frame, index, table << 12 | PRESENT);
        table
    }

    /// Maps the page in a frame at an address.
    fn map(&mut self, root: u64, address: u64, frame: u64) {
        let mut table = root;
        for level in (2..=4).rev() {
            table = self.below(table, address >> (12 + 9 * (level - 1)) & 511);
        }
        self.set(table, address >> 12 & 511, frame << 12 | PRESENT);
    }

    fn find(&mut self, anchor: &Anchor, limit: u64) -> Result<Leaves, &'static str> {
        let Self { pages, reads, .. } = self;
        let mut read = |frame: u64| {
            *reads += 1;
            pages.get(&frame).cloned()
        };
        let mut memory = Memory {
            read: &mut read,
            end: END,
        };
        find(anchor, limit, &mut memory)
    }
}

/// A list of `pages` page numbers at an address; the frames of its pages are from 0x80_0000 on.
fn listed(address: u64, pages: u64) -> (Guest, Anchor) {
    let mut guest = Guest::default();
    let root = guest.page();
    for leaf in 0..pages.div_ceil(PER_PAGE) {
        guest.map(root, address + leaf * 4096, 0x80_0000 + leaf);
    }
    let anchor = Anchor {
        pages,
        list_root: root,
        list_address: address,
        ..Anchor::default()
    };
    (guest, anchor)
}

#[test]
fn a_list_is_found_wherever_it_lies() {
    // Where Linux has it, over the bounds of tables of all levels, and at the very end.
    for address in [
        0xffff_c900_0000_0000,
        0xffff_c900_001f_f000,
        0xffff_c93f_ffff_f000,
        0xffff_c97f_ffff_e000,
        0xffff_ffff_ffe0_0000,
        0x0000_7fff_fff0_0000,
    ] {
        for pages in [1, 512, 513, 131_072 - 7] {
            let (mut guest, anchor) = listed(address, pages);
            let found = guest.find(&anchor, pages).expect("found");
            let frames: Vec<u64> = (0..pages.div_ceil(512)).map(|n| 0x80_0000 + n).collect();
            assert!(found == Leaves { frames, pages }, "{address:#x} {pages}");
            assert!(guest.reads < 8);
        }
    }
}

#[test]
fn a_list_ends_where_all_the_rest_is_shared() {
    // 1 GiB that is there; then a table of nothing for each of the next seven.
    let (mut guest, mut anchor) = listed(0xffff_c900_0000_0000, 512 * 512);
    let nothing = guest.page();
    for index in 0..512 {
        guest.set(nothing, index, 0x90_0000 << 12 | PRESENT);
    }
    let top = guest.below(anchor.list_root, 0xc9 * 2);
    let middle = guest.below(top, 0);
    for index in 1..8 {
        guest.set(middle, index, nothing << 12 | PRESENT);
    }
    anchor.pages = 8 * 512 * 512;
    let found = guest.find(&anchor, 512 * 512).expect("found");
    assert_eq!((found.pages, found.frames.len()), (512 * 512, 512));
    // Two of them are two tables; were they one, it would be of use to nobody.
    guest.set(middle, 7, 0);
    let other = guest.page();
    guest.set(middle, 7, other << 12 | PRESENT);
    assert!(
        guest.find(&anchor, u64::MAX).is_err(),
        "what is in it is empty"
    );
}

#[test]
fn a_tree_is_found() {
    for pages in [1u64, 511, 512 * 512, 512 * 512 * 3 + 5] {
        let mut guest = Guest::default();
        let root = guest.page();
        let mut want = vec![];
        for list in 0..pages.div_ceil(512 * 512) {
            let frames = guest.page();
            guest.set(root, list, frames);
            for index in 0..512 {
                let leaf = 0x80_0000 + list * 512 + index;
                guest.set(frames, index, leaf);
                want.push(leaf);
            }
        }
        let anchor = Anchor {
            pages,
            tree_root: root,
            ..Anchor::default()
        };
        want.truncate(pages.div_ceil(512) as usize);
        let found = guest.find(&anchor, pages).expect("found");
        assert_eq!(
            found,
            Leaves {
                frames: want,
                pages
            }
        );
    }
}

#[test]
fn a_tree_that_ends_in_one_and_the_same_list_ends_before_it() {
    let mut guest = Guest::default();
    let (root, first, nothing) = (guest.page(), guest.page(), guest.page());
    for index in 0..512 {
        guest.set(first, index, 0x80_0000 + index);
        guest.set(nothing, index, 0x90_0000);
        guest.set(root, index, nothing);
    }
    guest.set(root, 0, first);
    let anchor = Anchor {
        pages: 512 * 512 * 500,
        tree_root: root,
        ..Anchor::default()
    };
    let found = guest.find(&anchor, 1 << 20).expect("found");
    assert_eq!((found.pages, found.frames.len()), (512 * 512, 512));
}

#[test]
fn one_that_is_too_large_is_refused_before_it_is_read() {
    let pages = 512 * 512 * 8;
    let (mut guest, anchor) = listed(0xffff_c900_0000_0000, pages);
    assert!(guest.find(&anchor, pages - 1).is_err());
    assert!(guest.reads <= 3, "{} reads of a list", guest.reads);

    let mut guest = Guest::default();
    let root = guest.page();
    for list in 0..8 {
        let leaves = guest.page();
        guest.set(root, list, leaves);
    }
    let anchor = Anchor {
        pages,
        tree_root: root,
        ..Anchor::default()
    };
    assert!(guest.find(&anchor, pages - 1).is_err());
    assert_eq!(guest.reads, 1);
}

#[test]
fn what_cannot_be_is_refused() {
    let (mut guest, good) = listed(0xffff_c900_0000_0000, 5000);
    assert!(guest.find(&good, 5000).is_ok());
    assert!(guest.find(&good, 4999).is_err());
    for bad in [
        Anchor { pages: 0, ..good },
        Anchor {
            pages: u64::MAX,
            ..good
        },
        Anchor {
            pages: 1 << 33,
            ..good
        },
        Anchor {
            list_root: END,
            ..good
        },
        Anchor {
            list_root: 0x99_9999,
            ..good
        },
        Anchor {
            list_root: 0,
            ..good
        },
        Anchor {
            list_root: 0,
            tree_root: u64::MAX,
            ..good
        },
        Anchor {
            list_address: 0xffff_c900_0000_0008,
            ..good
        },
        Anchor {
            list_address: 0x1234_0000_0000_0000,
            ..good
        },
        // What the hypervisor has; from below it and to it; round the end.
        Anchor {
            list_address: 0xffff_8100_0000_0000,
            ..good
        },
        Anchor {
            list_address: 0x0000_7fff_ffff_f000,
            ..good
        },
        Anchor {
            list_address: 0xffff_ffff_ffff_f000,
            ..good
        },
        // Nothing is there.
        Anchor {
            list_address: 0xffff_d900_0000_0000,
            ..good
        },
    ] {
        assert!(guest.find(&bad, u64::MAX).is_err(), "{bad:x?}");
    }
}

proptest! {
    /// A guest whose every page is garbage: no panic, and not more is read than its size allows.
    #[test]
    fn garbage_is_no_danger(
        pages in prop_oneof![1u64..100_000_000, any::<u64>()],
        list_root in 0u64..3,
        list_address in prop_oneof![
            any::<u64>(),
            (0u64..1 << 35).prop_map(|page| 0xffff_c900_0000_0000 | page << 12),
        ],
        words in prop::collection::vec(any::<u64>(), 1..6),
        narrow in any::<bool>(),
    ) {
        let anchor = Anchor {
            pages,
            list_root,
            list_address,
            tree_root: 1,
            generation: 0,
        };
        let mut reads = 0u64;
        let mut read = |frame: u64| {
            reads += 1;
            let mut table = Box::new([0; TABLE]);
            for (index, word) in table.iter_mut().enumerate() {
                let any = words[(index + frame as usize) % words.len()].rotate_left(index as u32);
                *word = if narrow { any & 0xff_f067 | 0x1000 } else { any };
            }
            Some(table)
        };
        let mut memory = Memory { read: &mut read, end: END };
        let found = find(&anchor, 1 << 26, &mut memory);
        if let Ok(found) = found {
            prop_assert!(found.pages <= 1 << 26);
            prop_assert_eq!(found.frames.len() as u64, found.pages.div_ceil(512));
        }
        prop_assert!(reads <= 3 + MOST / 512 / 512, "{} reads", reads);
    }
}
