//! Looking at the disks of a snapshot, without the guest that wrote them: whether each is of one
//! instant, and whether they all are of the same one.

use super::SLOTS;
use super::block::{Found, Owner};
use super::judge::{Bad, Known, judge};
use super::slots::{Layout, Slots};
use super::small::{self, EVERY, SmallFiles};
use std::io;
use std::path::Path;

/// What was seen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// The newest record of the ring; 0 if there is none.
    pub head: u64,
    /// Slots or small files that were looked at.
    pub looked_at: u64,
    /// Those that do not hold what they must, given the newest.
    pub bad: Vec<Bad>,
}

/// Looks at a ring. Given its newest record, each slot must hold exactly the newest record up to that
/// one; so the slot after it, whose next write may have been on its way, the one of a lap before.
pub fn ring(path: &Path, layout: Layout, owner: Owner) -> io::Result<Seen> {
    let found = Slots::open_read_only(path, layout, owner)?.read_all()?;
    let records = found.iter().filter_map(|found| match found {
        Found::Record(seq) => Some(*seq),
        _ => None,
    });
    let head = records.max().unwrap_or(0);
    let known = Known {
        issued: head,
        acked: head,
    };
    let bad = (0..).zip(found);
    Ok(Seen {
        head,
        looked_at: SLOTS,
        bad: bad
            .filter_map(|(slot, found)| judge(known, slot, found).err())
            .collect(),
    })
}

/// Looks at the small files of a disk whose ring was seen with this newest record.
pub fn small(dir: &Path, owner: Owner, head: u64) -> io::Result<Seen> {
    let last = head / EVERY * EVERY;
    // Record `head` may have been acknowledged, and its file on its way.
    let acked = if head == last {
        last.saturating_sub(EVERY)
    } else {
        last
    };
    let known = Known {
        issued: last,
        acked,
    };
    let files = SmallFiles::of(dir, owner).read()?;
    Ok(Seen {
        head,
        looked_at: files.len() as u64,
        bad: small::judge(known, &files),
    })
}

/// Whether disks with these newest records, in the order in which the guest writes to them, can be
/// of one instant: one record stands on disk after disk before the next begins.
#[must_use]
pub fn of_one_instant(heads: &[u64]) -> bool {
    let (Some(first), Some(last)) = (heads.first(), heads.last()) else {
        return true;
    };
    heads.is_sorted_by(|a, b| a >= b) && first - last <= 1
}

#[cfg(test)]
mod tests {
    use super::super::judge::Kind;
    use super::*;
    use std::fs;

    const OWNER: Owner = Owner { seed: 9, disk: 1 };

    #[test]
    fn a_ring_is_right_whichever_record_is_its_newest() {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let path = dir.path().join("records");
        let slots = Slots::create_file(&path, OWNER).unwrap();
        let look = || ring(&path, Layout::File, OWNER).unwrap();
        for seq in 1..600 {
            slots.write(seq).unwrap();
            if seq < 3 || seq % 50 == 0 || seq % SLOTS < 2 {
                let seen = look();
                assert_eq!((seen.head, seen.bad), (seq, vec![]));
            }
        }
    }

    #[test]
    fn writes_out_of_order_and_a_disk_of_two_instants_are_seen() {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let path = dir.path().join("records");
        let slots = Slots::create_file(&path, OWNER).unwrap();
        (1..=400).for_each(|seq| slots.write(seq).unwrap());
        let earlier = fs::read(&path).unwrap();
        // One was skipped, the next is there.
        slots.write(402).unwrap();
        let seen = ring(&path, Layout::File, OWNER).unwrap();
        assert_eq!((seen.head, seen.bad.len()), (402, 1));
        assert_eq!(seen.bad[0].kind, Kind::Lost);
        (401..=420).for_each(|seq| slots.write(seq).unwrap());
        // Its first half was copied 20 records before its second.
        let mut both = fs::read(&path).unwrap();
        both[..150 * 4096].copy_from_slice(&earlier[..150 * 4096]);
        fs::write(&path, both).unwrap();
        let seen = ring(&path, Layout::File, OWNER).unwrap();
        assert_eq!((seen.head, seen.bad.len()), (420, 5));
    }

    #[test]
    fn small_files_go_with_the_newest_record() {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let files = SmallFiles::create(dir.path(), OWNER).unwrap();
        (1..=12).for_each(|n| files.write(n * EVERY).unwrap());
        for (head, bad) in [
            (191, 2), // 192 cannot be there yet, and 64 was not to go
            (192, 0), // just made
            (193, 0),
            (207, 0),
            (208, 0), // the next one not yet made
            (209, 2), // the next one is missing, and 80 was to go
        ] {
            let seen = small(dir.path(), OWNER, head).unwrap();
            assert_eq!(seen.bad.len(), bad, "{head}: {:?}", seen.bad);
        }
    }

    #[test]
    fn disks_of_one_instant_differ_by_one_record_at_most_and_in_order() {
        for heads in [&[][..], &[0, 0], &[7], &[7, 7, 7], &[8, 8, 7], &[8, 7, 7]] {
            assert!(of_one_instant(heads), "{heads:?}");
        }
        for heads in [&[7, 8][..], &[9, 7], &[8, 7, 8], &[9, 8, 7]] {
            assert!(!of_one_instant(heads), "{heads:?}");
        }
    }
}
