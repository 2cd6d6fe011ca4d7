//! What the measurements at native speed, on the embedded guest, have in common.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use lvm::MemoryOnly;
use snapshot::embedded::{EmbeddedDomain, EmbeddedGuest, GuestSpec, Pattern};
use snapshot::image::file::Existing;
use snapshot::image::{AnyImage, Compression};
use snapshot::ports::{Cancel, Silent};
use snapshot::units::{Bytes, Pfn};
use snapshot::{Mode, Options, PAGE_SIZE, Report, Save};

use crate::mixed::Mixed;

/// What a measurement calls itself with to be the guest.
pub const GUEST: &str = "embedded-guest";
/// Threads that copy and compress.
pub const THREADS: usize = 2;
/// tmpfs.
pub const DIRECTORY: &str = "/dev/shm";
/// As `--compress zstd`.
pub const ZSTD: Compression = Compression {
    level: 1,
    threads: THREADS,
};

/// An idle guest of so many GiB whose memory holds what [`Mixed`] makes.
pub fn mixed_guest(name: &str, gib: u64) -> Result<Arc<EmbeddedGuest>> {
    let program = std::env::current_exe().context("Failed to find the own program")?;
    let mut spec = GuestSpec::new(name, Bytes(gib << 30));
    spec.workload.pattern = Pattern::Idle;
    spec.content.zero_percent = 100;
    spec.content.text_percent = 0;
    let guest = Arc::new(EmbeddedGuest::spawn(&program, &[GUEST], spec)?);
    let mut mixed = Mixed::new(1)?;
    let mut page = [0; PAGE_SIZE];
    for pfn in 0..(gib << 30) / PAGE_SIZE as u64 {
        mixed.fill(&mut page);
        guest.memory().write(Pfn(pfn), &page)?;
    }
    Ok(guest)
}

/// The options of all saves here.
#[must_use]
pub fn options() -> Options {
    Options {
        mode: Mode::Live,
        suspend_timeout: Duration::from_secs(10),
        threads: THREADS,
        backend: "embedded",
        ..Options::default()
    }
}

/// Saves the guest.
pub fn save(
    guest: &Arc<EmbeddedGuest>,
    path: &Path,
    compression: Option<Compression>,
    options: Options,
) -> Result<Report> {
    let mut domain = EmbeddedDomain::new(guest.clone());
    save_domain(&mut domain, path, compression, options)
}

/// The same of a guest that may have a cap of its own.
pub fn save_domain(
    domain: &mut EmbeddedDomain,
    path: &Path,
    compression: Option<Compression>,
    options: Options,
) -> Result<Report> {
    let cancel = Cancel::new();
    let mut sink = AnyImage::create(path, Existing::Keep, compression, &cancel)?;
    let mut disks = MemoryOnly;
    let report = Save::new(domain, &mut sink, &mut disks, &mut Silent, &cancel, options).run()?;
    Ok(report)
}

/// The middle one.
pub fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Forgets the peak so far: what made the guest's memory took some of its own.
pub fn forget_peak() -> Result<()> {
    // `clear_refs` of proc(5).
    std::fs::write("/proc/self/clear_refs", "5").context("Failed to reset the peak of memory")
}

/// The peak of this process's resident memory, in bytes.
pub fn peak_resident() -> Result<u64> {
    proc_size("/proc/self/status", "VmHWM:")
}

/// A size that a file of proc(5) tells in kB, in bytes.
pub fn proc_size(file: &str, name: &str) -> Result<u64> {
    let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {file}"))?;
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok());
    Ok(kib.with_context(|| format!("{file} has no {name}"))? * 1024)
}
