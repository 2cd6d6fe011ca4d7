//! `livesave restore` and `livesave clone`: guests come back as they were at the cut, and where
//! that cannot be, nothing is created.

use super::saves::{goes_on_from_the_cut, save};
use super::{Bench, Kind, Test};
use crate::dom0::console::Console;
use crate::dom0::guest::Guest;
use crate::dom0::harm::Harm;
use crate::dom0::livesave::{LIMIT, Report, exit};
use crate::dom0::process::{self, Finished, Running};
use crate::dom0::spec::Spec;
use crate::dom0::xl;
use anyhow::{Context, Result, bail};
use rustix::process::Signal;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

/// The name in the user's own configuration file.
const INTERRUPTED: &str = "interrupted";

/// The tests of this file.
#[must_use]
pub fn tests() -> Vec<Test> {
    vec![
        Kind::Medium.core("restore_brings_a_guest_back", brings_back),
        Kind::Other.in_turn("clone_beside_the_original", clone_beside),
    ]
}

/// Saved under load; refused while the original runs, and where the file is damaged; interrupted
/// once; then restored, paused first, with every page right.
fn brings_back(bench: &Bench) -> Result<String> {
    let mut guest = bench.guest(Spec::medium)?;
    let path = bench.image("image.xl");
    let before = guest.verify_clean().context("before the save")?.seq;
    bench.livesave.save(&guest.spec.name, &path, &[])?;
    let after = guest
        .verify_clean()
        .context("the source after its save")?
        .seq;
    let said = refused(bench, &path, exit::NOT_RESTORABLE)?;
    if !said.stderr.contains("--name") {
        bail!("the way out is not told: {}", said.tail());
    }
    bench.must_be_unharmed(&guest)?;
    guest.destroy()?;
    damaged(bench, &path)?;
    interrupted(bench, &path, &guest.spec.name)?;
    let mark = guest.console.mark()?;
    let restored = finish(bench, restore(bench, &path, &["--paused"])?, 0)?;
    guest.find_again()?;
    let listed = xl::list(&guest.spec.name)?.context("it is gone")?;
    if !listed.state.contains('p') || !guest.console.lines_since(mark)?.is_empty() {
        bail!("it is not paused: {listed:?}");
    }
    xl::xl(&["unpause", &guest.spec.name])?;
    goes_on_from_the_cut(&guest, mark, before, after)?;
    Ok(format!("restored in {:.1} s", restored.took.as_secs_f64()))
}

/// A guest of that kind, saved and restored by livesave, is unharmed and goes on from the cut.
pub(super) fn by_livesave(bench: &Bench, change: fn(Spec) -> Spec) -> Result<String> {
    let mut guest = bench.guest(change)?;
    let path = bench.image("image.xl");
    let before = guest.verify_clean().context("before the save")?.seq;
    save(bench, &guest, &path, &[])?;
    let after = guest.verify_clean().context("the source")?.seq;
    guest.destroy()?;
    let mark = guest.console.mark()?;
    let restored = finish(bench, restore(bench, &path, &[])?, 0)?;
    guest.find_again()?;
    goes_on_from_the_cut(&guest, mark, before, after)?;
    bench.must_be_unharmed(&guest)?;
    Ok(format!("restored in {:.1} s", restored.took.as_secs_f64()))
}

pub(super) fn restore(bench: &Bench, image: &Path, more: &[&str]) -> Result<Running> {
    let mut command = bench.livesave.command(&["restore"]);
    process::start(command.arg(image).args(more))
}

pub(super) fn finish(bench: &Bench, running: Running, code: i32) -> Result<Finished> {
    let finished = running.wait(LIMIT)?;
    bench.livesave.note(&finished)?;
    if finished.code() != code {
        bail!(
            "exit code {}, not {code}: {}",
            finished.code(),
            finished.tail()
        );
    }
    Ok(finished)
}

/// A restore that must be refused with that code, and create nothing.
fn refused(bench: &Bench, image: &Path, code: i32) -> Result<Finished> {
    let count = domains()?;
    let finished = bench.livesave.failed(restore(bench, image, &[])?, code)?;
    if domains()? != count {
        return Err(Harm.because(format!(
            "a refused restore left: {}",
            xl::xl(&["list"])?.stdout
        )));
    }
    Ok(finished)
}

/// Numbers of all domains.
fn domains() -> Result<Vec<String>> {
    let listing = xl::xl(&["vm-list"])?;
    let number = |line: &str| line.split_whitespace().nth(1).map(str::to_owned);
    Ok(listing.stdout.lines().skip(1).filter_map(number).collect())
}

/// The image with its end cut off and with the length of its first page record changed is refused;
/// afterwards it is as it was.
fn damaged(bench: &Bench, path: &Path) -> Result<()> {
    let file = File::options().read(true).write(true).open(path)?;
    let length = file.metadata()?.len();
    // Deep in the memory's end, far more than the trailer.
    let cut = length - (1 << 20);
    let mut end = vec![0; 1 << 20];
    file.read_exact_at(&mut end, cut)?;
    file.set_len(cut)?;
    let said = refused(bench, path, exit::BAD_IMAGE).context("cut off")?;
    if !said.stderr.contains("at byte") {
        bail!("the place is not told: {}", said.tail());
    }
    file.write_all_at(&end, cut)?;
    // The memory starts at a multiple of a page, with a page record of three pages.
    let mut page = [0; 16];
    let at = (4096..1 << 20)
        .step_by(4096)
        .find(|&at| {
            file.read_exact_at(&mut page, at).is_ok()
                && page[..4] == [1, 0, 0, 0]
                && page[8..] == [0xfe, 5, 0, 0, 0, 0, 0, 0]
        })
        .context("the image has no page record")?;
    file.write_all_at(&[page[4] ^ 1], at + 4)?;
    refused(bench, path, exit::BAD_IMAGE).context("a record's length")?;
    file.write_all_at(&page[4..5], at + 4)?;
    Ok(())
}

/// A restore, this one with a configuration of the user's own, that is ended in its midst leaves no
/// domain.
fn interrupted(bench: &Bench, path: &Path, name: &str) -> Result<()> {
    let config = bench.results.join("own.cfg");
    let original = std::fs::read_to_string(bench.results.join(format!("{name}.cfg")))?;
    let quoted = |name| format!("\"{name}\"");
    std::fs::write(
        &config,
        original.replace(&quoted(name), &quoted(INTERRUPTED)),
    )?;
    let config = config.to_str().context("a path")?;
    let name = INTERRUPTED;
    let running = restore(bench, path, &["--config", config])?;
    let deadline = std::time::Instant::now() + Duration::from_secs(60);
    while xl::list(name)?.is_none() {
        if std::time::Instant::now() > deadline {
            bail!("no domain was begun");
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    running.signal(Signal::INT)?;
    let said = finish(bench, running, 130)?;
    if let Some(left) = xl::list(name)? {
        return Err(Harm.because(format!("an interrupted restore left {left:?}")));
    }
    if !said.stderr.contains("no domain was left") && !said.stderr.contains("was destroyed") {
        bail!("what is left is not told: {}", said.tail());
    }
    Ok(())
}

/// What `livesave clone --json` prints.
#[derive(serde::Deserialize)]
struct Cloned {
    save: Report,
    restored: Second,
}

#[derive(serde::Deserialize)]
struct Second {
    domid: u32,
    name: String,
    uuid: String,
}

/// The original goes on unharmed while a second guest, who is somebody else, goes on from the cut.
fn clone_beside(bench: &Bench) -> Result<String> {
    let guest = bench.guest(|mut spec| {
        spec.net = true;
        // The two share a CPU with each other.
        spec.medium().rate("500")
    })?;
    let name = format!("{}-2", guest.spec.name);
    let tmp = bench.images.to_str().context("a path")?;
    let args = [
        "clone",
        &guest.spec.name,
        "--tmp-dir",
        tmp,
        "--json",
        "--name",
    ];
    let taken = process::start(
        &mut bench
            .livesave
            .command(&[&args[..], &[&guest.spec.name]].concat()),
    )?;
    finish(bench, taken, exit::NOT_RESTORABLE).context("its own name")?;
    let before = guest.verify_clean().context("before the save")?.seq;
    guest.take_gap()?;
    let console = Console::of(&name);
    let mark = console.mark()?;
    let running = process::start(&mut bench.livesave.command(&[&args[..], &[&name]].concat()))?;
    let finished = finish(bench, running, 0)?;
    let gap = guest.take_gap()?;
    let cloned: Cloned = serde_json::from_str(&finished.stdout)
        .with_context(|| format!("not as documented: {}", finished.stdout))?;
    let mut spec = guest.spec.clone();
    spec.name.clone_from(&name);
    // Nothing that goes on the network: the two have one IP address.
    spec.net = false;
    let second = Guest::known(spec, cloned.restored.domid, console);
    bench.must_be_unharmed(&guest).context("the original")?;
    let after = guest.verify_clean().context("the original after it")?.seq;
    goes_on_from_the_cut(&second, mark, before, after).context("the second")?;
    bench.must_hold_only(&bench.images, &[])?;
    if cloned.restored.name != name {
        bail!("it is called {}", cloned.restored.name);
    }
    for what in ["uuid", "mac"] {
        let (first, second) = (identity(guest.domid, what)?, identity(second.domid, what)?);
        if first == second || second.is_empty() {
            return Err(Harm.because(format!("both have the {what} {first}")));
        }
    }
    if !identity(second.domid, "uuid")?.contains(&cloned.restored.uuid) {
        bail!("the uuid is not {}", cloned.restored.uuid);
    }
    Ok(format!(
        "gap {:.3} s, window {:.3} s, {:.1} s in all",
        gap.as_secs_f64(),
        cloned.save.window.total_s,
        finished.took.as_secs_f64()
    ))
}

/// A domain's UUID or MAC address, by xenstore.
fn identity(domid: u32, what: &str) -> Result<String> {
    let node = if what == "uuid" {
        "vm"
    } else {
        "device/vif/0/mac"
    };
    xl::xenstore_read(&format!("/local/domain/{domid}/{node}"))
}
