//! What an image has kept of its disks, removed with it.

use std::io::ErrorKind;

use snapshot::disks::{DiskFacts, Kept, SnapshotKept};

use super::Place;
use super::commands::Lvm;
use super::error::{Failure, RestoreError};
use super::find;
use super::names::RESTORED;
use crate::inventory::{self, Layout, Volume};
use crate::run::Run;

/// Removes the snapshots and copies of an image's disks; volumes that were restored from them stay.
/// What is gone already is no error. Returns what was removed.
///
/// # Errors
/// [`RestoreError`], after the rest was removed for all that.
pub fn discard(
    run: &mut impl Run,
    facts: &DiskFacts,
    place: &Place,
) -> Result<Vec<String>, RestoreError> {
    let is_snapshot = |disk: &Kept| matches!(disk, Kept::Snapshot(_));
    let there = if facts.disks.iter().any(|disk| is_snapshot(&disk.kept)) {
        inventory::volumes(run, place.limit)?
    } else {
        vec![]
    };
    let (mut removed, mut left, mut why) = (vec![], vec![], None);
    for disk in &facts.disks {
        let (name, done) = match &disk.kept {
            Kept::Snapshot(kept) => {
                let Some(volume) = find::by_uuid(kept, &there) else {
                    continue;
                };
                if !is_of_livesave(volume, kept) {
                    continue;
                }
                let name = volume.full_name();
                let limit = place.limit;
                let done = (Lvm { run, limit }).remove(&name);
                (name, done)
            }
            Kept::Copy(kept) => {
                let file = find::copy_file(kept, place);
                let name = file.display().to_string();
                // A link's aim is somebody else's, and so is what is no copy.
                let is_plain = file.symlink_metadata().is_ok_and(|found| found.is_file());
                if !is_plain || find::look_at_copy(&file).is_err() {
                    continue;
                }
                let done = match std::fs::remove_file(&file) {
                    Err(error) if error.kind() == ErrorKind::NotFound => continue,
                    done => done.map_err(|source| Failure::RemoveCopy { file, source }),
                };
                (name, done)
            }
            Kept::Unchanged => continue,
        };
        match done {
            Ok(()) => removed.push(name),
            Err(failure) => {
                if let Kept::Snapshot(kept) = &disk.kept
                    && let Some(volume) = find::by_uuid(kept, &there)
                {
                    crate::care::let_go_of(volume);
                }
                left.push(name);
                why = why.or(Some(failure));
            }
        }
    }
    match why {
        None => Ok(removed),
        Some(failure) => {
            let left = left.join(", ");
            Err(RestoreError::Discard {
                left,
                source: failure,
            })
        }
    }
}

/// A file's word is not enough to remove a volume that somebody works with.
fn is_of_livesave(volume: &Volume, kept: &SnapshotKept) -> bool {
    let is_tagged = volume.tags.iter().any(|tag| tag.starts_with("livesave"));
    match volume.layout {
        _ if volume.tags.iter().any(|tag| tag == RESTORED) => false,
        Layout::Thin => kept.pool.is_some() && (is_tagged || volume.name == kept.name),
        Layout::ThickSnapshot => kept.pool.is_none(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::super::fake::{Fake, copy_kept, facts, place, thick_kept, thin_kept};
    use super::*;

    #[test]
    fn snapshots_and_copies_go_and_nothing_else() {
        let directory = tempfile::tempdir().expect("directory");
        let file = directory.path().join("copy");
        std::fs::write(&file, zstd::encode_all(&b"x"[..], 1).expect("packed")).expect("written");
        let mut fake = Fake::new(directory.path());
        let facts = facts(vec![
            thin_kept(),
            thick_kept(),
            copy_kept(&file, None),
            Kept::Unchanged,
        ]);
        let removed = discard(&mut fake, &facts, &place(directory.path())).expect("removed");
        let copy = file.display().to_string();
        assert_eq!(removed, ["vg0/root.snap", "vg0/data.snap", copy.as_str()]);
        assert_eq!(
            fake.asked(),
            [
                "lvs",
                "lvremove -q -f -y vg0/root.snap",
                "lvremove -q -f -y vg0/data.snap"
            ]
        );
        assert!(!file.exists());
        // Again: all is gone.
        fake.forget("root.snap");
        fake.forget("data.snap");
        let removed = discard(&mut fake, &facts, &place(directory.path())).expect("nothing");
        assert_eq!(removed, Vec::<String>::new());
    }

    #[test]
    fn a_files_word_removes_neither_another_volume_nor_another_file() {
        let directory = tempfile::tempdir().expect("directory");
        let file = directory.path().join("shadow");
        std::fs::write(&file, "no copy").expect("written");
        let mut fake = Fake::new(directory.path());
        let Kept::Snapshot(mut kept) = thin_kept() else {
            panic!("a snapshot");
        };
        kept.uuid = "ROOT-uuid".into();
        let facts = facts(vec![Kept::Snapshot(kept), copy_kept(&file, None)]);
        let removed = discard(&mut fake, &facts, &place(directory.path())).expect("nothing");
        assert_eq!(removed, Vec::<String>::new());
        assert_eq!(fake.asked(), ["lvs"]);
        assert!(file.exists());
    }

    #[test]
    fn what_cannot_be_removed_is_told_and_the_rest_goes() {
        let directory = tempfile::tempdir().expect("directory");
        let mut fake = Fake::new(directory.path());
        fake.fail("lvremove -q -f -y vg0/root.snap");
        let facts = facts(vec![thin_kept(), thick_kept()]);
        let error = discard(&mut fake, &facts, &place(directory.path())).expect_err("failed");
        let text = error.to_string();
        assert!(
            text.contains("vg0/root.snap") && !text.contains("data"),
            "{text}"
        );
        assert_eq!(fake.asked().len(), 3);
    }
}
