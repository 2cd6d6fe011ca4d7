//! `livesave DOMAIN`: the main job.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use jiff::Timestamp;
use serde::Serialize;
use snapshot::disks::{DiskFacts, Kept};
use snapshot::forecast::{Circumstances, PastWindow};
use snapshot::history::History;
use snapshot::image::file::{Existing, partial_name};
use snapshot::image::{AnyImage, Chain, Compared, Compression, ImageError, largest_for};
use snapshot::policy::Limits;
use snapshot::ports::{Cancel, Domain, Identity};
use snapshot::units::Bytes;
use snapshot::xen::{self, Guarding, XenDomain};
use snapshot::{Mode, OnMiss, Options, Report, Save, SaveError};

use crate::args::{CompressArg, IncrementalArg, ModeArg, OnMissArg, SaveArgs, ThrottleArg};
use crate::out::{self, line, note, span};
use crate::periodic::incremental::Beginning;
use crate::periodic::prune::{self, Pruned, must_be_ours_alone};
use crate::periodic::{name, room};
use crate::{disks, log, progress, signals};

/// The windows of earlier saves are kept here.
const WINDOWS: &str = "/run/livesave/windows";
/// Captured pages take at most that much memory, and at most a quarter of what is free.
const CAPTURE_MEMORY: Bytes = Bytes::from_mib(256);
/// More threads than that do not copy faster.
const MAX_THREADS: usize = 4;

/// The guardian is the very program that runs, even if its file has been replaced or removed.
pub const OWN_PROGRAM: &str = "/proc/self/exe";

/// Saves a domU and reports on it.
pub fn run(args: &SaveArgs) -> Result<()> {
    if args.json_log {
        out::log_as_json();
    }
    // First of all, so that from here on Ctrl-C leaves nothing behind.
    let cancel = signals::cancel_on_signals()?;
    let report = save(args, &cancel)?;
    // The domain is free by now: others may save it meanwhile.
    let rules = args.periodic.keep.rules();
    let pruned = rules
        .map(|rules| prune::after_save(Path::new(&report.image), &rules, &cancel))
        .transpose();
    tell(args, &report, pruned.as_ref().ok().and_then(Option::as_ref))?;
    match pruned? {
        Some(pruned) => pruned.check(),
        None => Ok(()),
    }
}

/// Saves a domU.
pub fn save(args: &SaveArgs, cancel: &Cancel) -> Result<Report> {
    let how = args.periodic.incremental;
    if how.is_some() && args.mode == ModeArg::Plain {
        bail!("--incremental is for saves of a running guest; --mode plain suspends it first");
    }
    match attempt(args, how, cancel) {
        Err(error) if how.is_some() && is_of_the_base(&error) => {
            note(&format!("livesave: {error:#}; saving all of it"));
            attempt(args, None, cancel)
        }
        saved => saved,
    }
}

/// Whether it was the image that an increment was to be built on that failed, not the save.
fn is_of_the_base(error: &anyhow::Error) -> bool {
    match error.downcast_ref::<SaveError>() {
        Some(SaveError::BaseLost(_)) => true,
        Some(SaveError::Sink(error)) => {
            let cause = error.source.get_ref();
            cause
                .and_then(|cause| cause.downcast_ref::<ImageError>())
                .is_some()
        }
        _ => false,
    }
}

/// Saves a domU, an increment if that is wanted and can be.
fn attempt(
    args: &SaveArgs,
    incremental: Option<IncrementalArg>,
    cancel: &Cancel,
) -> Result<Report> {
    let mut domain = XenDomain::open_when_free(&args.domain, args.wait, &disks::CARE, cancel)?;
    domain.on_notice(Box::new(note));
    if args.throttle_by == ThrottleArg::Pauses {
        domain.throttle_by_pauses();
    }
    let Beginning {
        base,
        compared,
        pages,
    } = match incremental {
        Some(how) => Beginning::of(&domain, &args.periodic, how)?,
        None => Beginning::full(&domain)?,
    };
    let path = image_path(args, domain.identity(), base.is_some());
    if let Some(keep) = args.periodic.keep_free() {
        room::check(&path, largest_for(pages), keep)?;
    }
    if let Some(dir) = &args.periodic.dir
        && args.periodic.keep.rules().is_some()
    {
        must_be_ours_alone(dir)?;
    }
    let now = domain.circumstances(!args.keep_cap);
    let past = history().of(&domain.identity().uuid, now.kind);
    let options = Options {
        base,
        now,
        keep_tracking: args.periodic.incremental == Some(IncrementalArg::Tracked)
            && domain.no_increments().is_none(),
        ..options(args, past)
    };
    let replaced = args.force.then(|| disks::of_replaced(&path)).flatten();
    let settled = disks::settle(&args.disk, &domain, options.id.as_ref(), &path)?;
    let existing = if args.force {
        Existing::Replace
    } else {
        Existing::Keep
    };
    domain.guarded(Guarding {
        program: PathBuf::from(OWN_PROGRAM),
        partial: partial_name(&path).ok(),
        suspend_timeout: args.timeout,
        silence: args.hang_limit,
        stall: args.disk.disk_limit,
        disks: settled.text(),
    })?;
    let compression = match (&options.base, args.compress) {
        // An increment is never raw.
        (Some(_), CompressArg::None) => compression(CompressArg::Zstd(1), args.threads),
        (_, asked) => compression(asked, args.threads),
    };
    let sink = AnyImage::create(&path, existing, compression, cancel)?;
    let index = compared.as_ref().map(Chain::index).transpose();
    let index = index.map_err(|error| SaveError::BaseLost(error.to_string()))?;
    let mut sink = Compared::new(sink, index);
    let mut disks = settled.start(&args.disk, &domain, args.quiet, cancel);
    let mut observer = if args.json_log {
        log::observer()
    } else {
        progress::observer(args.quiet)
    };
    let report = Save::new(
        &mut domain,
        &mut sink,
        &mut *disks,
        &mut *observer,
        cancel,
        options,
    )
    .run()?;
    drop(observer);
    if let Some(replaced) = &replaced {
        disks::give_up(replaced, &path);
    }
    if let Some(window) = lesson(&report, now) {
        // The image is whole; the next forecast will be worse by it, and that is all.
        let _ = history().add(&report.facts.domain.uuid, window);
    }
    Ok(report)
}

/// What `--json` prints.
#[derive(Serialize)]
struct Told<'a> {
    #[serde(flatten)]
    report: &'a Report,
    #[serde(skip_serializing_if = "Option::is_none")]
    pruned: Option<serde_json::Value>,
}

fn tell(args: &SaveArgs, report: &Report, pruned: Option<&Pruned>) -> Result<()> {
    let told = Told {
        report,
        pruned: pruned.map(Pruned::json),
    };
    let failed = "Failed to encode the report";
    if args.json_log {
        out::event("saved", serde_json::to_value(&told).context(failed)?);
    }
    if args.json {
        line(&serde_json::to_string(&told).context(failed)?);
    } else if !args.quiet && !args.json_log {
        line(&summary(report));
        pruned
            .iter()
            .flat_map(|pruned| pruned.brief())
            .for_each(|text| line(&text));
    }
    Ok(())
}

/// When rounds end on this host.
pub fn limits() -> Limits {
    if xen::fetches_are_costly() {
        Limits::for_costly_fetches()
    } else {
        Limits::default()
    }
}

/// The windows of earlier saves on this host.
pub fn history() -> History {
    History::in_directory(Path::new(WINDOWS))
}

fn options(args: &SaveArgs, past: Vec<PastWindow>) -> Options {
    let limits = limits();
    Options {
        mode: match args.mode {
            ModeArg::Plain => Mode::Plain,
            ModeArg::Live => Mode::Live,
            ModeArg::Improved => Mode::Improved,
        },
        limits: Limits {
            max_rounds: args.max_rounds,
            worthwhile: args.worthwhile.unwrap_or(limits.worthwhile),
            ..limits
        },
        suspend_timeout: args.timeout,
        capture_memory: args
            .capture_memory
            .map_or_else(capture_memory, |size| Bytes(size.0)),
        threads: copy_threads(),
        backend: "xen",
        max_downtime: args.max_downtime,
        on_miss: match args.on_miss {
            OnMissArg::Proceed => OnMiss::Proceed,
            OnMissArg::Abort => OnMiss::Abort,
        },
        min_cap: args.min_cap,
        lift_own_cap: !args.keep_cap,
        past,
        ..Options::default()
    }
}

/// What a save teaches of the guest's pauses. A plain one is all copying.
fn lesson(report: &Report, now: Circumstances) -> Option<PastWindow> {
    let facts = &report.facts;
    if facts.mode == Mode::Plain.name() {
        return None;
    }
    let increment = facts.parent.is_some();
    Some(PastWindow::of(&facts.window, &facts.rounds, increment, now))
}

/// How much memory captured pages may take here.
pub fn capture_memory() -> Bytes {
    let available = std::fs::read_to_string("/proc/meminfo")
        .ok()
        .and_then(|text| {
            let line = text
                .lines()
                .find_map(|line| line.strip_prefix("MemAvailable:"))?;
            line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()
        });
    match available {
        Some(kib) => CAPTURE_MEMORY.min(Bytes(kib * 1024 / 4)),
        None => CAPTURE_MEMORY,
    }
}

/// How an image is compressed, if it is.
pub fn compression(how: CompressArg, threads: Option<usize>) -> Option<Compression> {
    match how {
        CompressArg::None => None,
        CompressArg::Zstd(level) => Some(Compression {
            level,
            threads: threads.unwrap_or_else(copy_threads),
        }),
    }
}

/// How many threads copy memory here.
pub fn copy_threads() -> usize {
    std::thread::available_parallelism()
        .map_or(1, usize::from)
        .min(MAX_THREADS)
}

/// Where the image goes. Asked when the domain's lock is held, for a name that nobody else takes.
fn image_path(args: &SaveArgs, identity: &Identity, increment: bool) -> PathBuf {
    let dir = args.periodic.dir.as_deref().unwrap_or(Path::new(""));
    match &args.output {
        Some(path) => path.clone(),
        None => {
            let suffix = match args.compress {
                _ if increment => ".xli.zst",
                CompressArg::None => ".xl",
                CompressArg::Zstd(_) => ".xl.zst",
            };
            name::free_path(dir, identity, Timestamp::now(), suffix)
        }
    }
}

fn summary(report: &Report) -> String {
    let throttled = report.facts.brownout.as_ref().map(|brownout| {
        let lowest = brownout.caps.iter().map(|step| step.cap).min();
        format!(
            "; throttled for {} (to {} of a CPU at the lowest, {} of CPU time lost)",
            span(brownout.seconds),
            lowest.unwrap_or_default(),
            span(brownout.cpu_lost_s)
        )
    });
    let uncapped = Some(report.facts.window.uncapped_s)
        .filter(|seconds| *seconds > 0.0)
        .map(|seconds| format!("; free of its own CPU cap for {}", span(seconds)));
    let what = report.facts.parent.as_ref().map(|parent| {
        let held = report.facts.held_pages.unwrap_or_default();
        format!(", {} written since {}", held.bytes(), parent.file)
    });
    let disks = report.facts.disks.as_ref().map(disks_line);
    format!(
        "Saved {} to {}{}: {} ({} on disk) in {}, paused for {} ({} of it suspended){}{}{}",
        report.facts.domain.name,
        report.image,
        what.unwrap_or_default(),
        report.image_bytes,
        report.allocated_bytes,
        span(report.total_s),
        span(report.facts.window.total_s),
        span(report.facts.window.suspended_s),
        throttled.unwrap_or_default(),
        uncapped.unwrap_or_default(),
        disks.unwrap_or_default(),
    )
}

fn disks_line(disks: &DiskFacts) -> String {
    let count = |of: fn(&Kept) -> bool| disks.disks.iter().filter(|disk| of(&disk.kept)).count();
    let snapshots = count(|kept| matches!(kept, Kept::Snapshot(_)));
    let copies = count(|kept| matches!(kept, Kept::Copy(_)));
    let (number, what) = match (snapshots, copies) {
        (0, 0) => return "; no disk that the guest can write to".to_owned(),
        (0, copies) => (copies, "copied"),
        (snapshots, _) => (snapshots, "snapshotted"),
    };
    format!(
        "; {number} {} {what}, whose I/O waited for {}",
        if number == 1 { "disk" } else { "disks" },
        span(disks.stall_s)
    )
}
