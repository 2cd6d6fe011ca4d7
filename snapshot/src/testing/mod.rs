//! A guest in memory, scripted and faulty on demand, for tests of the engine.

mod disks;
mod domain;
mod mapper;

use std::cell::{Cell, RefCell};
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use crate::page::PageBytes;
use crate::ports::BoxError;

pub use crate::image::samples::{facts as some_facts, first_pages, preamble};
pub use disks::FakeDisks;
pub use domain::FakeDomain;

/// Counts calls and fails the one that was asked for.
#[derive(Clone, Default)]
pub struct Faults(Rc<FaultsInner>);

#[derive(Default)]
struct FaultsInner {
    calls: Cell<u32>,
    fail_at: Cell<Option<u32>>,
    log: RefCell<Vec<&'static str>>,
}

impl Faults {
    pub fn at(call: u32) -> Self {
        let faults = Self::default();
        faults.0.fail_at.set(Some(call));
        faults
    }

    pub fn fail_at(&self, call: u32) {
        self.0.fail_at.set(Some(call));
    }

    pub fn log(&self) -> Vec<&'static str> {
        self.0.log.borrow().clone()
    }

    fn call(&self, name: &'static str) -> Result<(), BoxError> {
        let call = self.0.calls.get();
        self.0.calls.set(call + 1);
        self.0.log.borrow_mut().push(name);
        if self.0.fail_at.get() == Some(call) {
            return Err(Box::new(io::Error::other(name)));
        }
        Ok(())
    }
}

/// All pages of an image, by pfn.
pub fn read_image(path: &Path) -> Vec<(u64, PageBytes)> {
    let mut pages = vec![];
    crate::image::Reader::open(path)
        .expect("a readable image")
        .for_each_page(|pfn, page| {
            pages.push((pfn.0, page.clone()));
            Ok::<_, crate::image::ImageError>(())
        })
        .expect("all pages");
    pages
}

/// What stands in a directory.
pub fn entries(directory: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(directory)
        .expect("directory")
        .map(|entry| entry.expect("entry").path())
        .collect()
}
