//! What is made into frames, and how.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use zstd_safe::{CCtx, CParameter, DCtx};

use super::frame::{MAX_CONTENT, Stored};
use super::record::{self, Builder, Content};
use super::seek_table::Entry;
use crate::checksum;
use crate::page::PAGE_SIZE;

/// What a frame holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holds {
    /// Records that are not pages.
    Other,
    /// Pages with data.
    Pages,
    /// Pages of zeros.
    Zeros,
    /// Pages, not compressed.
    StoredPages,
}

/// A frame of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameAt {
    /// Its offset.
    pub at: u64,
    /// Its lengths and the checksum of its content.
    pub entry: Entry,
    /// Checksum of its bytes in the file.
    pub sum: u32,
    /// What it holds.
    pub holds: Holds,
}

/// A frame that is to be made.
pub enum Job {
    /// Of these records, compressed.
    Compress(Content, Holds),
    /// Of pages of zeros, by their entries.
    Zeros(Vec<u64>),
    /// A frame of the source file as it is.
    Copy(FrameAt),
    /// A page record of the source file, of which only those pages are kept whose bits are set.
    Keep(FrameAt, Box<[u64; record::PAGES / 64]>),
}

/// A frame that was made.
pub struct Made {
    pub bytes: Vec<u8>,
    content: u32,
    sum: u32,
    holds: Holds,
}

impl Made {
    /// Of a frame that is complete.
    pub fn new(bytes: Vec<u8>, content: usize, holds: Holds) -> Self {
        Self {
            sum: checksum::of(&bytes),
            bytes,
            content: content as u32,
            holds,
        }
    }

    /// Where it is once it stands at that offset.
    pub fn at(&self, at: u64) -> FrameAt {
        // Frames end with their content's checksum.
        let checksum = self
            .bytes
            .last_chunk()
            .map_or(0, |c| u32::from_le_bytes(*c));
        FrameAt {
            at,
            entry: Entry {
                compressed: self.bytes.len() as u32,
                content: self.content,
                checksum,
            },
            sum: self.sum,
            holds: self.holds,
        }
    }
}

/// What a worker needs for its work.
pub struct Tools<'f> {
    compressor: CCtx<'static>,
    decompressor: DCtx<'static>,
    source: Option<&'f File>,
    /// A compressed frame that was read.
    input: Vec<u8>,
    /// Its content.
    content: Vec<u8>,
}

impl<'f> Tools<'f> {
    /// For compressing at a level; `source` is where `Copy` and `Keep` read.
    ///
    /// # Errors
    /// No memory, or not a level of zstd's.
    pub fn new(level: i32, source: Option<&'f File>) -> io::Result<Self> {
        let no_memory = || io::Error::from(io::ErrorKind::OutOfMemory);
        let mut compressor = CCtx::try_create().ok_or_else(no_memory)?;
        for parameter in [
            CParameter::CompressionLevel(level),
            CParameter::ChecksumFlag(true),
            CParameter::ContentSizeFlag(true),
        ] {
            compressor.set_parameter(parameter).map_err(zstd_error)?;
        }
        Ok(Self {
            compressor,
            decompressor: DCtx::try_create().ok_or_else(no_memory)?,
            source,
            input: vec![],
            content: vec![],
        })
    }

    /// Makes the frame, in `out` where it needs room. The second part is a buffer that is free.
    ///
    /// # Errors
    /// What the system says; that a frame of the source is not what it was.
    pub fn make(&mut self, job: Job, out: Vec<u8>) -> io::Result<(Made, Vec<u8>)> {
        match job {
            Job::Compress(content, holds) => {
                let made = self.compress(content.bytes(), holds, out)?;
                Ok((made, content.into_buffer()))
            }
            Job::Zeros(entries) => Ok((zeros(&entries), out)),
            Job::Copy(from) => {
                self.read(&from)?;
                let made = Made::new(
                    std::mem::replace(&mut self.input, out),
                    from.entry.content as usize,
                    from.holds,
                );
                Ok((made, vec![]))
            }
            Job::Keep(from, keep) => {
                let content = self.kept(&from, &keep[..])?;
                let made = self.compress(content.bytes(), Holds::Pages, out)?;
                Ok((made, content.into_buffer()))
            }
        }
    }

    fn compress(&mut self, content: &[u8], holds: Holds, mut out: Vec<u8>) -> io::Result<Made> {
        if content.len() as u64 > MAX_CONTENT {
            return Err(io::Error::other(format!(
                "records of {} bytes together are more than a frame may hold",
                content.len()
            )));
        }
        out.clear();
        out.reserve(zstd_safe::compress_bound(content.len()));
        self.compressor
            .compress2(&mut out, content)
            .map_err(zstd_error)?;
        Ok(Made::new(out, content.len(), holds))
    }

    /// Reads a frame of the source; it must be as it was written.
    fn read(&mut self, from: &FrameAt) -> io::Result<()> {
        let source = self.source.ok_or(io::ErrorKind::Unsupported)?;
        self.input.resize(from.entry.compressed as usize, 0);
        source.read_exact_at(&mut self.input, from.at)?;
        if checksum::of(&self.input) != from.sum {
            return Err(io::Error::other(
                "what was read of the unfinished image is not what was written",
            ));
        }
        Ok(())
    }

    fn kept(&mut self, from: &FrameAt, keep: &[u64]) -> io::Result<Content> {
        self.read(from)?;
        self.content.clear();
        self.content.reserve(from.entry.content as usize);
        self.decompressor
            .decompress(&mut self.content, &self.input)
            .map_err(zstd_error)?;
        let entries = record::entries(&self.content).ok_or_else(|| {
            io::Error::other("a page record of the unfinished image is not as it was made")
        })?;
        let pages = &self.content[record::FIXED + 8 * entries.len()..];
        let mut builder = Builder::new(vec![]);
        for (index, (&entry, page)) in entries.iter().zip(pages.chunks(PAGE_SIZE)).enumerate() {
            if keep[index / 64] >> (index % 64) & 1 == 1 {
                builder.push_bytes(entry, page);
            }
        }
        Ok(builder.finish())
    }
}

/// A frame of pages of zeros.
fn zeros(entries: &[u64]) -> Made {
    let mut head = vec![];
    record::head(entries.iter().copied(), &mut head);
    let content = head.len() + entries.len() * PAGE_SIZE;
    let mut frame = Stored::new(content);
    frame.bytes(&head);
    frame.zero_pages(entries.len());
    Made::new(frame.finish(), content, Holds::Zeros)
}

fn zstd_error(code: usize) -> io::Error {
    io::Error::other(format!("zstd: {}", zstd_safe::get_error_name(code)))
}
