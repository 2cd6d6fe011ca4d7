//! Throughput and memory use of a save, at native speed on the embedded guest.
//!
//! The same bytes go to the same tmpfs by `dd bs=1M` (a read and a write: two copies) and by
//! livesave, in turns; what counts is the ratio of the medians. Every size runs in a process of
//! its own, whose peak resident memory is livesave's. Fails if livesave is slower than dd (twice in a
//! row: other work on the machine has made one measurement miss by three percent) or
//! takes more memory than it says.
//!
//! Beside it, without a bar: a memcpy of as many bytes between two buffers, which is what one copy
//! costs here, by one thread and by two; and a compressed save against `zstd -1 -T2`.
//!
//! `throughput [--sizes 1,2,4,8,16]`, in GiB; 1 and 4 otherwise, the compressed save with 1 only, as
//! it takes long. Of the sizes asked for those are left out that do not fit in memory: guest and
//! image take twice as much, for no page is zero.

use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use experiments::harness::room::{self, Needs};
use experiments::native::{self, DIRECTORY, GUEST, THREADS, ZSTD, median, peak_resident};
use experiments::peers;
use serde::{Deserialize, Serialize};
use snapshot::Options;
use snapshot::embedded::{Content, EmbeddedGuest, GuestSpec, guest_main};
use snapshot::image::Compression;
use snapshot::units::Bytes;

const ONE_SIZE: &str = "one-size";
const MEMCPY: &str = "memcpy";
/// Turns per size.
const TURNS: usize = 7;
const SIZES_GIB: [u64; 2] = [1, 4];
/// Of them with the compressed save too, if no others are asked for.
const ZSTD_GIB: u64 = 1;
/// Turns of what has no bar.
const PEER_TURNS: usize = 3;
/// The capture budget of the saves measured.
const CAPTURE: Bytes = Bytes::from_mib(256);
/// Resident memory beyond the capture buffer, whatever the guest's size.
const RESIDENT_LIMIT: Bytes = Bytes::from_mib(64);

/// What one size gave.
#[derive(Serialize, Deserialize)]
struct Measured {
    gib: u64,
    dd_seconds: f64,
    livesave_seconds: f64,
    threads: usize,
    peak_resident: u64,
    image_bytes: u64,
    /// By one thread and by two.
    memcpy_seconds: [f64; 2],
    zstd: Option<Zstd>,
}

/// What compressing gave.
#[derive(Serialize, Deserialize)]
struct Zstd {
    /// `zstd -1 -T2`.
    zstd_seconds: f64,
    livesave_seconds: f64,
}

impl Measured {
    /// How many times as fast as dd.
    fn ratio(&self) -> f64 {
        self.dd_seconds / self.livesave_seconds
    }
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let done = match args.first().map(String::as_str) {
        Some(GUEST) => return guest_main(std::env::args_os().skip(2)),
        Some(ONE_SIZE) => one_size(&args[1..]),
        Some(MEMCPY) => memcpy(&args[1..]),
        None => all_sizes(&SIZES_GIB, false),
        Some("--sizes") if args.len() == 2 => sizes(&args[1]).and_then(|s| all_sizes(&s, true)),
        Some(_) => Err(anyhow::anyhow!("Usage: throughput [--sizes GIB,GIB…]")),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("throughput: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn sizes(list: &str) -> Result<Vec<u64>> {
    let size = |text: &str| {
        text.parse()
            .with_context(|| format!("{text:?} is no number of GiB"))
    };
    list.split(',').map(size).collect()
}

/// Measures all of them; those that do not fit are left out if they were asked for.
fn all_sizes(sizes: &[u64], asked: bool) -> Result<()> {
    let program = std::env::current_exe().context("Failed to find the own program")?;
    println!(
        "{:>6} {:>14} {:>16} {:>7} {:>8} {:>14} {:>14}",
        "guest", "dd GiB/s", "livesave GiB/s", "ratio", "threads", "resident", "image"
    );
    for &gib in sizes {
        // Without sizes it is a test, which is to run where there is any chance that they fit.
        if asked && let Some(lack) = lack(gib)? {
            println!("{gib} GiB: left out: {lack}");
            continue;
        }
        let zstd = asked || gib == ZSTD_GIB;
        let first = measure(&program, gib, zstd)?;
        let measured = if first.ratio() >= 1.0 {
            first
        } else {
            println!("{gib} GiB: slower than dd; once more");
            measure(&program, gib, zstd)?
        };
        ensure!(
            measured.ratio() >= 1.0,
            "{gib} GiB: slower than dd ({:.2})",
            measured.ratio()
        );
        ensure!(
            measured.peak_resident <= RESIDENT_LIMIT.0 + CAPTURE.0,
            "{gib} GiB: {} resident",
            Bytes(measured.peak_resident)
        );
    }
    Ok(())
}

/// Measures one size in a process of its own, and prints a line of the table.
fn measure(program: &Path, gib: u64, zstd: bool) -> Result<Measured> {
    let output = Command::new(program)
        .args([ONE_SIZE, &gib.to_string(), &zstd.to_string()])
        .stderr(Stdio::inherit())
        .output()
        .context("Failed to run the measurement")?;
    ensure!(
        output.status.success(),
        "The measurement of {gib} GiB failed"
    );
    let measured: Measured = serde_json::from_slice(&output.stdout)?;
    println!(
        "{:>6} {:>14.2} {:>16.2} {:>7.2} {:>8} {:>14} {:>14}",
        format!("{gib} GiB"),
        gib as f64 / measured.dd_seconds,
        gib as f64 / measured.livesave_seconds,
        measured.ratio(),
        measured.threads,
        Bytes(measured.peak_resident).to_string(),
        Bytes(measured.image_bytes).to_string(),
    );
    let speed = |seconds: f64| gib as f64 / seconds;
    for (threads, seconds) in (1..).zip(measured.memcpy_seconds) {
        println!(
            "{:>6} memcpy, threads: {threads} {:>5.2} GiB/s, ratio of livesave to it {:.2}",
            "",
            speed(seconds),
            seconds / measured.livesave_seconds,
        );
    }
    if let Some(zstd) = &measured.zstd {
        println!(
            "{:>6} compressed: zstd -1 -T2 {:.2} GiB/s, livesave {:.2} GiB/s, ratio {:.2}",
            "",
            speed(zstd.zstd_seconds),
            speed(zstd.livesave_seconds),
            zstd.zstd_seconds / zstd.livesave_seconds,
        );
    }
    Ok(measured)
}

/// Why guest and image do not fit, if they do not.
fn lack(gib: u64) -> Result<Option<String>> {
    let room = room::left_in(Path::new(DIRECTORY))?;
    Ok(Needs::of(&spec(gib)).lack(false, 1, room::available()?, room))
}

fn spec(gib: u64) -> GuestSpec {
    let mut spec = GuestSpec::new("throughput", Bytes(gib << 30));
    // No zero pages: they would cost dd a copy and livesave none.
    spec.content = Content {
        zero_percent: 0,
        text_percent: 50,
        populated: true,
        seed: 1,
    };
    spec
}

fn one_size(args: &[String]) -> Result<()> {
    let [gib, zstd] = args else {
        bail!("A size in GiB and whether to compress are wanted")
    };
    let gib: u64 = gib.parse().context("The size is not a number of GiB")?;
    let zstd: bool = zstd.parse()?;
    let program = std::env::current_exe().context("Failed to find the own program")?;
    let guest = Arc::new(EmbeddedGuest::spawn(&program, &[GUEST], spec(gib))?);
    let directory = tempfile::Builder::new()
        .prefix("throughput-")
        .tempdir_in(DIRECTORY)?;
    let memory = peers::memory_of(&guest);
    let (copy, image) = (
        directory.path().join("copy"),
        directory.path().join("image"),
    );
    let threads = std::thread::available_parallelism()
        .map_or(1, usize::from)
        .min(4);

    let (mut dd_times, mut save_times, mut image_bytes) = (vec![], vec![], 0);
    let mut memcpy_times = [vec![], vec![]];
    for turn in 0..TURNS {
        dd_times.push(dd(&memory, &copy, gib)?);
        let (seconds, bytes) = save(&guest, &image, None, threads)?;
        save_times.push(seconds);
        image_bytes = bytes;
        if turn < PEER_TURNS {
            for (threads, times) in (1..).zip(&mut memcpy_times) {
                times.push(memcpy_elsewhere(&program, gib, threads)?);
            }
        }
    }
    // Of the raw saves; compressing takes some more.
    let peak_resident = peak_resident()?;
    let measured = Measured {
        gib,
        dd_seconds: median(&mut dd_times),
        livesave_seconds: median(&mut save_times),
        threads,
        peak_resident,
        image_bytes,
        memcpy_seconds: memcpy_times.map(|mut times| median(&mut times)),
        zstd: zstd
            .then(|| compressed(&guest, &memory, &copy, &image))
            .transpose()?,
    };
    println!("{}", serde_json::to_string(&measured)?);
    Ok(())
}

/// Copies the guest's memory by dd; how long it took.
fn dd(memory: &str, to: &Path, gib: u64) -> Result<f64> {
    let seconds = peers::dd(memory, to)?;
    let copied = std::fs::metadata(to)?.len();
    ensure!(copied == gib << 30, "dd copied {copied} bytes");
    std::fs::remove_file(to)?;
    Ok(seconds)
}

/// Saves the guest live; how long it took, and the image's size.
fn save(
    guest: &Arc<EmbeddedGuest>,
    to: &Path,
    compression: Option<Compression>,
    threads: usize,
) -> Result<(f64, u64)> {
    let options = Options {
        capture_memory: CAPTURE,
        threads,
        ..native::options()
    };
    let report = native::save(guest, to, compression, options)?;
    std::fs::remove_file(to)?;
    Ok((report.total_s, report.image_bytes.0))
}

/// Compressed saves and zstd in turns.
fn compressed(guest: &Arc<EmbeddedGuest>, memory: &str, copy: &Path, image: &Path) -> Result<Zstd> {
    let (mut theirs, mut ours) = (vec![], vec![]);
    for _ in 0..PEER_TURNS {
        theirs.push(peers::zstd(memory, copy)?);
        std::fs::remove_file(copy)?;
        ours.push(save(guest, image, Some(ZSTD), THREADS)?.0);
    }
    Ok(Zstd {
        zstd_seconds: median(&mut theirs),
        livesave_seconds: median(&mut ours),
    })
}

/// A memcpy by a process of its own: its buffers are not livesave's memory.
fn memcpy_elsewhere(program: &Path, gib: u64, threads: usize) -> Result<f64> {
    let output = Command::new(program)
        .args([MEMCPY, &gib.to_string(), &threads.to_string()])
        .stderr(Stdio::inherit())
        .output()
        .context("Failed to run the memcpy")?;
    ensure!(output.status.success(), "The memcpy failed");
    let seconds = String::from_utf8(output.stdout)?;
    seconds.trim().parse().context("The memcpy told no time")
}

fn memcpy(args: &[String]) -> Result<()> {
    let [gib, threads] = args else {
        bail!("A size in GiB and a number of threads are wanted")
    };
    println!(
        "{}",
        peers::memcpy(Bytes(gib.parse::<u64>()? << 30), threads.parse()?)
    );
    Ok(())
}
