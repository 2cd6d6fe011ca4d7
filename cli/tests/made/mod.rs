//! Small images, written as livesave writes them.

use std::path::Path;

use serde_json::json;
use snapshot::image::file::Existing;
use snapshot::image::trailer::Facts;
use snapshot::image::{GuestType, Preamble, RawImage, Record, Tail, libxc};
use snapshot::page::PageBytes;
use snapshot::ports::ImageSink;
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
    let preamble = Preamble {
        config: b"{\"c_info\":{}}".to_vec(),
        guest: GuestType::Hvm,
        xen_version: (4, 17),
        static_data: vec![],
        before_memory: vec![],
    };
    let mut pages = PageSet::new(PageCount(PAGES));
    pages.insert_range(0..PAGES);
    let mut image = RawImage::create(path, Existing::Keep).expect("created");
    image.begin(&preamble, &pages).expect("begun");
    let page = PageBytes([7; PAGE_SIZE]);
    let all: Vec<_> = (0..PAGES)
        .map(|pfn| (Pfn(pfn), GuestPage::of(&page)))
        .collect();
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
