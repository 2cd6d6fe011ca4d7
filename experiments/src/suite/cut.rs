//! Disks and memory of one instant: a guest that writes self-checking records is saved under load, and
//! what comes back finds every record where its memory says it must be.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use snapshot::disks::Kept;

use super::records::{make_ext4, must_be_clean_ext4};
use super::{Bench, Kind, Test};
use crate::dom0::console::Console;
use crate::dom0::guest::Guest;
use crate::dom0::harm::Harm;
use crate::dom0::livesave::{LIMIT, Report};
use crate::dom0::lvm::{self, Group};
use crate::dom0::process;
use crate::dom0::spec::Spec;

const BEAT: Duration = Duration::from_secs(60);

/// The tests of this file.
#[must_use]
pub fn tests() -> Vec<Test> {
    vec![
        Kind::Other.core("disks_at_the_cut_mixed", |bench| {
            at_the_cut(bench, Disks::Mixed, 1, |spec| spec)
        }),
        Kind::Other.in_turn("disks_at_the_cut_thin", |bench| {
            at_the_cut(bench, Disks::Thin, 2, |spec| spec)
        }),
        Kind::Other.in_turn("disks_at_the_cut_thick", |bench| {
            at_the_cut(bench, Disks::Thick, 2, |spec| spec)
        }),
        Kind::Other.asked("disks_20_cuts_mixed", |bench| {
            at_the_cut(bench, Disks::Mixed, 20, |spec| spec)
        }),
        Kind::Other.asked("disks_20_cuts_thin", |bench| {
            at_the_cut(bench, Disks::Thin, 20, |spec| spec)
        }),
        Kind::Other.asked("disks_20_cuts_thick", |bench| {
            at_the_cut(bench, Disks::Thick, 20, |spec| spec)
        }),
        Kind::Other.in_turn("disks_after_the_cut_are_noticed", after_the_cut),
    ]
}

/// On what the guest's disks are.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Disks {
    /// A thin volume with a file system.
    Thin,
    /// A thick volume with a file system.
    Thick,
    /// A raw thin volume, and a thick one with a file system in another group.
    Mixed,
}

/// A guest with records on its disks.
pub(super) struct Scene {
    pub guest: Guest,
    // Dropped after the guest.
    pub groups: Vec<Group>,
}

impl Scene {
    pub fn new(bench: &Bench, disks: Disks, change: fn(Spec) -> Spec) -> Result<Self> {
        let mut groups = vec![];
        let (mut raw, mut files) = (None, None);
        if disks != Disks::Thick {
            let group = Group::create("lsthin", &bench.image("thin.img"), 320)?.pool(240)?;
            if disks == Disks::Thin {
                files = Some(group.thin("files", 64)?);
            } else {
                raw = Some(group.thin("raw", 32)?);
            }
            groups.push(group);
        }
        if disks != Disks::Thin {
            let group = Group::create("lsthick", &bench.image("thick.img"), 320)?;
            files = Some(group.thick("files", 64)?);
            groups.push(group);
        }
        let files = files.context("a disk for files")?;
        make_ext4(&files)?;
        let spec = |spec: Spec| {
            // Beside it runs what is restored; the two share a CPU.
            let spec = change(spec.medium()).rate("500").with("record_rate=max");
            let raw: Vec<(&str, &Path)> = raw.iter().map(|path| ("xvda", path.as_path())).collect();
            spec.records(&raw, &[("xvdb", &files)])
        };
        let guest = bench.guest(spec)?.own();
        Ok(Self { guest, groups })
    }

    /// All volumes are those that the guest was given.
    pub fn must_have_no_other_volumes(&self) -> Result<()> {
        for group in &self.groups {
            let mut wanted = vec!["pool", "raw", "files"];
            wanted.retain(|name| group.volume(name).is_ok());
            group.must_hold_only(&wanted)?;
        }
        Ok(())
    }
}

/// What `livesave restore --json` prints.
#[derive(Deserialize)]
pub(super) struct Restored {
    domid: u32,
    pub disks: Vec<RestoredDisk>,
}

#[derive(Deserialize)]
pub(super) struct RestoredDisk {
    pub vdev: String,
    pub path: PathBuf,
}

pub(super) fn at_the_cut(
    bench: &Bench,
    disks: Disks,
    saves: usize,
    change: fn(Spec) -> Spec,
) -> Result<String> {
    let scene = Scene::new(bench, disks, change)?;
    let guest = &scene.guest;
    let (mut records, mut stalls) = (0, vec![]);
    for number in 0..saves {
        let context = || format!("save {number}");
        moves_on(guest, 40).with_context(context)?;
        let path = bench.image("image.xl");
        let (report, _) = bench
            .livesave
            .save(&guest.spec.name, &path, &[])
            .with_context(context)?;
        stalls.push(report.disks.as_ref().map_or(0.0, |disks| disks.stall_s));
        let before = guest
            .ask("ping")
            .and_then(|_| guest.next_beat(BEAT))
            .with_context(context)?;
        let (second, restored) = restore(bench, guest, &path, &[]).with_context(context)?;
        let looked = second.records_clean().with_context(context)?;
        ensure!(
            before
                .number("rec")
                .is_some_and(|now| looked.acked <= now + 40),
            "{}: {looked:?}, the source at {before}",
            context()
        );
        // Its devices work on.
        moves_on(&second, 10).with_context(context)?;
        second.records_clean().with_context(context)?;
        second.verify_clean().with_context(context)?;
        second.destroy()?;
        remove_new(bench, &restored).with_context(context)?;
        remove(&report).with_context(context)?;
        records = guest.records_clean().with_context(context)?.acked;
        bench.must_be_unharmed(guest).with_context(context)?;
    }
    scene.must_have_no_other_volumes()?;
    guest.destroy()?;
    stalls.sort_by(f64::total_cmp);
    Ok(format!(
        "{saves} saves, {records} records; I/O waited for \
         {:.0} to {:.0} ms",
        stalls[0] * 1e3,
        stalls[stalls.len() - 1] * 1e3
    ))
}

/// The new volumes of a guest that has ended go; the file systems on them must be clean.
pub(super) fn remove_new(bench: &Bench, restored: &Restored) -> Result<()> {
    for disk in &restored.disks {
        if disk.vdev == "xvdb" {
            must_be_clean_ext4(&disk.path, &bench.results.join("mounted"))?;
        }
        lvm::remove(&disk.path.display().to_string())?;
    }
    Ok(())
}

/// So many records more.
pub(super) fn moves_on(guest: &Guest, records: u64) -> Result<()> {
    let first = guest.next_beat(BEAT)?.number("rec").context("no records")?;
    for _ in 0..600 {
        let beat = guest.next_beat(BEAT)?;
        if beat.number("rec").is_some_and(|now| now >= first + records) {
            let bad = ["rec_bad", "rec_err"].map(|key| beat.number(key));
            ensure!(bad == [Some(0); 2], "{beat}");
            return Ok(());
        }
    }
    Err(Harm.because("the guest's records stand still".into()))
}

/// A second guest from the image, on new volumes unless it is told others.
pub(super) fn restore(
    bench: &Bench,
    guest: &Guest,
    image: &Path,
    more: &[&str],
) -> Result<(Guest, Restored)> {
    let name = format!("{}-2", guest.spec.name);
    let restored = restored(bench, image, &[&["--name", &name], more].concat())?;
    let mut spec = guest.spec.clone();
    spec.name.clone_from(&name);
    let second = Guest::known(spec, restored.domid, Console::of(&name));
    Ok((second, restored))
}

/// What `livesave restore` says of a guest that it has brought back.
pub(super) fn restored(bench: &Bench, image: &Path, more: &[&str]) -> Result<Restored> {
    let mut command = bench.livesave.command(&["restore", "--json"]);
    let finished = process::run(command.arg(image).args(more), LIMIT)?;
    bench.livesave.note(&finished)?;
    ensure!(finished.status.success(), "{}", finished.tail());
    serde_json::from_str(&finished.stdout)
        .with_context(|| format!("not as documented: {}", finished.stdout))
}

/// The image goes, and its snapshots with it.
pub(super) fn remove(report: &Report) -> Result<()> {
    let facts = report.disks.as_ref().context("no facts of the disks")?;
    for disk in &facts.disks {
        if let Kept::Snapshot(snapshot) = &disk.kept {
            lvm::remove(&format!("{}/{}", snapshot.vg, snapshot.name))?;
        }
    }
    Ok(std::fs::remove_file(&report.image)?)
}

/// The check is worth something: a guest on disks that are later than its memory finds it out.
fn after_the_cut(bench: &Bench) -> Result<String> {
    let scene = Scene::new(bench, Disks::Thin, |spec| spec)?;
    let guest = &scene.guest;
    moves_on(guest, 40)?;
    let path = bench.image("image.xl");
    let memory_only = ["--disks", "memory-only"];
    bench.livesave.save(&guest.spec.name, &path, &memory_only)?;
    // As if the snapshot had been made when the guest ran again.
    moves_on(guest, 5)?;
    let group = scene.groups.first().context("a group")?;
    lvm::lvm(&[
        "lvcreate",
        "-q",
        "-s",
        "-kn",
        "-n",
        "late",
        &format!("{}/files", group.name),
    ])?;
    lvm::lvm(&[
        "lvchange",
        "-q",
        "-ay",
        "-K",
        &format!("{}/late", group.name),
    ])?;
    let late = group.path("late");
    let config = bench.results.join("late.cfg");
    let original = std::fs::read_to_string(bench.results.join(format!("{}.cfg", guest.spec.name)))?;
    let files = group.path("files").display().to_string();
    std::fs::write(
        &config,
        original.replace(&files, &late.display().to_string()),
    )?;
    let config = config.to_str().context("a path")?;
    let (second, _) = restore(bench, guest, &path, &["--config", config])?;
    let looked = second.records()?;
    second.destroy()?;
    guest.destroy()?;
    ensure!(
        looked.bad > 0,
        "disks of after the cut went unnoticed: {looked:?}"
    );
    Ok(format!("{} of {} are wrong", looked.bad, looked.slots))
}
