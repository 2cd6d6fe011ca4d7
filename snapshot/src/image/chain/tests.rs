//! Chains written, opened, streamed and merged.

use std::path::PathBuf;

use super::*;
use crate::image::file::Existing;
use crate::image::verify::{Course, verify};
use crate::image::{
    AnyImage, Compression, GuestType, Preamble, Record, Tail, libxc, trailer::Facts,
};
use crate::lineage::ImageId;
use crate::page::{GuestPage, PageBytes};
use crate::ports::{Cancel, ImageSink};
use crate::testing::{first_pages, some_facts};
use crate::units::{PageCount, Pfn};

const PAGES: u64 = 3000;
/// Pages that each increment changes: data over data, zeros over data, data over zeros.
const CHANGED: [&[u64]; 3] = [&[1, 2, 3, 700, 2999], &[2, 3, 4, 6], &[]];

struct Directory(tempfile::TempDir);

fn content(pfn: u64, version: u8) -> PageBytes {
    let mut page = PageBytes::ZERO;
    if !(pfn.is_multiple_of(3) || version == 2 && pfn == 4) {
        page.0.fill(version.wrapping_add(pfn as u8) | 1);
    }
    page
}

/// The version of a page after so many increments.
fn version(pfn: u64, increments: usize) -> u8 {
    let changed = CHANGED[..increments].iter().rposition(|c| c.contains(&pfn));
    changed.map_or(0, |number| number as u8 + 1)
}

fn preamble(increment: bool) -> Preamble {
    Preamble {
        config: b"{\"c_info\":{\"name\":\"x\"}}".to_vec(),
        guest: GuestType::Hvm,
        xen_version: (4, 17),
        static_data: vec![Record::new(libxc::record::X86_CPUID_POLICY, vec![1; 24])],
        before_memory: vec![],
        increment,
    }
}

fn tail(number: u8) -> Tail {
    let record = |kind| Record::new(kind, vec![number; 16]);
    Tail {
        libxc: vec![
            record(libxc::record::HVM_CONTEXT),
            record(libxc::record::HVM_PARAMS),
        ],
        libxl: vec![],
    }
}

impl Directory {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("directory"))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn sink(&self, name: &str, compressed: bool) -> AnyImage {
        let how = compressed.then_some(Compression {
            level: 1,
            threads: 1,
        });
        AnyImage::create(&self.path(name), Existing::Keep, how, &Cancel::new()).expect("created")
    }

    fn write(&self, name: &str, number: usize, base: Option<Base>, compressed: bool) -> Chain {
        let mut sink = self.sink(name, compressed);
        sink.begin(&preamble(base.is_some()), &first_pages(PAGES))
            .expect("begun");
        let pfns: Vec<u64> = match number {
            0 => (0..PAGES).collect(),
            more => CHANGED[more - 1].to_vec(),
        };
        let pages: Vec<_> = pfns
            .iter()
            .map(|&pfn| (Pfn(pfn), content(pfn, number as u8)))
            .collect();
        for batch in pages.chunks(1024) {
            let batch: Vec<_> = batch.iter().map(|(n, p)| (*n, GuestPage::of(p))).collect();
            sink.write(&batch).expect("written");
        }
        let facts = Facts {
            memory_pages: PageCount(PAGES),
            id: Some(ImageId::random().expect("random")),
            held_pages: base.is_some().then(|| sink.held_pages()),
            parent: base.map(|base| base.parent),
            ..some_facts()
        };
        sink.finish(&tail(number as u8), &facts).expect("finished");
        sink.commit().expect("committed");
        Chain::open(&self.path(name)).expect("a chain")
    }

    /// A full image and the increments on it.
    fn chain(&self, compressed: bool) -> Chain {
        let mut chain = self.write("0.xl", 0, None, compressed);
        for number in 1..=CHANGED.len() {
            let base = chain.base().expect("readable");
            assert_eq!(base.as_ref().map(|b| b.parent.depth), Some(number as u32));
            chain = self.write(&format!("{number}.xli.zst"), number, base, true);
        }
        chain
    }
}

fn is_whole(path: &Path) {
    let course = Course {
        threads: 1,
        progress: &|_| {},
        cancel: &Cancel::new(),
    };
    let verified = verify(path, &course).expect("readable");
    assert_eq!(verified.problems, [], "{}", path.display());
}

/// Every page of the chain is as it was after so many increments.
fn assert_content(chain: &Chain, increments: usize) {
    let index = chain.index().expect("an index");
    assert_eq!(index.count(), PAGES);
    let mut seen = 0;
    index
        .for_each_in(0..PAGES, |pfn, page| {
            seen += 1;
            let want = content(pfn.0, version(pfn.0, increments));
            assert!(*page == want.0, "{pfn} after {increments} increments");
            Ok::<_, ImageError>(())
        })
        .expect("pages");
    assert_eq!(seen, PAGES);
}

#[test]
fn each_point_in_time_is_there() {
    for compressed in [false, true] {
        let dir = Directory::new();
        let newest = dir.chain(compressed);
        assert_eq!(newest.images().len(), CHANGED.len() + 1);
        for number in 0..=CHANGED.len() {
            let name = if number == 0 {
                "0.xl".to_owned()
            } else {
                format!("{number}.xli.zst")
            };
            is_whole(&dir.path(&name));
            let chain = Chain::open(&dir.path(&name)).expect("a chain");
            chain.check_structure().expect("right");
            assert_content(&chain, number);
        }
    }
}

#[test]
fn the_stream_is_a_full_image_with_each_page_once() {
    let dir = Directory::new();
    let chain = dir.chain(true);
    let mut stream = chain.stream(b"{\"new\":1}").expect("a stream");
    let (length, mut bytes) = (stream.length().0, vec![]);
    loop {
        let piece = stream.piece().expect("a piece");
        if piece.is_empty() {
            break;
        }
        bytes.extend_from_slice(piece);
    }
    assert_eq!(bytes.len() as u64, length);
    let reader = Reader::of_bytes(bytes).expect("an image");
    assert!(!reader.is_increment());
    assert_eq!(reader.config(), b"{\"new\":1}");
    let mut seen = vec![0; PAGES as usize];
    reader
        .for_each_page(|pfn, page| {
            seen[pfn.0 as usize] += 1;
            assert!(*page == content(pfn.0, version(pfn.0, 3)), "{pfn}");
            Ok::<_, ImageError>(())
        })
        .expect("pages");
    assert!(seen.iter().all(|&times| times == 1));
    let context = reader
        .libxc_records()
        .iter()
        .find(|at| at.kind == libxc::record::HVM_CONTEXT)
        .expect("the state");
    assert_eq!(reader.read(context).expect("read").body, vec![3; 16]);
}

#[test]
fn a_merged_image_takes_the_place_of_what_it_was_made_of() {
    let dir = Directory::new();
    dir.chain(false);
    let chain = Chain::open(&dir.path("2.xli.zst")).expect("a chain");
    for compressed in [false, true] {
        let name = format!("merged-{compressed}.xl");
        let mut sink = dir.sink(&name, compressed);
        let mut last = PageCount(0);
        merge(&chain, &mut sink, &Cancel::new(), |done, total| {
            assert_eq!(total, PageCount(PAGES));
            last = done;
        })
        .expect("merged");
        assert_eq!(last, PageCount(PAGES));
        is_whole(&dir.path(&name));
        let merged = Chain::open(&dir.path(&name)).expect("an image");
        assert_eq!(merged.images().len(), 1);
        merged.check_structure().expect("right");
        assert_content(&merged, 2);
        let (old, new) = (chain.newest().facts(), merged.newest().facts());
        assert_eq!(old.map(|f| (&f.id, &f.cut)), new.map(|f| (&f.id, &f.cut)));
    }
    for name in ["0.xl", "1.xli.zst", "2.xli.zst", "merged-true.xl"] {
        std::fs::remove_file(dir.path(name)).expect("removed");
    }
    let chain = Chain::open(&dir.path("3.xli.zst")).expect("found by its identity");
    assert_eq!(chain.images().len(), 2);
    assert_content(&chain, 3);
}

#[test]
fn a_merge_that_is_interrupted_leaves_nothing() {
    let dir = Directory::new();
    let chain = dir.chain(true);
    let cancel = Cancel::new();
    cancel.raise(2);
    let mut sink = dir.sink("merged.xl", false);
    let error = merge(&chain, &mut sink, &cancel, |_, _| {}).expect_err("interrupted");
    assert!(matches!(error, MergeError::Interrupted(2)), "{error}");
    drop(sink);
    assert!(!dir.path("merged.xl").exists());
}

#[test]
fn a_broken_chain_is_told_from_a_whole_one() {
    let dir = Directory::new();
    let chain = dir.chain(true);
    let last = dir.path("3.xli.zst");
    // Renamed, it is found; another image under its name is not taken for it.
    std::fs::rename(dir.path("1.xli.zst"), dir.path("other.xli.zst")).expect("renamed");
    assert_content(&Chain::open(&last).expect("a chain"), 3);
    let stranger = Directory::new();
    stranger.chain(true);
    std::fs::copy(stranger.path("1.xli.zst"), dir.path("1.xli.zst")).expect("copied");
    assert_content(&Chain::open(&last).expect("a chain"), 3);
    std::fs::remove_file(dir.path("other.xli.zst")).expect("removed");
    let error = Chain::open(&last).expect_err("incomplete");
    assert!(matches!(&error, ImageError::Incomplete { .. }), "{error}");
    assert!(error.to_string().contains("1.xli.zst"), "{error}");
    // What was opened before is read on, as with any file.
    assert_content(&chain, 3);
}

#[test]
fn a_page_that_the_guest_no_longer_has_is_left_out() {
    let dir = Directory::new();
    let full = dir.write("0.xl", 0, None, false);
    let base = full.base().expect("readable");
    let mut sink = dir.sink("1.xli.zst", true);
    let mut pages = first_pages(PAGES);
    pages.remove(Pfn(5));
    pages.remove(Pfn(2998));
    sink.begin(&preamble(true), &pages).expect("begun");
    let facts = Facts {
        memory_pages: pages.count(),
        id: None,
        held_pages: Some(PageCount(0)),
        parent: base.map(|base| base.parent),
        ..some_facts()
    };
    sink.finish(&tail(1), &facts).expect("finished");
    sink.commit().expect("committed");
    is_whole(&dir.path("1.xli.zst"));
    let chain = Chain::open(&dir.path("1.xli.zst")).expect("a chain");
    let index = chain.index().expect("an index");
    assert_eq!(index.count(), PAGES - 2);
    assert_eq!(index.ranges(), Ranges::of(&pages));
    assert!(index.pages().expect("a set").ranges().eq(pages.ranges()));
    // Without an identity nothing can be built on it.
    assert!(chain.base().expect("readable").is_none());
}

#[test]
fn a_raw_increment_is_refused() {
    let dir = Directory::new();
    let mut sink = dir.sink("x.xl", false);
    assert!(sink.begin(&preamble(true), &first_pages(5)).is_err());
    // As a stream alone it has nothing that tells what it is built on.
    let chain = dir.chain(true);
    let newest = chain.newest();
    let stream = newest.bytes(0, newest.stream_len()).expect("the stream");
    let error = Reader::of_bytes(stream).expect_err("refused");
    assert!(error.to_string().contains("increment"), "{error}");
}
