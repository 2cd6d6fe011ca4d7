//! Images for the benchmarks, and what they hold.

use std::path::{Path, PathBuf};

use snapshot::image::file::Existing;
use snapshot::image::trailer::Facts;
use snapshot::image::{AnyImage, Compression, GuestType, Preamble, Record, Tail, libxc};
use snapshot::page::PageBytes;
use snapshot::policy::StopReason;
use snapshot::ports::{BATCH_PAGES, Cancel, Identity, ImageSink};
use snapshot::report::Window;
use snapshot::{GuestPage, PageCount, PageSet, Pfn};

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
        let mut set = PageSet::new(PageCount(pages as u64));
        set.insert_range(0..pages as u64);
        Self {
            image: image.expect("an image"),
            set,
        }
    }

    /// Writes all pages, in batches as the engine does; what was there before goes.
    pub fn write(&mut self, pages: &[PageBytes]) {
        let preamble = Preamble {
            config: b"{}".to_vec(),
            guest: GuestType::Hvm,
            xen_version: (4, 17),
            static_data: vec![],
            before_memory: vec![],
            increment: false,
        };
        self.image.begin(&preamble, &self.set).expect("begun");
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
            livesave: String::new(),
            backend: String::new(),
            domain: Identity {
                domid: 0,
                name: String::new(),
                uuid: String::new(),
            },
            mode: String::new(),
            cut: String::new(),
            memory_pages: self.set.count(),
            zero_pages: self.image.zero_pages(),
            rounds: vec![],
            stop: StopReason::SmallEnough,
            window: Window::default(),
            target: None,
            brownout: None,
            id: None,
            parent: None,
            held_pages: None,
            disks: None,
        };
        // What the image of an HVM guest must have.
        let tail = Tail {
            libxc: vec![Record::new(libxc::record::HVM_CONTEXT, vec![0; 64])],
            libxl: vec![],
        };
        self.image.finish(&tail, &facts).expect("finished");
        self.image.commit().expect("named");
        self.image.path().to_owned()
    }
}
