//! What a page holds: every word a function of who wrote it, where and when.

use zerocopy::IntoBytes;

/// Words of 8 bytes in a page.
pub const WORDS: usize = 512;

/// One page of guest memory, aligned as the guest's kernel maps it.
#[derive(Clone)]
#[repr(C, align(4096))]
pub struct Page(pub [u64; WORDS]);

/// Which content a page should have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// The guest's seed with the area's or writer's number mixed in.
    pub seed: u64,
    /// Index of the page in its area.
    pub page: u64,
    /// Sequence number of the write.
    pub seq: u64,
    /// Sequence number of the last write of the whole page; later ones wrote its edges.
    pub body: u64,
}

/// Which words of a page a write changes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Extent {
    /// All: the page's whole content shows which write it is of.
    #[default]
    Whole,
    /// The first and the last few: as dirty, and written many times as fast.
    Edges,
}

/// Words at each end of a page that every write changes.
const EDGE: usize = 4;

/// A word that is not what it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mismatch {
    /// Index of the word in its page.
    pub word: usize,
    /// What is there.
    pub found: u64,
    /// What should be there.
    pub wanted: u64,
}

/// Distance between neighbouring words: odd, so that all words of a page differ
/// and a page shifted by any number of words does not match.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

impl Stamp {
    fn base(self, seq: u64) -> u64 {
        // The finaliser of splitmix64 over the three parts: neighbouring pages
        // and neighbouring sequence numbers share no words.
        let mut z = self.seed ^ self.page.wrapping_mul(0xff51_afd7_ed55_8ccd);
        z = z.wrapping_add(seq.wrapping_mul(0xc4ce_b9fe_1a85_ec53));
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn bases(self) -> Bases {
        let body = self.base(self.body);
        let edges = if self.seq == self.body {
            body
        } else {
            self.base(self.seq)
        };
        Bases { edges, body }
    }

    fn word(self, bases: Bases, index: usize) -> u64 {
        // Word 0 is the plain sequence number, for a reader of a dump.
        if index == 0 {
            return self.seq;
        }
        let base = if is_edge(index) {
            bases.edges
        } else {
            bases.body
        };
        base.wrapping_add(STEP.wrapping_mul(index as u64))
    }
}

/// What the words of a page are counted from.
#[derive(Clone, Copy)]
struct Bases {
    edges: u64,
    body: u64,
}

fn is_edge(index: usize) -> bool {
    !(EDGE..WORDS - EDGE).contains(&index)
}

impl Page {
    /// A page of zeros.
    #[must_use]
    pub const fn zero() -> Self {
        Self([0; WORDS])
    }

    /// The page as bytes, to be written to a file.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }

    /// The page as bytes, to be read into from a file.
    pub fn as_bytes_mut(&mut self) -> &mut [u8] {
        self.0.as_mut_bytes()
    }

    /// Writes the whole page.
    pub fn fill(&mut self, stamp: Stamp) {
        let bases = stamp.bases();
        for (index, word) in self.0.iter_mut().enumerate() {
            *word = stamp.word(bases, index);
        }
    }

    /// Writes its edges; the rest must be of `stamp.body`.
    pub fn fill_edges(&mut self, stamp: Stamp) {
        let bases = stamp.bases();
        for index in (0..EDGE).chain(WORDS - EDGE..WORDS) {
            self.0[index] = stamp.word(bases, index);
        }
    }

    /// Checks the whole page.
    pub fn check(&self, stamp: Stamp) -> Result<(), Mismatch> {
        let bases = stamp.bases();
        (0..WORDS).try_for_each(|index| self.check_word(stamp, bases, index))
    }

    /// Checks three words of the page: the ends, where a torn copy shows, and
    /// one that varies. Cheap enough to do before every write.
    pub fn check_quickly(&self, stamp: Stamp) -> Result<(), Mismatch> {
        let bases = stamp.bases();
        self.check_word(stamp, bases, 0)?;
        self.check_word(stamp, bases, WORDS - 1)?;
        self.check_word(stamp, bases, (bases.edges % WORDS as u64) as usize)
    }

    fn check_word(&self, stamp: Stamp, bases: Bases, index: usize) -> Result<(), Mismatch> {
        let (found, wanted) = (self.0[index], stamp.word(bases, index));
        if found == wanted {
            Ok(())
        } else {
            Err(Mismatch {
                word: index,
                found,
                wanted,
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAMP: Stamp = Stamp {
        seed: 1,
        page: 7,
        seq: 42,
        body: 42,
    };

    #[test]
    fn a_filled_page_checks_and_every_single_word_matters() {
        let mut page = Page::zero();
        page.fill(STAMP);
        assert_eq!(page.check(STAMP), Ok(()));
        assert_eq!(page.check_quickly(STAMP), Ok(()));
        for index in 0..WORDS {
            let mut torn = page.clone();
            torn.0[index] ^= 1;
            assert_eq!(torn.check(STAMP).unwrap_err().word, index);
        }
    }

    #[test]
    fn stale_moved_and_foreign_pages_are_caught_by_every_word_but_the_first() {
        let mut page = Page::zero();
        page.fill(STAMP);
        for other in [
            Stamp {
                seq: 41,
                body: 41,
                ..STAMP
            },
            Stamp { page: 8, ..STAMP },
            Stamp { seed: 2, ..STAMP },
        ] {
            let mut theirs = Page::zero();
            theirs.fill(other);
            assert!((1..WORDS).all(|i| page.0[i] != theirs.0[i]), "{other:?}");
            assert!(page.check(other).is_err());
            assert!(page.check_quickly(other).is_err());
        }
        assert!(Page::zero().check(STAMP).is_err());
    }

    #[test]
    fn written_edges_check_and_a_torn_or_stale_page_does_not() {
        let mut page = Page::zero();
        page.fill(STAMP);
        let later = Stamp { seq: 43, ..STAMP };
        let stale = page.clone();
        page.fill_edges(later);
        assert_eq!(page.check(later), Ok(()));
        assert_eq!(page.check_quickly(later), Ok(()));
        assert!(stale.check(later).is_err() && stale.check_quickly(later).is_err());
        for index in (0..EDGE).chain(WORDS - EDGE..WORDS) {
            assert_ne!(page.0[index], stale.0[index]);
            let mut torn = page.clone();
            torn.0[index] = stale.0[index];
            assert_eq!(torn.check(later).unwrap_err().word, index);
        }
        let rewritten = Stamp { body: 43, ..later };
        page.fill(rewritten);
        assert_eq!(page.check(rewritten), Ok(()));
    }
}
