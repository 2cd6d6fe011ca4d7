//! Calls that fail, each in a save of its own, and a disk that is slow. `livesave-faults` has the
//! calls fail; the table is in the testbed's FAULTS.md.

use super::dying::{recover, settled};
use super::{Bench, Kind, Test};
use crate::dom0::guest::Guest;
use crate::dom0::hypervisor::Domain;
use crate::dom0::livesave::{LIMIT, Report, exit};
use crate::dom0::process::{self, Running};
use crate::dom0::spec::Spec;
use crate::dom0::{image, log_dirty};
use anyhow::{Context, Result, bail};
use std::fs;

/// The tests of this file.
#[must_use]
pub fn tests() -> Vec<Test> {
    use Kind::Small;
    vec![
        Small.in_turn("faults_on_the_guest", |bench| {
            in_each_call(bench, &ON_THE_GUEST)
        }),
        Small.in_turn("faults_in_the_window", |bench| {
            in_each_call(bench, &IN_THE_WINDOW)
        }),
        Small.in_turn("fault_disk_errors", |bench| in_each_call(bench, &ON_DISK)),
        Small.in_turn("fault_slow_disk", slow_disk),
    ]
}

/// Starts a save with a fault in it, or with none.
pub(super) fn start(bench: &Bench, guest: &Guest, fault: &str, more: &[&str]) -> Result<Running> {
    let faulty = bench.faulty();
    let image = bench.image("x.xl");
    let mut command = faulty.save_command(&guest.spec.name, &image, more);
    if !fault.is_empty() {
        command.env("LIVESAVE_FAULT", fault);
    }
    process::start(&mut command)
}

/// What must hold after every fault: nothing is left to be put right, and no image that is none.
pub(super) fn must_be_over(bench: &Bench, guest: &Guest) -> Result<()> {
    settled(guest)?;
    let path = bench.image("x.xl");
    if path.exists() {
        image::stock_verify(&path).context("what stands under the final name")?;
        fs::remove_file(&path)?;
    }
    bench.must_hold_only(&bench.images, &[])?;
    let did = recover(bench)?.stdout;
    if !did.starts_with("nothing") {
        bail!("there was something left to recover: {did}");
    }
    Ok(())
}

/// A call that fails, and what is to come of it.
struct Case {
    fault: &'static str,
    more: &'static [&'static str],
    code: i32,
    /// What the message says: what was being done, and to what.
    says: &'static str,
}

const fn case(
    fault: &'static str,
    more: &'static [&'static str],
    code: i32,
    says: &'static str,
) -> Case {
    Case {
        fault,
        more,
        code,
        says,
    }
}

/// A failure that has no exit code of its own.
const FAILED: i32 = 1;
const PLAIN: &[&str] = &["--mode", "plain"];
const FORCE: &[&str] = &["--force"];
const ZSTD: &[&str] = &["--compress", "zstd"];
const HASTY: &[&str] = &["--timeout", "1ms"];
const NOTE: &str = "note in /run/livesave the save of domain NAME";
const WATCH: &str = "watch the memory target of domain NAME";
const TYPES: &str = "read the page types of domain NAME";
const TRACK: &str = "track the writes of domain NAME";
const FETCH: &str = "fetch the dirty pages of domain NAME";
const STATE: &str = "read the state of domain NAME";
const MAP: &str = "map memory of domain ";
const ASK: &str = "ask for suspension of domain NAME";
const TAKE_BACK: &str = "take back the suspend request to domain NAME";
const UNTRACK: &str = "stop tracking the writes of domain NAME";
const RESUME: &str = "resume domain NAME";
const ANNOUNCE: &str = "announce in xenstore the resumption of domain NAME";
const PAGES: &str = "write pages to image ";
const FINISH: &str = "finish image ";
const NAME_IT: &str = "give its name to image ";

const ON_THE_GUEST: [Case; 10] = [
    case("xs-watch:error:EIO", &[], FAILED, WATCH),
    case("page-types:error:EIO:2", &[], FAILED, TYPES),
    case("preamble:error:ENOMEM", &[], FAILED, "CPU policy of domain"),
    case("note:error:ENOSPC", &[], FAILED, NOTE),
    case("log-dirty-on:error:ENOMEM", &[], FAILED, TRACK),
    case("map:error:EFAULT:3", &[], FAILED, MAP),
    case("fetch:error:EIO", &[], FAILED, FETCH),
    // Before the request, which is then never made.
    case("state:error:EIO", &[], FAILED, STATE),
    case("note:error:ENOSPC:2", &[], FAILED, NOTE),
    case("xs-request:error:EIO", &[], FAILED, ASK),
];

const IN_THE_WINDOW: [Case; 12] = [
    // The request stands: it is taken back, or the guest suspends and is resumed.
    case("state:error:EIO:2", &[], FAILED, STATE),
    case("xs-withdraw:error:EIO", HASTY, FAILED, TAKE_BACK),
    case("last-fetch:error:EIO", &[], FAILED, FETCH),
    case("map:error:EFAULT:5", PLAIN, FAILED, MAP),
    case("final-state:error:EIO", &[], FAILED, STATE),
    // The save tries it twice, then its guardian goes on (for itself it fails three times too).
    case("resume:error:EIO", &[], FAILED, RESUME),
    case("resume:error:EIO:1-3", &[], FAILED, RESUME),
    case("xs-resume:error:EIO", &[], FAILED, ANNOUNCE),
    case("xs-resume:error:EIO:1-3", &[], FAILED, ANNOUNCE),
    case(
        "xs-resume:error:EIO:1-3",
        HASTY,
        exit::NOT_SUSPENDED,
        "suspend",
    ),
    // The image is whole: a warning, and tracking is ended at the second attempt or by the guardian.
    case("log-dirty-off:error:EIO", &[], 0, UNTRACK),
    case("log-dirty-off:error:EIO:1-9", &[], 0, UNTRACK),
];

const ON_DISK: [Case; 14] = [
    case(
        "write-head:error:ENOSPC",
        &[],
        exit::NOT_WRITTEN,
        "start image ",
    ),
    case("write:error:EIO:9", &[], exit::NOT_WRITTEN, PAGES),
    case("write:error:ENOSPC:9", &[], exit::NOT_WRITTEN, PAGES),
    // In the window.
    case("write:error:EIO:9", PLAIN, exit::NOT_WRITTEN, PAGES),
    // In a thread that compresses; the next page that is written hears of it.
    case("compress:error:ENOSPC:9", ZSTD, exit::NOT_WRITTEN, PAGES),
    case("compress:error:EIO:3", ZSTD, exit::NOT_WRITTEN, PAGES),
    case(
        "write-checksums:error:ENOSPC:40",
        &[],
        exit::NOT_WRITTEN,
        PAGES,
    ),
    case("write-end:error:EIO", &[], exit::NOT_WRITTEN, FINISH),
    case("fsync:error:EIO", &[], exit::NOT_WRITTEN, FINISH),
    case("link:error:ENOSPC", &[], exit::NOT_WRITTEN, NAME_IT),
    case("link:error:EIO", FORCE, exit::NOT_WRITTEN, NAME_IT),
    case("rename:error:EIO", FORCE, exit::NOT_WRITTEN, NAME_IT),
    case("fsync-directory:error:EIO", &[], exit::NOT_WRITTEN, NAME_IT),
    case(
        "fsync-directory:error:EIO",
        FORCE,
        exit::NOT_WRITTEN,
        NAME_IT,
    ),
];

fn in_each_call(bench: &Bench, cases: &[Case]) -> Result<String> {
    let guest = bench.guest(Spec::small)?;
    let mut ended = Vec::new();
    for case in cases {
        let took = one(bench, &guest, case)
            .with_context(|| format!("{} {}", case.fault, case.more.join(" ")))?;
        ended.push(format!("{} {took:.1} s", case.fault));
    }
    // Its heart beats, too; that takes a while to see.
    bench.must_be_unharmed(&guest)?;
    guest.verify_clean()?;
    Ok(format!("{} faults: {}", ended.len(), ended.join(", ")))
}

fn one(bench: &Bench, guest: &Guest, case: &Case) -> Result<f64> {
    let finished = start(bench, guest, case.fault, case.more)?.wait(LIMIT)?;
    bench.livesave.note(&finished)?;
    if finished.code() != case.code {
        bail!(
            "exit code {}, not {}: {}",
            finished.code(),
            case.code,
            finished.tail()
        );
    }
    if !finished
        .stderr
        .contains(&case.says.replace("NAME", &guest.spec.name))
    {
        bail!("it does not say {:?}: {}", case.says, finished.tail());
    }
    // The one failure that leaves an image: it was to replace another, and has.
    let replaced = case.more == FORCE && case.fault.starts_with("fsync-directory");
    let stands = bench.image("x.xl").exists();
    if stands != (case.code == 0 || replaced) {
        bail!("an image stands: {stands}: {}", finished.tail());
    }
    must_be_over(bench, guest)?;
    let info = Domain::of(guest.domid)?.info()?;
    if info.shutdown.is_some() || info.paused {
        bail!("the guest does not run: {info:?}");
    }
    log_dirty::must_be_off(guest.domid)?;
    let left = guest.request()?;
    if !left.is_empty() {
        bail!("a shutdown request was left in xenstore: {left:?}");
    }
    Ok(finished.took.as_secs_f64())
}

/// How much longer each write takes. The guest must not notice one of them.
const DELAY_MS: u64 = 2000;

/// Nothing of the disk is in the pause window: what a write takes shows nowhere in it.
fn slow_disk(bench: &Bench) -> Result<String> {
    let mut guest = bench.guest(|spec| spec.small().rate("50"))?;
    guest.take_gap()?;
    // From the end of round 0 on, which takes 32 of 4 MiB: later rounds, and the captured pages.
    let fault = format!("write:slow:{DELAY_MS}:30-");
    let finished = start(bench, &guest, &fault, &[])?.wait(LIMIT)?;
    bench.livesave.note(&finished)?;
    let gap = guest.take_gap()?;
    if finished.code() != 0 {
        bail!("exit code {}: {}", finished.code(), finished.tail());
    }
    let report: Report = serde_json::from_str(&finished.stdout)?;
    let delay = DELAY_MS as f64 / 1000.0;
    if finished.took.as_secs_f64() < 2.0 * delay {
        bail!("the disk was not slow: nothing is shown");
    }
    let bound = 0.5 * delay;
    if report.window.suspended_s > bound || gap.as_secs_f64() > bound {
        bail!(
            "suspended for {:.3} s, a gap of {:.3} s in the guest, with writes of {delay} s each",
            report.window.suspended_s,
            gap.as_secs_f64()
        );
    }
    bench.must_be_unharmed(&guest)?;
    let path = bench.image("x.xl");
    image::stock_verify(&path)?;
    guest.destroy()?;
    guest.restore(&path)?;
    guest.verify_clean().context("the restored guest")?;
    fs::remove_file(&path)?;
    Ok(format!(
        "{:.1} s in all, suspended for {:.3} s, gap {:.3} s",
        finished.took.as_secs_f64(),
        report.window.suspended_s,
        gap.as_secs_f64()
    ))
}
