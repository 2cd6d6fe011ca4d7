//! Small images, whole and damaged in every place.

use std::path::{Path, PathBuf};

use proptest::prelude::*;

use super::*;
use crate::image::file::Existing;
use crate::image::trailer::Facts;
use crate::image::{Compression, Preamble, RawImage, Record, Tail, ZstdImage, libxc, libxl};
use crate::lineage::{ImageId, Parent};
use crate::page::{GuestPage, PageBytes};
use crate::page_set::PageSet;
use crate::ports::ImageSink;
use crate::testing::some_facts;

const HOLE: std::ops::Range<u64> = 9..13;
const SPAN: u64 = 24;

fn verify_of(bytes: Vec<u8>) -> Verified {
    let cancel = Cancel::new();
    let course = Course {
        threads: 2,
        progress: &|_| {},
        cancel: &cancel,
    };
    verify_bytes(bytes, &course).expect("looked at")
}

fn pages() -> PageSet {
    let mut pages = PageSet::new(PageCount(SPAN));
    pages.insert_range(0..HOLE.start);
    pages.insert_range(HOLE.end..SPAN);
    pages
}

fn fill(sink: &mut impl ImageSink, increment: bool) {
    let preamble = Preamble {
        config: b"{\"c_info\":{\"name\":\"x\"}}".to_vec(),
        guest: GuestType::Hvm,
        xen_version: (4, 17),
        static_data: vec![Record::new(libxc::record::X86_MSR_POLICY, vec![3; 20])],
        before_memory: vec![],
        increment,
    };
    let tail = Tail {
        libxc: vec![Record::new(libxc::record::HVM_CONTEXT, vec![7; 61])],
        libxl: vec![],
    };
    sink.begin(&preamble, &pages()).expect("begun");
    let mut text = PageBytes::ZERO;
    for (index, byte) in text.0.iter_mut().enumerate() {
        *byte = b"some words of a text, again and again "[index * 7 / 5 % 38];
    }
    for round in 0..2 {
        let memory: Vec<_> = pages()
            .iter()
            .filter(|pfn| round == 0 && (!increment || pfn.0 % 4 == 1) || pfn.0 == 3)
            .map(|pfn| {
                let mut page = text.clone();
                page.0[pfn.0 as usize] = pfn.0 as u8 + round;
                (
                    pfn,
                    if pfn.0 % 5 == 2 {
                        PageBytes::ZERO
                    } else {
                        page
                    },
                )
            })
            .collect();
        let batch: Vec<_> = memory.iter().map(|(n, p)| (*n, GuestPage::of(p))).collect();
        sink.write(&batch).expect("written");
    }
    let facts = Facts {
        memory_pages: pages().count(),
        id: ImageId::try_from("0".repeat(32)).ok(),
        parent: increment.then(|| Parent {
            id: ImageId::try_from("1".repeat(32)).expect("an identity"),
            file: "full.xl".into(),
            cut: "2026-11-20T12:00:00Z".into(),
            depth: 1,
        }),
        held_pages: increment.then(|| sink.held_pages()),
        ..some_facts()
    };
    sink.finish(&tail, &facts).expect("finished");
    sink.commit().expect("committed");
}

fn raw() -> Vec<u8> {
    made(|path| {
        let image = RawImage::create(path, Existing::Keep);
        fill(&mut image.expect("created"), false);
    })
}

fn zstd() -> Vec<u8> {
    packed(false)
}

fn increment() -> Vec<u8> {
    packed(true)
}

fn packed(increment: bool) -> Vec<u8> {
    let compression = Compression {
        level: 1,
        threads: 1,
    };
    made(|path| {
        let image = ZstdImage::create(path, Existing::Keep, compression, Cancel::new());
        fill(&mut image.expect("created"), increment);
    })
}

fn made(make: impl FnOnce(&Path)) -> Vec<u8> {
    let dir = tempfile::tempdir().expect("directory");
    let path: PathBuf = dir.path().join("image");
    make(&path);
    std::fs::read(path).expect("read")
}

/// A stock image: livesave's own, records of fewer entries, without a trailer.
fn stock() -> Vec<u8> {
    let mut bytes = Reader::of_bytes(zstd()).map(|reader| {
        let length = reader.stream_len();
        reader.bytes(0, length).expect("read")
    });
    bytes.as_mut().map(std::mem::take).expect("an image")
}

#[test]
fn whole_images_are_found_whole() {
    for (bytes, kind, pages, copies) in [
        (raw(), Kind::Raw, 20, 20),
        (zstd(), Kind::Zstd, 20, 21),
        (increment(), Kind::Zstd, 6, 7),
        (stock(), Kind::Stock, 20, 21),
    ] {
        let verified = verify_of(bytes);
        assert_eq!((verified.kind, &verified.problems), (Some(kind), &vec![]));
        assert_eq!(verified.pages, PageCount(pages));
        assert_eq!(verified.copies, PageCount(copies));
        assert_eq!(verified.checksums > 0, kind != Kind::Stock);
    }
}

/// All bytes of a zstd image, of a raw one all but the inside of pages, where every 37th.
#[test]
fn every_flipped_byte_is_found_and_its_place_named() {
    for (good, slack) in [(raw(), 4096), (zstd(), u64::MAX), (increment(), u64::MAX)] {
        let start = Reader::of_bytes(good.clone()).expect("readable");
        let memory = start
            .raw_checksums()
            .map_or(0..0, |sums| sums.memory_start + 12_288..sums.memory_end());
        for at in 0..good.len() as u64 {
            if memory.contains(&at) && at % 37 != 0 {
                continue;
            }
            let mut bad = good.clone();
            bad[at as usize] ^= 1 << (at % 8);
            let problems = verify_of(bad).problems;
            let Some(first) = problems.first() else {
                panic!("byte {at} of {} is not missed", good.len());
            };
            // In memory the place is the block.
            if memory.contains(&at) {
                assert!(at - first.offset < slack, "byte {at}: {first:?}");
            }
        }
    }
}

#[test]
fn every_cut_is_found() {
    for good in [raw(), zstd(), increment()] {
        for length in (0..good.len()).rev().step_by(13).chain(0..200) {
            let problems = verify_of(good[..length].to_vec()).problems;
            assert!(!problems.is_empty(), "{length} of {}", good.len());
        }
        let stream = Reader::of_bytes(good.clone())
            .expect("readable")
            .stream_len();
        if stream < good.len() as u64 {
            // Exactly at the end of the stream, where a stock image would end.
            let problems = verify_of(good[..stream as usize].to_vec()).problems;
            assert!(!problems.is_empty());
        }
    }
}

#[test]
fn something_appended_is_found() {
    for mut good in [raw(), zstd(), increment(), stock()] {
        good.extend_from_slice(&[0; 8]);
        assert!(!verify_of(good).problems.is_empty());
    }
}

/// A small image of a guest of that type, with so large a state of its emulator.
fn emulated(kind: &str, state: Option<usize>, sink: &mut impl ImageSink) {
    let preamble = Preamble {
        config: format!("{{\"c_info\":{{\"type\":\"{kind}\"}}}}").into_bytes(),
        guest: GuestType::Hvm,
        xen_version: (4, 17),
        static_data: vec![],
        before_memory: vec![],
        increment: false,
    };
    sink.begin(&preamble, &pages()).expect("begun");
    let page = PageBytes([5; 4096]);
    let all: Vec<_> = pages().iter().map(|n| (n, GuestPage::of(&page))).collect();
    sink.write(&all).expect("written");
    let state = state.map(|size| Record::new(libxl::record::EMULATOR_CONTEXT, vec![9; size]));
    let tail = Tail {
        libxc: vec![Record::new(libxc::record::HVM_CONTEXT, vec![7; 61])],
        libxl: state.into_iter().collect(),
    };
    let facts = Facts {
        memory_pages: pages().count(),
        ..some_facts()
    };
    sink.finish(&tail, &facts).expect("finished");
    sink.commit().expect("committed");
}

#[test]
fn the_emulators_state_is_there_exactly_where_there_is_an_emulator() {
    let compression = Compression {
        level: 1,
        threads: 1,
    };
    for (kind, state, right) in [
        ("hvm", Some(100), true),
        // Larger than a frame is otherwise.
        ("hvm", Some(5_000_001), true),
        ("pvh", None, true),
        ("hvm", None, false),
        ("pvh", Some(100), false),
    ] {
        let raw = made(|path| {
            let image = RawImage::create(path, Existing::Keep);
            emulated(kind, state, &mut image.expect("created"));
        });
        let zstd = made(|path| {
            let image = ZstdImage::create(path, Existing::Keep, compression, Cancel::new());
            emulated(kind, state, &mut image.expect("created"));
        });
        for bytes in [raw, zstd] {
            let problems = verify_of(bytes).problems;
            assert_eq!(problems.is_empty(), right, "{kind} {state:?}: {problems:?}");
        }
    }
}

#[test]
fn the_structure_of_a_stock_image_is_looked_at() {
    let good = stock();
    let config = 52 + 10;
    let reader = Reader::of_bytes(good.clone()).expect("readable");
    let record = |kind| {
        let mut records = reader.libxc_records().iter();
        *records.find(|at| at.kind == kind).expect("a record")
    };
    let page_data = record(libxc::record::PAGE_DATA).offset as usize;
    let msr = record(libxc::record::X86_MSR_POLICY);
    let context = record(libxc::record::HVM_CONTEXT).offset as usize;
    for (at, to, what) in [
        (40, 1, "optional flags"),
        (config, b'"', "JSON"),
        (page_data + 4, 1, "reserved"),
        (page_data + 8 + 7, 0x10, "type"),
        (page_data + 8 + 6, 0x10, "type"),
        (page_data + 8 + 5, 0x04, "higher"),
        (page_data, 1, "length"),
        ((msr.offset + msr.length) as usize, 1, "padding"),
        (context - 8, 0x40, "no known type"),
        (context - 8, 0x08, "state"),
    ] {
        let mut bad = good.clone();
        bad[at] = to;
        let problems = verify_of(bad).problems;
        let told = problems
            .first()
            .is_some_and(|found| found.what.contains(what));
        assert!(told, "{what}: {problems:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Bytes overwritten anywhere, or a piece cut out: found, unless nothing was changed.
    #[test]
    fn no_damage_passes(
        kind in 0usize..3,
        at in 0.0..1.0f64,
        junk in prop::collection::vec(any::<u8>(), 1..40),
        remove in any::<bool>(),
    ) {
        let good = [raw, zstd, increment][kind]();
        let at = (at * (good.len() - junk.len()) as f64) as usize;
        let range = at..at + junk.len();
        let mut bad = good.clone();
        bad.splice(range, if remove { vec![] } else { junk });
        prop_assert!(bad == good || !verify_of(bad).problems.is_empty());
    }

    /// No bytes make a reader panic, whatever they begin with.
    #[test]
    fn noise_is_no_image(
        noise in prop::collection::vec(any::<u8>(), 0..3000),
        begin in 0usize..3,
    ) {
        let good = match begin { 0 => vec![], 1 => raw(), _ => zstd() };
        let mut bytes = good[..good.len().min(60)].to_vec();
        bytes.extend_from_slice(&noise);
        prop_assert!(!verify_of(bytes).problems.is_empty());
    }
}

#[test]
fn a_page_of_the_memory_is_named_by_its_offset() {
    let good = raw();
    let reader = Reader::of_bytes(good.clone()).expect("readable");
    let start = reader.raw_checksums().expect("checksums").memory_start + 12_288;
    let mut bad = good;
    bad[start as usize + 5 * 4096 + 17] ^= 1;
    bad[start as usize + 7 * 4096] ^= 1;
    let offsets: Vec<_> = verify_of(bad).problems.iter().map(|p| p.offset).collect();
    assert_eq!(offsets, [start + 5 * 4096, start + 7 * 4096]);
}
