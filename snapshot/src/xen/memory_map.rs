//! Which pages a guest has, without asking about every number up to the highest.
//!
//! A PVH guest of 512 MiB has its highest pages just below 4 GiB: a million page numbers for
//! 131 072 pages. So groups of 512 numbers are sampled first, and only groups in which something
//! was found are asked about in full. The hypervisor knows how many pages the guest has; if fewer
//! were found, all the rest is asked about too, so that no page is ever missed.

use crate::page_set::PageSet;
use crate::units::{PageCount, Pfn};

const GROUP: u64 = 512;
/// One number in that many is asked about in the first look.
const STRIDE: u64 = 64;
/// The hypervisor answers for at most that many numbers in one call.
pub const QUERY: usize = 1024;

/// Finds the pages among `0..span`. `expected` is how many there are; `hints` are numbers likely
/// to exist that a sample could miss. `exists` tells of up to [`QUERY`] numbers which exist.
pub fn find<E>(
    span: PageCount,
    expected: PageCount,
    hints: &[Pfn],
    mut exists: impl FnMut(&[u64], &mut Vec<bool>) -> Result<(), E>,
) -> Result<PageSet, E> {
    let groups = span.0.div_ceil(GROUP);
    let mut pages = PageSet::new(span);
    let mut looked_at = PageSet::new(PageCount(groups));

    let samples = (0..span.0).step_by(STRIDE as usize);
    let hints = hints.iter().map(|pfn| pfn.0).filter(|&pfn| pfn < span.0);
    ask(samples.chain(hints), &mut exists, |pfn| {
        looked_at.insert(Pfn(pfn / GROUP));
    })?;

    ask(members(&looked_at, span), &mut exists, |pfn| {
        pages.insert(Pfn(pfn));
    })?;
    if pages.count() < expected {
        let mut rest = PageSet::new(PageCount(groups));
        rest.insert_range(0..groups);
        rest.subtract(&looked_at);
        ask(members(&rest, span), &mut exists, |pfn| {
            pages.insert(Pfn(pfn));
        })?;
    }
    Ok(pages)
}

/// The numbers in a set of groups.
fn members(groups: &PageSet, span: PageCount) -> impl Iterator<Item = u64> + '_ {
    groups
        .iter()
        .flat_map(move |group| group.0 * GROUP..((group.0 + 1) * GROUP).min(span.0))
}

fn ask<E>(
    numbers: impl Iterator<Item = u64>,
    exists: &mut impl FnMut(&[u64], &mut Vec<bool>) -> Result<(), E>,
    mut found: impl FnMut(u64),
) -> Result<(), E> {
    let mut numbers = numbers.peekable();
    let mut query = Vec::with_capacity(QUERY);
    let mut answers = Vec::with_capacity(QUERY);
    while numbers.peek().is_some() {
        query.clear();
        query.extend(numbers.by_ref().take(QUERY));
        exists(&query, &mut answers)?;
        query
            .iter()
            .zip(&answers)
            .filter(|(_, there)| **there)
            .for_each(|(&pfn, _)| found(pfn));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use proptest::prelude::*;

    use super::*;

    fn find_in(there: &PageSet, hints: &[Pfn]) -> (PageSet, usize) {
        let mut calls = 0;
        let Ok(found) = find(there.span(), there.count(), hints, |query, answers| {
            assert!(query.len() <= QUERY);
            calls += 1;
            answers.clear();
            answers.extend(query.iter().map(|&pfn| there.contains(Pfn(pfn))));
            Ok::<_, Infallible>(())
        });
        (found, calls)
    }

    /// The layout of a 512 MiB PVH guest: memory from 0, firmware tables and special pages below
    /// 4 GiB.
    fn pvh() -> PageSet {
        let mut there = PageSet::new(PageCount(0xf_f000));
        there.insert_range(0..0x2_0000 - 9);
        there.insert_range(0xf_c009..0xf_c00b);
        there.insert_range(0xf_eff8..0xf_efff);
        there
    }

    #[test]
    fn hints_spare_the_crawl_to_four_gigabytes() {
        let there = pvh();
        let (found, calls) = find_in(&there, &[Pfn(0xf_c009), Pfn(0xf_effc)]);
        assert!(found == there);
        assert!(calls < 150, "{calls} calls");
    }

    #[test]
    fn what_no_sample_and_no_hint_shows_is_found_all_the_same() {
        let there = pvh();
        let (found, calls) = find_in(&there, &[]);
        assert!(found == there);
        assert!(calls > 1000, "{calls} calls");
    }

    proptest! {
        #[test]
        fn no_page_is_missed(runs in prop::collection::vec((0u64..40_000, 1u64..2_000), 0..20)) {
            let mut there = PageSet::new(PageCount(42_001));
            for (at, len) in runs {
                there.insert_range(at..at + len);
            }
            prop_assert!(find_in(&there, &[Pfn(50_000)]).0 == there);
        }
    }
}
