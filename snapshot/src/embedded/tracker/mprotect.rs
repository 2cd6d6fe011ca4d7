//! Tracking by `mprotect`: the fallback that works everywhere.
//!
//! The guest's memory is read-only; the first write to a page faults, and the guest's signal
//! handler makes the page writable and records it in a bitmap shared with the parent. A fetch
//! takes the record word by word and then protects all memory again.
//!
//! Nothing is lost: between the taking of a page's record and its protection the page can be
//! written with no new record. Such a write happens before the fetch returns, hence before the
//! parent copies the page on account of the record just taken, so that the copy has it. A write
//! after the protection faults and is recorded for the next fetch. (The handler's own two steps:
//! see `sys::on_fault`.) Protecting all memory rather than the pages just taken is cheaper, as it
//! makes the kernel's many mappings one again, and safe, as a page that is protected although
//! recorded only faults once more.
//!
//! Writes by the kernel on the guest's behalf (`read(2)` into a protected page) fail with `EFAULT`
//! instead of being tracked; the guest makes none.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};

use super::super::error::GuestError;
use super::super::link::Link;
use super::super::sys::{Ram, SharedWords};
use super::sys::{self, Watched};
use crate::page_set::PageSet;
use crate::units::PageCount;

/// How many words a bitmap of a guest has.
fn words(span: PageCount) -> usize {
    span.0.div_ceil(64) as usize
}

/// How large the file is that parent and guest share: the record of the signal handler, then the
/// record last taken.
#[must_use]
pub fn file_words(span: PageCount) -> usize {
    2 * words(span)
}

/// The guest's side.
#[derive(Debug)]
pub struct Watch {
    watched: &'static Watched,
    taken: &'static [AtomicU64],
}

impl Watch {
    /// Memory that can be watched. It lives for good, as the signal handler may look at it at any
    /// time; a process is one guest only.
    pub fn new(ram: &Ram, bitmap: &'static SharedWords) -> Self {
        let (dirty, taken) = bitmap.words().split_at(words(ram.layout().span()));
        let watched = Box::leak(Box::new(Watched {
            base: ram.base(),
            runs: ram.layout().runs().to_vec(),
            dirty,
        }));
        Self { watched, taken }
    }

    /// Starts to record writes.
    pub fn start(&self) -> io::Result<()> {
        for word in self.watched.dirty {
            word.store(0, Ordering::SeqCst);
        }
        sys::watch(self.watched)?;
        sys::protect(self.watched)
    }

    /// Takes the record, then protects all memory again.
    pub fn fetch(&self) -> io::Result<()> {
        for (word, taken) in self.watched.dirty.iter().zip(self.taken) {
            taken.store(word.swap(0, Ordering::SeqCst), Ordering::SeqCst);
        }
        sys::protect(self.watched)
    }

    /// Ends it.
    pub fn stop(&self) -> io::Result<()> {
        sys::unwatch(self.watched)
    }
}

/// The parent's side: reads the bitmaps from their file.
#[derive(Debug)]
pub struct Bitmaps {
    file: File,
    buffer: Vec<u8>,
}

impl Bitmaps {
    /// Bitmaps of a guest with that span.
    #[must_use]
    pub fn new(file: File, span: PageCount) -> Self {
        Self {
            file,
            buffer: vec![0; words(span) * size_of::<u64>()],
        }
    }

    /// Adds the record of the signal handler as it stands.
    pub fn live(&mut self, link: &Link, into: &mut PageSet) -> Result<(), GuestError> {
        self.read(link, into, 0)
    }

    /// Adds the record last taken.
    pub fn fetched(&mut self, link: &Link, into: &mut PageSet) -> Result<(), GuestError> {
        self.read(link, into, self.buffer.len() as u64)
    }

    fn read(&mut self, link: &Link, into: &mut PageSet, at: u64) -> Result<(), GuestError> {
        self.file
            .read_exact_at(&mut self.buffer, at)
            .map_err(|source| link.failed("fetch the dirty pages of", source))?;
        let (chunks, _) = self.buffer.as_chunks::<8>();
        let words: Vec<u64> = chunks
            .iter()
            .map(|word| u64::from_ne_bytes(*word))
            .collect();
        into.insert_words(&words);
        Ok(())
    }
}
