//! Where the newest copy of each page stands in an image, or in a chain of images, as runs of
//! pages: for reading any page, for comparing images, for making one of a chain.

use std::collections::BTreeMap;
use std::ops::Range;

use super::existing::Ranges;
use super::libxc::record;
use super::{ImageError, Reader};
use crate::page::PAGE_SIZE;
use crate::page_set::PageSet;
use crate::units::{PageCount, Pfn};

/// Pages compared at a time.
const CHUNK: u64 = 256;

/// Pages that follow one another in number and in the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Run {
    pages: u64,
    /// In which of the images.
    image: usize,
    /// Where the first stands in its stream.
    at: u64,
}

/// The places of all pages of a guest, in one image or in a chain of them.
#[derive(Debug)]
pub struct PageIndex<'r> {
    images: Vec<&'r Reader>,
    /// By the first page's number.
    runs: BTreeMap<u64, Run>,
}

/// Pages that follow one another in number and in the stream, with their place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stretch {
    /// The first page.
    pub first: Pfn,
    run: Run,
}

impl Stretch {
    /// How many pages.
    #[must_use]
    pub fn pages(&self) -> u64 {
        self.run.pages
    }

    /// Cuts off the first pages, at most so many.
    #[must_use]
    pub fn split(self, pages: u64) -> (Self, Option<Self>) {
        let now = pages.min(self.run.pages);
        let rest = (now < self.run.pages).then(|| Self {
            first: Pfn(self.first.0 + now),
            run: self.run.without(now),
        });
        let run = Run {
            pages: now,
            ..self.run
        };
        (Self { run, ..self }, rest)
    }
}

impl<'r> PageIndex<'r> {
    /// Reads the page lists of an image.
    ///
    /// # Errors
    /// [`ImageError`].
    pub fn of(reader: &'r Reader) -> Result<Self, ImageError> {
        let mut index = Self {
            images: vec![],
            runs: BTreeMap::new(),
        };
        index.add(reader)?;
        Ok(index)
    }

    /// Reads the page lists of a chain's images, the oldest first. Only the pages that the guest
    /// had at the last cut are in it.
    ///
    /// # Errors
    /// [`ImageError`].
    pub fn of_all(images: &'r [Reader]) -> Result<Self, ImageError> {
        let mut index = Self {
            images: vec![],
            runs: BTreeMap::new(),
        };
        for reader in images {
            index.add(reader)?;
        }
        if let Some(existing) = images.last().and_then(Reader::existing) {
            let mut end = 0;
            for range in existing.iter() {
                index.remove(end..range.start);
                end = range.end;
            }
            index.remove(end..u64::MAX);
        }
        Ok(index)
    }

    /// Adds an image's pages, which take the place of those known so far.
    fn add(&mut self, reader: &'r Reader) -> Result<(), ImageError> {
        let image = self.images.len();
        self.images.push(reader);
        let records = reader.libxc_records().iter();
        for at in records.filter(|at| at.kind == record::PAGE_DATA) {
            let (pfns, mut at) = reader.page_entries(at)?;
            for run in pfns.chunk_by(|a, b| a.0 + 1 == b.0) {
                let pages = run.len() as u64;
                self.insert(run[0].0, Run { pages, image, at });
                at += pages * PAGE_SIZE as u64;
            }
        }
        Ok(())
    }

    /// Adds a run, which takes the place of what was known of its pages.
    fn insert(&mut self, first: u64, run: Run) {
        self.remove(first..first + run.pages);
        self.runs.insert(first, run);
    }

    /// Forgets some pages.
    fn remove(&mut self, pages: Range<u64>) {
        let Range { start: first, end } = pages;
        if first >= end {
            return;
        }
        let before = self.runs.range(..first).next_back();
        if let Some((&start, &old)) = before
            && start + old.pages > first
        {
            let left = first - start;
            self.runs.insert(start, Run { pages: left, ..old });
            if start + old.pages > end {
                self.runs.insert(end, old.without(end - start));
            }
        }
        while let Some((&start, &old)) = self.runs.range(first..end).next() {
            self.runs.remove(&start);
            if start + old.pages > end {
                self.runs.insert(end, old.without(end - start));
            }
        }
    }

    /// Which pages there are, in a set that ranges up to the last; `None` where that would take far
    /// more memory than so many pages are worth.
    #[must_use]
    pub fn pages(&self) -> Option<PageSet> {
        let last = self.runs.last_key_value();
        let end = last.map_or(0, |(start, run)| start + run.pages);
        // 4 GiB of page numbers, as guests with little memory have too, and holes beyond.
        if end > 64 * self.count() + (1 << 24) {
            return None;
        }
        let mut pages = PageSet::new(PageCount(end));
        for (start, run) in &self.runs {
            pages.insert_range(*start..start + run.pages);
        }
        Some(pages)
    }

    /// The same as ranges.
    #[must_use]
    pub fn ranges(&self) -> Ranges {
        let runs = self.runs.iter();
        Ranges::joined(runs.map(|(start, run)| *start..start + run.pages))
    }

    /// All pages in the order in which they stand in the images, the oldest image first: read so,
    /// each part of a compressed image is unpacked once.
    #[must_use]
    pub fn in_file_order(&self) -> Vec<Stretch> {
        let stretches = self.runs.iter().map(|(&first, &run)| Stretch {
            first: Pfn(first),
            run,
        });
        let mut stretches: Vec<_> = stretches.collect();
        stretches.sort_unstable_by_key(|stretch| (stretch.run.image, stretch.run.at));
        stretches
    }

    /// Appends the bytes of some pages.
    ///
    /// # Errors
    /// [`ImageError`].
    pub fn append(&self, stretch: Stretch, to: &mut Vec<u8>) -> Result<(), ImageError> {
        let start = to.len();
        to.resize(start + stretch.run.pages as usize * PAGE_SIZE, 0);
        self.images[stretch.run.image].read_exact(&mut to[start..], stretch.run.at)
    }

    /// How many pages there are.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.runs.values().map(|run| run.pages).sum()
    }

    /// How many of them lie in a range of page numbers.
    #[must_use]
    pub fn count_in(&self, range: &Range<u64>) -> u64 {
        let (mut pfn, mut count) = (range.start, 0);
        while let Some((start, run)) = self.from(pfn).filter(|(start, _)| *start < range.end) {
            let end = range.end.min(start + run.pages);
            count += end - start;
            pfn = end;
        }
        count
    }

    /// The run that holds a page, or the first behind it: its part from there on.
    fn from(&self, pfn: u64) -> Option<(u64, Run)> {
        let before = self.runs.range(..=pfn).next_back();
        if let Some((&start, &run)) = before
            && start + run.pages > pfn
        {
            return Some((pfn, run.without(pfn - start)));
        }
        let (&start, &run) = self.runs.range(pfn..).next()?;
        Some((start, run))
    }

    /// Hands over the pages of a range that exist, ascending.
    ///
    /// # Errors
    /// [`ImageError`], or what `take` says.
    pub fn for_each_in<E: From<ImageError>>(
        &self,
        range: Range<u64>,
        mut take: impl FnMut(Pfn, &[u8; PAGE_SIZE]) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut buffer = vec![];
        let mut pfn = range.start;
        while let Some((start, run)) = self.from(pfn).filter(|(start, _)| *start < range.end) {
            let pages = run.pages.min(range.end - start).min(CHUNK);
            self.read(run, pages, &mut buffer)?;
            let (found, _) = buffer.as_chunks::<PAGE_SIZE>();
            for (number, page) in (start..).zip(found) {
                take(Pfn(number), page)?;
            }
            pfn = start + pages;
        }
        Ok(())
    }

    /// Reads the first pages of a run.
    fn read(&self, run: Run, pages: u64, buffer: &mut Vec<u8>) -> Result<(), ImageError> {
        buffer.resize(pages as usize * PAGE_SIZE, 0);
        self.images[run.image].read_exact(buffer, run.at)
    }
}

impl Run {
    /// The same without its first pages.
    fn without(self, pages: u64) -> Self {
        Self {
            pages: self.pages - pages,
            at: self.at + pages * PAGE_SIZE as u64,
            ..self
        }
    }
}

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
    use std::path::Path;

    use proptest::prelude::*;

    use super::*;
    use crate::image::file::Existing;
    use crate::image::{AnyImage, Compression, Tail};
    use crate::page::{GuestPage, PageBytes};
    use crate::page_set::PageSet;
    use crate::ports::{Cancel, ImageSink};
    use crate::testing::{preamble, some_facts};
    use crate::units::PageCount;

    type Writes<'a> = &'a [(Range<u64>, u8)];

    fn image(dir: &Path, name: &str, compressed: bool, pages: Range<u64>, writes: Writes<'_>) {
        let path = dir.join(name);
        let mut existing = PageSet::new(PageCount(200));
        existing.insert_range(pages);
        let how = compressed.then_some(Compression {
            level: 1,
            threads: 1,
        });
        let image = AnyImage::create(&path, Existing::Keep, how, &Cancel::new());
        let mut image = image.expect("created");
        image.begin(&preamble(), &existing).expect("begun");
        for (range, fill) in writes {
            let page = PageBytes([*fill; PAGE_SIZE]);
            let batch = range.clone().map(|n| (Pfn(n), GuestPage::of(&page)));
            image.write(&batch.collect::<Vec<_>>()).expect("written");
        }
        let finished = image.finish(&Tail::default(), &some_facts());
        finished.expect("finished");
        image.commit().expect("committed");
    }

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
        let mut seen = vec![];
        let take = |pfn: Pfn, page: &[u8; PAGE_SIZE]| {
            seen.push((pfn.0, page[0]));
            Ok::<_, ImageError>(())
        };
        b.for_each_in(18..22, take).expect("read");
        assert_eq!(seen, [(20, 1), (21, 1)]);
        assert_eq!((b.count_in(&(18..22)), b.count_in(&(0..500))), (2, 110));
    }

    proptest! {
        /// Runs behave as an array does that is overwritten piece by piece.
        #[test]
        fn the_newest_run_wins(
            runs in prop::collection::vec((0u64..200, 1u64..60), 1..30),
        ) {
            let dir = tempfile::tempdir().expect("directory");
            image(dir.path(), "x", false, 0..1, &[]);
            let reader = Reader::open(&dir.path().join("x")).expect("readable");
            let mut index = PageIndex { images: vec![&reader], runs: BTreeMap::new() };
            let mut want = vec![None; 300];
            for (number, &(first, pages)) in runs.iter().enumerate() {
                let at = number as u64 * 1_000_000;
                index.insert(first, Run { pages, image: 0, at });
                for pfn in first..first + pages {
                    want[pfn as usize] = Some(at + (pfn - first) * PAGE_SIZE as u64);
                }
            }
            for (pfn, want) in (0..).zip(&want) {
                let found = index.from(pfn).filter(|(start, _)| *start == pfn);
                prop_assert_eq!(found.map(|(_, run)| run.at), *want, "pfn {}", pfn);
            }
        }
    }
}
