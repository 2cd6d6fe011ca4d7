//! Looks at every byte of an image: structure against docs/format.md, and every checksum.
//!
//! A stock image has no checksums, so that only its structure can be looked at.

mod pages;
mod structure;
#[cfg(test)]
mod tests;

use std::path::Path;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use super::checksums::{self, RawChecksums};
use super::source::SourceError;
use super::zst::unpack::Unpacker;
use super::zst::{Packed, Span};
use super::{GuestType, ImageError, Reader};
use crate::checksum;
use crate::page::PAGE_SIZE;
use crate::ports::Cancel;
use crate::units::{Bytes, PageCount};
use pages::PfnSet;

/// Blocks of 4096 bytes looked at by a thread at a time.
const BLOCKS: u64 = 1024;
/// More problems than that are not listed.
const MAX_PROBLEMS: usize = 32;

/// What kind of image it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// livesave's, raw.
    Raw,
    /// livesave's, raw, without checksums.
    RawUnchecked,
    /// livesave's, compressed.
    Zstd,
    /// Another tool's.
    Stock,
}

/// Something that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// Where in the file.
    pub offset: u64,
    /// What.
    pub what: &'static str,
}

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    /// What kind of image it is; `None` if it cannot be told.
    pub kind: Option<Kind>,
    /// The size of the file.
    pub size: Bytes,
    /// Pages in it.
    pub pages: PageCount,
    /// Copies of pages in it; more than `pages` where superseded ones were left.
    pub copies: PageCount,
    /// Checksums that were compared.
    pub checksums: u64,
    /// What is wrong, in the order of the file: all of it, up to some number.
    pub problems: Vec<Problem>,
}

/// How it goes and when to stop.
pub struct Course<'c> {
    /// Threads that work.
    pub threads: usize,
    /// Hears of bytes of the file done since it was last called; from any thread.
    pub progress: &'c (dyn Fn(u64) + Sync),
    /// Asks to stop; then what was found so far is returned.
    pub cancel: &'c Cancel,
}

/// Looks at the image `path`.
///
/// # Errors
/// [`ImageError::Io`]; that the image is damaged is no error but what was found.
pub fn verify(path: &Path, course: &Course<'_>) -> Result<Verified, ImageError> {
    found(Reader::open(path), course)
}

/// The same of an image in memory.
///
/// # Errors
/// None that come of the image.
pub fn verify_bytes(bytes: Vec<u8>, course: &Course<'_>) -> Result<Verified, ImageError> {
    found(Reader::of_bytes(bytes), course)
}

fn found(opened: Result<Reader, ImageError>, course: &Course<'_>) -> Result<Verified, ImageError> {
    let mut verified = Verified {
        kind: None,
        size: Bytes(0),
        pages: PageCount(0),
        copies: PageCount(0),
        checksums: 0,
        problems: vec![],
    };
    let looked = opened.and_then(|reader| {
        verified.size = Bytes(reader.size());
        verified.kind = Some(kind_of(&reader));
        Check::new(&reader, course).run(&mut verified)
    });
    match looked {
        Err(ImageError::Damaged { offset, what, .. }) => {
            verified.problems.push(Problem { offset, what });
        }
        done => done?,
    }
    verified.problems.sort();
    verified.problems.dedup();
    Ok(verified)
}

fn kind_of(reader: &Reader) -> Kind {
    if reader.is_compressed() {
        Kind::Zstd
    } else if reader.raw_checksums().is_some() {
        Kind::Raw
    } else if reader.trailer().is_some() {
        Kind::RawUnchecked
    } else {
        Kind::Stock
    }
}

/// What the threads share.
struct Check<'c> {
    reader: &'c Reader,
    course: &'c Course<'c>,
    pages: Mutex<PfnSet>,
    problems: Mutex<Vec<Problem>>,
    checksums: AtomicU64,
}

impl<'c> Check<'c> {
    fn new(reader: &'c Reader, course: &'c Course<'c>) -> Self {
        Self {
            reader,
            course,
            pages: Mutex::default(),
            problems: Mutex::default(),
            checksums: AtomicU64::new(0),
        }
    }

    fn run(self, verified: &mut Verified) -> Result<(), ImageError> {
        // The checksums first: they tell what is damaged better than what follows from it.
        let looked = match (self.reader.source().packed(), self.reader.raw_checksums()) {
            (Some(packed), _) => self.frames(packed),
            (None, Some(sums)) => self.raw(sums),
            (None, None) => Ok(()),
        };
        let structure = looked.and_then(|()| {
            if self.problems().is_empty() && self.course.cancel.raised().is_none() {
                structure::check(self.reader, &mut self.page_set())
            } else {
                Ok(())
            }
        });
        verified.checksums = self.checksums.load(Ordering::Relaxed);
        verified.pages = self.page_set().count();
        verified.copies = self.page_set().copies();
        verified.problems.append(&mut self.problems());
        structure
    }

    fn problems(&self) -> std::sync::MutexGuard<'_, Vec<Problem>> {
        self.problems.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn page_set(&self) -> std::sync::MutexGuard<'_, PfnSet> {
        self.pages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wrong(&self, offset: u64, what: &'static str) {
        let mut problems = self.problems();
        if problems.len() < MAX_PROBLEMS {
            problems.push(Problem { offset, what });
        }
    }

    /// Does `work` for each number below `count` on several threads.
    fn in_parallel<T>(
        &self,
        count: usize,
        tools: impl Fn() -> Result<T, SourceError> + Sync,
        work: impl Fn(&mut T, usize) -> Result<(), SourceError> + Sync,
    ) -> Result<(), ImageError> {
        let next = AtomicUsize::new(0);
        let thread = || {
            let mut tools = tools()?;
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= count || self.course.cancel.raised().is_some() {
                    return Ok(());
                }
                match work(&mut tools, number) {
                    Err(SourceError::Damaged { offset, what }) => self.wrong(offset, what),
                    done => done?,
                }
            }
        };
        let results: Vec<Result<(), SourceError>> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..self.course.threads.clamp(1, count.max(1)))
                .map(|_| scope.spawn(thread))
                .collect();
            let join = |thread: std::thread::ScopedJoinHandle<'_, _>| {
                let result = thread.join();
                result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            };
            threads.into_iter().map(join).collect()
        });
        let result: Result<(), SourceError> = results.into_iter().collect();
        result.map_err(|error| self.reader.failed(error))
    }

    /// The checksums of a raw image.
    fn raw(&self, sums: &RawChecksums) -> Result<(), ImageError> {
        for (at, end, want, what) in [
            (
                0,
                sums.memory_start,
                sums.before,
                "what stands before the memory fails its checksum",
            ),
            (
                sums.memory_end(),
                sums.table_at,
                sums.behind,
                "the records behind the memory fail their checksum",
            ),
            (
                sums.table_at,
                sums.table_at + checksums::table_len(sums.blocks),
                sums.table,
                "the table of checksums fails its own",
            ),
        ] {
            if self.sum_of(at, end)? != want {
                self.wrong(at, what);
            }
        }
        let chunks = sums.blocks.div_ceil(BLOCKS) as usize;
        let buffers = || Ok((vec![], vec![]));
        self.in_parallel(chunks, buffers, |(blocks, table), number| {
            self.blocks(sums, number as u64 * BLOCKS, blocks, table)
        })
    }

    fn sum_of(&self, mut at: u64, end: u64) -> Result<u32, ImageError> {
        let mut sum = checksum::Running::new();
        while at < end {
            let bytes = self.reader.bytes(at, (end - at).min(BLOCKS * 4096))?;
            sum.add(&bytes);
            at += bytes.len() as u64;
            (self.course.progress)(bytes.len() as u64);
        }
        self.checksums.fetch_add(1, Ordering::Relaxed);
        Ok(sum.value())
    }

    fn blocks(
        &self,
        sums: &RawChecksums,
        first: u64,
        blocks: &mut Vec<u8>,
        table: &mut Vec<u8>,
    ) -> Result<(), SourceError> {
        let count = BLOCKS.min(sums.blocks - first);
        let start = sums.memory_start + first * PAGE_SIZE as u64;
        blocks.resize(count as usize * PAGE_SIZE, 0);
        table.resize((count * checksums::ENTRY) as usize, 0);
        let source = self.reader.source();
        source.read_exact(blocks, start)?;
        source.read_exact(table, sums.table_at + first * checksums::ENTRY)?;
        let (pages, _) = blocks.as_chunks::<PAGE_SIZE>();
        let (want, _) = table.as_chunks::<4>();
        for (number, (page, want)) in pages.iter().zip(want).enumerate() {
            if checksums::of_block(page) != u32::from_le_bytes(*want) {
                let offset = start + (number * PAGE_SIZE) as u64;
                self.wrong(offset, "4096 bytes of the memory fail their checksum");
            }
        }
        self.checksums.fetch_add(count, Ordering::Relaxed);
        (self.course.progress)(blocks.len() as u64);
        Ok(())
    }

    /// The frames of a zstd image.
    fn frames(&self, packed: &Packed) -> Result<(), ImageError> {
        let at = packed.trailer().0;
        let damaged = |what| self.reader.failed(SourceError::damaged(at, what));
        let body = self.reader.trailer().and_then(|t| t.frame_sums.as_ref());
        let body = body.ok_or_else(|| damaged("the checksums of the frames are missing"))?;
        let (sums, rest) = body.as_chunks::<4>();
        if sums.len() != packed.spans().len() || !rest.is_empty() {
            return Err(damaged("there are not as many checksums as frames"));
        }
        let tools = || Ok((Unpacker::new()?, vec![], vec![]));
        self.in_parallel(sums.len(), tools, |(unpacker, frame, content), number| {
            let sum = u32::from_le_bytes(sums[number]);
            self.frame(packed.spans()[number], sum, unpacker, frame, content)
        })
    }

    fn frame(
        &self,
        span: Span,
        sum: u32,
        unpacker: &mut Unpacker,
        frame: &mut Vec<u8>,
        content: &mut Vec<u8>,
    ) -> Result<(), SourceError> {
        frame.resize(span.entry.compressed as usize, 0);
        self.reader.source().file().read_exact_at(frame, span.at)?;
        let damaged = |what| SourceError::damaged(span.at, what);
        if checksum::of(frame) != sum {
            return Err(damaged("a frame fails its checksum"));
        }
        let unpacked = unpacker.whole_of(frame, span.entry, content);
        unpacked.map_err(damaged)?;
        if span.start > 0 {
            let pvh = self.reader.guest() == GuestType::Hvm;
            let found = pages::of_frame(content, pvh).map_err(damaged)?;
            self.page_set().insert_all(&found).map_err(damaged)?;
        }
        self.checksums.fetch_add(2, Ordering::Relaxed);
        (self.course.progress)(u64::from(span.entry.compressed));
        Ok(())
    }
}
