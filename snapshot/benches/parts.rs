//! What the parts of the copier cost: sets of pages, copying a page, seeing that it is zero, its
//! checksum. Beside each stands what it is compared with, of the same size in the same group.
//!
//! Mapping a batch of guest pages is not here: it is Xen's work, and is measured on a real Xen by
//! the suite (`experiments/testbed`).
//!
//! `cargo bench -p snapshot --bench parts`; a minute or two. Ratios hold on a busy machine, figures
//! do not.

#[path = "made/memory.rs"]
mod memory;

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use memory::{Dice, Kind, group, pages, size};
use snapshot::image::checksums;
use snapshot::page::PageBytes;
use snapshot::{GuestPage, PAGE_SIZE, PageCount, PageSet, Pfn};

/// The pages of a guest of 16 GiB: a set takes 512 KiB.
const SPAN: u64 = 4 << 20;
/// Pages that lie beyond a core's own caches together (64 MiB). A large shared cache may hold them:
/// each peer's bytes as well, so that the ratios stand.
const MANY: usize = 16_384;

/// A set of so many pages in ten thousand, strewn.
fn strewn(per_ten_thousand: u64) -> PageSet {
    let mut set = PageSet::new(PageCount(SPAN));
    if per_ten_thousand == 10_000 {
        set.insert_range(0..SPAN);
        return set;
    }
    let mut dice = Dice::new(3);
    for pfn in 0..SPAN {
        if dice.throw() % 10_000 < per_ten_thousand {
            set.insert(Pfn(pfn));
        }
    }
    set
}

/// Looking through a dirty set, which happens some times in every round. Peer: reading its words.
fn scan(criterion: &mut Criterion) {
    let mut group = group(criterion, "scan 16 GiB of pages");
    group.throughput(Throughput::Elements(SPAN));
    for (name, share) in [("0.1 %", 10), ("10 %", 1000), ("100 %", 10_000)] {
        let set = strewn(share);
        group.bench_function(BenchmarkId::new("iterate", name), |b| {
            b.iter(|| set.iter().fold(0, |sum: u64, pfn| sum.wrapping_add(pfn.0)));
        });
        group.bench_function(BenchmarkId::new("ranges", name), |b| {
            b.iter(|| {
                set.ranges()
                    .fold(0, |sum, range| sum + range.end - range.start)
            });
        });
    }
    let set = strewn(1000);
    group.bench_function("peer: count the bits", |b| b.iter(|| set.count()));
    group.finish();
}

/// Merging a dirty set into another. Peer: copying as many bytes.
fn union(criterion: &mut Criterion) {
    let mut group = group(criterion, "union of 16 GiB of pages");
    group.throughput(Throughput::Elements(SPAN));
    let (mut into, set) = (strewn(10), strewn(1000));
    group.bench_function("union", |b| b.iter(|| into.union(black_box(&set))));
    group.bench_function("subtract", |b| b.iter(|| into.subtract(black_box(&set))));
    let words = set.words();
    let mut copy = vec![0; words.len()];
    group.bench_function("peer: memcpy of the bitmap", |b| {
        b.iter(|| copy.copy_from_slice(black_box(words)));
    });
    group.finish();
}

/// Copying pages to memory, as the pause window does. Peer: one memcpy of all of them.
fn copy(criterion: &mut Criterion) {
    let mut group = group(criterion, "copy");
    let from = pages(Kind::Noise, MANY);
    let mut to = vec![PageBytes::ZERO; MANY];
    group.throughput(Throughput::Bytes(size(MANY)));
    group.bench_function("page by page", |b| {
        b.iter(|| {
            for (from, to) in from.iter().zip(&mut to) {
                GuestPage::of(from).copy_to(to);
            }
            black_box(&to);
        });
    });
    // As the guest leaves them: a page here, a page there.
    let mut dice = Dice::new(4);
    let order: Vec<usize> = (0..MANY).map(|_| dice.throw() as usize % MANY).collect();
    group.bench_function("strewn pages", |b| {
        b.iter(|| {
            for (&from_at, to) in order.iter().zip(&mut to) {
                GuestPage::of(&from[from_at]).copy_to(to);
            }
            black_box(&to);
        });
    });
    let (from, mut to) = (memory::bytes_of(&from), vec![0; MANY * PAGE_SIZE]);
    group.bench_function("peer: memcpy", |b| {
        b.iter(|| to.copy_from_slice(black_box(&from)));
    });
    group.finish();
}

/// Seeing whether a page is zero. Zero ones are read to their end, others hardly. Peer: what one
/// would write without a thought.
fn zero(criterion: &mut Criterion) {
    let mut group = group(criterion, "zero detection");
    group.throughput(Throughput::Bytes(size(MANY)));
    for (name, kind) in [("zero pages", Kind::Zero), ("text", Kind::Text)] {
        let pages = pages(kind, MANY);
        group.bench_function(BenchmarkId::new("is_zero", name), |b| {
            b.iter(|| {
                pages
                    .iter()
                    .filter(|page| GuestPage::of(page).is_zero())
                    .count()
            });
        });
        group.bench_function(BenchmarkId::new("peer: all bytes == 0", name), |b| {
            let zero = |page: &&PageBytes| page.0.iter().all(|&byte| byte == 0);
            b.iter(|| pages.iter().filter(zero).count());
        });
    }
    group.finish();
}

/// The checksum of a page of a raw image. Peer: reading it.
fn checksum(criterion: &mut Criterion) {
    let mut group = group(criterion, "checksum");
    group.throughput(Throughput::Bytes(size(MANY)));
    let pages = pages(Kind::Noise, MANY);
    group.bench_function("of each page", |b| {
        b.iter(|| {
            pages
                .iter()
                .fold(0, |sum, page| sum ^ checksums::of_block(&page.0))
        });
    });
    group.bench_function("peer: read", |b| {
        b.iter(|| pages.iter().fold(0, |sum, page| sum ^ read(page)));
    });
    group.finish();
}

/// All words of a page, folded: as fast as memory is read.
fn read(page: &PageBytes) -> u64 {
    let (words, _) = page.0.as_chunks::<8>();
    words
        .iter()
        .fold(0, |sum, word| sum ^ u64::from_le_bytes(*word))
}

criterion_group!(parts, scan, union, copy, zero, checksum);
criterion_main!(parts);
