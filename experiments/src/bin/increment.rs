//! What an increment costs beside a full save, at native speed on the embedded guest whose memory
//! holds what [`experiments::mixed`] makes; on tmpfs, in turns, medians. The guest has written one
//! page in a hundred, strewn over its memory, between the two.
//!
//! `increment [GiB]`; 1 GiB otherwise. Fails where an increment takes more than a tenth of a full
//! save's time or size (what is asked for is a twentieth; a busy machine takes a part of that).

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use experiments::native::{
    DIRECTORY, GUEST, ZSTD, forget_peak, median, mixed_guest, options, peak_resident, save,
};
use snapshot::embedded::{EmbeddedGuest, guest_main};
use snapshot::image::{Chain, Compression};
use snapshot::lineage::ImageId;
use snapshot::units::{Bytes, PageCount, Pfn};
use snapshot::{Options, PAGE_SIZE, Report};

const TURNS: usize = 3;
/// One page in so many is written between two saves.
const ONE_IN: usize = 100;
const BAR: f64 = 0.1;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let done = match args.first().map(String::as_str) {
        Some(GUEST) => return guest_main(std::env::args_os().skip(2)),
        gib => measure(gib.unwrap_or("1")),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("increment: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Seconds and bytes, one for each turn.
#[derive(Default)]
struct Series {
    seconds: Vec<f64>,
    bytes: Vec<f64>,
}

impl Series {
    fn add(&mut self, report: &Report) {
        self.seconds.push(report.total_s);
        self.bytes.push(report.allocated_bytes.0 as f64);
    }
}

fn measure(gib: &str) -> Result<()> {
    let gib: u64 = gib.parse().context("The size is not a number of GiB")?;
    let directory = tempfile::Builder::new()
        .prefix("increment-")
        .tempdir_in(DIRECTORY)?;
    let guest = mixed_guest("increment", gib)?;
    forget_peak()?;
    let pages = (gib << 30) / PAGE_SIZE as u64;
    println!(
        "{gib} GiB, {} of them written between two saves:",
        PageCount(pages / ONE_IN as u64)
    );
    let mut failed = vec![];
    for (name, compression) in [("raw", None), ("zstd", Some(ZSTD))] {
        let (mut full, mut increment) = (Series::default(), Series::default());
        for turn in 0..TURNS {
            one_turn(
                &guest,
                directory.path(),
                compression,
                turn,
                &mut full,
                &mut increment,
            )?;
        }
        for (what, full, increment, unit) in [
            ("time", &mut full.seconds, &mut increment.seconds, false),
            ("size", &mut full.bytes, &mut increment.bytes, true),
        ] {
            let (full, increment) = (median(full), median(increment));
            let ratio = increment / full;
            let told = |value: f64| {
                if unit {
                    Bytes(value as u64).to_string()
                } else {
                    format!("{value:.3} s")
                }
            };
            println!(
                "increment / full {name:<5} {what}  {:>10} {:>10}  ratio {ratio:.3}",
                told(increment),
                told(full)
            );
            if ratio > BAR {
                failed.push(format!("{what} against {name}: {ratio:.3} is above {BAR}"));
            }
        }
    }
    println!("{} resident at most", Bytes(peak_resident()?));
    ensure!(failed.is_empty(), "{}", failed.join("; "));
    Ok(())
}

fn one_turn(
    guest: &Arc<EmbeddedGuest>,
    directory: &Path,
    compression: Option<Compression>,
    turn: usize,
    full: &mut Series,
    increment: &mut Series,
) -> Result<()> {
    let (base, path) = (directory.join("full.xl"), directory.join("x.xli.zst"));
    let kept = || Options {
        keep_tracking: true,
        id: ImageId::random().ok(),
        ..options()
    };
    full.add(&save(guest, &base, compression, kept())?);
    let all = (0..guest.layout().pages().0).map(Pfn);
    let written: Vec<_> = all.skip(turn).step_by(ONE_IN).collect();
    for pages in written.chunks(4096) {
        guest.touch(pages)?;
    }
    let chain = Chain::open(&base)?;
    let options = Options {
        base: chain.base()?,
        ..kept()
    };
    let report = save(guest, &path, Some(ZSTD), options)?;
    let held = report.facts.held_pages.unwrap_or_default();
    ensure!(
        held.0 as usize >= written.len() && held.0 as usize <= written.len() * 2,
        "{held} are in the increment, {} were written",
        written.len()
    );
    increment.add(&report);
    // Every page is there.
    Chain::open(&path)?.index()?;
    std::fs::remove_file(&base)?;
    std::fs::remove_file(&path)?;
    Ok(())
}
