//! Writes a zstd image.
//!
//! `write` copies pages into a record and hands it on; threads compress the records and append
//! them in their order, so that a later copy of a page stands behind an earlier one. While the
//! guest is suspended nothing is compressed: what is written then is stored as it is.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use super::FACTS_MAGIC;
use super::compact;
use super::frame::Stored;
use super::job::{FrameAt, Holds, Job, Made};
use super::pipeline::Pipeline;
use super::record::{self, Builder, Content};
use super::seek_table::{self, EMPTY, Entry, SKIPPABLE_HEAD};
use crate::fault;
use crate::image::existing::Ranges;
use crate::image::file::{Existing, PendingFile};
use crate::image::filled::Filled;
use crate::image::libxc::entry;
use crate::image::trailer::{self, Facts};
use crate::image::{Preamble, Tail};
use crate::page::{GuestPage, PAGE_SIZE};
use crate::page_set::PageSet;
use crate::ports::{Cancel, Finished, ImageSink, Room, SinkError, Written};
use crate::units::{Bytes, PageCount, Pfn};

/// Zero pages in a record, at most.
const ZEROS: usize = 1024;

/// How an image is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Compression {
    /// zstd's level.
    pub level: i32,
    /// Threads that compress.
    pub threads: usize,
}

/// A zstd image being written.
pub struct ZstdImage {
    pending: PendingFile,
    path: PathBuf,
    compression: Compression,
    cancel: Cancel,
    pages: PageSet,
    /// Only some of the pages are written.
    increment: bool,
    /// The pages that were written.
    held: Filled,
    /// The pages whose newest copy holds data; the others are zero.
    filled: Filled,
    /// Page copies with data written so far, those of them that are superseded, and those that
    /// are not compressed.
    copies: AtomicU64,
    superseded: AtomicU64,
    stored: AtomicU64,
    pipeline: Option<Pipeline>,
}

impl std::fmt::Debug for ZstdImage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ZstdImage")
            .field("path", &self.path)
            .field("compression", &self.compression)
            .finish_non_exhaustive()
    }
}

impl ZstdImage {
    /// Starts an image that is to appear under `path`. `cancel` cuts a compaction short.
    ///
    /// # Errors
    /// [`SinkError`]: no such directory, the name taken, and so on; see [`PendingFile::create`].
    pub fn create(
        path: &Path,
        existing: Existing,
        compression: Compression,
        cancel: Cancel,
    ) -> Result<Self, SinkError> {
        let pending = PendingFile::create(path, existing).map_err(|source| SinkError {
            operation: "create",
            path: path.display().to_string(),
            source,
        })?;
        Ok(Self {
            path: pending.target().to_owned(),
            pending,
            compression,
            cancel,
            pages: PageSet::new(PageCount(0)),
            increment: false,
            held: Filled::default(),
            filled: Filled::default(),
            copies: AtomicU64::new(0),
            superseded: AtomicU64::new(0),
            stored: AtomicU64::new(0),
            pipeline: None,
        })
    }

    fn failed(&self, operation: &'static str) -> impl FnOnce(io::Error) -> SinkError + '_ {
        move |source| SinkError {
            operation,
            path: self.path.display().to_string(),
            source,
        }
    }

    fn pipeline(&self) -> io::Result<&Pipeline> {
        self.pipeline
            .as_ref()
            .ok_or_else(|| io::Error::other("the image was not begun"))
    }

    fn start(&mut self, preamble: Vec<u8>) -> io::Result<()> {
        fault::call("write-head")?;
        // What an earlier start had under way ends before its file is emptied.
        self.pipeline = None;
        let file = self.pending.file();
        file.set_len(0)?;
        let Compression { level, threads } = self.compression;
        let pipeline = Pipeline::start(file, None, level, threads)?;
        pipeline.submit(Job::Compress(Content::of(preamble), Holds::Other))?;
        self.pipeline = Some(pipeline);
        for counter in [&self.copies, &self.superseded, &self.stored] {
            counter.store(0, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Notes a page's new copy; whether it holds data.
    fn note(&self, pfn: Pfn, zero: bool, written: &mut Written) -> io::Result<bool> {
        if !self.pages.contains(pfn) {
            return Err(io::Error::other(format!("{pfn} has no place in the image")));
        }
        written.pages += PageCount(1);
        self.held.set(pfn, true);
        if self.filled.set(pfn, !zero) {
            self.superseded.fetch_add(1, Ordering::Relaxed);
        }
        if zero {
            written.zero_pages += PageCount(1);
        } else {
            written.bytes += Bytes(PAGE_SIZE as u64);
            self.copies.fetch_add(1, Ordering::Relaxed);
        }
        Ok(!zero)
    }

    fn take(&self, pages: &[(Pfn, GuestPage<'_>)]) -> io::Result<Written> {
        fault::call("write")?;
        let pipeline = self.pipeline()?;
        let mut written = Written::default();
        let mut record = Builder::new(pipeline.buffer());
        let mut zeros = vec![];
        for &(pfn, page) in pages {
            if self.note(pfn, page.is_zero(), &mut written)? {
                record.push(pfn, page);
            } else {
                zeros.push(entry(pfn, page.kind()));
            }
            if record.is_full() {
                let full = std::mem::replace(&mut record, Builder::new(pipeline.buffer()));
                pipeline.submit(Job::Compress(full.finish(), Holds::Pages))?;
            }
        }
        if !record.is_empty() {
            pipeline.submit(Job::Compress(record.finish(), Holds::Pages))?;
        }
        for zeros in zeros.chunks(ZEROS) {
            pipeline.submit(Job::Zeros(zeros.to_vec()))?;
        }
        Ok(written)
    }

    /// Takes pages without compressing, by the calling thread.
    fn store(&self, pages: &[(Pfn, GuestPage<'_>)]) -> io::Result<Written> {
        fault::call("write")?;
        let pipeline = self.pipeline()?;
        let mut written = Written::default();
        for piece in pages.chunks(record::PAGES) {
            let mut head = vec![];
            let entries = piece.iter().map(|(pfn, page)| entry(*pfn, page.kind()));
            record::head(entries, &mut head);
            let length = head.len() + piece.len() * PAGE_SIZE;
            let mut frame = Stored::new(length);
            frame.bytes(&head);
            let mut bytes = Vec::with_capacity(PAGE_SIZE * piece.len());
            let mut zeros = 0;
            for &(pfn, page) in piece {
                if self.note(pfn, page.is_zero(), &mut written)? {
                    frame.zero_pages(std::mem::take(&mut zeros));
                    page.append_to(&mut bytes);
                } else {
                    frame.bytes(&bytes);
                    bytes.clear();
                    zeros += 1;
                }
            }
            frame.bytes(&bytes);
            frame.zero_pages(zeros);
            pipeline.append(&Made::new(frame.finish(), length, Holds::StoredPages))?;
        }
        let data = written.pages.0 - written.zero_pages.0;
        self.stored.fetch_add(data, Ordering::Relaxed);
        Ok(written)
    }

    /// The share of the page copies that a compaction would drop or compress.
    fn waste(&self) -> f64 {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed) as f64;
        let copies = count(&self.copies);
        if copies == 0.0 {
            return 0.0;
        }
        ((count(&self.superseded) + count(&self.stored)) / copies).min(1.0)
    }

    /// Writes the image anew without what is superseded, where that is worth it and there is room.
    fn compact(&mut self) -> io::Result<()> {
        if self.waste() <= compact::WORTHWHILE {
            return Ok(());
        }
        let Some(fresh) = self.pending.another()? else {
            return Ok(());
        };
        let (frames, _) = self.pipeline()?.frames();
        let Compression { level, threads } = self.compression;
        let pipeline = Pipeline::start(fresh.file(), Some(self.pending.file()), level, threads)?;
        let span = self.pages.span();
        match compact::run(self.pending.file(), &frames, span, &pipeline, &self.cancel) {
            Ok(()) if self.cancel.raised().is_none() => {
                self.pipeline = Some(pipeline);
                self.pending = fresh;
                Ok(())
            }
            // The image is as good with them, only larger; or is not wanted any more.
            Err(error) if !no_room(&error) => Err(error),
            _ => Ok(()),
        }
    }

    fn end(&mut self, tail: &Tail, facts: &Facts) -> io::Result<()> {
        self.pipeline()?.drain()?;
        self.compact()?;
        fault::call("write-end")?;
        let pipeline = self.pipeline()?;
        pipeline.submit(Job::Compress(Content::of(tail.encode()), Holds::Other))?;
        pipeline.drain()?;
        let (frames, end) = pipeline.frames();
        let existing = self.increment.then(|| Ranges::of(&self.pages).encode());
        let mut last = facts_frame(&frames, facts, existing, end)?;
        let facts_entry = Entry {
            compressed: last.len() as u32,
            content: 0,
            checksum: EMPTY,
        };
        let mut entries: Vec<_> = frames.iter().map(|frame| frame.entry).collect();
        entries.push(facts_entry);
        last.extend_from_slice(&seek_table::encode(entries.into_iter()));
        std::os::unix::fs::FileExt::write_all_at(self.pending.file(), &last, end)?;
        self.pending.sync()
    }
}

/// Whether an error says that there is no room left.
fn no_room(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge
    )
}

/// livesave's facts as a skippable frame that is to stand at `end`.
fn facts_frame(
    frames: &[FrameAt],
    facts: &Facts,
    existing: Option<Vec<u8>>,
    end: u64,
) -> io::Result<Vec<u8>> {
    let sums = frames.iter().flat_map(|f| f.sum.to_le_bytes()).collect();
    let mut sections = vec![(trailer::FRAME_SUMS, sums)];
    sections.extend(existing.map(|body| (trailer::EXISTING, body)));
    let trailer = trailer::encode(facts, &sections, end + SKIPPABLE_HEAD)?;
    let mut out = FACTS_MAGIC.to_le_bytes().to_vec();
    out.extend_from_slice(&(trailer.len() as u32).to_le_bytes());
    out.extend_from_slice(&trailer);
    Ok(out)
}

impl ImageSink for ZstdImage {
    fn begin(&mut self, preamble: &Preamble, pages: &PageSet) -> Result<Room, SinkError> {
        let head = preamble.encode();
        let before = head.len() as u64;
        self.pages = pages.clone();
        self.increment = preamble.increment;
        self.held = Filled::none_of(pages);
        self.filled = Filled::none_of(pages);
        self.start(head).map_err(self.failed("start"))?;
        let file_system = rustix::fs::fstatvfs(self.pending.file())
            .map_err(io::Error::from)
            .map_err(self.failed("look at the file system of"))?;
        // Nothing compresses: the pages, their entries, and what frames and blocks cost.
        let memory = if self.increment {
            // How many will be written is not known.
            0
        } else {
            pages.count().bytes().0
        };
        Ok(Room {
            needed: Bytes(before + memory + memory / 400 + (64 << 10)),
            free: Bytes(file_system.f_bavail * file_system.f_frsize),
        })
    }

    fn write(&self, pages: &[(Pfn, GuestPage<'_>)]) -> Result<Written, SinkError> {
        self.take(pages).map_err(self.failed("write pages to"))
    }

    fn settle(&self) -> Result<(), SinkError> {
        self.pipeline()
            .and_then(Pipeline::drain)
            .map_err(self.failed("write pages to"))
    }

    fn write_suspended(&self, pages: &[(Pfn, GuestPage<'_>)]) -> Result<Written, SinkError> {
        self.store(pages).map_err(self.failed("write pages to"))
    }

    fn finish(&mut self, tail: &Tail, facts: &Facts) -> Result<Finished, SinkError> {
        self.end(tail, facts).map_err(self.failed("finish"))?;
        self.pending.finished().map_err(self.failed("look at"))
    }

    fn commit(&mut self) -> Result<(), SinkError> {
        self.pending
            .publish()
            .map_err(self.failed("give its name to"))
    }

    fn zero_pages(&self) -> PageCount {
        PageCount(self.held.count().0 - self.filled.count().0)
    }

    fn held_pages(&self) -> PageCount {
        self.held.count()
    }

    fn path(&self) -> &Path {
        &self.path
    }
}
