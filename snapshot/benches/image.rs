//! What writing and verifying an image costs, on tmpfs, beside what does nothing else with the same
//! bytes.
//!
//! `cargo bench -p snapshot --bench image`; a minute or two. Each image is of 64 MiB: a tmpfs of
//! 256 MiB is enough. Ratios hold on a busy machine, figures do not.

#[path = "made/images.rs"]
mod images;
#[path = "made/memory.rs"]
mod memory;

use std::fs::File;
use std::os::unix::fs::FileExt;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use images::{Writing, directory, mixed};
use memory::{Kind, bytes_of, group, pages, size};
use snapshot::image::Compression;
use snapshot::image::verify::{Course, verify};
use snapshot::ports::Cancel;
use zstd_safe::{CCtx, CParameter, DCtx};

/// 64 MiB.
const PAGES: usize = 16_384;
/// Pages in a frame of a zstd image, 2 MiB (`image/zst/record.rs`).
const FRAME: usize = 512;
/// As `--compress zstd`, by one thread, so that its peer needs one only.
const ZSTD: Compression = Compression {
    level: 1,
    threads: 1,
};

/// Pages to a zstd image. Peer: libzstd on the same bytes in pieces of a frame's size, with a
/// checksum as the image's frames have it, and nothing written.
fn compress(criterion: &mut Criterion) {
    let mut group = group(criterion, "compress at level 1");
    group
        .throughput(Throughput::Bytes(size(PAGES)))
        .sample_size(10);
    let directory = directory();
    let memory = mixed(PAGES);
    let mut image = Writing::new(&directory.path().join("x.xl.zst"), Some(ZSTD), PAGES);
    group.bench_function("zstd image", |b| b.iter(|| image.write(&memory)));
    let bytes = bytes_of(&memory);
    let mut zstd = context();
    let mut out = Vec::with_capacity(zstd_safe::compress_bound(size(FRAME) as usize));
    group.bench_function("peer: bulk zstd", |b| {
        b.iter(|| {
            for piece in bytes.chunks(size(FRAME) as usize) {
                out.clear();
                zstd.compress2(&mut out, piece).expect("compressed");
            }
        });
    });
    group.finish();
}

fn context() -> CCtx<'static> {
    let mut context = CCtx::create();
    for parameter in [
        CParameter::CompressionLevel(ZSTD.level),
        CParameter::ChecksumFlag(true),
    ] {
        context
            .set_parameter(parameter)
            .expect("a parameter of zstd's");
    }
    context
}

/// Pages to a raw image, their checksums included. Peer: writing the same bytes.
fn write(criterion: &mut Criterion) {
    let mut group = group(criterion, "write");
    group
        .throughput(Throughput::Bytes(size(PAGES)))
        .sample_size(10);
    let directory = directory();
    let memory = mixed(PAGES);
    let mut image = Writing::new(&directory.path().join("x.xl"), None, PAGES);
    group.bench_function("raw image", |b| b.iter(|| image.write(&memory)));
    let zeros = pages(Kind::Zero, PAGES);
    group.bench_function("raw image of zero pages", |b| {
        b.iter(|| image.write(&zeros));
    });
    let bytes = bytes_of(&memory);
    let file = File::create(directory.path().join("plain")).expect("a file");
    group.bench_function("peer: write", |b| {
        b.iter(|| {
            // The image begins anew each time, too.
            file.set_len(0).expect("emptied");
            for (number, piece) in bytes.chunks(4 << 20).enumerate() {
                let at = (number as u64) * (4 << 20);
                file.write_all_at(piece, at).expect("written");
            }
        });
    });
    group.finish();
}

/// Verifying an image by one thread. Peers: reading the file's bytes, and for a zstd image
/// decompressing them.
fn check(criterion: &mut Criterion) {
    let mut group = group(criterion, "verify");
    group
        .throughput(Throughput::Bytes(size(PAGES)))
        .sample_size(10);
    let directory = directory();
    let memory = mixed(PAGES);
    let cancel = Cancel::new();
    let course = Course {
        threads: 1,
        progress: &|_| {},
        cancel: &cancel,
    };
    for (name, compression) in [("raw", None), ("zstd", Some(ZSTD))] {
        let path = directory.path().join(name);
        let mut image = Writing::new(&path, compression, PAGES);
        image.write(&memory);
        let path = image.finish();
        let found = verify(&path, &course).expect("looked at");
        assert!(found.problems.is_empty(), "{:?}", found.problems);
        group.bench_function(format!("{name} image"), |b| {
            b.iter(|| verify(&path, &course).expect("looked at").checksums);
        });
        let file = File::open(&path).expect("the image");
        let mut bytes = vec![0; file.metadata().expect("its length").len() as usize];
        group.bench_function(format!("peer: read of the {name} image"), |b| {
            b.iter(|| file.read_exact_at(&mut bytes, 0).expect("read"));
        });
        if compression.is_some() {
            let mut zstd = DCtx::create();
            let mut out = Vec::with_capacity(2 * size(PAGES) as usize);
            group.bench_function("peer: bulk unzstd", |b| {
                b.iter(|| {
                    out.clear();
                    zstd.decompress(&mut out, &bytes).expect("decompressed")
                });
            });
        }
    }
    group.finish();
}

criterion_group!(image, compress, write, check);
criterion_main!(image);
