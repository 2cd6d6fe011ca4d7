//! Saves that are killed: the guardian puts the guest right, and `livesave recover` does where the
//! guardian was killed too.

// The tests of guests of other types take these from here.
pub(super) use super::dying::{
    POINTS, at_points, both_at_points, must_be_right, plain_killed_at_points, recover, settled,
};

use super::dying::{FAULTY, JOURNALS, die};
use super::saves::finish;
use super::{Bench, Kind, Test};
use crate::dom0::livesave::LIMIT;
use crate::dom0::process;
use crate::dom0::spec::Spec;
use crate::dom0::{image, log_dirty};
use anyhow::{Context, Result, bail};
use rustix::process::Signal;
use snapshot::guardian::{Caps, Entry, Journal, State, Stop};
use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};
use xen_sys::{DomainId, EnableError, Xen};

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

fn killed_at_each_point(bench: &Bench) -> Result<String> {
    at_points(bench, &*bench.guest(Spec::small)?, &POINTS, &[])
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
