//! `livesave demo`: a plain and a live save of an embedded guest, each proven by a restore.
//!
//! Engine, policy and image are the ones that save domUs; only the guest is another: a child
//! process whose memory the kernel tracks.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use lvm::MemoryOnly;
use snapshot::embedded::{
    EmbeddedDomain, EmbeddedGuest, GuestError, GuestSpec, Pattern, Verdict, Workload,
};
use snapshot::image::file::Existing;
use snapshot::image::{AnyImage, Compression, ImageError, Reader, libxc};
use snapshot::page::PageBytes;
use snapshot::ports::Cancel;
use snapshot::units::Bytes;
use snapshot::{Mode, Options, Report, Save};

use crate::args::{DemoArgs, WorkloadArg};
use crate::out::{line, note, span};
use crate::save::{capture_memory, compression, copy_threads};
use crate::{progress, signals};

/// The hidden subcommand behind which the guest's own process runs.
pub const GUEST_COMMAND: &str = "embedded-guest";

/// One save and what came of it.
struct Outcome {
    report: Report,
    gap_seconds: f64,
    verdict: Verdict,
}

/// Runs the demonstration.
pub fn run(args: &DemoArgs) -> Result<()> {
    let cancel = signals::cancel_on_signals()?;
    let program = std::env::current_exe().context("Failed to find livesave's own program")?;
    let guest = EmbeddedGuest::spawn(&program, &[GUEST_COMMAND], spec(args))
        .context("Failed to start the embedded guest")?;
    let guest = Arc::new(guest);
    note(&format!(
        "An embedded guest (no Xen involved): {} of memory, {}, writes tracked by {}",
        Bytes(args.memory.0),
        describe(args),
        guest.tracker(),
    ));
    let directory = tempfile::Builder::new()
        .prefix("livesave-demo-")
        .tempdir_in(args.directory.clone().unwrap_or_else(std::env::temp_dir))
        .context("Failed to make a directory for the images (choose another with --directory)")?;
    let mut outcomes = vec![];
    for mode in [Mode::Plain, Mode::Improved] {
        note(&format!("\n{} save", mode.name()));
        let path = directory.path().join(format!("{}.xl", mode.name()));
        let how = compression(args.compress, None);
        outcomes.push(save_and_prove(&guest, &program, &path, mode, how, &cancel)?);
        std::fs::remove_file(&path).context("Failed to remove the image")?;
    }
    line("");
    line(&table(&outcomes));
    if outcomes.iter().any(|outcome| !outcome.verdict.matches()) {
        bail!("A restored guest's memory is not that of the cut");
    }
    Ok(())
}

fn spec(args: &DemoArgs) -> GuestSpec {
    let pattern = match args.workload {
        WorkloadArg::Idle => Pattern::Idle,
        WorkloadArg::Ring => Pattern::Ring,
        WorkloadArg::Hot => Pattern::Hot,
        WorkloadArg::Random => Pattern::Random,
    };
    let mut spec = GuestSpec::new("demo", Bytes(args.memory.0));
    if pattern != Pattern::Idle {
        // A quarter of the memory is worked on, the rest stands still, as in most guests.
        let region = Bytes(args.memory.0 / 4).whole_pages();
        spec.workload = Workload {
            pattern,
            rate: Some(args.rate),
            region: Some(region),
            threads: 1,
        };
    }
    spec
}

fn describe(args: &DemoArgs) -> String {
    match args.workload {
        WorkloadArg::Idle => "idle".to_owned(),
        WorkloadArg::Ring => format!("writing {} pages/s in a ring", args.rate),
        WorkloadArg::Hot => format!("writing {} pages/s, mostly to a hot set", args.rate),
        WorkloadArg::Random => format!("writing {} pages/s at random", args.rate),
    }
}

fn save_and_prove(
    guest: &Arc<EmbeddedGuest>,
    program: &Path,
    path: &Path,
    mode: Mode,
    compression: Option<Compression>,
    cancel: &Cancel,
) -> Result<Outcome> {
    let mut domain = EmbeddedDomain::new(guest.clone());
    let mut sink = AnyImage::create(path, Existing::Keep, compression, cancel)?;
    let mut observer = progress::observer(false);
    let options = Options {
        mode,
        suspend_timeout: std::time::Duration::from_secs(10),
        capture_memory: capture_memory(),
        threads: copy_threads(),
        backend: "embedded",
        ..Options::default()
    };
    guest.reset_gap()?;
    let report = Save::new(
        &mut domain,
        &mut sink,
        &mut MemoryOnly,
        &mut *observer,
        cancel,
        options,
    )
    .run()?;
    drop(observer);
    let gap_seconds = guest.stats()?.largest_gap_ns as f64 / 1e9;
    note("Restoring the image into a fresh guest");
    let verdict = restore(path, program)?;
    note(&format!(
        "Checksum of its memory {:016x}, at the cut {:016x}: {}",
        verdict.computed,
        verdict.expected,
        if verdict.matches() {
            "equal"
        } else {
            "NOT EQUAL"
        },
    ));
    Ok(Outcome {
        report,
        gap_seconds,
        verdict,
    })
}

/// What can go wrong while an image is put into a guest.
#[derive(Debug, thiserror::Error)]
enum RestoreError {
    #[error(transparent)]
    Image(#[from] ImageError),
    #[error("Failed to fill the memory of the restored guest")]
    Memory(#[from] std::io::Error),
    #[error(transparent)]
    Guest(#[from] GuestError),
    #[error("The image holds no state of an embedded guest")]
    NoState,
}

/// Restores an image into a fresh guest and has that guest compute the checksum of its memory.
fn restore(path: &Path, program: &Path) -> Result<Verdict, RestoreError> {
    let reader = Reader::open(path)?;
    let context = libxc::record::HVM_CONTEXT;
    let state = reader
        .libxc_records()
        .iter()
        .find(|record| record.kind == context)
        .ok_or(RestoreError::NoState)?;
    let state = reader.read(state)?;
    let guest = EmbeddedGuest::spawn_restored(program, &[GUEST_COMMAND], &state.body)?;
    let zero = PageBytes::ZERO;
    reader.for_each_page(|pfn, page| {
        // Fresh memory is zero.
        if *page != zero {
            guest.memory().write(pfn, &page.0)?;
        }
        Ok::<_, RestoreError>(())
    })?;
    Ok(guest.verify()?)
}

/// The downtime table.
fn table(outcomes: &[Outcome]) -> String {
    let mut text = format!(
        "{:<8} {:>10} {:>10} {:>10} {:>7} {:>12} {:>12}  restored\n",
        "mode", "guest gap", "pause", "total", "rounds", "image", "on disk"
    );
    for Outcome {
        report,
        gap_seconds,
        verdict,
    } in outcomes
    {
        text.push_str(&format!(
            "{:<8} {:>10} {:>10} {:>10} {:>7} {:>12} {:>12}  {}\n",
            report.facts.mode,
            span(*gap_seconds),
            span(report.facts.window.total_s),
            span(report.total_s),
            report.facts.rounds.len(),
            report.image_bytes.to_string(),
            report.allocated_bytes.to_string(),
            if verdict.matches() {
                "equal to the cut"
            } else {
                "NOT EQUAL"
            },
        ));
    }
    text.push_str(
        "guest gap: longest time that a clock in the guest stood still; pause: from the suspend \
         request to the resume",
    );
    text
}
