//! The guest's memory as the parent sees it: the memfd, read and written by offset.
//!
//! Reading copies into a buffer of the reader's. Mapping instead would save that copy and costs
//! more than it saves: a fault per page for scattered pages is several times a 4 KiB copy, and the
//! pages would count as the tool's resident memory. A hole in the file reads as zeros and stays a
//! hole.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};

use super::layout::Layout;
use super::sys;
use crate::page::{PAGE_SIZE, PageBytes};
use crate::units::{PageCount, Pfn};

/// Reads and writes a guest's memory. Writes made here are seen by no dirty tracking: they are for
/// a guest that has not started.
#[derive(Clone, Debug)]
pub struct GuestMemory {
    file: Arc<File>,
    layout: Arc<Layout>,
}

impl GuestMemory {
    /// New memory, all zero and not populated.
    pub(super) fn new(layout: &Layout) -> io::Result<Self> {
        let file = sealed_memfd("guest memory", layout.span().bytes().0)?;
        Ok(Self {
            file: Arc::new(file),
            layout: Arc::new(layout.clone()),
        })
    }

    /// The memory of another process's guest, to be read.
    pub(super) fn of(file: File, layout: &Layout) -> Self {
        Self {
            file: Arc::new(file),
            layout: Arc::new(layout.clone()),
        }
    }

    /// The file behind it.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Which pages exist.
    #[must_use]
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Reads pages, the `i`-th pfn into the `i`-th buffer; consecutive pfns in one call. A running
    /// guest may write meanwhile, and what is read of such a page be torn.
    ///
    /// # Errors
    /// What the kernel says; `NotFound` for a page that does not exist.
    pub fn read(&self, pfns: &[Pfn], into: &mut [PageBytes]) -> io::Result<()> {
        let mut pfns = pfns;
        let mut into = into;
        while let Some(&first) = pfns.first() {
            let run = run_length(pfns).min(into.len());
            if run == 0 {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidInput,
                    "too few buffers",
                ));
            }
            self.expect(first, run)?;
            let (now, later) = into.split_at_mut(run);
            self.file.read_exact_at(sys::bytes_of(now), offset(first))?;
            (pfns, into) = (&pfns[run..], later);
        }
        Ok(())
    }

    /// Writes one page.
    ///
    /// # Errors
    /// What the kernel says; `NotFound` for a page that does not exist.
    pub fn write(&self, pfn: Pfn, bytes: &[u8; PAGE_SIZE]) -> io::Result<()> {
        self.expect(pfn, 1)?;
        self.file.write_all_at(bytes, offset(pfn))
    }

    fn expect(&self, first: Pfn, run: usize) -> io::Result<()> {
        let end = first.0.saturating_add(run as u64);
        if self.layout.present().count_in(first.0..end) == PageCount(run as u64) {
            return Ok(());
        }
        let text = format!("{run} pages from {first} do not all exist");
        Err(io::Error::new(io::ErrorKind::NotFound, text))
    }
}

/// A file in memory whose size nobody can change, so that no mapping of it ever loses its pages.
pub(super) fn sealed_memfd(name: &str, size: u64) -> io::Result<File> {
    let file = File::from(memfd_create(
        name,
        MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING,
    )?);
    file.set_len(size)?;
    fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
    Ok(file)
}

/// How many pfns from the front are consecutive.
fn run_length(pfns: &[Pfn]) -> usize {
    let rising = pfns
        .windows(2)
        .take_while(|pair| pair[0].0.checked_add(1) == Some(pair[1].0));
    rising.count() + 1
}

fn offset(pfn: Pfn) -> u64 {
    pfn.0 * PAGE_SIZE as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory() -> GuestMemory {
        let hole = 4..6;
        let layout = Layout::new(PageCount(10), std::slice::from_ref(&hole)).expect("a layout");
        GuestMemory::new(&layout).expect("memory")
    }

    #[test]
    fn pages_are_read_as_written_in_any_order() {
        let memory = memory();
        for pfn in [0, 2, 3, 6, 9] {
            memory
                .write(Pfn(pfn), &[pfn as u8 + 1; PAGE_SIZE])
                .expect("written");
        }
        let pfns = [9, 0, 1, 2, 3, 6, 7].map(Pfn);
        let mut pages = vec![PageBytes([7; PAGE_SIZE]); pfns.len()];
        memory.read(&pfns, &mut pages).expect("read");
        let found: Vec<_> = pages.iter().map(|page| page.0[4095]).collect();
        assert_eq!(found, [10, 1, 0, 3, 4, 7, 0]);
    }

    #[test]
    fn pages_that_do_not_exist_are_refused() {
        let memory = memory();
        let mut pages = vec![PageBytes::ZERO; 4];
        for pfns in [&[4][..], &[3, 4], &[10], &[u64::MAX], &[0, u64::MAX]] {
            let pfns: Vec<_> = pfns.iter().copied().map(Pfn).collect();
            let error = memory.read(&pfns, &mut pages).expect_err("no such page");
            assert_eq!(error.kind(), io::ErrorKind::NotFound);
        }
        assert!(memory.write(Pfn(5), &[1; PAGE_SIZE]).is_err());
        let too_few = memory.read(&[Pfn(0), Pfn(2)], &mut pages[..1]);
        assert_eq!(
            too_few.expect_err("one buffer").kind(),
            io::ErrorKind::InvalidInput
        );
    }

    #[test]
    fn the_size_cannot_be_changed() {
        let memory = memory();
        assert!(memory.file().set_len(0).is_err());
        assert!(memory.file().set_len(1 << 30).is_err());
    }
}
