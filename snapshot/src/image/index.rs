//! Where the newest copy of each page stands in an image, or in a chain of images, as runs of
//! pages: for reading any page, for comparing images, for making one of a chain.

use super::existing::Ranges;
use super::libxc::record;
use super::{ImageError, Reader};
use crate::page::PAGE_SIZE;
use crate::page_set::PageSet;
use crate::units::{PageCount, Pfn};
use std::collections::BTreeMap;
use std::ops::Range;

/// Pages read at a time.
pub(super) const CHUNK: u64 = 256;

/// Pages that follow one another in number and in the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    pub pages: u64,
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
    pub(super) fn from(&self, pfn: u64) -> Option<(u64, Run)> {
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
    pub(super) fn read(
        &self,
        run: Run,
        pages: u64,
        buffer: &mut Vec<u8>,
    ) -> Result<(), ImageError> {
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

#[cfg(test)]
pub(super) mod tests {
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

    /// Makes an image that has these pages, and writes some of them, in their order.
    pub(in crate::image) fn image(
        dir: &Path,
        name: &str,
        compressed: bool,
        pages: Range<u64>,
        writes: Writes<'_>,
    ) {
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
    fn pages_of_a_range_are_read_and_counted() {
        let dir = tempfile::tempdir().expect("directory");
        image(dir.path(), "b", true, 20..130, &[(20..130, 1)]);
        let b = Reader::open(&dir.path().join("b")).expect("readable");
        let b = PageIndex::of(&b).expect("read");
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
