//! Small images, written as livesave writes them.

// Not all who use this use all of it.
#![allow(dead_code)]

use std::ops::Range;
use std::path::Path;

use serde_json::json;
use snapshot::image::file::Existing;
use snapshot::image::trailer::Facts;
use snapshot::image::{AnyImage, Chain, Compression, GuestType, Preamble, Record, Tail, libxc};
use snapshot::lineage::{Base, ImageId};
use snapshot::page::PageBytes;
use snapshot::ports::{Cancel, ImageSink};
use snapshot::report::Window;
use snapshot::{GuestPage, PAGE_SIZE, PageCount, PageSet, Pfn};

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
        config: b"{\"c_info\":{}}".to_vec(),
        guest: GuestType::Hvm,
        xen_version: (4, 17),
        static_data: vec![],
        before_memory: vec![],
        increment: base.is_some(),
    };
    let mut pages = PageSet::new(PageCount(PAGES));
    pages.insert_range(0..PAGES);
    image.begin(&preamble, &pages).expect("begun");
    let page = PageBytes([fill; PAGE_SIZE]);
    let all: Vec<_> = held.map(|pfn| (Pfn(pfn), GuestPage::of(&page))).collect();
    image.write(&all).expect("written");
    let facts = json!({
        "livesave": env!("CARGO_PKG_VERSION"),
        "backend": "xen",
        "domain": { "domid": 7, "name": made.name, "uuid": made.uuid },
        "mode": "plain",
        "cut": made.cut,
        "memory_pages": PAGES,
        "zero_pages": 0,
        "rounds": [],
        "stop": "plain",
        "window": Window { total_s: 0.25, ..Window::default() },
        "id": ImageId::random().expect("random"),
        "parent": base.map(|base| &base.parent),
        "held_pages": base.is_some().then_some(all.len()),
    });
    let facts: Facts = serde_json::from_value(facts).expect("facts");
    let tail = Tail {
        libxc: vec![Record::new(libxc::record::HVM_CONTEXT, vec![1; 8])],
        libxl: vec![],
    };
    image.finish(&tail, &facts).expect("finished");
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
