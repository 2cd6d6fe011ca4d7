//! Small images, written as livesave writes them.

// Not all who use this use all of it.
#![allow(dead_code)]

use std::ops::Range;
use std::path::Path;

use snapshot::image::file::Existing;
use snapshot::image::trailer::Facts;
use snapshot::image::{AnyImage, Chain, Compression, Preamble, samples};
use snapshot::lineage::{Base, ImageId};
use snapshot::page::PageBytes;
use snapshot::policy::StopReason;
use snapshot::ports::{Cancel, Identity, ImageSink};
use snapshot::report::Window;
use snapshot::{GuestPage, PAGE_SIZE, PageCount, Pfn};

/// Pages of each image.
pub const PAGES: u64 = 16;

/// What an image says of itself.
pub struct Made<'a> {
    pub name: &'a str,
    pub uuid: &'a str,
    pub cut: &'a str,
}

/// Writes an image.
pub fn make(path: &Path, made: &Made<'_>) {
    let image = AnyImage::create(path, Existing::Keep, None, &Cancel::new());
    write(image.expect("created"), made, 0..PAGES, 7, None);
}

/// Writes an increment that holds these pages, filled with that byte, on the image `base`.
pub fn make_on(path: &Path, made: &Made<'_>, base: &Path, pages: Range<u64>, fill: u8) {
    let compression = Compression {
        level: 1,
        threads: 1,
    };
    let image = AnyImage::create(path, Existing::Keep, Some(compression), &Cancel::new());
    let base = Chain::open(base).expect("a chain").base();
    let base = base.expect("readable").expect("with an identity");
    write(image.expect("created"), made, pages, fill, Some(&base));
}

fn write(mut image: AnyImage, made: &Made<'_>, held: Range<u64>, fill: u8, base: Option<&Base>) {
    let preamble = Preamble {
        increment: base.is_some(),
        ..samples::preamble()
    };
    image
        .begin(&preamble, &samples::first_pages(PAGES))
        .expect("begun");
    let page = PageBytes([fill; PAGE_SIZE]);
    let all: Vec<_> = held.map(|pfn| (Pfn(pfn), GuestPage::of(&page))).collect();
    image.write(&all).expect("written");
    let facts = Facts {
        livesave: env!("CARGO_PKG_VERSION").into(),
        backend: "xen".into(),
        domain: Identity {
            domid: 7,
            name: made.name.into(),
            uuid: made.uuid.into(),
        },
        mode: "plain".into(),
        cut: made.cut.into(),
        memory_pages: PageCount(PAGES),
        zero_pages: PageCount(0),
        stop: StopReason::Plain,
        window: Window {
            total_s: 0.25,
            ..Window::default()
        },
        id: Some(ImageId::random().expect("random")),
        parent: base.map(|base| base.parent.clone()),
        held_pages: base.is_some().then_some(PageCount(all.len() as u64)),
        ..samples::facts()
    };
    image.finish(&samples::tail(), &facts).expect("finished");
    image.commit().expect("committed");
}

/// Cuts an image off, as a copy over a network that broke would be.
pub fn damage(path: &Path) {
    let file = std::fs::OpenOptions::new()
        .write(true)
        .open(path)
        .expect("opened");
    let length = file.metadata().expect("metadata").len();
    file.set_len(length / 2).expect("cut off");
}

/// The names in a directory, sorted.
pub fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).expect("directory");
    let mut names: Vec<_> = entries
        .map(|entry| {
            entry
                .expect("entry")
                .file_name()
                .to_string_lossy()
                .into_owned()
        })
        .collect();
    names.sort();
    names
}
