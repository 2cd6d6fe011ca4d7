//! Would a second thread shorten the copy in the pause window? Copies pages strewn over a guest's
//! memory to memory touched before, by one thread and by two (one of them waiting since before, as
//! nothing may be started in the window).
//!
//! `cargo run --release -p experiments --example window_threads`

use std::hint::{black_box, spin_loop};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

const PAGE: usize = 4096;
const GUEST_PAGES: usize = 262_144;
const REPEATS: usize = 15;

fn main() {
    let guest = vec![1u8; GUEST_PAGES * PAGE];
    println!(
        "{:>8}  {:>12}  {:>12}  {:>6}",
        "pages", "1 thread", "2 threads", "ratio"
    );
    for pages in [500, 2_000, 8_000, 32_000] {
        // A stride that is prime to the number of pages meets each page once.
        let strewn: Vec<usize> = (0..pages).map(|n| n * 100_003 % GUEST_PAGES).collect();
        let mut copy = vec![2u8; pages * PAGE];
        let one = median(|| {
            let began = Instant::now();
            copy_pages(&guest, &strewn, &mut copy);
            began.elapsed()
        });
        let two = median(|| by_two(&guest, &strewn, &mut copy));
        println!(
            "{pages:>8}  {one:>12.1?}  {two:>12.1?}  {:>6.2}",
            two.as_secs_f64() / one.as_secs_f64()
        );
    }
}

fn by_two(guest: &[u8], strewn: &[usize], copy: &mut [u8]) -> Duration {
    let half = strewn.len() / 2;
    let (mine, others) = copy.split_at_mut(half * PAGE);
    let step = AtomicUsize::new(0);
    thread::scope(|scope| {
        scope.spawn(|| {
            step.store(1, Ordering::Release);
            while step.load(Ordering::Acquire) != 2 {
                spin_loop();
            }
            copy_pages(guest, &strewn[half..], others);
            step.store(3, Ordering::Release);
        });
        while step.load(Ordering::Acquire) != 1 {
            spin_loop();
        }
        let began = Instant::now();
        step.store(2, Ordering::Release);
        copy_pages(guest, &strewn[..half], mine);
        while step.load(Ordering::Acquire) != 3 {
            spin_loop();
        }
        began.elapsed()
    })
}

fn copy_pages(guest: &[u8], strewn: &[usize], copy: &mut [u8]) {
    for (&from, to) in strewn.iter().zip(copy.chunks_exact_mut(PAGE)) {
        to.copy_from_slice(&guest[from * PAGE..(from + 1) * PAGE]);
    }
    black_box(copy);
}

fn median(mut deed: impl FnMut() -> Duration) -> Duration {
    let mut took: Vec<_> = (0..REPEATS).map(|_| deed()).collect();
    took.sort_unstable();
    took[REPEATS / 2]
}
