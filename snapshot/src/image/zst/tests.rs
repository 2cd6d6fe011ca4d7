//! Whole zstd images: written, read back, and taken apart by libzstd alone.

use std::path::{Path, PathBuf};

use super::*;
use crate::image::file::Existing;
use crate::image::samples::tail;
use crate::image::{GuestType, ImageError, Preamble, Reader, libxc};
use crate::page::{GuestPage, PAGE_SIZE, PageBytes, PageKind};
use crate::page_set::PageSet;
use crate::ports::{Cancel, ImageSink};
use crate::testing::{entries, first_pages, preamble, some_facts};
use crate::units::{PageCount, Pfn};

const PAGES: u64 = 3000;

struct Bench {
    dir: tempfile::TempDir,
    image: ZstdImage,
    cancel: Cancel,
}

/// A page that says which it is; 0 is a page of zeros.
fn page(pfn: u64, version: u8) -> PageBytes {
    let mut page = PageBytes::ZERO;
    if version != 0 {
        for (index, byte) in page.0.iter_mut().enumerate() {
            *byte = ((index as u64 * pfn) >> 3) as u8 ^ version;
        }
    }
    page
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("directory");
        let cancel = Cancel::new();
        let compression = Compression {
            level: 1,
            threads: 2,
        };
        let path = dir.path().join("x.xl.zst");
        let image = ZstdImage::create(&path, Existing::Keep, compression, cancel.clone());
        let mut image = image.expect("created");
        image
            .begin(&preamble(), &first_pages(PAGES))
            .expect("begun");
        Self { dir, image, cancel }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("x.xl.zst")
    }

    fn write(&self, pfns: impl Iterator<Item = u64>, version: u8) {
        let memory: Vec<_> = pfns.map(|pfn| (Pfn(pfn), page(pfn, version))).collect();
        for batch in memory.chunks(1024) {
            let batch: Vec<_> = batch.iter().map(|(n, p)| (*n, GuestPage::of(p))).collect();
            self.image.write(&batch).expect("written");
        }
    }

    fn write_suspended(&self, pfns: impl Iterator<Item = u64>, version: impl Fn(u64) -> u8) {
        let memory: Vec<_> = pfns
            .map(|pfn| (Pfn(pfn), page(pfn, version(pfn))))
            .collect();
        self.image.settle().expect("settled");
        let batch: Vec<_> = memory.iter().map(|(n, p)| (*n, GuestPage::of(p))).collect();
        self.image.write_suspended(&batch).expect("written");
    }

    /// Finishes; how often each page is in the image, and that its last copy is the right one.
    fn finish(&mut self, want: impl Fn(u64) -> u8) -> Vec<usize> {
        self.image.finish(&tail(), &some_facts()).expect("finished");
        self.image.commit().expect("committed");
        assert_eq!(entries(self.dir.path()), [self.path()]);
        let (counts, last) = copies(&self.path());
        for (pfn, page_found) in last.iter().enumerate() {
            assert!(
                *page_found == page(pfn as u64, want(pfn as u64)),
                "pfn {pfn}"
            );
        }
        counts
    }
}

fn copies(path: &Path) -> (Vec<usize>, Vec<PageBytes>) {
    let mut counts = vec![0; PAGES as usize];
    let mut last = vec![PageBytes([0xee; PAGE_SIZE]); PAGES as usize];
    let reader = Reader::open(path).expect("readable");
    assert_eq!(reader.facts(), Some(&some_facts()));
    let context = *reader.libxc_records().last().expect("a record");
    assert_eq!(reader.read(&context).expect("read"), tail().libxc[0]);
    reader
        .for_each_page(|pfn, page| {
            counts[pfn.0 as usize] += 1;
            last[pfn.0 as usize] = page.clone();
            Ok::<_, ImageError>(())
        })
        .expect("pages");
    // The same by libzstd alone, as `zstd -dc` would.
    let file = std::fs::read(path).expect("read");
    let mut rest = &file[..];
    let mut stream = vec![];
    while !rest.is_empty() {
        let length = zstd_safe::find_frame_compressed_size(rest).expect("a frame");
        let size = zstd_safe::get_frame_content_size(rest).expect("a head");
        let mut content = vec![0; size.unwrap_or(0) as usize];
        if is_skippable(rest) {
            assert!(content.is_empty());
        } else {
            zstd_safe::decompress(&mut content[..], &rest[..length]).expect("a good frame");
        }
        stream.extend_from_slice(&content);
        rest = &rest[length..];
    }
    assert_eq!(stream.len() as u64, reader.stream_len());
    let read = reader.bytes(0, reader.stream_len()).expect("read");
    assert!(stream == read, "the stream is what the frames hold");
    (counts, last)
}

fn is_skippable(frame: &[u8]) -> bool {
    frame[1..4] == FACTS_MAGIC.to_le_bytes()[1..]
}

#[test]
fn the_newest_copy_is_the_last_and_few_superseded_ones_stay() {
    let mut bench = Bench::new();
    bench.write(0..PAGES, 1);
    bench.write((0..PAGES).step_by(30), 2);
    bench.write([5, 6, 7].into_iter(), 0);
    bench.write([6].into_iter(), 4);
    let want = |pfn| match pfn {
        6 => 4,
        5 | 7 => 0,
        pfn if pfn % 30 == 0 => 2,
        _ => 1,
    };
    assert_eq!(bench.image.zero_pages(), PageCount(2));
    let counts = bench.finish(want);
    assert_eq!((counts[0], counts[1], counts[6]), (2, 1, 3));
}

#[test]
fn many_superseded_copies_are_dropped() {
    let mut bench = Bench::new();
    bench.write(0..PAGES, 0);
    bench.write(0..PAGES, 1);
    bench.write((0..PAGES).step_by(2), 2);
    bench.write(100..700, 3);
    bench.write(0..50, 0);
    let want = |pfn| match pfn {
        0..50 => 0,
        100..700 => 3,
        pfn if pfn % 2 == 0 => 2,
        _ => 1,
    };
    let counts = bench.finish(want);
    // Zeros may stay where others came to stand in their place; data does not.
    assert!(counts[50..].iter().all(|&count| count == 1), "{counts:?}");
}

#[test]
fn what_was_written_in_the_pause_is_stored_then_compressed() {
    let mut bench = Bench::new();
    bench.write(0..PAGES, 1);
    bench.write_suspended(10..20, |pfn| u8::from(pfn != 15) * 9);
    let stored = bench.path();
    let counts = bench.finish(|pfn| match pfn {
        15 => 0,
        10..20 => 9,
        _ => 1,
    });
    assert_eq!(counts[10], 2);
    let small = stored.metadata().expect("metadata").len();

    // A plain save: all of it.
    let mut bench = Bench::new();
    bench.write_suspended(0..PAGES, |pfn| (pfn % 3) as u8);
    assert_eq!(bench.image.zero_pages(), PageCount(1000));
    let counts = bench.finish(|pfn| (pfn % 3) as u8);
    assert!(counts.iter().all(|&count| count == 1));
    let size = stored_size(&bench);
    assert!(size < 2 * small, "{size} bytes compressed, {small} before");
}

fn stored_size(bench: &Bench) -> u64 {
    bench.path().metadata().expect("metadata").len()
}

#[test]
fn zeros_take_next_to_nothing() {
    let mut bench = Bench::new();
    bench.write(0..PAGES, 0);
    let counts = bench.finish(|_| 0);
    assert!(counts.iter().all(|&count| count == 1));
    assert!(
        stored_size(&bench) < 40_000,
        "{} bytes",
        stored_size(&bench)
    );
}

#[test]
fn begun_again_it_forgets_what_was_written() {
    let mut bench = Bench::new();
    bench.write(0..PAGES, 1);
    let pages = first_pages(PAGES);
    bench.image.begin(&preamble(), &pages).expect("begun");
    bench.write(0..PAGES, 2);
    let counts = bench.finish(|_| 2);
    assert!(counts.iter().all(|&count| count == 1));
}

#[test]
fn given_up_it_leaves_nothing_and_strange_pages_are_refused() {
    let bench = Bench::new();
    bench.write(0..PAGES, 1);
    let one = page(1, 1);
    let strange = [(Pfn(PAGES), GuestPage::of(&one))];
    assert!(bench.image.write(&strange).is_err());
    assert!(bench.image.write_suspended(&strange).is_err());
    let Bench { dir, image, .. } = bench;
    drop(image);
    assert_eq!(entries(dir.path()), Vec::<PathBuf>::new());
}

#[test]
fn a_cancelled_save_is_not_compacted() {
    let mut bench = Bench::new();
    bench.write(0..PAGES, 1);
    bench.write(0..PAGES, 2);
    bench.cancel.raise(15);
    let counts = bench.finish(|_| 2);
    assert!(counts.iter().all(|&count| count == 2));
}

#[test]
fn an_absent_page_is_not_in_the_image() {
    let mut bench = Bench::new();
    let mut pages = PageSet::new(PageCount(PAGES));
    pages.insert_range(0..100);
    bench.image.begin(&preamble(), &pages).expect("begun");
    bench.write(0..100, 3);
    bench
        .image
        .finish(&tail(), &some_facts())
        .expect("finished");
    bench.image.commit().expect("committed");
    let (counts, _) = copies(&bench.path());
    assert!(counts[..100].iter().all(|&count| count == 1));
    assert!(counts[100..].iter().all(|&count| count == 0));
}

/// The kind of each page's last copy.
fn kinds(path: &Path) -> Vec<u8> {
    let reader = Reader::open(path).expect("readable");
    let mut kinds = vec![0xff; PAGES as usize];
    let records = reader.libxc_records().iter();
    for at in records.filter(|at| at.kind == libxc::record::PAGE_DATA) {
        let head = reader.bytes(at.offset, 8).expect("read");
        let count = u32::from_le_bytes([head[0], head[1], head[2], head[3]]);
        let entries = reader.bytes(at.offset + 8, 8 * u64::from(count));
        for entry in entries.expect("read").as_chunks::<8>().0 {
            let entry = u64::from_le_bytes(*entry);
            kinds[libxc::entry_pfn(entry).0 as usize] = (entry >> 60) as u8;
        }
    }
    kinds
}

#[test]
fn a_pv_guests_pages_keep_their_kind_through_compaction() {
    let mut bench = Bench::new();
    let preamble = Preamble {
        guest: GuestType::Pv,
        ..preamble()
    };
    bench
        .image
        .begin(&preamble, &first_pages(PAGES))
        .expect("begun");
    let kind = |bits| PageKind::of_bits(bits).expect("a kind");
    let write = |pfns: Vec<u64>, version: fn(u64) -> u8, bits: fn(u64) -> u8, suspended| {
        let memory: Vec<_> = pfns.iter().map(|&n| (n, page(n, version(n)))).collect();
        bench.image.settle().expect("settled");
        for batch in memory.chunks(1024) {
            let batch: Vec<_> = batch
                .iter()
                .map(|(n, page)| (Pfn(*n), GuestPage::of(page).of_kind(kind(bits(*n)))))
                .collect();
            let written = if suspended {
                bench.image.write_suspended(&batch)
            } else {
                bench.image.write(&batch)
            };
            written.expect("written");
        }
    };
    let some = |step| (0..PAGES).step_by(step).collect();
    write(
        (0..PAGES).collect(),
        |n| (n % 5) as u8,
        |n| [0, 1, 2, 12][n as usize % 4],
        false,
    );
    // Half of them again, some of those of zeros, and of other kinds; then some that are stored.
    write(
        some(2),
        |n| (n % 3) as u8,
        |n| [3, 9][n as usize / 2 % 2],
        false,
    );
    write(some(10), |_| 7, |_| 0, true);
    bench
        .image
        .finish(&tail(), &some_facts())
        .expect("finished");
    bench.image.commit().expect("committed");
    let want = (0..PAGES).map(|n| match n {
        n if n % 10 == 0 => 0,
        n if n % 2 == 0 => [3, 9][n as usize / 2 % 2],
        n => [0, 1, 2, 12][n as usize % 4],
    });
    assert!(kinds(&bench.path()).into_iter().eq(want));
    let (counts, _) = copies(&bench.path());
    assert!(
        counts.iter().sum::<usize>() < PAGES as usize * 3 / 2,
        "it was compacted"
    );
}
