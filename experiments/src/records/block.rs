//! One record as a block of 4 KiB: who wrote it, where and when, and a body that follows from that.

use crate::workload::pattern::{Page, Stamp, WORDS};
use std::fmt;

/// Word 0 of every record: `LSRECORD`.
const MAGIC: u64 = u64::from_le_bytes(*b"LSRECORD");

/// The body's patterns are of areas that no memory has.
const AREA: u64 = 0x7ec0_0000;

/// Where a record stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Place {
    /// In the ring.
    Ring,
    /// In a small file of its own.
    Small,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ring => "slot",
            Self::Small => "file",
        })
    }
}

/// Whose records: one guest's on one disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The guest's seed.
    pub seed: u64,
    /// The disk's number ([`super::disk_number`]).
    pub disk: u8,
}

/// What a block holds, seen by its owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// Nothing of this guest.
    Nothing,
    /// The whole record with this sequence number.
    Record(u64),
    /// Something of this guest that is no record of this disk and place, or not all of it; the
    /// sequence number that it bears.
    Damaged(u64),
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nothing => f.write_str("none"),
            Self::Record(seq) => seq.fmt(f),
            Self::Damaged(seq) => write!(f, "damaged-{seq}"),
        }
    }
}

impl Owner {
    /// Makes the block of record `seq`.
    pub fn fill(self, block: &mut Page, place: Place, seq: u64) {
        let place = match place {
            Place::Ring => 0,
            Place::Small => 1,
        };
        let disk = u64::from(self.disk) | place << 32;
        block.fill(Stamp {
            seed: self.seed,
            page: AREA ^ disk,
            seq,
            body: seq,
        });
        block.0[..4].copy_from_slice(&[MAGIC, self.seed, disk, seq]);
        block.0[WORDS - 1] = checksum(&block.0[..WORDS - 1]);
    }

    /// Tells what a block holds.
    #[must_use]
    pub fn look(self, block: &Page, place: Place) -> Found {
        if block.0[..2] != [MAGIC, self.seed] {
            return Found::Nothing;
        }
        let seq = block.0[3];
        let mut whole = Page::zero();
        self.fill(&mut whole, place, seq);
        if block.0 == whole.0 {
            Found::Record(seq)
        } else {
            Found::Damaged(seq)
        }
    }
}

/// Over the words of a block; who has the block alone sees by it whether it is whole.
fn checksum(words: &[u64]) -> u64 {
    words.iter().fold(MAGIC, |sum, word| {
        (sum ^ word)
            .wrapping_mul(0x9e37_79b9_7f4a_7c15)
            .rotate_left(29)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWNER: Owner = Owner { seed: 5, disk: 2 };

    #[test]
    fn a_record_is_told_and_every_word_of_it_matters() {
        let mut block = Page::zero();
        assert_eq!(OWNER.look(&block, Place::Ring), Found::Nothing);
        OWNER.fill(&mut block, Place::Ring, 300);
        assert_eq!(OWNER.look(&block, Place::Ring), Found::Record(300));
        for word in 0..WORDS {
            let mut torn = block.clone();
            torn.0[word] ^= 1 << 40;
            let found = OWNER.look(&torn, Place::Ring);
            assert!(!matches!(found, Found::Record(_)), "word {word}: {found}");
        }
    }

    #[test]
    fn half_of_another_record_and_another_places_record_are_damage() {
        let (mut old, mut new) = (Page::zero(), Page::zero());
        OWNER.fill(&mut old, Place::Ring, 44);
        OWNER.fill(&mut new, Place::Ring, 300);
        new.0[64..].copy_from_slice(&old.0[64..]);
        assert_eq!(OWNER.look(&new, Place::Ring), Found::Damaged(300));
        assert_eq!(OWNER.look(&old, Place::Small), Found::Damaged(44));
        let other = Owner { disk: 3, ..OWNER };
        assert_eq!(other.look(&old, Place::Ring), Found::Damaged(44));
        let foreign = Owner { seed: 6, ..OWNER };
        assert_eq!(foreign.look(&old, Place::Ring), Found::Nothing);
    }
}
