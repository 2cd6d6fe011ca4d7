//! Saves that are killed: the guardian puts the guest right, and `livesave recover` does where the
//! guardian was killed too.

use super::faults::start;
use super::saves::finish;
use super::{Bench, Kind, Test};
use crate::dom0::guest::Guest;
use crate::dom0::hypervisor::Domain;
use crate::dom0::livesave::{LIMIT, Report, exit};
use crate::dom0::process::{self, Finished};
use crate::dom0::spec::Spec;
use crate::dom0::{image, log_dirty, xl};
use anyhow::{Context, Result, bail};
use rustix::process::Signal;
use snapshot::guardian::{Caps, Entry, Journal, State, Stop};
use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};
use xen_sys::{DomainId, EnableError, Xen};

/// The command built with named points at which it dies.
pub(super) const FAULTY: &str = "/payload/livesave-faults";
/// Where the locks and journals are.
const JOURNALS: &str = "/run/livesave";
/// Killed by SIGKILL, as a shell shows it.
pub(super) const KILLED: i32 = 137;

/// The tests of this file.
#[must_use]
pub fn tests() -> Vec<Test> {
    use Kind::{Medium, Small};
    vec![
        Small.asked("guardian_cost_of_a_note", cost_of_a_note),
        Small.core("guardian_when_killed_at_each_point", killed_at_each_point),
        Small.in_turn("guardian_when_plain_save_is_killed", plain_killed),
        Small.in_turn("guardian_when_killed_at_any_instant", killed_at_any_instant),
        Medium.asked("guardian_when_guest_acked_and_is_late", killed_while_late),
        Medium.in_turn("guardian_when_save_hangs", hangs),
        Small.in_turn("guardian_killed_alone", guardian_killed),
        Small.core("recover_when_both_were_killed", both_killed),
        Small.in_turn("recover_spares_a_reused_domid", reused_domid),
        Small.in_turn("next_save_settles_what_was_left", next_save),
        Medium.core("save_notices_other_tools", other_tools),
        Small.in_turn("save_notices_another_livesave", another_livesave),
    ]
}

/// What the guardian adds to the pause window: two notes, and asking the hypervisor whether it
/// still tracks. Beside it what a note through a socket would cost, with its reader waiting.
fn cost_of_a_note(bench: &Bench) -> Result<String> {
    let path = Path::new("/run/cost-of-a-note");
    let file = fs::File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(path)?;
    let journal = Journal::new(file);
    journal.begin(&Entry {
        pid: 1,
        uuid: "0".repeat(36),
        partial: None,
        caps: Caps::default(),
        disks: String::new(),
    })?;
    let state = State {
        tracking: true,
        stop: Stop::Suspended,
        ..State::NONE
    };
    let note = median(|| Ok(journal.set(state)?))?;
    fs::remove_file(path)?;

    let (mut ours, mut theirs) = UnixStream::pair()?;
    let reader = thread::spawn(move || while matches!(theirs.read(&mut [0]), Ok(1)) {});
    let socket = median(|| Ok(ours.write_all(b"x")?))?;
    drop(ours);
    let _ = reader.join();

    let guest = bench.guest(Spec::small)?;
    let xen = Xen::open()?;
    let domain = DomainId::new(guest.domid).context("domain number out of range")?;
    xen.log_dirty_enable(domain)?;
    let asked = median(|| match xen.log_dirty_enable(domain) {
        Err(EnableError::AlreadyOnOrPassthrough(_)) => Ok(()),
        other => bail!("switched on twice: {other:?}"),
    })?;
    xen.log_dirty_disable(domain)?;
    Ok(format!(
        "medians: a note {note:?}, one through a socket {socket:?}, asking for tracking {asked:?}"
    ))
}

fn median(mut deed: impl FnMut() -> Result<()>) -> Result<Duration> {
    let mut took = Vec::new();
    for _ in 0..1000 {
        // Pauses, as in a save, so that a reader waits again.
        thread::sleep(Duration::from_micros(100));
        let began = Instant::now();
        deed()?;
        took.push(began.elapsed());
    }
    took.sort_unstable();
    Ok(took[500])
}

/// A save that dies at a point; it must have died there.
pub(super) fn die(bench: &Bench, guest: &Guest, fault: &str, more: &[&str]) -> Result<Finished> {
    let mut command = Command::new(FAULTY);
    command
        .args(["save", &guest.spec.name, "--json", "-o"])
        .arg(bench.image("x.xl"))
        .args(more)
        // A guest killed before its request was made is watched in vain.
        .env("LIVESAVE_WATCH_MS", "10000")
        .env("LIVESAVE_FAULT", fault);
    let finished = process::run(&mut command, LIMIT)?;
    if finished.code() != KILLED {
        bail!("it ended with {}: {}", finished.code(), finished.tail());
    }
    Ok(finished)
}

pub(super) fn recover(bench: &Bench) -> Result<Finished> {
    process::check(&mut bench.livesave.command(&["recover"]), LIMIT)
}

/// Waits until the guardian has done its work, and says how long that was.
pub(super) fn settled(guest: &Guest) -> Result<Duration> {
    let began = Instant::now();
    let path = Path::new(JOURNALS).join(guest.domid.to_string());
    let file = match fs::File::open(&path) {
        // It was killed before it had come that far.
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Duration::ZERO),
        opened => opened.with_context(|| format!("{}", path.display()))?,
    };
    while file.try_lock().is_err() {
        if began.elapsed() > Duration::from_secs(90) {
            bail!("the guardian has not ended after 90 s");
        }
        thread::sleep(Duration::from_millis(1));
    }
    let took = began.elapsed();
    let left = fs::read_to_string(&path)?;
    if !left.is_empty() {
        bail!("the guardian has ended and left {left:?}");
    }
    Ok(took)
}

/// What must hold after a kill.
pub(super) fn must_be_right(bench: &Bench, guest: &Guest) -> Result<()> {
    bench.must_hold_only(&bench.images, &[])?;
    bench.must_be_unharmed(guest)
}

/// Killed at each of the points; the guardian puts it right.
pub(super) fn at_points(
    bench: &Bench,
    guest: &Guest,
    points: &[&str],
    more: &[&str],
) -> Result<String> {
    let mut ended = Vec::new();
    for point in points {
        let one = || -> Result<String> {
            let finished = die(bench, guest, &format!("{point}:kill"), more)?;
            let took = settled(guest)?;
            must_be_right(bench, guest)?;
            let said = finished.stderr.lines().last().unwrap_or_default();
            let said = said.rsplit("; ").next().unwrap_or_default();
            Ok(format!("{point} {} ms ({said})", took.as_millis()))
        };
        ended.push(one().with_context(|| format!("killed at {point}"))?);
    }
    guest.verify_clean()?;
    Ok(ended.join(", "))
}

/// The points that a live save passes whose guest has no emulator, in their order.
pub(super) const POINTS: [&str; 14] = [
    "guarded",
    "arming",
    "armed",
    "round",
    "requesting",
    "requested",
    "suspended",
    "in-window",
    "fetched",
    "captured",
    "half-resumed",
    "resumed",
    "announced",
    "off",
];

fn killed_at_each_point(bench: &Bench) -> Result<String> {
    at_points(bench, &*bench.guest(Spec::small)?, &POINTS, &[])
}

/// A plain save of such a guest, killed at each point that needs a remedy.
pub(super) fn plain_killed_at_points(bench: &Bench, guest: &Guest) -> Result<String> {
    let points = [
        "requested",
        "suspended",
        "in-window",
        "captured",
        "half-resumed",
        "resumed",
    ];
    at_points(bench, guest, &points, &["--mode", "plain"])
}

fn plain_killed(bench: &Bench) -> Result<String> {
    plain_killed_at_points(bench, &*bench.guest(Spec::small)?)
}

/// Killed from outside. (`kills` does so hundreds of times with embedded guests.)
fn killed_at_any_instant(bench: &Bench) -> Result<String> {
    let guest = bench.guest(|spec| spec.small().rate("4000"))?;
    let faulty = bench.faulty();
    let mut outcomes = Vec::new();
    for (text, later_ms) in [
        ("", 30),
        ("Saving domain", 0),
        ("Saving domain", 200),
        ("round 0", 0),
        ("Suspending", 0),
        ("Suspending", 5),
        ("Suspending", 20),
        ("Suspending", 40),
        ("Suspending", 160),
        ("Paused for", 0),
    ] {
        let one = || -> Result<i32> {
            let path = bench.image("x.xl");
            let mut command = faulty.save_command(&guest.spec.name, &path, &[]);
            // Killed just before the request, the guest is watched in vain.
            let mut running = process::start(command.env("LIVESAVE_WATCH_MS", "10000"))?;
            if !text.is_empty() && !running.wait_for_stderr(text, LIMIT)? {
                bail!("it ended too early: {}", running.wait(LIMIT)?.tail());
            }
            thread::sleep(Duration::from_millis(later_ms));
            running.signal(Signal::KILL)?;
            let finished = running.wait(LIMIT)?;
            settled(&guest)?;
            // A save that had ended, or was about to, has left its image: a whole one then.
            if path.exists() {
                image::stock_verify(&path).context("an image under its name")?;
                fs::remove_file(&path)?;
            } else if finished.code() == 0 {
                bail!("it ended well and there is no image");
            }
            must_be_right(bench, &guest)?;
            Ok(finished.code())
        };
        let code = one().with_context(|| format!("killed {later_ms} ms after {text:?}"))?;
        outcomes.push(code.to_string());
    }
    guest.verify_clean()?;
    let next = finish(bench, guest, &[]).context("the next save")?;
    Ok(format!("{}; the next save: {next}", outcomes.join(" ")))
}

/// A guest that does not answer, and one that has acknowledged and may suspend at any time: that
/// one must be watched.
fn killed_while_late(bench: &Bench) -> Result<String> {
    let guest = bench.guest(Spec::medium)?;
    let mut notes = Vec::new();
    for (fault, remedy) in [
        // Far longer than the save takes to come to its request.
        ("hog 18", "the suspend request taken back"),
        (
            "nofreeze 15000",
            "the guest watched until it could not suspend",
        ),
    ] {
        guest.ask(fault)?;
        thread::sleep(Duration::from_millis(600));
        let mut running = bench
            .livesave
            .start(&guest.spec.name, &bench.image("x.xl"), &[])?;
        if !running.wait_for_stderr("Suspending", LIMIT)? {
            bail!("it ended too early: {}", running.wait(LIMIT)?.tail());
        }
        thread::sleep(Duration::from_millis(1500));
        running.signal(Signal::KILL)?;
        let took = settled(&guest)?;
        let finished = running.wait(LIMIT)?;
        if !finished.stderr.contains(remedy) {
            bail!("{fault}: {}", finished.tail());
        }
        if fault.starts_with("nofreeze") {
            guest.ask("unfreeze")?;
        }
        must_be_right(bench, &guest).with_context(|| fault.to_owned())?;
        notes.push(format!(
            "{fault}: {remedy} after {:.1} s",
            took.as_secs_f64()
        ));
    }
    Ok(notes.join(", "))
}

/// A save that stands still with the guest suspended is killed; one that runs long is not.
fn hangs(bench: &Bench) -> Result<String> {
    let guest = bench.guest(Spec::medium)?;
    let began = Instant::now();
    for mode in ["live", "plain"] {
        die(
            bench,
            &guest,
            "in-window:hang",
            &["--hang-limit", "2s", "--mode", mode],
        )?;
        settled(&guest)?;
        must_be_right(bench, &guest).with_context(|| format!("{mode} save"))?;
    }
    let took = began.elapsed();
    let path = bench.image("x.xl");
    let (report, _) = bench.livesave.save(
        &guest.spec.name,
        &path,
        &["--mode", "plain", "--hang-limit", "1s"],
    )?;
    fs::remove_file(&path)?;
    must_be_right(bench, &guest)?;
    Ok(format!(
        "two hanging saves killed within {:.1} s; a plain save of {:.1} s was not",
        took.as_secs_f64(),
        report.window.suspended_s
    ))
}

fn guardian_killed(bench: &Bench) -> Result<String> {
    let guest = bench.guest(Spec::small)?;
    let mut notes = Vec::new();
    for (point, warned) in [("guarded", true), ("armed", true), ("in-window", false)] {
        let path = bench.image("x.xl");
        let mut command = Command::new(FAULTY);
        command
            .args(["save", &guest.spec.name, "-o"])
            .arg(&path)
            .env("LIVESAVE_FAULT", format!("{point}:kill-guardian"));
        let finished = process::check(&mut command, LIMIT)?;
        if finished.stderr.contains("a new one runs") != warned {
            bail!("killed at {point}: {}", finished.tail());
        }
        fs::remove_file(&path).context("the image")?;
        must_be_right(bench, &guest).with_context(|| format!("killed at {point}"))?;
        notes.push(format!("{point}: saved, replaced {warned}"));
    }
    Ok(notes.join(", "))
}

fn both_killed(bench: &Bench) -> Result<String> {
    let guest = bench.guest(Spec::small)?;
    let points = [
        ("armed", false),
        ("requested", false),
        ("suspended", true),
        ("in-window", true),
        ("captured", true),
        ("half-resumed", false),
        ("resumed", false),
    ];
    both_at_points(bench, &guest, &points, &[])
}

/// Killed with its guardian at each of the points, at some of which the guest does not run then;
/// `livesave recover` puts it right.
pub(super) fn both_at_points(
    bench: &Bench,
    guest: &Guest,
    points: &[(&str, bool)],
    more: &[&str],
) -> Result<String> {
    let mut notes = Vec::new();
    for &(point, stands) in points {
        let one = || -> Result<String> {
            die(bench, guest, &format!("{point}:kill-both"), more)?;
            let listed = xl::list(&guest.spec.name)?.context("the guest is gone")?;
            if stands && listed.is_running() {
                bail!("the guest runs before the recovery, so that nothing is shown");
            }
            let did = recover(bench)?.stdout;
            must_be_right(bench, guest)?;
            let again = recover(bench)?.stdout;
            if !again.starts_with("nothing") {
                bail!("the second recovery did something: {again}");
            }
            bench.must_be_unharmed(guest)?;
            Ok(format!("{point}: {}", did.trim()))
        };
        notes.push(one().with_context(|| format!("killed at {point}"))?);
    }
    guest.verify_clean()?;
    Ok(notes.join("; "))
}

/// A domain that has got the number of the one that was saved is not touched.
fn reused_domid(bench: &Bench) -> Result<String> {
    let guest = bench.guest(Spec::small)?;
    let guest = guest.own();
    die(bench, &guest, "in-window:kill-both", &[])?;
    let journal = Path::new(JOURNALS).join(guest.domid.to_string());
    guest.destroy()?;
    // A number comes again after 32 thousand others only. So the note is given the number of the
    // new domain; what recovery finds is the same.
    let other = bench.guest(Spec::small)?;
    fs::rename(&journal, Path::new(JOURNALS).join(other.domid.to_string()))?;
    log_dirty::switch_on(other.domid)?;
    let did = recover(bench)?.stdout;
    log_dirty::must_be_on(other.domid).context("of the domain with the same number")?;
    bench.must_be_unharmed(&other)?;
    let again = recover(bench)?.stdout;
    if !again.starts_with("nothing") {
        bail!("the second recovery did something: {again}");
    }
    Ok(did.trim().to_owned())
}

fn next_save(bench: &Bench) -> Result<String> {
    let guest = bench.guest(Spec::small)?;
    for point in ["armed", "in-window"] {
        die(bench, &guest, &format!("{point}:kill-both"), &[])?;
        let path = bench.image("x.xl");
        bench
            .livesave
            .save(&guest.spec.name, &path, &[])
            .with_context(|| format!("the save after a kill at {point}"))?;
        fs::remove_file(&path)?;
        must_be_right(bench, &guest)?;
    }
    Ok(String::new())
}

/// Nobody corrupts anybody: beside a save by `xl` none is begun, and tracking that another tool
/// switched off fails the image.
fn other_tools(bench: &Bench) -> Result<String> {
    let guest = bench.guest(Spec::medium)?;
    let name = guest.spec.name.as_str();
    let stock = bench.image("stock.xl");
    let mut other = process::start(xl::command(&["save", "-c", name]).arg(&stock))?;
    Domain::of(guest.domid)?.wait_suspended(LIMIT)?;
    let refused = bench
        .livesave
        .must_fail(name, &bench.image("x.xl"), &[], exit::NOT_SAVABLE)?;
    if other.is_finished()? {
        bail!("xl save was over before ours: nothing is shown");
    }
    let finished = other.wait(LIMIT)?;
    if finished.code() != 0 {
        bail!("xl save was disturbed: {}", finished.tail());
    }
    fs::remove_file(&stock)?;
    must_be_right(bench, &guest)?;

    let mut running = bench.livesave.start(name, &bench.image("x.xl"), &[])?;
    if !running.wait_for_stderr("Saving domain", LIMIT)? {
        bail!("it ended too early: {}", running.wait(LIMIT)?.tail());
    }
    let other = process::check(xl::command(&["save", "-c", name]).arg(&stock), LIMIT);
    let given_up = running.wait(LIMIT)?;
    other.context("xl save in the middle of ours")?;
    if given_up.code() != exit::NOT_SAVABLE {
        bail!("xl save was not noticed: {}", given_up.tail());
    }
    image::stock_verify(&stock)?;
    fs::remove_file(&stock)?;
    must_be_right(bench, &guest)?;

    let mut running = start(bench, &guest, "write:stop:9", &[])?;
    running.wait_until_stopped(LIMIT)?;
    log_dirty::switch_off(guest.domid)?;
    running.signal(Signal::CONT)?;
    let finished = running.wait(LIMIT)?;
    if finished.code() != exit::NOT_SAVABLE {
        bail!("tracking was switched off: {}", finished.tail());
    }
    must_be_right(bench, &guest)?;
    let last = |finished: &Finished| {
        finished
            .stderr
            .lines()
            .last()
            .unwrap_or_default()
            .to_owned()
    };
    Ok([&refused, &given_up, &finished].map(last).join(" | "))
}

/// The second one says who holds the guest, or waits; the first does not notice.
fn another_livesave(bench: &Bench) -> Result<String> {
    let guest = bench.guest(Spec::small)?;
    let name = guest.spec.name.as_str();
    let mut first = start(bench, &guest, "round:stop", &[])?;
    first.wait_until_stopped(LIMIT)?;
    let second = bench.image("2.xl");
    let refused = bench
        .livesave
        .must_fail(name, &second, &[], exit::NOT_SAVABLE)?;
    if !refused.stderr.contains("(process ") {
        bail!("it does not say who: {}", refused.tail());
    }
    let waiting = bench.livesave.start(name, &second, &["--wait", "1m"])?;
    thread::sleep(Duration::from_millis(1000));
    first.signal(Signal::CONT)?;
    let first = first.wait(LIMIT)?;
    bench.livesave.note(&first)?;
    if first.code() != 0 {
        bail!("the first was disturbed: {}", first.tail());
    }
    let waited = waiting.wait(LIMIT)?;
    bench.livesave.note(&waited)?;
    if waited.code() != 0 {
        bail!("the one that waited: {}", waited.tail());
    }
    bench.must_hold_only(&bench.images, &["2.xl", "x.xl"])?;
    image::stock_verify(&bench.image("x.xl"))?;
    bench.must_be_unharmed(&guest)?;
    let report: Report = serde_json::from_str(&waited.stdout)?;
    Ok(format!(
        "{}; waited {:.1} s",
        refused.tail(),
        waited.took.as_secs_f64() - report.total_s
    ))
}
