//! Writes a raw image: every page in its fixed slot, zero pages as holes.
//!
//! A page that is dirtied again is rewritten in place, so that the file never grows beyond what
//! its layout says, however busy the guest.

use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::FallocateFlags;

use super::checksums::{self, RawChecksums, Spill};
use super::file::{Existing, PendingFile};
use super::filled::Filled;
use super::kinds::Kinds;
use super::layout::Layout;
use super::trailer::{self, Facts};
use super::{GuestType, Preamble, Tail};
use crate::checksum;
use crate::fault;
use crate::page::{GuestPage, PAGE_SIZE, PageBytes, PageKind, write_pages_at};
use crate::page_set::PageSet;
use crate::ports::{Finished, ImageSink, Room, SinkError, Written};
use crate::units::{Bytes, PageCount, Pfn};

const PAGE: u64 = PAGE_SIZE as u64;

/// A raw image being written.
#[derive(Debug)]
pub struct RawImage {
    pending: PendingFile,
    path: PathBuf,
    layout: Layout,
    /// The pages whose slots hold data; the other slots are holes.
    filled: Filled,
    /// Of a PV guest.
    kinds: Option<Kinds>,
    checksums: Option<Spill>,
    /// Checksum of what stands before the memory.
    before: u32,
}

impl RawImage {
    /// Starts an image that is to appear under `path`.
    ///
    /// # Errors
    /// [`SinkError`]: no such directory, the name taken, and so on; see [`PendingFile::create`].
    pub fn create(path: &Path, existing: Existing) -> Result<Self, SinkError> {
        let pending = PendingFile::create(path, existing).map_err(|source| SinkError {
            operation: "create",
            path: path.display().to_string(),
            source,
        })?;
        Ok(Self {
            path: pending.target().to_owned(),
            pending,
            layout: Layout::new(0, &PageSet::new(PageCount(0))),
            filled: Filled::default(),
            kinds: None,
            checksums: None,
            before: 0,
        })
    }

    fn failed(&self, operation: &'static str) -> impl FnOnce(io::Error) -> SinkError + '_ {
        move |source| SinkError {
            operation,
            path: self.path.display().to_string(),
            source,
        }
    }

    fn write_head(&mut self, preamble: &[u8]) -> io::Result<()> {
        fault::call("write-head")?;
        let file = self.pending.file();
        let spill = Spill::new(self.pending.scratch()?);
        file.set_len(0)?;
        file.write_all_at(preamble, 0)?;
        for (offset, head) in self.layout.record_heads() {
            self.put_head(offset, &head, &spill)?;
        }
        self.checksums = Some(spill);
        self.before = checksum::of(preamble);
        // The slots in between are holes until their pages come.
        file.set_len(self.layout.end())
    }

    fn put_head(&self, offset: u64, head: &[u8], spill: &Spill) -> io::Result<()> {
        self.pending.file().write_all_at(head, offset)?;
        let (blocks, _) = head.as_chunks::<PAGE_SIZE>();
        let sums = blocks.iter().map(checksums::of_block);
        let sums: Vec<_> = (self.block(offset)..).zip(sums).collect();
        spill.put(&sums)
    }

    /// Notes what a page is. The record heads have it at the end: what a page is changes.
    fn note(&self, pfn: Pfn, kind: PageKind) -> io::Result<()> {
        match &self.kinds {
            Some(kinds) => kinds.set(pfn, kind),
            None if kind == PageKind::ORDINARY => {}
            None => {
                return Err(io::Error::other(format!(
                    "{pfn} is no page of such a guest"
                )));
            }
        }
        Ok(())
    }

    /// The number of the block of memory at an offset.
    fn block(&self, offset: u64) -> u64 {
        (offset - self.layout.start()) / PAGE
    }

    fn spill(&self) -> io::Result<&Spill> {
        self.checksums
            .as_ref()
            .ok_or_else(|| io::Error::other("the image was not begun"))
    }

    /// Makes slots that held data read as zeros again.
    fn clear_slots(&self, offset: u64, pages: u64) -> io::Result<()> {
        let file = self.pending.file();
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match rustix::fs::fallocate(file, flags, offset, pages * PAGE) {
            Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => {}
            done => return Ok(done?),
        }
        (0..pages).try_for_each(|n| file.write_all_at(&PageBytes::ZERO.0, offset + n * PAGE))
    }

    fn append_end(&mut self, tail: &Tail, facts: &Facts) -> io::Result<()> {
        fault::call("write-end")?;
        if let Some(kinds) = &self.kinds {
            for (offset, head) in self.layout.typed_heads(|pfn| kinds.get(pfn)) {
                self.put_head(offset, &head, self.spill()?)?;
            }
        }
        let file = self.pending.file();
        let end = tail.encode();
        let table_at = self.layout.end() + end.len() as u64;
        let blocks = self.block(self.layout.end());
        file.write_all_at(&end, self.layout.end())?;
        let sums = RawChecksums {
            memory_start: self.layout.start(),
            blocks,
            table_at,
            table: self.spill()?.copy_to(file, table_at, blocks)?,
            before: self.before,
            behind: checksum::of(&end),
        };
        let trailer_at = table_at + checksums::table_len(blocks);
        let sections = [(trailer::RAW_SUMS, sums.encode())];
        let trailer = trailer::encode(facts, &sections, trailer_at)?;
        file.write_all_at(&trailer, trailer_at)?;
        self.pending.sync()
    }
}

impl ImageSink for RawImage {
    fn begin(&mut self, preamble: &Preamble, pages: &PageSet) -> Result<Room, SinkError> {
        if preamble.increment {
            // Its slots could not tell a page of zeros from one that it does not have.
            let source = io::Error::other("an increment is never raw");
            return Err(self.failed("start")(source));
        }
        let head = preamble.encode();
        self.layout = Layout::new(head.len() as u64, pages);
        self.filled = Filled::none_of(pages);
        self.kinds = (preamble.guest == GuestType::Pv).then(|| Kinds::ordinary(pages));
        self.write_head(&head).map_err(self.failed("start"))?;
        let file_system = rustix::fs::fstatvfs(self.pending.file())
            .map_err(io::Error::from)
            .map_err(self.failed("look at the file system of"))?;
        Ok(Room {
            needed: Bytes(self.layout.end() + checksums::table_len(self.block(self.layout.end()))),
            free: Bytes(file_system.f_bavail * file_system.f_frsize),
        })
    }

    fn write(&self, pages: &[(Pfn, GuestPage<'_>)]) -> Result<Written, SinkError> {
        fault::call("write").map_err(self.failed("write pages to"))?;
        let mut written = Written {
            pages: PageCount(pages.len() as u64),
            ..Written::default()
        };
        let mut sums = Vec::with_capacity(pages.len());
        let mut run = Run::new();
        for &(pfn, page) in pages {
            let Some(offset) = self.layout.offset(pfn) else {
                let source = io::Error::other(format!("{pfn} has no place in the image"));
                return Err(self.failed("write page to")(source));
            };
            self.note(pfn, page.kind())
                .map_err(self.failed("write page to"))?;
            if page.is_zero() {
                written.zero_pages += PageCount(1);
                if self.filled.contains(pfn) {
                    self.clear_slots(offset, 1)
                        .map_err(self.failed("punch a hole in"))?;
                    sums.push((self.block(offset), 0));
                    self.filled.set(pfn, false);
                }
                continue;
            }
            if run.end() != Some(offset) || run.pages.len() == RUN {
                written.bytes += self.flush(&mut run)?;
                run.start = offset;
            }
            sums.push((self.block(offset), run.push(page)));
            self.filled.set(pfn, true);
        }
        written.bytes += self.flush(&mut run)?;
        self.spill()
            .and_then(|spill| spill.put(&sums))
            .map_err(self.failed("write pages to"))?;
        Ok(written)
    }

    fn finish(&mut self, tail: &Tail, facts: &Facts) -> Result<Finished, SinkError> {
        self.append_end(tail, facts)
            .map_err(self.failed("finish"))?;
        self.pending.finished().map_err(self.failed("look at"))
    }

    fn commit(&mut self) -> Result<(), SinkError> {
        self.pending
            .publish()
            .map_err(self.failed("give its name to"))
    }

    fn zero_pages(&self) -> PageCount {
        PageCount(self.layout.page_count().0 - self.filled.count().0)
    }

    fn held_pages(&self) -> PageCount {
        self.layout.page_count()
    }

    fn path(&self) -> &Path {
        &self.path
    }
}

/// Pages written in one go, at most: what the checksums were made of is still in the processor's
/// cache when it is written.
const RUN: usize = 64;

/// Pages whose slots lie side by side, written in one go.
struct Run<'a> {
    start: u64,
    pages: Vec<GuestPage<'a>>,
    page: PageBytes,
}

impl<'a> Run<'a> {
    fn new() -> Self {
        Self {
            start: 0,
            pages: Vec::with_capacity(RUN),
            page: PageBytes::ZERO,
        }
    }

    /// Adds a page; its checksum. What the guest writes to it between this look and the next makes
    /// it dirty, so that it comes again.
    fn push(&mut self, page: GuestPage<'a>) -> u32 {
        page.copy_to(&mut self.page);
        self.pages.push(page);
        checksums::of_block(&self.page.0)
    }

    fn end(&self) -> Option<u64> {
        (!self.pages.is_empty()).then(|| self.start + self.pages.len() as u64 * PAGE)
    }
}

impl RawImage {
    fn flush(&self, run: &mut Run<'_>) -> Result<Bytes, SinkError> {
        if run.pages.is_empty() {
            return Ok(Bytes(0));
        }
        write_pages_at(self.pending.file(), &run.pages, run.start)
            .map_err(self.failed("write pages to"))?;
        let bytes = PageCount(run.pages.len() as u64).bytes();
        run.pages.clear();
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::layout::RECORD_HEAD;
    use crate::image::reader::Reader;
    use crate::image::{Record, libxc};
    use crate::testing::{preamble, some_facts};

    fn page(fill: u8) -> PageBytes {
        PageBytes([fill; PAGE_SIZE])
    }

    fn existing(ranges: &[std::ops::Range<u64>]) -> PageSet {
        let mut pages = PageSet::new(PageCount(5000));
        for range in ranges {
            pages.insert_range(range.clone());
        }
        pages
    }

    fn image(dir: &Path, pages: &PageSet) -> RawImage {
        let mut image = RawImage::create(&dir.join("x.xl"), Existing::Keep).expect("created");
        image.begin(&preamble(), pages).expect("begun");
        image
    }

    fn memory_of(path: &Path) -> Vec<(u64, u8)> {
        let mut found = vec![];
        Reader::open(path)
            .expect("readable")
            .for_each_page(|pfn, page| {
                assert!(page.0.iter().all(|&b| b == page.0[0]));
                found.push((pfn.0, page.0[0]));
                Ok::<_, crate::image::ImageError>(())
            })
            .expect("pages");
        found
    }

    #[test]
    fn the_newest_copy_wins_and_zero_pages_are_holes() {
        let dir = tempfile::tempdir().expect("directory");
        let pages = existing(&[0..3, 4000..4003]);
        let mut image = image(dir.path(), &pages);
        let (one, two, zero) = (page(1), page(2), page(0));
        let of = GuestPage::of;
        let all = [0, 1, 2, 4000, 4001, 4002].map(Pfn);
        let first: Vec<_> = all.iter().map(|&pfn| (pfn, of(&one))).collect();
        let done = image.write(&first).expect("written");
        assert_eq!(
            (done.pages, done.zero_pages, done.bytes),
            (PageCount(6), PageCount(0), PageCount(6).bytes())
        );
        let again = [
            (Pfn(1), of(&two)),
            (Pfn(2), of(&zero)),
            (Pfn(4001), of(&zero)),
        ];
        let done = image.write(&again).expect("written");
        assert_eq!(
            (done.zero_pages, done.bytes),
            (PageCount(2), PageCount(1).bytes())
        );
        assert_eq!(image.zero_pages(), PageCount(2));
        image.write(&[(Pfn(4001), of(&two))]).expect("written");
        let tail = Tail {
            libxc: vec![Record::new(libxc::record::HVM_CONTEXT, vec![7; 5])],
            libxl: vec![],
        };
        image.finish(&tail, &some_facts()).expect("finished");
        image.commit().expect("committed");
        assert_eq!(
            memory_of(&dir.path().join("x.xl")),
            [(0, 1), (1, 2), (2, 0), (4000, 1), (4001, 2), (4002, 1)]
        );
    }

    #[test]
    fn an_image_of_zeros_takes_next_to_nothing() {
        let dir = tempfile::tempdir().expect("directory");
        let pages = existing(&[0..5000]);
        let mut image = image(dir.path(), &pages);
        let zero = page(0);
        let all: Vec<_> = (0..5000)
            .map(|pfn| (Pfn(pfn), GuestPage::of(&zero)))
            .collect();
        image.write(&all).expect("written");
        let done = image
            .finish(&Tail::default(), &some_facts())
            .expect("finished");
        image.commit().expect("committed");
        assert!(done.size.0 > 5000 * PAGE);
        assert!(done.allocated.0 < 200_000, "{} allocated", done.allocated);
    }

    #[test]
    fn begun_again_it_forgets_what_was_written() {
        let dir = tempfile::tempdir().expect("directory");
        let mut image = image(dir.path(), &existing(&[0..2]));
        let one = page(1);
        image
            .write(&[(Pfn(0), GuestPage::of(&one))])
            .expect("written");
        image
            .begin(&preamble(), &existing(&[0..1, 9..10]))
            .expect("begun");
        image
            .finish(&Tail::default(), &some_facts())
            .expect("finished");
        image.commit().expect("committed");
        assert_eq!(memory_of(&dir.path().join("x.xl")), [(0, 0), (9, 0)]);
    }

    fn bits(bits: u8) -> PageKind {
        PageKind::of_bits(bits).expect("a kind")
    }

    #[test]
    fn a_pv_guests_pages_have_the_kind_of_their_newest_copy() {
        let dir = tempfile::tempdir().expect("directory");
        let mut image =
            RawImage::create(&dir.path().join("x.xl"), Existing::Keep).expect("created");
        let preamble = Preamble {
            guest: GuestType::Pv,
            ..preamble()
        };
        image
            .begin(&preamble, &existing(&[0..3, 4000..4002]))
            .expect("begun");
        let (one, zero) = (page(1), page(0));
        let write = |pfn: u64, page, kind| {
            let page = GuestPage::of(page).of_kind(bits(kind));
            image.write(&[(Pfn(pfn), page)]).expect("written");
        };
        for (pfn, kind) in [(0, 4), (1, 1), (2, 0), (4000, 0), (4001, 0)] {
            write(pfn, &one, kind);
        }
        // Pinned; no page table any more; one of zeros.
        write(0, &one, 12);
        write(1, &one, 0);
        write(2, &zero, 2);
        image
            .finish(&Tail::default(), &some_facts())
            .expect("finished");
        image.commit().expect("committed");
        let reader = Reader::open(&dir.path().join("x.xl")).expect("readable");
        let mut found = vec![];
        let records = reader.libxc_records().iter();
        for at in records.filter(|at| at.kind == libxc::record::PAGE_DATA) {
            let head = reader.bytes(at.offset + 8, RECORD_HEAD - 16).expect("read");
            let entries = head.as_chunks::<8>().0.iter();
            let entries = entries.map(|entry| u64::from_le_bytes(*entry));
            found.extend(entries.filter(|entry| entry >> 60 != 0xf));
        }
        let entry = |pfn: u64, kind: u64| kind << 60 | pfn;
        let want = [(0, 12), (1, 0), (2, 2), (4000, 0), (4001, 0)];
        assert_eq!(found, want.map(|(pfn, kind)| entry(pfn, kind)));
        let course = crate::image::verify::Course {
            threads: 1,
            progress: &|_| {},
            cancel: &crate::ports::Cancel::new(),
        };
        let verified = crate::image::verify::verify(&dir.path().join("x.xl"), &course);
        // Of the state of its vCPUs there is nothing in it.
        let problems = verified.expect("looked at").problems;
        assert!(
            problems.iter().all(|p| p.what.contains("PV")),
            "{problems:?}"
        );
    }

    #[test]
    fn other_guests_have_ordinary_pages_only() {
        let dir = tempfile::tempdir().expect("directory");
        let image = image(dir.path(), &existing(&[0..2]));
        let one = page(1);
        let table = GuestPage::of(&one).of_kind(bits(1));
        assert!(image.write(&[(Pfn(0), table)]).is_err());
    }

    #[test]
    fn a_page_without_a_slot_is_an_error() {
        let dir = tempfile::tempdir().expect("directory");
        let image = image(dir.path(), &existing(&[0..2]));
        let one = page(1);
        assert!(image.write(&[(Pfn(2), GuestPage::of(&one))]).is_err());
    }
}
