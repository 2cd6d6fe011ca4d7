//! What livesave is compared with at native speed: tools that do nothing else with the same bytes,
//! and the memory itself.

use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use snapshot::embedded::EmbeddedGuest;
use snapshot::units::Bytes;

/// The buffers between which memory is copied, each: larger than any cache that they could stay in
/// (server CPUs have L3 caches of 256 MiB and more).
const BUFFER: usize = 512 << 20;
/// A thread copies so much at a time.
const PIECE: usize = 1 << 20;

/// The guest's memory as a file that other programs can read while this process lives.
#[must_use]
pub fn memory_of(guest: &EmbeddedGuest) -> String {
    let number = guest.memory().file().as_raw_fd();
    format!("/proc/{}/fd/{number}", std::process::id())
}

/// `dd bs=1M`, a read and a write by one thread; seconds.
///
/// # Errors
/// It fails.
pub fn dd(memory: &str, to: &Path) -> Result<f64> {
    let mut dd = Command::new("dd");
    dd.arg(format!("if={memory}"))
        .arg(format!("of={}", to.display()));
    time(dd.args(["bs=1M", "status=none"]))
}

/// `zstd -1 -T2`; seconds.
///
/// # Errors
/// It is not there, or fails.
pub fn zstd(memory: &str, to: &Path) -> Result<f64> {
    let mut zstd = Command::new("zstd");
    zstd.args(["-1", "-T2", "-q", "-f", "-o"]).arg(to);
    time(zstd.arg(memory))
}

/// Runs a command to its end; how long it took, in seconds.
///
/// # Errors
/// It does not start, or fails.
pub fn time(command: &mut Command) -> Result<f64> {
    let began = Instant::now();
    let status = command
        .stdin(Stdio::null())
        .status()
        .with_context(|| format!("Failed to run {command:?}"))?;
    ensure!(status.success(), "{command:?}: {status}");
    Ok(began.elapsed().as_secs_f64())
}

/// Copies so many bytes from one buffer to another, round and round them, by so many threads, each
/// in its own part of them; seconds. The buffers are there before the clock starts, and stay with the
/// process: where its memory is measured, another must do this.
#[must_use]
pub fn memcpy(bytes: Bytes, threads: usize) -> f64 {
    // Written, so that no page of them is the kernel's one of zeros.
    let (from, mut to) = (vec![1u8; BUFFER], vec![2u8; BUFFER]);
    copy_round(&from, &mut to, bytes.0, threads)
}

fn copy_round(from: &[u8], to: &mut [u8], bytes: u64, threads: usize) -> f64 {
    let part = from.len().div_ceil(threads.max(1));
    let share = bytes / threads.max(1) as u64;
    let began = Instant::now();
    std::thread::scope(|scope| {
        for (from, to) in from.chunks(part).zip(to.chunks_mut(part)) {
            scope.spawn(move || {
                let mut left = share;
                while left > 0 {
                    for (from, to) in from.chunks(PIECE).zip(to.chunks_mut(PIECE)) {
                        let now = (from.len() as u64).min(left);
                        to[..now as usize].copy_from_slice(&from[..now as usize]);
                        left -= now;
                    }
                    std::hint::black_box(&*to);
                }
            });
        }
    });
    began.elapsed().as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_thread_copies_its_part_round_and_round() {
        for threads in [1, 2, 3] {
            let (from, mut to) = (vec![7; 3000], vec![0; 3000]);
            assert!(copy_round(&from, &mut to, 9000, threads) >= 0.0);
            assert!(to == from, "{threads} threads");
        }
        let (from, mut to) = (vec![7; 3000], vec![0; 3000]);
        let _ = copy_round(&from, &mut to, 10, 1);
        assert_eq!(to.iter().filter(|&&byte| byte == 7).count(), 10);
    }

    #[test]
    fn a_command_that_fails_is_named() {
        let error = time(&mut Command::new("false")).expect_err("it fails");
        assert!(format!("{error:#}").contains("false"));
    }
}
