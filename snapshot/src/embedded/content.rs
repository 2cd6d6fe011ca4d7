//! What stands in a page: a function of (seed, pfn, version), and a hash of what stands there.
//!
//! Both run over the 512 words of a page once; at the rates of a busy guest the cost per word is
//! what decides, so that the noise is a counter through a multiply and a shift, and the hash four
//! independent chains of multiply and shift.

use super::spec::Content;
use crate::page::PAGE_SIZE;
use crate::units::Pfn;

/// How many 64-bit words a page has.
pub const PAGE_WORDS: usize = PAGE_SIZE / 8;

const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;
const ODD: u64 = 0xd6e8_feb8_6659_fd93;

/// Scatters the bits of a word: every bit of the input moves about half of the output's.
#[must_use]
pub fn mix(word: u64) -> u64 {
    let mut x = word.wrapping_add(GOLDEN);
    x = (x ^ (x >> 32)).wrapping_mul(ODD);
    x = (x ^ (x >> 32)).wrapping_mul(ODD);
    x ^ (x >> 32)
}

/// What kind of content a page starts with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// All zero.
    Zero,
    /// Words of a small vocabulary: compresses well.
    Text,
    /// Does not compress.
    Noise,
}

impl Content {
    /// What kind of content a page starts with.
    #[must_use]
    pub fn kind(&self, pfn: Pfn) -> Kind {
        let dice = (mix(self.seed ^ mix(pfn.0)) % 100) as u8;
        if dice < self.zero_percent {
            Kind::Zero
        } else if dice < self.zero_percent + self.text_percent {
            Kind::Text
        } else {
            Kind::Noise
        }
    }
}

/// What `version` of a page holds, word by word.
#[derive(Clone, Copy, Debug)]
pub struct PageContent {
    kind: Kind,
    base: u64,
}

impl PageContent {
    /// What the page holds before the first write.
    #[must_use]
    pub fn initial(content: &Content, pfn: Pfn) -> Self {
        Self {
            kind: content.kind(pfn),
            base: base(content.seed, pfn, 0),
        }
    }

    /// What the `version`-th write by some thread leaves in the page, for versions from 1.
    #[must_use]
    pub fn written(seed: u64, pfn: Pfn, version: u64) -> Self {
        Self {
            kind: Kind::Noise,
            base: base(seed, pfn, version),
        }
    }

    /// The page's `index`-th word.
    #[inline]
    #[must_use]
    pub fn word(self, index: usize) -> u64 {
        let x = self.base.wrapping_add((index as u64).wrapping_mul(GOLDEN));
        match self.kind {
            Kind::Zero => 0,
            Kind::Noise => (x ^ (x >> 32)).wrapping_mul(ODD),
            Kind::Text => VOCABULARY[(x >> 60) as usize],
        }
    }
}

fn base(seed: u64, pfn: Pfn, version: u64) -> u64 {
    mix(mix(seed ^ mix(pfn.0)).wrapping_add(version))
}

const VOCABULARY: [u64; 16] = [
    word(b"memory  "),
    word(b"of a    "),
    word(b"guest , "),
    word(b"written "),
    word(b"while   "),
    word(b"it runs "),
    word(b"; then  "),
    word(b"copied  "),
    word(b"again , "),
    word(b"page by "),
    word(b"page .  "),
    word(b"\n       "),
    word(b"nothing "),
    word(b"is lost "),
    word(b"at the  "),
    word(b"cut .   "),
];

const fn word(text: &[u8; 8]) -> u64 {
    u64::from_le_bytes(*text)
}

/// The hash of a page at a pfn, from its words in order. The sum of it over all pages is the
/// checksum of a memory, whatever the order in which the pages are taken.
#[inline]
pub fn page_hash(pfn: Pfn, mut word: impl FnMut(usize) -> u64) -> u64 {
    // For a given lane each step is a bijection of the word, so that one wrong word is always
    // seen; several wrong words escape with probability 2^-64. The shift brings the high bits,
    // which the multiplication leaves where they are, down again.
    let mut lanes = [GOLDEN, ODD, !GOLDEN, !ODD];
    for index in (0..PAGE_WORDS).step_by(4) {
        for (offset, lane) in lanes.iter_mut().enumerate() {
            let mixed = (*lane ^ word(index + offset)).wrapping_mul(GOLDEN);
            *lane = mixed ^ (mixed >> 32);
        }
    }
    lanes
        .iter()
        .fold(mix(pfn.0), |hash, &lane| mix(hash ^ lane))
}

/// The hash of a page of which we have the bytes.
#[must_use]
pub fn page_hash_of(pfn: Pfn, bytes: &[u8; PAGE_SIZE]) -> u64 {
    let (words, _) = bytes.as_chunks::<8>();
    page_hash(pfn, |index| u64::from_le_bytes(words[index]))
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_version_changes_every_word_of_a_page() {
        for (pfn, version) in [(0, 1), (7, 1), (1 << 30, 99)] {
            let old = PageContent::written(5, Pfn(pfn), version);
            let new = PageContent::written(5, Pfn(pfn), version + 1);
            let other = PageContent::written(5, Pfn(pfn + 1), version);
            assert!((0..PAGE_WORDS).all(|i| old.word(i) != new.word(i)));
            assert!((0..PAGE_WORDS).all(|i| old.word(i) != other.word(i)));
        }
    }

    #[test]
    fn the_hash_sees_each_bit_and_the_place_of_a_page() {
        let page = [0; PAGE_SIZE];
        let mut seen = HashSet::from([page_hash_of(Pfn(0), &page), page_hash_of(Pfn(1), &page)]);
        for bit in 0..PAGE_SIZE * 8 {
            let mut page = page;
            page[bit / 8] = 1 << (bit % 8);
            seen.insert(page_hash_of(Pfn(0), &page));
        }
        assert_eq!(seen.len(), 2 + PAGE_SIZE * 8);
        let mut swapped = page;
        (swapped[0], swapped[32]) = (1, 2);
        let mut unswapped = page;
        (unswapped[0], unswapped[32]) = (2, 1);
        assert_ne!(
            page_hash_of(Pfn(0), &swapped),
            page_hash_of(Pfn(0), &unswapped)
        );
    }

    #[test]
    fn content_comes_in_the_shares_asked_for() {
        let content = Content {
            zero_percent: 30,
            text_percent: 20,
            populated: true,
            seed: 3,
        };
        let share = |kind| {
            (0..10_000)
                .filter(|&pfn| content.kind(Pfn(pfn)) == kind)
                .count()
        };
        assert!(
            (2_800..3_200).contains(&share(Kind::Zero)),
            "{}",
            share(Kind::Zero)
        );
        assert!(
            (1_800..2_200).contains(&share(Kind::Text)),
            "{}",
            share(Kind::Text)
        );
    }
}
