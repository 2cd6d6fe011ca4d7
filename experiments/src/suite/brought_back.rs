//! Disks that come back otherwise than as new volumes made from snapshots: the guest's own, put back
//! to the cut, and copies. As in [`super::cut`] the guest's records tell whether they are of the
//! memory's instant.

use anyhow::{Context, Result, ensure};

use super::cut::{Disks, Scene, moves_on, remove, remove_new, restore, restored};
use super::{Bench, Kind, Test};
use crate::dom0::livesave::{LIMIT, exit};
use crate::dom0::process;

/// The tests of this file.
#[must_use]
pub fn tests() -> Vec<Test> {
    vec![
        Kind::Other.in_turn("disks_rolled_back", rolled_back),
        Kind::Other.in_turn("disks_from_copies", from_copies),
    ]
}

/// The guest ends, and goes on from the cut on its own volumes, a thin and a thick one in two groups.
fn rolled_back(bench: &Bench) -> Result<String> {
    let mut scene = Scene::new(bench, Disks::Mixed, |spec| spec)?;
    moves_on(&scene.guest, 40)?;
    let path = bench.image("image.xl");
    bench.livesave.save(&scene.guest.spec.name, &path, &[])?;
    moves_on(&scene.guest, 40)?;
    let later = scene.guest.records_clean()?.acked;

    // Not under a guest that runs.
    let rollback = ["--disks", "rollback"];
    let mut command = bench.livesave.command(&["restore"]);
    let refused = process::run(command.arg(&path).args(rollback), LIMIT)?;
    bench.livesave.note(&refused)?;
    ensure!(
        refused.code() == exit::NOT_RESTORABLE,
        "exit code {}: {}",
        refused.code(),
        refused.tail()
    );
    moves_on(&scene.guest, 10).context("after a refused rollback")?;

    scene.guest.destroy()?;
    let back = restored(bench, &path, &rollback)?;
    scene.guest.find_again()?;
    let guest = &scene.guest;
    let looked = guest.records_clean().context("rolled back")?;
    ensure!(
        looked.acked < later,
        "it did not go back: {looked:?}, {later} before"
    );
    for disk in &back.disks {
        let volume = disk.path.display().to_string();
        ensure!(
            volume.ends_with("/raw") || volume.ends_with("/files"),
            "{volume} is not the guest's own"
        );
    }
    moves_on(guest, 20).context("rolled back")?;
    guest.records_clean().context("rolled back")?;
    guest.verify_clean().context("rolled back")?;

    // LVM merges the thick volume's snapshot meanwhile; the next save is as the first.
    let next = bench.image("next.xl");
    let (next, _) = bench
        .livesave
        .save(&guest.spec.name, &next, &[])
        .context("the next save")?;
    let (second, new) = restore(bench, guest, &next.image, &[]).context("the next image")?;
    second.records_clean().context("the next image")?;
    second.destroy()?;
    remove_new(bench, &new)?;
    remove(&next)?;
    bench.must_be_unharmed(guest)?;
    guest.destroy()?;
    Ok(format!("back from record {later} to {}", looked.acked))
}

/// A second guest on volumes that are filled from copies: there is no snapshot any more.
fn from_copies(bench: &Bench) -> Result<String> {
    let scene = Scene::new(bench, Disks::Mixed, |spec| spec)?;
    let guest = &scene.guest;
    moves_on(guest, 40)?;
    let (path, copies) = (bench.image("image.xl"), bench.image("copies"));
    std::fs::create_dir(&copies)?;
    let how = format!("copy:{}", copies.display());
    bench
        .livesave
        .save(&guest.spec.name, &path, &["--disks", &how])?;
    scene.must_have_no_other_volumes()?;
    moves_on(guest, 40)?;
    let (second, new) = restore(bench, guest, &path, &[])?;
    let looked = second.records_clean()?;
    moves_on(&second, 10)?;
    second.records_clean()?;
    second.verify_clean()?;
    second.destroy()?;
    remove_new(bench, &new)?;
    scene.must_have_no_other_volumes()?;
    guest.records_clean()?;
    bench.must_be_unharmed(guest)?;
    guest.destroy()?;
    Ok(format!("{} records", looked.acked))
}
