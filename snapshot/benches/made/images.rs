//! Images for the benchmarks, and what they hold.

use std::path::{Path, PathBuf};

use snapshot::image::file::Existing;
use snapshot::image::trailer::Facts;
use snapshot::image::{AnyImage, Compression, samples};
use snapshot::page::PageBytes;
use snapshot::ports::{BATCH_PAGES, Cancel, ImageSink};
use snapshot::{GuestPage, PageSet, Pfn};

use crate::memory::{Dice, Kind, page};

/// Pages of which two in three hold text and the others noise, none zero.
pub fn mixed(count: usize) -> Vec<PageBytes> {
    let mut dice = Dice::new(2);
    (0..count)
        .map(|n| page(if n % 3 == 0 { Kind::Noise } else { Kind::Text }, &mut dice))
        .collect()
}

/// A directory on tmpfs: the disk is not what is measured.
pub fn directory() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").expect("a directory on tmpfs")
}

/// An image of pages from pfn 0 on, begun anew as often as wanted.
pub struct Writing {
    image: AnyImage,
    set: PageSet,
}

impl Writing {
    /// One with nothing in it.
    pub fn new(path: &Path, compression: Option<Compression>, pages: usize) -> Self {
        let cancel = Cancel::new();
        let image = AnyImage::create(path, Existing::Keep, compression, &cancel);
        Self {
            image: image.expect("an image"),
            set: samples::first_pages(pages as u64),
        }
    }

    /// Writes all pages, in batches as the engine does; what was there before goes.
    pub fn write(&mut self, pages: &[PageBytes]) {
        self.image
            .begin(&samples::preamble(), &self.set)
            .expect("begun");
        let mut batch = Vec::with_capacity(BATCH_PAGES);
        for (number, pages) in pages.chunks(BATCH_PAGES).enumerate() {
            let first = (number * BATCH_PAGES) as u64;
            batch.clear();
            batch.extend((first..).map(Pfn).zip(pages.iter().map(GuestPage::of)));
            self.image.write(&batch).expect("written");
        }
        self.image.settle().expect("written");
    }

    /// Ends it and gives it its name.
    pub fn finish(mut self) -> PathBuf {
        let facts = Facts {
            memory_pages: self.set.count(),
            zero_pages: self.image.zero_pages(),
            ..samples::facts()
        };
        self.image
            .finish(&samples::tail(), &facts)
            .expect("finished");
        self.image.commit().expect("named");
        self.image.path().to_owned()
    }
}
