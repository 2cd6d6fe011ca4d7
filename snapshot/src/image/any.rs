//! An image of the kind that was asked for.

use std::path::Path;

use super::file::Existing;
use super::trailer::Facts;
use super::{Compression, Preamble, RawImage, Tail, ZstdImage};
use crate::page::GuestPage;
use crate::page_set::PageSet;
use crate::ports::{Cancel, Finished, ImageSink, Room, SinkError, Written};
use crate::units::{PageCount, Pfn};

/// A raw or a compressed image being written.
#[derive(Debug)]
pub enum AnyImage {
    /// Raw.
    Raw(Box<RawImage>),
    /// Compressed.
    Zstd(Box<ZstdImage>),
}

impl AnyImage {
    /// Starts an image that is to appear under `path`; raw without a `compression`. `cancel` cuts
    /// short what it does after the guest runs again.
    ///
    /// # Errors
    /// [`SinkError`]: no such directory, the name taken, and so on.
    pub fn create(
        path: &Path,
        existing: Existing,
        compression: Option<Compression>,
        cancel: &Cancel,
    ) -> Result<Self, SinkError> {
        Ok(match compression {
            None => Self::Raw(Box::new(RawImage::create(path, existing)?)),
            Some(how) => {
                let image = ZstdImage::create(path, existing, how, cancel.clone())?;
                Self::Zstd(Box::new(image))
            }
        })
    }

    fn sink(&self) -> &dyn ImageSink {
        match self {
            Self::Raw(image) => &**image,
            Self::Zstd(image) => &**image,
        }
    }

    fn sink_mut(&mut self) -> &mut dyn ImageSink {
        match self {
            Self::Raw(image) => &mut **image,
            Self::Zstd(image) => &mut **image,
        }
    }
}

impl ImageSink for AnyImage {
    fn begin(&mut self, preamble: &Preamble, pages: &PageSet) -> Result<Room, SinkError> {
        self.sink_mut().begin(preamble, pages)
    }
    fn write(&self, pages: &[(Pfn, GuestPage<'_>)]) -> Result<Written, SinkError> {
        self.sink().write(pages)
    }
    fn settle(&self) -> Result<(), SinkError> {
        self.sink().settle()
    }
    fn write_suspended(&self, pages: &[(Pfn, GuestPage<'_>)]) -> Result<Written, SinkError> {
        self.sink().write_suspended(pages)
    }
    fn finish(&mut self, tail: &Tail, facts: &Facts) -> Result<Finished, SinkError> {
        self.sink_mut().finish(tail, facts)
    }
    fn commit(&mut self) -> Result<(), SinkError> {
        self.sink_mut().commit()
    }
    fn zero_pages(&self) -> PageCount {
        self.sink().zero_pages()
    }
    fn held_pages(&self) -> PageCount {
        self.sink().held_pages()
    }
    fn path(&self) -> &Path {
        self.sink().path()
    }
}
