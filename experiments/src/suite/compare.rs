//! livesave beside the stock ways to save, in one boot and on one guest: with images on tmpfs, and on
//! a disk that is slow beside the guest's writing, as disks are.

mod judge;
mod slow_disk;

use super::{Bench, Kind, Test};
use crate::dom0::guest::Guest;
use crate::dom0::image::{self, Size};
use crate::dom0::livesave::Report;
use crate::dom0::stock;
use anyhow::{Context, Result, bail};
use serde::Serialize;
use slow_disk::SlowDisk;
use std::path::Path;
use std::time::Duration;

/// The tests of this file.
#[must_use]
pub fn tests() -> Vec<Test> {
    vec![
        Kind::Other.asked("compare_on_tmpfs", on_tmpfs),
        Kind::Other.asked("compare_on_slow_disk", on_slow_disk),
    ]
}

/// What the guest does meanwhile, over 128 MiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
struct Load {
    name: &'static str,
    pattern: &'static str,
    rate: &'static str,
}

const fn ring(rate: &'static str) -> Load {
    Load {
        name: rate,
        pattern: "ring",
        rate,
    }
}

/// The idle one first: the others are measured against it.
const LOADS: [Load; 6] = [
    ring("100"),
    ring("5000"),
    ring("20000"),
    ring("60000"),
    ring("max"),
    Load {
        name: "20000 random",
        pattern: "random",
        rate: "20000",
    },
];

impl Load {
    fn is_idle(self) -> bool {
        self == LOADS[0]
    }

    /// Pages written per second, asked for; as fast as it can counts as more than any.
    fn pages_per_second(self) -> u64 {
        self.rate.parse().unwrap_or(u64::MAX)
    }
}

/// A way to save.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
enum Way {
    Livesave,
    /// With memory for few captured pages: rounds do not fit there, so that the guest is throttled.
    Throttled,
    StockLive,
    Vnsnap,
    SaveC,
}

const WAYS: [Way; 5] = [
    Way::Livesave,
    Way::Throttled,
    Way::StockLive,
    Way::Vnsnap,
    Way::SaveC,
];

impl Way {
    fn title(self) -> &'static str {
        match self {
            Self::Livesave => "livesave",
            Self::Throttled => "livesave, throttling",
            Self::StockLive => "stock live loop",
            Self::Vnsnap => "live-migrated",
            Self::SaveC => "xl save -c",
        }
    }
}

/// One save, measured.
#[derive(Clone, Debug, Serialize)]
struct Sample {
    way: Way,
    load: Load,
    /// Pages that the guest really wrote per second before the save.
    written_per_s: u64,
    gap_s: f64,
    total_s: f64,
    size: Size,
    /// Pages written over all rounds and the window, zero pages not counted where the way leaves
    /// them out.
    pages_written: u64,
    /// livesave only.
    own: Option<Own>,
}

/// What livesave tells of a save.
#[derive(Clone, Debug, Serialize)]
struct Own {
    /// Blocks of 4 KiB in the image that are not all zero.
    nonzero_blocks: u64,
    report: Report,
}

/// What makes [`Way::Throttled`] throttle on a slow disk.
const LITTLE_MEMORY: [&str; 4] = ["--capture-memory", "24MiB", "--max-downtime", "120ms"];

fn measure(bench: &Bench, guest: &Guest, dir: &Path, way: Way, load: Load) -> Result<Sample> {
    let path = dir.join("image.xl");
    let name = guest.spec.name.as_str();
    let beat = guest.next_beat(Duration::from_secs(30))?;
    let written_per_s = beat.number("rate").context("a heartbeat without rate")?;
    guest.take_gap()?;
    let (took, report) = match way {
        Way::Livesave | Way::Throttled => {
            let more = if way == Way::Throttled {
                &LITTLE_MEMORY[..]
            } else {
                &[]
            };
            let (report, took) = bench.livesave.save(name, &path, more)?;
            (took, Some(report))
        }
        Way::StockLive => (stock::live_loop(name, &path, &bench.results)?, None),
        Way::Vnsnap => (stock::vnsnap(name, &path, &bench.suite)?, None),
        Way::SaveC => (stock::checkpoint(name, &path)?, None),
    };
    let gap = guest.take_gap()?;
    let size = image::size(&path)?;
    let own = match report {
        Some(report) => Some(Own {
            nonzero_blocks: image::nonzero_blocks(&path)?,
            report,
        }),
        None => None,
    };
    let sample = Sample {
        way,
        load,
        written_per_s,
        gap_s: gap.as_secs_f64(),
        total_s: took.as_secs_f64(),
        pages_written: own
            .as_ref()
            .map_or(size.bytes / 4096, |own| own.report.pages_written()),
        size,
        own,
    };
    std::fs::remove_file(&path)?;
    // The ring's pages are all back at their pace before the next one.
    guest.must_run_on()?;
    Ok(sample)
}

fn on_tmpfs(bench: &Bench) -> Result<String> {
    let ways = [Way::Livesave, Way::StockLive, Way::Vnsnap, Way::SaveC];
    compare(bench, &bench.images, &LOADS, &ways)
}

fn on_slow_disk(bench: &Bench) -> Result<String> {
    let disk = SlowDisk::mount()?;
    let ways = [Way::Livesave, Way::Throttled, Way::StockLive, Way::Vnsnap];
    let loads = [LOADS[0], LOADS[3], LOADS[4]];
    compare(bench, disk.path(), &loads, &ways)
}

fn compare(bench: &Bench, dir: &Path, loads: &[Load], ways: &[Way]) -> Result<String> {
    // It is told other rates and patterns than its own.
    let guest = bench
        .guest(|spec| spec.with("scrub=0").with("write=edges"))?
        .own();
    let mut samples: Vec<Sample> = Vec::new();
    for &load in loads {
        guest.ask(&format!("pattern {}", load.pattern))?;
        guest.ask(&format!("rate {}", load.rate))?;
        for repeat in 0..bench.repeats {
            // In turn, so that the machine's moods meet all ways alike.
            for &way in ways {
                // Seconds to milliseconds: no more of it is needed.
                if way == Way::SaveC && repeat >= 2 {
                    continue;
                }
                let sample = measure(bench, &guest, dir, way, load)
                    .with_context(|| format!("{} at {}", way.title(), load.name))?;
                samples.push(sample);
                bench.keep("samples.json", &samples)?;
            }
        }
        println!("\n{}", judge::table(&samples));
    }
    guest.verify_clean()?;
    let ram = guest.spec.max_memory_mib << 20;
    let text = format!("{}\n{}", judge::table(&samples), judge::parts(&samples));
    std::fs::write(bench.results.join("table.txt"), &text)?;
    println!("\n{text}");
    let missed = judge::missed(&samples, ram);
    if !missed.is_empty() {
        bail!("{}", missed.join("; "));
    }
    Ok(format!("medians of {}", bench.repeats))
}
