//! Throughput and memory use of a save, at native speed on the embedded guest.
//!
//! The same bytes go to the same tmpfs by `dd bs=1M` (a read and a write: two copies) and by
//! livesave, in turns; what counts is the ratio of the medians. Every size runs in a process of
//! its own, whose peak resident memory is livesave's. Fails if livesave is slower than dd (twice in a
//! row: other work on the machine has made one measurement miss by three percent) or
//! takes more memory than it says.

use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use experiments::native::{self, DIRECTORY, GUEST, median, peak_resident};
use serde::{Deserialize, Serialize};
use snapshot::Options;
use snapshot::embedded::{Content, EmbeddedGuest, GuestSpec, guest_main};
use snapshot::units::Bytes;

const ONE_SIZE: &str = "one-size";
/// Turns per size.
const TURNS: usize = 7;
const SIZES_GIB: [u64; 2] = [1, 4];
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
        None => all_sizes(),
        Some(_) => Err(anyhow::anyhow!("Usage: throughput")),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("throughput: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn all_sizes() -> Result<()> {
    let program = std::env::current_exe().context("Failed to find the own program")?;
    println!(
        "{:>6} {:>14} {:>16} {:>7} {:>8} {:>14} {:>14}",
        "guest", "dd GiB/s", "livesave GiB/s", "ratio", "threads", "resident", "image"
    );
    for gib in SIZES_GIB {
        let first = measure(&program, gib)?;
        let measured = if first.ratio() >= 1.0 {
            first
        } else {
            println!("{gib} GiB: slower than dd; once more");
            measure(&program, gib)?
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
fn measure(program: &Path, gib: u64) -> Result<Measured> {
    let output = Command::new(program)
        .args([ONE_SIZE, &gib.to_string()])
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
    Ok(measured)
}

fn one_size(args: &[String]) -> Result<()> {
    let [gib] = args else {
        bail!("A size in GiB is wanted")
    };
    let gib: u64 = gib.parse().context("The size is not a number of GiB")?;
    let program = std::env::current_exe().context("Failed to find the own program")?;
    let mut spec = GuestSpec::new("throughput", Bytes(gib << 30));
    // No zero pages: they would cost dd a copy and livesave none.
    spec.content = Content {
        zero_percent: 0,
        text_percent: 50,
        populated: true,
        seed: 1,
    };
    let guest = Arc::new(EmbeddedGuest::spawn(&program, &[GUEST], spec)?);
    let directory = tempfile::Builder::new()
        .prefix("throughput-")
        .tempdir_in(DIRECTORY)?;
    let threads = std::thread::available_parallelism()
        .map_or(1, usize::from)
        .min(4);

    let (mut dd_times, mut save_times, mut image_bytes) = (vec![], vec![], 0);
    for _ in 0..TURNS {
        dd_times.push(dd(&guest, &directory.path().join("dd"), gib)?);
        let path = directory.path().join("image.xl");
        let (seconds, bytes) = save(&guest, &path, threads)?;
        save_times.push(seconds);
        image_bytes = bytes;
    }
    let measured = Measured {
        gib,
        dd_seconds: median(&mut dd_times),
        livesave_seconds: median(&mut save_times),
        threads,
        peak_resident: peak_resident()?,
        image_bytes,
    };
    println!("{}", serde_json::to_string(&measured)?);
    Ok(())
}

/// Copies the guest's memory by dd; how long it took.
fn dd(guest: &EmbeddedGuest, to: &PathBuf, gib: u64) -> Result<f64> {
    let memory = format!(
        "/proc/{}/fd/{}",
        std::process::id(),
        guest.memory().file().as_raw_fd()
    );
    let began = Instant::now();
    let status = Command::new("dd")
        .arg(format!("if={memory}"))
        .arg(format!("of={}", to.display()))
        .args(["bs=1M", "status=none"])
        .status()
        .context("Failed to run dd")?;
    let seconds = began.elapsed().as_secs_f64();
    ensure!(status.success(), "dd failed: {status}");
    let copied = std::fs::metadata(to)?.len();
    ensure!(copied == gib << 30, "dd copied {copied} bytes");
    std::fs::remove_file(to)?;
    Ok(seconds)
}

/// Saves the guest live; how long it took, and the image's size.
fn save(guest: &Arc<EmbeddedGuest>, to: &Path, threads: usize) -> Result<(f64, u64)> {
    let options = Options {
        capture_memory: CAPTURE,
        threads,
        ..native::options()
    };
    let report = native::save(guest, to, None, options)?;
    std::fs::remove_file(to)?;
    Ok((report.total_s, report.image_bytes.0))
}
