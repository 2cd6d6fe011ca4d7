//! The pages that a guest had, as an increment's trailer lists them: ranges of page numbers,
//! ascending, with a gap between any two; for each the first and the number of pages, u64 both.

use crate::page_set::PageSet;
use crate::units::PageCount;

/// No page has a higher number: x86 has 52 bits of physical address.
const MAX_PFN: u64 = 1 << 40;

/// The section's body.
#[must_use]
pub fn encode(pages: &PageSet) -> Vec<u8> {
    let mut out = vec![];
    for range in pages.ranges() {
        out.extend_from_slice(&range.start.to_le_bytes());
        out.extend_from_slice(&(range.end - range.start).to_le_bytes());
    }
    out
}

/// Reads the section's body, for a guest of so many pages.
///
/// # Errors
/// A text that says what is wrong.
pub fn decode(body: &[u8], count: PageCount) -> Result<PageSet, &'static str> {
    let (entries, rest) = body.as_chunks::<16>();
    if !rest.is_empty() {
        return Err("the list of the guest's pages is cut off");
    }
    let mut ranges = Vec::with_capacity(entries.len());
    let (mut end, mut total) = (None, 0u64);
    for entry in entries {
        let (longs, _) = entry.as_chunks::<8>();
        let (first, pages) = (u64::from_le_bytes(longs[0]), u64::from_le_bytes(longs[1]));
        let next = first.checked_add(pages).filter(|next| *next <= MAX_PFN);
        let next = next.filter(|_| pages > 0 && end.is_none_or(|end| end < first));
        let next = next.ok_or("the list of the guest's pages is out of order")?;
        ranges.push(first..next);
        total += pages;
        end = Some(next);
    }
    if total != count.0 {
        return Err("the list of the guest's pages has not as many as livesave says");
    }
    // The set takes a bit for each number up to the last: not more than the pages are worth.
    let span = end.unwrap_or(0);
    if span > 64 * total + (1 << 24) {
        return Err("the guest's pages lie too far apart");
    }
    let mut pages = PageSet::new(PageCount(span));
    for range in ranges {
        pages.insert_range(range);
    }
    Ok(pages)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn some() -> PageSet {
        let mut pages = PageSet::new(PageCount(5000));
        pages.insert_range(0..160);
        pages.insert_range(256..1000);
        pages.insert_range(4999..5000);
        pages
    }

    #[test]
    fn what_is_written_is_read() {
        let pages = some();
        let body = encode(&pages);
        assert_eq!(body.len(), 48);
        assert_eq!(decode(&body, pages.count()), Ok(pages));
    }

    #[test]
    fn nonsense_is_refused() {
        let pages = some();
        let body = encode(&pages);
        let count = pages.count();
        assert!(decode(&body[..47], count).is_err());
        assert!(decode(&body, PageCount(count.0 + 1)).is_err());
        let entry = |first: u64, pages: u64| [first.to_le_bytes(), pages.to_le_bytes()].concat();
        for (body, count) in [
            ([entry(5, 2), entry(6, 1)].concat(), 3),
            ([entry(5, 2), entry(7, 1)].concat(), 3),
            ([entry(5, 2), entry(1, 1)].concat(), 3),
            (entry(5, 0), 0),
            (entry(u64::MAX, 2), 2),
            (entry(1 << 39, 1), 1),
        ] {
            assert!(decode(&body, PageCount(count)).is_err(), "{body:?}");
        }
    }
}
