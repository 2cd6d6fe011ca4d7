//! An image that is given only the pages which differ from those of a chain.

use std::io;
use std::path::Path;

use super::filled::Filled;
use super::index::PageIndex;
use super::trailer::Facts;
use super::{ImageError, Preamble, Tail};
use crate::page::{GuestPage, PageBytes};
use crate::page_set::PageSet;
use crate::ports::{Finished, ImageSink, Room, SinkError, Written};
use crate::units::{PageCount, Pfn};

/// Passes pages on to another sink: all of them, or those that are not as the chain has them. What
/// was passed on once is passed on again whenever it comes, for its newest copy counts.
#[derive(Debug)]
pub struct Compared<'b, S> {
    sink: S,
    base: Option<PageIndex<'b>>,
    passed: Filled,
}

type Pages<'p> = Vec<(Pfn, GuestPage<'p>)>;

impl<'b, S: ImageSink> Compared<'b, S> {
    /// Compares with `base`, if there is one.
    #[must_use]
    pub fn new(sink: S, base: Option<PageIndex<'b>>) -> Self {
        Self {
            sink,
            base,
            passed: Filled::default(),
        }
    }

    fn differing<'p>(
        &self,
        base: &PageIndex<'_>,
        pages: &[(Pfn, GuestPage<'p>)],
    ) -> Result<Pages<'p>, SinkError> {
        let mut differing = Vec::with_capacity(pages.len());
        let mut copy = PageBytes::ZERO;
        for run in pages.chunk_by(|a, b| a.0.0 + 1 == b.0.0) {
            let (first, end) = (run[0].0.0, run[0].0.0 + run.len() as u64);
            let mut same = vec![false; run.len()];
            base.for_each_in(first..end, |pfn, old| {
                let number = (pfn.0 - first) as usize;
                run[number].1.copy_to(&mut copy);
                // It may be written after this look: then it is dirty, and comes again.
                same[number] = copy.0 == *old;
                Ok::<_, ImageError>(())
            })
            .map_err(|error| SinkError {
                operation: "compare the guest's memory with what is below",
                path: self.sink.path().display().to_string(),
                source: io::Error::other(error),
            })?;
            let kept = run.iter().zip(same);
            let kept = kept.filter(|((pfn, _), same)| !same || self.passed.contains(*pfn));
            differing.extend(kept.map(|(page, _)| *page));
        }
        Ok(differing)
    }

    fn note(&self, pages: &[(Pfn, GuestPage<'_>)]) {
        for (pfn, _) in pages {
            self.passed.set(*pfn, true);
        }
    }
}

impl<S: ImageSink> ImageSink for Compared<'_, S> {
    fn begin(&mut self, preamble: &Preamble, pages: &PageSet) -> Result<Room, SinkError> {
        self.passed = Filled::none_of(pages);
        self.sink.begin(preamble, pages)
    }

    fn write(&self, pages: &[(Pfn, GuestPage<'_>)]) -> Result<Written, SinkError> {
        let Some(base) = &self.base else {
            return self.sink.write(pages);
        };
        let differing = self.differing(base, pages)?;
        self.note(&differing);
        let mut written = self.sink.write(&differing)?;
        // Those were copied too, and needed no room.
        written.pages = PageCount(pages.len() as u64);
        Ok(written)
    }

    fn settle(&self) -> Result<(), SinkError> {
        self.sink.settle()
    }

    fn write_suspended(&self, pages: &[(Pfn, GuestPage<'_>)]) -> Result<Written, SinkError> {
        // Nothing is read while the guest stands still.
        if self.base.is_some() {
            self.note(pages);
        }
        self.sink.write_suspended(pages)
    }

    fn finish(&mut self, tail: &Tail, facts: &Facts) -> Result<Finished, SinkError> {
        self.sink.finish(tail, facts)
    }

    fn commit(&mut self) -> Result<(), SinkError> {
        self.sink.commit()
    }

    fn zero_pages(&self) -> PageCount {
        self.sink.zero_pages()
    }

    fn held_pages(&self) -> PageCount {
        self.sink.held_pages()
    }

    fn path(&self) -> &Path {
        self.sink.path()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::file::Existing;
    use crate::image::{AnyImage, Chain, Compression, Reader, samples};
    use crate::lineage::ImageId;
    use crate::ports::Cancel;
    use crate::testing::{first_pages, some_facts};

    const PAGES: u64 = 2000;

    fn preamble(increment: bool) -> Preamble {
        Preamble {
            increment,
            ..samples::preamble()
        }
    }

    fn write(sink: &impl ImageSink, pfns: impl Iterator<Item = u64>, fill: impl Fn(u64) -> u8) {
        let pages: Vec<_> = pfns
            .map(|pfn| (Pfn(pfn), PageBytes([fill(pfn); 4096])))
            .collect();
        for batch in pages.chunks(1024) {
            let batch: Vec<_> = batch.iter().map(|(n, p)| (*n, GuestPage::of(p))).collect();
            let written = sink.write(&batch).expect("written");
            assert_eq!(written.pages.0, batch.len() as u64);
        }
    }

    /// Pages change, and some change back; the rest is not in the increment.
    #[test]
    fn what_is_as_it_was_is_left_out_and_the_newest_copy_counts() {
        let dir = tempfile::tempdir().expect("directory");
        let path = |name: &str| dir.path().join(name);
        let how = Some(Compression {
            level: 1,
            threads: 1,
        });
        let old = |pfn: u64| (pfn % 7) as u8;
        for compressed in [None, how] {
            let name = if compressed.is_some() {
                "b.xl.zst"
            } else {
                "b.xl"
            };
            let mut full =
                AnyImage::create(&path(name), Existing::Keep, compressed, &Cancel::new())
                    .expect("created");
            // The base has one page less.
            full.begin(&preamble(false), &first_pages(PAGES - 1))
                .expect("begun");
            write(&full, 0..PAGES - 1, old);
            let facts = Facts {
                memory_pages: PageCount(PAGES - 1),
                id: ImageId::random().ok(),
                ..some_facts()
            };
            full.finish(&Tail::default(), &facts).expect("finished");
            full.commit().expect("committed");

            let chain = Chain::open(&path(name)).expect("a chain");
            let base = chain.base().expect("readable").expect("a base");
            let sink = AnyImage::create(&path("i.xli.zst"), Existing::Replace, how, &Cancel::new());
            let index = chain.index().expect("an index");
            let mut sink = Compared::new(sink.expect("created"), Some(index));
            sink.begin(&preamble(true), &first_pages(PAGES))
                .expect("begun");
            let new = |pfn: u64| {
                if [3, 4, 1500].contains(&pfn) {
                    99
                } else {
                    old(pfn)
                }
            };
            write(&sink, 0..PAGES, new);
            // As it was again; and one that was written and is as it was all along.
            write(&sink, [4, 5].into_iter(), old);
            let facts = Facts {
                memory_pages: PageCount(PAGES),
                parent: Some(base.parent),
                held_pages: Some(sink.held_pages()),
                ..some_facts()
            };
            assert_eq!(sink.held_pages(), PageCount(4));
            sink.finish(&Tail::default(), &facts).expect("finished");
            sink.commit().expect("committed");
            let held = Reader::open(&path("i.xli.zst")).expect("an image");
            let mut pfns = vec![];
            held.for_each_page(|pfn, _| {
                pfns.push(pfn.0);
                Ok::<_, ImageError>(())
            })
            .expect("pages");
            assert_eq!(pfns, [3, 4, 1500, 1999, 4]);
            let chain = Chain::open(&path("i.xli.zst")).expect("a chain");
            let index = chain.index().expect("an index");
            let want = |pfn: u64| if pfn == 4 { old(4) } else { new(pfn) };
            index
                .for_each_in(0..PAGES, |pfn, page| {
                    assert!(page.iter().all(|byte| *byte == want(pfn.0)), "{pfn}");
                    Ok::<_, ImageError>(())
                })
                .expect("pages");
        }
    }
}
