//! What must stand where, a pure function of what was issued and what was acknowledged.

use super::SLOTS;
use super::block::{Found, Place};
use std::fmt;

/// What the writer knows of one disk, or of a snapshot's what its newest record tells.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Known {
    /// The last record whose write was begun.
    pub issued: u64,
    /// The last record whose write was acknowledged: `issued` or the one before.
    pub acked: u64,
}

/// In which way a place is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// An older record than must be there, or none: the disk is of an earlier moment than memory.
    Lost,
    /// A newer record: the disk is of a later moment than memory.
    Later,
    /// No whole record.
    Damaged,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Lost => "lost",
            Self::Later => "later",
            Self::Damaged => "damaged",
        })
    }
}

/// A place that does not hold what it must.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bad {
    /// Ring or small file.
    pub place: Place,
    /// Its slot; of a small file the sequence number that is its name.
    pub slot: u64,
    /// The record that must be there; `None`: nothing of this guest.
    pub expected: Option<u64>,
    /// What is there.
    pub found: Found,
    /// In which way it is wrong.
    pub kind: Kind,
}

impl fmt::Display for Bad {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} must hold ", self.place, self.slot)?;
        match self.expected {
            Some(seq) => write!(f, "record {seq}")?,
            None => f.write_str("no record")?,
        }
        write!(f, " and holds {} ({})", self.found, self.kind)
    }
}

/// The newest record of a slot up to `seq`; `None` before the first.
#[must_use]
pub fn newest(slot: u64, seq: u64) -> Option<u64> {
    let back = (seq % SLOTS + SLOTS - slot) % SLOTS;
    // Records begin with 1: slot 0 has its first only after a lap.
    seq.checked_sub(back).filter(|&newest| newest > 0)
}

/// A slot holds what was acknowledged last of it; where a write is under way, that or what it writes.
pub fn judge(known: Known, slot: u64, found: Found) -> Result<(), Bad> {
    let expected = newest(slot, known.acked);
    let right = match (found, expected) {
        (Found::Nothing, None) => true,
        (Found::Record(seq), Some(expected)) if seq == expected => true,
        (Found::Record(seq), _) => under_way(known) == Some(seq) && seq % SLOTS == slot,
        _ => false,
    };
    if right {
        return Ok(());
    }
    let kind = match (found, expected) {
        (Found::Nothing, _) => Kind::Lost,
        (Found::Damaged(_), _) => Kind::Damaged,
        (Found::Record(found), Some(expected)) if found < expected => Kind::Lost,
        (Found::Record(_), _) => Kind::Later,
    };
    Err(Bad {
        place: Place::Ring,
        slot,
        expected,
        found,
        kind,
    })
}

/// The record that may be there or not.
fn under_way(known: Known) -> Option<u64> {
    (known.issued == known.acked + 1).then_some(known.issued)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_of_each_slot() {
        for (slot, seq, wanted) in [
            (0, 0, None),
            (0, 255, None),
            (0, 256, Some(256)),
            (1, 0, None),
            (1, 1, Some(1)),
            (2, 1, None),
            (255, 255, Some(255)),
            (255, 300, Some(255)),
            (44, 300, Some(300)),
            (45, 300, Some(45)),
        ] {
            assert_eq!(newest(slot, seq), wanted, "slot {slot} at {seq}");
        }
    }

    #[test]
    fn one_record_more_or_less_is_wrong_unless_it_is_under_way() {
        let at = |issued, acked| Known { issued, acked };
        let (old, new) = (Found::Record(45), Found::Record(301));
        assert_eq!(judge(at(301, 300), 45, old), Ok(()));
        assert_eq!(judge(at(301, 300), 45, new), Ok(()));
        assert_eq!(judge(at(300, 300), 45, old), Ok(()));
        let later = judge(at(300, 300), 45, new).unwrap_err();
        assert_eq!((later.kind, later.expected), (Kind::Later, Some(45)));
        let lost = judge(at(301, 301), 45, old).unwrap_err();
        assert_eq!((lost.kind, lost.expected), (Kind::Lost, Some(301)));
        // The write under way goes to its own slot and nowhere else.
        assert!(judge(at(301, 300), 46, new).is_err());
        // Nothing excuses damage or a slot gone blank.
        let damaged = judge(at(301, 300), 45, Found::Damaged(301)).unwrap_err();
        assert_eq!(damaged.kind, Kind::Damaged);
        let blank = judge(at(301, 300), 45, Found::Nothing).unwrap_err();
        assert_eq!(blank.kind, Kind::Lost);
    }

    #[test]
    fn in_the_first_lap_nothing_of_this_guest_may_be_there() {
        let known = Known {
            issued: 5,
            acked: 5,
        };
        assert_eq!(judge(known, 9, Found::Nothing), Ok(()));
        let later = judge(known, 9, Found::Record(9)).unwrap_err();
        assert_eq!((later.kind, later.expected), (Kind::Later, None));
        assert!(judge(known, 9, Found::Damaged(9)).is_err());
    }
}
