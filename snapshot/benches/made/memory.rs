//! Memory for the benchmarks, the same in every run.

use std::time::Duration;

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion};
use snapshot::PAGE_SIZE;
use snapshot::page::PageBytes;

/// A group whose benchmarks take some two seconds each: all of them a few minutes.
pub fn group<'c>(criterion: &'c mut Criterion, name: &str) -> BenchmarkGroup<'c, WallTime> {
    let mut group = criterion.benchmark_group(name);
    group
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_millis(1500))
        .sample_size(20);
    group
}

/// A sequence of numbers that look like chance.
pub struct Dice(u64);

impl Dice {
    /// From a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next (splitmix64).
    pub fn throw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }
}

/// What a page holds.
#[derive(Clone, Copy)]
pub enum Kind {
    /// Zeros.
    Zero,
    /// Words of a small vocabulary, which compress to a tenth or so.
    Text,
    /// What does not compress.
    Noise,
}

/// A page.
pub fn page(kind: Kind, dice: &mut Dice) -> PageBytes {
    const WORDS: [&[u8; 8]; 8] = [
        b"memory  ",
        b"of a    ",
        b"guest , ",
        b"written ",
        b"while   ",
        b"it runs ",
        b"; then  ",
        b"copied  ",
    ];
    let mut page = PageBytes::ZERO;
    for word in page.0.as_chunks_mut::<8>().0 {
        match kind {
            Kind::Zero => {}
            Kind::Text => *word = *WORDS[(dice.throw() >> 61) as usize],
            Kind::Noise => *word = dice.throw().to_le_bytes(),
        }
    }
    page
}

/// Pages of one kind.
pub fn pages(kind: Kind, count: usize) -> Vec<PageBytes> {
    let mut dice = Dice::new(1);
    (0..count).map(|_| page(kind, &mut dice)).collect()
}

/// All their bytes, as one piece.
pub fn bytes_of(pages: &[PageBytes]) -> Vec<u8> {
    pages.iter().flat_map(|page| page.0).collect()
}

/// The size of so many pages in bytes, as criterion takes it.
pub fn size(pages: usize) -> u64 {
    (pages * PAGE_SIZE) as u64
}
