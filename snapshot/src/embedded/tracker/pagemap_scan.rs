//! Tracking by userfaultfd and `PAGEMAP_SCAN`.
//!
//! The guest registers its memory for write protection in asynchronous mode: the kernel itself
//! lifts a page's protection at the first write and remembers that it did. The parent scans the
//! guest's page tables through `/proc/PID/pagemap`; one call reports the written pages as ranges
//! and protects them again, atomically for each page. The guest takes no part in it.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;

use super::super::error::GuestError;
use super::super::layout::Layout;
use super::super::link::Link;
use super::super::sys::Ram;
use super::sys::{self, Regions};
use crate::page::PAGE_SIZE;
use crate::page_set::PageSet;

/// Ranges per scan call. A guest whose every other page is dirty takes a call per so many pages.
const REGIONS: usize = 4096;

/// The guest's side: memory registered while this lives.
#[derive(Debug)]
pub struct Registration {
    _uffd: OwnedFd,
}

impl Registration {
    /// Registers all memory that exists.
    pub fn new(ram: &Ram) -> io::Result<Self> {
        let uffd = sys::userfaultfd()?;
        for run in ram.layout().runs() {
            let address = |pfn: u64| ram.base() + pfn as usize * PAGE_SIZE;
            sys::register(&uffd, address(run.start)..address(run.end))?;
        }
        Ok(Self { _uffd: uffd })
    }
}

/// The parent's side.
#[derive(Debug)]
pub struct Scanner {
    pagemap: File,
    /// Where pfn 0 is in the guest.
    base: u64,
    layout: Layout,
    regions: Regions,
}

impl Scanner {
    /// Opens the page tables of a process.
    pub fn open(pid: u32, base: u64, layout: &Layout) -> io::Result<Self> {
        let pagemap = File::open(format!("/proc/{pid}/pagemap"))?;
        Ok(Self {
            pagemap,
            base,
            layout: layout.clone(),
            regions: Regions::new(REGIONS),
        })
    }

    /// Protects all memory and forgets what was written before.
    pub fn forget(&mut self, link: &Link) -> Result<(), GuestError> {
        self.scan(link, None, true)
    }

    /// Adds the pages written since they were last protected, and protects them.
    pub fn fetch(&mut self, link: &Link, into: &mut PageSet) -> Result<(), GuestError> {
        self.scan(link, Some(into), true)
    }

    /// Adds the pages written since they were last protected, and leaves them so.
    pub fn peek(&mut self, link: &Link, into: &mut PageSet) -> Result<(), GuestError> {
        self.scan(link, Some(into), false)
    }

    fn scan(
        &mut self,
        link: &Link,
        mut into: Option<&mut PageSet>,
        protect: bool,
    ) -> Result<(), GuestError> {
        let page = PAGE_SIZE as u64;
        for run in self.layout.runs() {
            let addresses = self.base + run.start * page..self.base + run.end * page;
            sys::scan(
                &self.pagemap,
                addresses,
                protect,
                &mut self.regions,
                |found| {
                    if let Some(into) = &mut into {
                        into.insert_range(
                            (found.start - self.base) / page
                                ..(found.end - self.base).div_ceil(page),
                        );
                    }
                },
            )
            .map_err(|source| link.failed("fetch the dirty pages of", source))?;
        }
        Ok(())
    }
}
