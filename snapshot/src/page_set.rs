//! A set of pages: one bit per guest page, 32 KiB per GiB of guest memory.
//!
//! The words have the layout of Xen's log-dirty bitmap on x86 (bit `n % 64` of word `n / 64` is
//! pfn `n`), so that a fetched bitmap is merged word by word.

use std::ops::Range;

use crate::units::{PageCount, Pfn};

const WORD: u64 = u64::BITS as u64;

/// A set of pages out of the pfns `0..span`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PageSet {
    words: Box<[u64]>,
    span: u64,
}

impl PageSet {
    /// The empty set over the pfns `0..span`.
    #[must_use]
    pub fn new(span: PageCount) -> Self {
        let words = span.0.div_ceil(WORD) as usize;
        Self {
            words: vec![0; words].into_boxed_slice(),
            span: span.0,
        }
    }

    /// How many pfns the set ranges over: members lie in `0..span`.
    #[must_use]
    pub fn span(&self) -> PageCount {
        PageCount(self.span)
    }

    /// Adds a page. A pfn outside the span is a fault of the caller.
    pub fn insert(&mut self, pfn: Pfn) {
        assert!(
            pfn.0 < self.span,
            "{pfn} lies outside a set of span {}",
            self.span
        );
        self.words[(pfn.0 / WORD) as usize] |= 1 << (pfn.0 % WORD);
    }

    /// Adds all pages of a range. A range outside the span is a fault of the caller.
    pub fn insert_range(&mut self, range: Range<u64>) {
        assert!(
            range.end <= self.span,
            "range ends outside a set of span {}",
            self.span
        );
        let mut pfn = range.start;
        while pfn < range.end {
            let bit = pfn % WORD;
            let len = (WORD - bit).min(range.end - pfn);
            self.words[(pfn / WORD) as usize] |= (u64::MAX >> (WORD - len)) << bit;
            pfn += len;
        }
    }

    /// Takes a page out; outside the span there is nothing to take out.
    pub fn remove(&mut self, pfn: Pfn) {
        if pfn.0 < self.span {
            self.words[(pfn.0 / WORD) as usize] &= !(1 << (pfn.0 % WORD));
        }
    }

    /// Whether the page is a member.
    #[must_use]
    pub fn contains(&self, pfn: Pfn) -> bool {
        pfn.0 < self.span && self.words[(pfn.0 / WORD) as usize] >> (pfn.0 % WORD) & 1 == 1
    }

    /// How many members.
    #[must_use]
    pub fn count(&self) -> PageCount {
        PageCount(self.words.iter().map(|w| u64::from(w.count_ones())).sum())
    }

    /// How many members lie in a range of pfns.
    #[must_use]
    pub fn count_in(&self, range: Range<u64>) -> PageCount {
        let end = range.end.min(self.span);
        let mut count = 0;
        let mut pfn = range.start;
        while pfn < end {
            let bit = pfn % WORD;
            let len = (WORD - bit).min(end - pfn);
            let mask = (u64::MAX >> (WORD - len)) << bit;
            count += u64::from((self.words[(pfn / WORD) as usize] & mask).count_ones());
            pfn += len;
        }
        PageCount(count)
    }

    /// Whether there are no members.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.words.iter().all(|&w| w == 0)
    }

    /// Takes all members out.
    pub fn clear(&mut self) {
        self.words.fill(0);
    }

    /// Becomes equal to a set of the same span, in the memory that it has.
    pub fn copy_from(&mut self, other: &Self) {
        self.span = other.span;
        if self.words.len() == other.words.len() {
            self.words.copy_from_slice(&other.words);
        } else {
            self.words = other.words.clone();
        }
    }

    /// Takes the lowest pages out of it until `into` is as long as `length`, or none is left.
    pub fn move_first(&mut self, length: usize, into: &mut Vec<Pfn>) {
        for (index, word) in self.words.iter_mut().enumerate() {
            while *word != 0 && into.len() < length {
                into.push(Pfn(index as u64 * WORD + u64::from(word.trailing_zeros())));
                *word &= *word - 1;
            }
            if into.len() >= length {
                return;
            }
        }
    }

    /// Takes the lowest `count` pages out of it, or all there are.
    #[must_use]
    pub fn take_first(&mut self, count: PageCount) -> Self {
        let mut first = Self::new(self.span());
        let mut room = count.0;
        for (word, taken) in self.words.iter_mut().zip(&mut first.words) {
            if room == 0 {
                break;
            }
            if u64::from(word.count_ones()) <= room {
                room -= u64::from(word.count_ones());
                (*taken, *word) = (*word, 0);
                continue;
            }
            for _ in 0..room {
                let lowest = *word & word.wrapping_neg();
                *taken |= lowest;
                *word &= !lowest;
            }
            room = 0;
        }
        first
    }

    /// The words of the bitmap; bits from `span` on are zero.
    #[must_use]
    pub fn words(&self) -> &[u64] {
        &self.words
    }

    /// Adds what a bitmap of the same layout holds. A longer bitmap, and bits from `span` on, are
    /// ignored: the producer may round its size up. A shorter one adds what it has.
    pub fn insert_words(&mut self, bitmap: &[u64]) {
        for (word, more) in self.words.iter_mut().zip(bitmap) {
            *word |= more;
        }
        self.trim();
    }

    /// Adds all members of another set of the same span.
    pub fn union(&mut self, other: &Self) {
        self.zip(other, |a, b| a | b);
    }

    /// Keeps only the members that another set of the same span has too.
    pub fn intersect(&mut self, other: &Self) {
        self.zip(other, |a, b| a & b);
    }

    /// Takes out all members of another set of the same span.
    pub fn subtract(&mut self, other: &Self) {
        self.zip(other, |a, b| a & !b);
    }

    fn zip(&mut self, other: &Self, op: impl Fn(u64, u64) -> u64) {
        assert_eq!(self.span, other.span, "sets of different spans");
        for (word, &more) in self.words.iter_mut().zip(&other.words) {
            *word = op(*word, more);
        }
    }

    fn trim(&mut self) {
        let tail = self.span % WORD;
        if tail != 0
            && let Some(last) = self.words.last_mut()
        {
            *last &= (1 << tail) - 1;
        }
    }

    /// The members in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = Pfn> + '_ {
        self.words
            .iter()
            .enumerate()
            .filter(|(_, word)| **word != 0)
            .flat_map(|(i, &word)| {
                let base = i as u64 * WORD;
                let mut rest = word;
                std::iter::from_fn(move || {
                    (rest != 0).then(|| {
                        let bit = rest.trailing_zeros();
                        rest &= rest - 1;
                        Pfn(base + u64::from(bit))
                    })
                })
            })
    }

    /// The members as maximal runs of consecutive pfns, ascending.
    pub fn ranges(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        let mut from = 0;
        std::iter::from_fn(move || {
            let start = self.next_with(from, true)?;
            let end = self.next_with(start, false).unwrap_or(self.span);
            from = end;
            Some(start..end)
        })
    }

    /// The first pfn at or after `from` whose membership is `member`.
    fn next_with(&self, from: u64, member: bool) -> Option<u64> {
        let mut pfn = from;
        while pfn < self.span {
            let word = self.words[(pfn / WORD) as usize];
            let word = (if member { word } else { !word }) >> (pfn % WORD);
            if word != 0 {
                let found = pfn + u64::from(word.trailing_zeros());
                return (found < self.span).then_some(found);
            }
            pfn = (pfn / WORD + 1) * WORD;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn set(span: u64, members: &[u64]) -> PageSet {
        let mut set = PageSet::new(PageCount(span));
        for &pfn in members {
            set.insert(Pfn(pfn));
        }
        set
    }

    #[test]
    fn ranges_are_maximal_and_cross_words() {
        type Case<'a> = (u64, &'a [u64], &'a [Range<u64>]);
        let cases: [Case<'_>; 5] = [
            (0, &[], &[]),
            (64, &[0, 1, 63], &[0..2, 63..64]),
            (130, &[62, 63, 64, 65], &[62..66]),
            (130, &[129], &[129..130]),
            (70, &[68, 69], &[68..70]),
        ];
        for (span, members, want) in cases {
            assert_eq!(set(span, members).ranges().collect::<Vec<_>>(), want);
        }
    }

    #[test]
    fn bits_beyond_the_span_of_a_foreign_bitmap_are_ignored() {
        let mut pages = PageSet::new(PageCount(66));
        pages.insert_words(&[0, u64::MAX, u64::MAX]);
        assert_eq!(pages.ranges().collect::<Vec<_>>(), [64..66]);
        assert_eq!(pages.count(), PageCount(2));
    }

    proptest! {
        #[test]
        fn behaves_like_a_set(
            a in prop::collection::btree_set(0u64..300, 0..200),
            b in prop::collection::btree_set(0u64..300, 0..200),
            range in (0u64..300, 0u64..300),
        ) {
            let make = |s: &BTreeSet<u64>| set(300, &s.iter().copied().collect::<Vec<_>>());
            let members = |s: &PageSet| s.iter().map(|p| p.0).collect::<BTreeSet<_>>();
            let (x, y) = (make(&a), make(&b));
            let with = |op: fn(&mut PageSet, &PageSet)| { let mut z = x.clone(); op(&mut z, &y); members(&z) };
            prop_assert_eq!(members(&x), a.clone());
            prop_assert_eq!(x.count().0, a.len() as u64);
            prop_assert_eq!(with(PageSet::union), &a | &b);
            prop_assert_eq!(with(PageSet::intersect), &a & &b);
            prop_assert_eq!(with(PageSet::subtract), &a - &b);
            let mut rest = x.clone();
            let first = rest.take_first(PageCount(range.0));
            let taken: BTreeSet<u64> = a.iter().copied().take(range.0 as usize).collect();
            prop_assert_eq!(members(&rest), &a - &taken);
            prop_assert_eq!(members(&first), taken.clone());
            let (mut again, mut moved) = (x.clone(), vec![]);
            again.move_first(range.0 as usize, &mut moved);
            prop_assert_eq!(again.clone(), rest);
            prop_assert_eq!(moved.iter().map(|p| p.0).collect::<BTreeSet<_>>(), taken);
            again.copy_from(&x);
            prop_assert_eq!(again, x.clone());
            let from_ranges: BTreeSet<u64> = x.ranges().flatten().collect();
            prop_assert_eq!(from_ranges, a.clone());
            let (low, high) = (range.0.min(range.1), range.0.max(range.1));
            prop_assert_eq!(x.count_in(low..high).0, a.range(low..high).count() as u64);
            let mut filled = x.clone();
            filled.insert_range(low..high);
            prop_assert_eq!(members(&filled), &a | &(low..high).collect());
        }
    }
}
