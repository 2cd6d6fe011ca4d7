//! The image.

use std::path::Path;

use crate::image::trailer::Facts;
use crate::image::{Preamble, Tail};
use crate::page::GuestPage;
use crate::page_set::PageSet;
use crate::units::{Bytes, PageCount, Pfn};

/// How a pass over pages went into the image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Written {
    /// Pages taken.
    pub pages: PageCount,
    /// Those of them that are all zero.
    pub zero_pages: PageCount,
    /// Bytes of data in them, before compression.
    pub bytes: Bytes,
}

impl Written {
    /// Adds another pass's share.
    pub fn add(&mut self, more: Self) {
        self.pages += more.pages;
        self.zero_pages += more.zero_pages;
        self.bytes += more.bytes;
    }
}

/// The room that an image may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// If every page held data; of an increment what is needed in any case.
    pub needed: Bytes,
    /// What the file system has left.
    pub free: Bytes,
}

/// What became of a finished image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finished {
    /// Its size.
    pub size: Bytes,
    /// What the file system allocated for it.
    pub allocated: Bytes,
}

/// Where the image goes. Nothing is seen under the final name before `commit`, and nothing is
/// left when it is dropped instead.
pub trait ImageSink: Sync {
    /// Starts the image: the records before the memory, and a place for every page of `pages`.
    /// Called again, it starts over. Says how much room it may take. All pages are written then, or
    /// for an increment (the preamble says so) those that the guest wrote since its parent's cut.
    ///
    /// # Errors
    /// [`SinkError`].
    fn begin(&mut self, preamble: &Preamble, pages: &PageSet) -> Result<Room, SinkError>;

    /// Takes pages, newest copy wins; the pfns ascend and are members of the set given to
    /// `begin`. Called from several threads at once, never for the same page.
    ///
    /// # Errors
    /// [`SinkError`]; the image must be given up.
    fn write(&self, pages: &[(Pfn, GuestPage<'_>)]) -> Result<Written, SinkError>;

    /// The guest is about to be suspended: what was taken is out of memory when this returns.
    ///
    /// # Errors
    /// [`SinkError`]; the image must be given up.
    fn settle(&self) -> Result<(), SinkError> {
        Ok(())
    }

    /// As `write`, but the guest stands still meanwhile, so that nothing is done that can be done
    /// later. By one thread, after `settle`.
    ///
    /// # Errors
    /// [`SinkError`]; the image must be given up.
    fn write_suspended(&self, pages: &[(Pfn, GuestPage<'_>)]) -> Result<Written, SinkError> {
        self.write(pages)
    }

    /// Ends the image with the final state and livesave's own facts and makes it durable. May take
    /// long; it has no name yet.
    ///
    /// # Errors
    /// [`SinkError`].
    fn finish(&mut self, tail: &Tail, facts: &Facts) -> Result<Finished, SinkError>;

    /// Gives the finished image its name.
    ///
    /// # Errors
    /// [`SinkError`]; what stood under the name before still does.
    fn commit(&mut self) -> Result<(), SinkError>;

    /// How many pages are all zero in what has been written so far.
    fn zero_pages(&self) -> PageCount;

    /// How many pages the image holds: all, or those that an increment was given so far.
    fn held_pages(&self) -> PageCount;

    /// The image's final path, for messages and the report.
    fn path(&self) -> &Path;
}

/// The image could not be written.
#[derive(Debug, thiserror::Error)]
#[error("Failed to {operation} image {path}")]
pub struct SinkError {
    /// What was being done, to stand after "failed to".
    pub operation: &'static str,
    /// The image's final path.
    pub path: String,
    /// Why.
    #[source]
    pub source: std::io::Error,
}
