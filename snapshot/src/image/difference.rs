//! In what two images differ, page by page.

use std::ops::Range;

use super::ImageError;
use super::index::{CHUNK, PageIndex};
use crate::page::PAGE_SIZE;

/// In what two images differ, as ranges of page numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Difference {
    /// Pages that are equal.
    pub equal: u64,
    /// Pages that are in both and differ.
    pub differ: Vec<Range<u64>>,
    /// Pages that the first alone has.
    pub only_first: Vec<Range<u64>>,
    /// Pages that the second alone has.
    pub only_second: Vec<Range<u64>>,
}

/// How many pages some ranges hold.
#[must_use]
pub fn pages_of(ranges: &[Range<u64>]) -> u64 {
    ranges.iter().map(|range| range.end - range.start).sum()
}

/// Compares two images page by page. `progress` hears how many pages were looked at since it was
/// last called.
///
/// # Errors
/// [`ImageError`].
pub fn compare(
    first: &PageIndex<'_>,
    second: &PageIndex<'_>,
    mut progress: impl FnMut(u64),
) -> Result<Difference, ImageError> {
    let mut found = Difference::default();
    let (mut one, mut two) = (vec![], vec![]);
    let mut pfn = 0;
    loop {
        let next = (first.from(pfn), second.from(pfn));
        let pages = match next {
            (None, None) => return Ok(found),
            (Some((start, a)), Some((same, b))) if start == same => {
                let pages = a.pages.min(b.pages).min(CHUNK);
                first.read(a, pages, &mut one)?;
                second.read(b, pages, &mut two)?;
                for number in 0..pages as usize {
                    let page = number * PAGE_SIZE..(number + 1) * PAGE_SIZE;
                    if one[page.clone()] == two[page] {
                        found.equal += 1;
                    } else {
                        append(&mut found.differ, start + number as u64, 1);
                    }
                }
                pfn = start + pages;
                pages
            }
            // Up to where the other has pages again.
            (Some((start, a)), other) if other.is_none_or(|(other, _)| start < other) => {
                let room = other.map_or(u64::MAX, |(other, _)| other - start);
                let pages = a.pages.min(room);
                append(&mut found.only_first, start, pages);
                pfn = start + pages;
                pages
            }
            (other, Some((start, b))) => {
                let room = other.map_or(u64::MAX, |(other, _)| other - start);
                let pages = b.pages.min(room);
                append(&mut found.only_second, start, pages);
                pfn = start + pages;
                pages
            }
            (Some(_), None) => unreachable!("no other is behind none"),
        };
        progress(pages);
    }
}

fn append(ranges: &mut Vec<Range<u64>>, start: u64, pages: u64) {
    match ranges.last_mut() {
        Some(last) if last.end == start => last.end += pages,
        _ => ranges.push(start..start + pages),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::Reader;
    use crate::image::index::tests::image;

    #[test]
    fn images_of_both_kinds_are_compared_page_by_page() {
        let dir = tempfile::tempdir().expect("directory");
        image(
            dir.path(),
            "a",
            false,
            10..120,
            &[(10..120, 1), (40..50, 2)],
        );
        // Page 42 came twice, and its first copy is another than that of the first image.
        let writes = [
            (20..130, 1),
            (40..45, 3),
            (40..50, 2),
            (60..61, 0),
            (62..64, 7),
        ];
        image(dir.path(), "b", true, 20..130, &writes);
        let a = Reader::open(&dir.path().join("a")).expect("readable");
        let b = Reader::open(&dir.path().join("b")).expect("readable");
        let (a, b) = (
            PageIndex::of(&a).expect("read"),
            PageIndex::of(&b).expect("read"),
        );
        assert_eq!((a.count(), b.count()), (110, 110));
        let mut done = 0;
        let found = compare(&a, &b, |pages| done += pages).expect("compared");
        let want = Difference {
            equal: 97,
            differ: vec![60..61, 62..64],
            only_first: vec![10..20],
            only_second: vec![120..130],
        };
        assert_eq!(found, want);
        assert_eq!(done, 120);
        assert_eq!(pages_of(&found.differ), 3);
    }
}
