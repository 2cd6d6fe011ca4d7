//! Saves that must fail: with the documented exit code, the guest unharmed, and
//! nothing left behind.

use super::faults::start;
use super::{Bench, Kind, Test};
use crate::dom0::guest::Guest;
use crate::dom0::livesave::{LIMIT, exit};
use crate::dom0::spec::Spec;
use crate::dom0::{log_dirty, process, xl};
use anyhow::{Context, Result, bail};
use rustix::process::Signal;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

/// The tests of this file.
#[must_use]
pub fn tests() -> Vec<Test> {
    use Kind::{Medium, Other, Small};
    vec![
        Other.core("fails_on_unknown_domain", unknown_domain),
        Small.in_turn("fails_on_domains_that_cannot_be_saved", not_savable),
        Small.core("fails_without_permission", no_permission),
        Small.in_turn("fails_outside_a_dom0", outside_dom0),
        Small.core("fails_without_target_directory", no_directory),
        Small.core("fails_on_small_tmpfs", small_tmpfs),
        Small.in_turn("fails_when_tmpfs_fills_up", tmpfs_fills_up),
        Small.core("fails_when_guest_never_acks", never_acks),
        Medium.in_turn("fails_when_guest_never_suspends", never_suspends),
        Small.in_turn("fails_when_guest_is_destroyed", destroyed),
        Small.in_turn("fails_when_guest_suspends_late", suspends_late),
    ]
}

fn unknown_domain(bench: &Bench) -> Result<String> {
    for name in ["no-such-guest", "31999", "99999999999", ""] {
        bench
            .livesave
            .must_fail(name, &bench.image("x.xl"), &[], exit::NOT_SAVABLE)
            .with_context(|| format!("domain {name:?}"))?;
    }
    bench.must_hold_only(&bench.images, &[])?;
    Ok(String::new())
}

fn not_savable(bench: &Bench) -> Result<String> {
    let path = bench.image("x.xl");
    let refuse = |name: &str, what: &str| -> Result<()> {
        bench
            .livesave
            .must_fail(name, &path, &[], exit::NOT_SAVABLE)
            .with_context(|| what.to_owned())?;
        bench.must_hold_only(&bench.images, &[])
    };
    refuse("0", "dom0")?;
    let guest = bench.guest(Spec::small)?;
    let name = guest.spec.name.as_str();
    xl::xl(&["pause", name])?;
    refuse(name, "paused guest")?;
    let listed = xl::list(name)?.context("the guest is gone")?;
    if !listed.state.contains('p') {
        bail!("the paused guest was let go on: {listed:?}");
    }
    xl::xl(&["unpause", name])?;
    bench.must_be_unharmed(&guest)?;
    let guest = guest.own();
    guest.console.send(guest.domid, "crash")?;
    for _ in 0..200 {
        if xl::list(&guest.spec.name)?.is_some_and(|l| l.state.contains('c')) {
            refuse(&guest.spec.name, "crashed guest")?;
            return Ok(String::new());
        }
        thread::sleep(Duration::from_millis(100));
    }
    bail!("the guest did not crash");
}

fn no_permission(bench: &Bench) -> Result<String> {
    let guest = bench.guest(Spec::small)?;
    let dir = bench.image("anybody");
    fs::create_dir(&dir)?;
    std::os::unix::fs::chown(&dir, Some(65534), Some(65534))?;
    let mut command = bench
        .livesave
        .save_command(&guest.spec.name, &dir.join("x.xl"), &[]);
    let running = process::start(command.uid(65534).gid(65534))?;
    bench.livesave.failed(running, exit::NO_XEN)?;
    bench.must_hold_only(&dir, &[])?;
    bench.must_be_unharmed(&guest)?;
    Ok(String::new())
}

/// A machine without Xen, and one without Xen's libraries, made of this one by
/// hiding them in a mount namespace of its own.
fn outside_dom0(bench: &Bench) -> Result<String> {
    let guest = bench.guest(Spec::small)?;
    let cases = [
        (
            "no Xen",
            "mount -t tmpfs none /dev/xen && mount -t tmpfs none /proc/xen",
        ),
        (
            "no library",
            "for library in /usr/lib/x86_64-linux-gnu/libxenctrl.so.4.*; do \
             mount --bind /dev/null \"$library\" || exit; done",
        ),
    ];
    for (what, hide) in cases {
        let script = format!("{hide} && exec \"$0\" \"$@\"");
        let save = bench
            .livesave
            .save_command(&guest.spec.name, &bench.image("x.xl"), &[]);
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", &script]);
        command.arg(save.get_program()).args(save.get_args());
        bench
            .livesave
            .failed(process::start(&mut command)?, exit::NO_XEN)
            .with_context(|| what.to_owned())?;
        bench.must_hold_only(&bench.images, &[])?;
        bench.must_be_unharmed(&guest)?;
    }
    Ok(String::new())
}

fn no_directory(bench: &Bench) -> Result<String> {
    let guest = bench.guest(Spec::small)?;
    let name = guest.spec.name.as_str();
    let refuse = |path: &Path, what: &str| -> Result<()> {
        bench
            .livesave
            .must_fail(name, path, &[], exit::NOT_WRITTEN)
            .with_context(|| what.to_owned())?;
        bench.must_be_unharmed(&guest)
    };
    refuse(&bench.image("missing/x.xl"), "missing directory")?;
    let file = bench.image("file");
    fs::write(&file, "precious")?;
    refuse(&file.join("x.xl"), "a file for a directory")?;
    refuse(&file, "an existing file")?;
    if fs::read_to_string(&file)? != "precious" {
        bail!("an existing file was overwritten");
    }
    let open = bench.image("open");
    fs::create_dir(&open)?;
    fs::set_permissions(&open, fs::Permissions::from_mode(0o777))?;
    refuse(&open.join("x.xl"), "a directory where anybody may rename")?;
    bench.must_hold_only(&open, &[])?;
    Ok(String::new())
}

/// A tmpfs of its own; unmounted when dropped.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(path: &Path, mib: u64) -> Result<Self> {
        fs::create_dir_all(path)?;
        let options = format!("size={mib}m,mode=0755");
        process::check(
            Command::new("mount")
                .args(["-t", "tmpfs", "-o", &options, "tmpfs"])
                .arg(path),
            Duration::from_secs(30),
        )?;
        Ok(Self(path.to_owned()))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let mut unmount = Command::new("umount");
        unmount.arg(&self.0);
        let _ = process::run(&mut unmount, Duration::from_secs(30));
    }
}

fn small_tmpfs(bench: &Bench) -> Result<String> {
    let guest = bench.guest(Spec::small)?;
    let mut notes = Vec::new();
    // An image of this guest needs 60 MiB or more.
    for mib in [1, 40] {
        let disk = SmallDisk::mount(&bench.image("small"), mib)?;
        let finished = bench
            .livesave
            .must_fail(
                &guest.spec.name,
                &disk.0.join("x.xl"),
                &[],
                exit::NOT_WRITTEN,
            )
            .with_context(|| format!("tmpfs of {mib} MiB"))?;
        bench.must_hold_only(&disk.0, &[])?;
        bench.must_be_unharmed(&guest)?;
        notes.push(format!("{mib} MiB: {:.1} s", finished.took.as_secs_f64()));
    }
    Ok(notes.join(", "))
}

/// There is room at the start, and in the middle of round 0 there is none.
fn tmpfs_fills_up(bench: &Bench) -> Result<String> {
    let guest = bench.guest(Spec::small)?;
    let disk = SmallDisk::mount(&bench.image("small"), 200)?;
    let faulty = bench.faulty();
    let mut command = faulty.save_command(&guest.spec.name, &disk.0.join("x.xl"), &[]);
    let mut running = process::start(command.env("LIVESAVE_FAULT", "write:stop:6"))?;
    running.wait_until_stopped(LIMIT)?;
    // The writer of this file is told that the disk is full as well.
    let zeros = vec![0; 1 << 20];
    let mut filler = fs::File::create(disk.0.join("filler"))?;
    while std::io::Write::write_all(&mut filler, &zeros).is_ok() {}
    running.signal(Signal::CONT)?;
    let finished = bench.livesave.failed(running, exit::NOT_WRITTEN)?;
    bench.must_hold_only(&disk.0, &["filler"])?;
    bench.must_be_unharmed(&guest)?;
    Ok(format!("after {:.1} s", finished.took.as_secs_f64()))
}

fn never_acks(bench: &Bench) -> Result<String> {
    let guest = bench.guest(Spec::small)?;
    guest.ask("hog 14")?;
    thread::sleep(Duration::from_millis(600));
    let mark = guest.console.mark()?;
    let image = bench.image("x.xl");
    let finished = bench.livesave.must_fail(
        &guest.spec.name,
        &image,
        &["--timeout", "3s"],
        exit::NOT_SUSPENDED,
    )?;
    bench.must_hold_only(&bench.images, &[])?;
    log_dirty::must_be_off(guest.domid)?;
    let hog_over = guest.console.lines_since(mark)?;
    if hog_over.iter().any(|line| line.kind == "hog") {
        bail!("the guest was free again before livesave gave up: nothing is proved");
    }
    guest
        .console
        .wait_for(mark, Duration::from_secs(120), "end of the hog", |line| {
            line.kind == "hog" && line.get("state") == Some("end")
        })?;
    // It sees no request now, and does not suspend late.
    bench.must_be_unharmed(&guest)?;
    works_again(bench, &guest)?;
    Ok(format!(
        "gave up after {:.1} s",
        finished.took.as_secs_f64()
    ))
}

fn never_suspends(bench: &Bench) -> Result<String> {
    let guest = bench.guest(Spec::medium)?;
    let mut notes = Vec::new();
    // With a shorter watch than the 60 s that users have: guardian_when_guest_acked_and_is_late
    // waits for these.
    let hasty = bench.faulty();
    // The guest gives up by itself before livesave does, and after it.
    for (guest_ms, timeout) in [(1500, "3s"), (4500, "2s")] {
        guest.ask(&format!("nofreeze {guest_ms}"))?;
        let more = ["--timeout", timeout];
        let mut command = hasty.save_command(&guest.spec.name, &bench.image("x.xl"), &more);
        let running = process::start(command.env("LIVESAVE_WATCH_MS", "5000"))?;
        let finished = hasty
            .failed(running, exit::NOT_SUSPENDED)
            .with_context(|| format!("guest {guest_ms} ms, livesave {timeout}"))?;
        bench.must_hold_only(&bench.images, &[])?;
        bench.must_be_unharmed(&guest)?;
        guest.ask("unfreeze")?;
        notes.push(format!(
            "gave up after {:.1} s",
            finished.took.as_secs_f64()
        ));
    }
    works_again(bench, &guest)?;
    Ok(notes.join(", "))
}

/// The guest suspends, but after livesave has lost patience: it must not stay
/// suspended. The time limits meet it before, at and after its answer.
fn suspends_late(bench: &Bench) -> Result<String> {
    let guest = bench.guest(Spec::small)?;
    let (mut late, mut resumed) = (0, 0);
    let limits = ["1ms", "10ms", "30ms", "60ms", "100ms", "150ms", "250ms"];
    for limit in limits {
        let image = bench.image("x.xl");
        let running = bench
            .livesave
            .start(&guest.spec.name, &image, &["--timeout", limit])?;
        let finished = running.wait(LIMIT)?;
        bench.livesave.note(&finished)?;
        match finished.code() {
            0 => fs::remove_file(&image)?,
            exit::NOT_SUSPENDED => {
                late += 1;
                resumed += u32::from(finished.stderr.contains("was resumed"));
            }
            code => bail!("--timeout {limit}: exit code {code}: {}", finished.tail()),
        }
        bench.must_hold_only(&bench.images, &[])?;
        bench
            .must_be_unharmed(&guest)
            .with_context(|| format!("--timeout {limit}"))?;
    }
    if late == 0 {
        bail!("the guest suspended within a millisecond each time: nothing is proved");
    }
    works_again(bench, &guest)?;
    Ok(format!(
        "{late} of {} were too late, {resumed} suspended all the same and were resumed",
        limits.len()
    ))
}

fn destroyed(bench: &Bench) -> Result<String> {
    // In the middle of round 0, and while the guest is asked to suspend.
    for hog in [false, true] {
        let guest = bench.guest(Spec::small)?.own();
        let running = if hog {
            guest.ask("hog 60")?;
            thread::sleep(Duration::from_millis(600));
            let mut running = start(bench, &guest, "", &[])?;
            if !running.wait_for_stderr("Suspending", LIMIT)? {
                bail!("it ended too early: {}", running.wait(LIMIT)?.tail());
            }
            thread::sleep(Duration::from_millis(300));
            guest.destroy()?;
            running
        } else {
            let mut running = start(bench, &guest, "write:stop:6", &[])?;
            running.wait_until_stopped(LIMIT)?;
            guest.destroy()?;
            running.signal(Signal::CONT)?;
            running
        };
        bench
            .livesave
            .failed(running, exit::GONE)
            .with_context(|| format!("asked to suspend: {hog}"))?;
        bench.must_hold_only(&bench.images, &[])?;
        if xl::list(&guest.spec.name)?.is_some() {
            bail!("a destroyed guest is still there: something holds its memory");
        }
    }
    Ok(String::new())
}

/// After a failed save the next one succeeds.
pub(super) fn works_again(bench: &Bench, guest: &Guest) -> Result<()> {
    let image = bench.image("again.xl");
    bench
        .livesave
        .save(&guest.spec.name, &image, &[])
        .context("the next save")?;
    bench.must_be_unharmed(guest)?;
    guest.verify_clean()?;
    Ok(())
}
