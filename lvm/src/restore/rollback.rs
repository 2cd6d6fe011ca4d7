//! The volumes that a guest was on, put back to the cut.
//!
//! What can be taken back comes first, what cannot last: copies are read to their end, then the
//! writable snapshots of thin snapshots are made, copies are written, thin volumes replaced, and
//! thick ones put back by LVM.
//!
//! A thin volume is not put back by `lvconvert --merge`, which would use up the image's snapshot
//! (and would put back a snapshot of the snapshot to that, not to the volume). A new snapshot of the
//! snapshot takes its place and name instead, while the volume has no device and so cannot be opened
//! by anybody. For the same reason a thick volume has none when LVM is told to put it back.

use std::thread;
use std::time::Duration;

use snapshot::disks::DiskFacts;
use snapshot::ports::Cancel;
use snapshot::units::Bytes;

use super::Place;
use super::commands::Lvm;
use super::error::{Failure, Refusal, RestoreError};
use super::fill::{self, Progress, Zeros};
use super::find::{self, Disk, Source};
use super::names;
use crate::inventory::{self, Layout, Volume};
use crate::run::Run;

/// How long is slept between two looks at a volume that is being put back, at most.
const LONGEST_LOOK: Duration = Duration::from_secs(5);

/// Volumes that are to be put back, looked at whether they can be.
#[derive(Debug)]
pub struct Rollback {
    volumes: Vec<PutBack>,
    place: Place,
}

#[derive(Debug)]
struct PutBack {
    disk: Disk,
    /// The volume as it is now.
    origin: Volume,
    /// What a thin volume is replaced by is called so until then.
    fresh: String,
    /// What it is called from then on, until it is removed.
    old: String,
}

/// How far it came.
#[derive(Debug, Default)]
struct Reached<'a> {
    /// The names of snapshots that are to replace volumes.
    fresh: Vec<&'a PutBack>,
    /// The disks that are put back.
    back: Vec<&'a str>,
    /// One that is neither as it was nor put back.
    between: Option<&'a str>,
    /// One that LVM puts back, whatever becomes of us.
    merging: Option<&'a str>,
}

impl Rollback {
    /// Looks for what the image has kept of its disks, and for the volumes that they were on.
    /// Nothing is touched.
    ///
    /// # Errors
    /// [`RestoreError`].
    pub fn plan(run: &mut impl Run, facts: &DiskFacts, place: Place) -> Result<Self, RestoreError> {
        let there = inventory::volumes(run, place.limit)?;
        let mut volumes = vec![];
        for disk in find::disks(facts, &there, &place)? {
            let origin = origin_of(&disk, &there)?.clone();
            volumes.push(PutBack {
                fresh: names::beside(&disk.origin, ".rollback-")?,
                old: names::beside(&disk.origin, ".replaced-")?,
                disk,
                origin,
            });
        }
        Ok(Self { volumes, place })
    }

    /// The volumes that are put back, each with its group's name.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        self.volumes.iter().map(PutBack::full_name).collect()
    }

    /// The snapshots of the image that are no more afterwards: those of thick volumes.
    #[must_use]
    pub fn uses_up(&self) -> Vec<String> {
        let used = self
            .volumes
            .iter()
            .filter_map(|back| match &back.disk.source {
                Source::Thick(snapshot) => Some(snapshot.full_name()),
                _ => None,
            });
        used.collect()
    }

    /// Puts the volumes back; returns what is left of the old ones and could not be removed.
    /// `progress` is told how much of how much was copied, where anything has to be.
    ///
    /// # Errors
    /// [`RestoreError`]; it says which disks are put back by then. May be done again.
    pub fn run(
        &self,
        run: &mut impl Run,
        cancel: &Cancel,
        progress: &mut dyn FnMut(Bytes, Bytes),
    ) -> Result<Vec<String>, RestoreError> {
        let copied = self.copies().map(|(back, _)| back.disk.size.0).sum::<u64>();
        let mut progress = Progress {
            cancel,
            done: Bytes(0),
            // Read, and then written.
            total: Bytes(copied.saturating_mul(2)),
            tell: progress,
        };
        let limit = self.place.limit;
        let mut lvm = Lvm { run, limit };
        let mut reached = Reached::default();
        let done = self.steps(&mut lvm, &mut progress, &mut reached);
        done.map_err(|failure| {
            let left = self.left(&mut lvm, &reached);
            RestoreError::new(failure, left)
        })
    }

    fn steps<'a>(
        &'a self,
        lvm: &mut Lvm<'_, impl Run>,
        progress: &mut Progress<'_>,
        reached: &mut Reached<'a>,
    ) -> Result<Vec<String>, Failure> {
        for (back, file) in self.copies() {
            fill::check(file, back.disk.size, progress)?;
        }
        for (back, snapshot) in self.thin() {
            progress.stop()?;
            reached.fresh.push(back);
            let vg = &back.disk.vg;
            lvm.thin_snapshot(vg, &snapshot.name, &back.fresh, &back.origin.tags)?;
        }
        for (back, file) in self.copies() {
            progress.stop()?;
            if back.origin.device.is_none() {
                lvm.activate(&back.full_name())?;
            }
            let to = self.place.device(&back.disk.vg, &back.origin.name);
            reached.between = Some(&back.disk.vdev);
            fill::unpack(file, &to, back.disk.size, Zeros::Write, progress)?;
            reached.done(back);
        }
        let mut left = vec![];
        for (back, _) in self.thin() {
            progress.stop()?;
            left.extend(back.replace(lvm)?);
            reached.fresh.retain(|fresh| fresh.fresh != back.fresh);
            reached.between = Some(&back.disk.vdev);
            lvm.activate(&back.full_name())?;
            reached.done(back);
        }
        for (back, snapshot) in self.thick() {
            progress.stop()?;
            back.begin_merge(lvm, snapshot)?;
            reached.merging = Some(&back.disk.vdev);
            lvm.activate(&back.full_name())?;
            self.wait_for_merge(lvm, back, progress)?;
            reached.done(back);
        }
        Ok(left)
    }

    /// Takes back what can be, and says how the disks are.
    fn left(&self, lvm: &mut Lvm<'_, impl Run>, reached: &Reached<'_>) -> String {
        let mut parts = vec![];
        for fresh in &reached.fresh {
            let name = format!("{}/{}", fresh.disk.vg, fresh.fresh);
            // The one that could not be made is not there.
            let is_gone = inventory::volumes(lvm.run, lvm.limit)
                .is_ok_and(|there| there.iter().all(|volume| volume.full_name() != name));
            if !is_gone && lvm.remove(&name).is_err() {
                parts.push(format!("the volume {name} is left, remove it (`lvremove`)"));
            }
        }
        let disks = |vdevs: &[&str]| vdevs.join(", ");
        if !reached.back.is_empty() {
            parts.push(format!("put back: {}", disks(&reached.back)));
        }
        if let Some(vdev) = reached.between {
            parts.push(format!(
                "neither as it was nor put back: {vdev}; do not start the guest on it, roll back again"
            ));
        }
        if let Some(vdev) = reached.merging {
            parts.push(format!(
                "LVM is putting back {vdev} by itself, at the latest when it is next activated"
            ));
        }
        let untouched: Vec<_> = self
            .volumes
            .iter()
            .map(|back| back.disk.vdev.as_str())
            .filter(|vdev| !reached.back.contains(vdev))
            .filter(|vdev| ![reached.between, reached.merging].contains(&Some(vdev)))
            .collect();
        if !untouched.is_empty() {
            parts.push(format!("as before: {}", disks(&untouched)));
        }
        parts.join("; ")
    }

    fn copies(&self) -> impl Iterator<Item = (&PutBack, &std::path::Path)> {
        self.volumes
            .iter()
            .filter_map(|back| match &back.disk.source {
                Source::Copy { file, .. } => Some((back, file.as_path())),
                _ => None,
            })
    }

    fn thick(&self) -> impl Iterator<Item = (&PutBack, &Volume)> {
        self.volumes
            .iter()
            .filter_map(|back| match &back.disk.source {
                Source::Thick(snapshot) => Some((back, snapshot)),
                _ => None,
            })
    }

    /// Waits until LVM has put a thick volume back. It does so by itself: only the waiting can be
    /// stopped.
    fn wait_for_merge(
        &self,
        lvm: &mut Lvm<'_, impl Run>,
        back: &PutBack,
        progress: &Progress<'_>,
    ) -> Result<(), Failure> {
        let mut look = self.place.look;
        loop {
            let there = inventory::volumes(lvm.run, lvm.limit)?;
            let origin = there.iter().find(|v| v.uuid == back.origin.uuid);
            match origin {
                Some(origin) if origin.merge_failed => {
                    return Err(Failure::MergeFailed(back.full_name()));
                }
                Some(origin) if origin.merging => {}
                _ => return Ok(()),
            }
            progress.stop()?;
            thread::sleep(look);
            look = LONGEST_LOOK.min(look * 2);
            // Who looked after it may have ended: it does no harm to ask again.
            lvm.poll(&back.full_name())?;
        }
    }

    fn thin(&self) -> impl Iterator<Item = (&PutBack, &Volume)> {
        self.volumes
            .iter()
            .filter_map(|back| match &back.disk.source {
                Source::Thin(snapshot) => Some((back, snapshot)),
                _ => None,
            })
    }
}

impl<'a> Reached<'a> {
    fn done(&mut self, back: &'a PutBack) {
        (self.between, self.merging) = (None, None);
        self.back.push(&back.disk.vdev);
    }
}

impl PutBack {
    fn full_name(&self) -> String {
        self.origin.full_name()
    }

    /// Has LVM put a thick volume back when it gets its device again. While it has none, nobody can
    /// open it: LVM puts back no open volume, but remembers to do it some time later.
    fn begin_merge(&self, lvm: &mut Lvm<'_, impl Run>, snapshot: &Volume) -> Result<(), Failure> {
        lvm.deactivate(&self.full_name())?;
        lvm.merge(&snapshot.full_name()).inspect_err(|_| {
            let _ = lvm.activate(&self.full_name());
        })
    }

    /// Puts the new snapshot in the place of the volume, which is then removed; returns its name if
    /// it cannot be.
    fn replace(&self, lvm: &mut Lvm<'_, impl Run>) -> Result<Option<String>, Failure> {
        let (vg, name) = (&self.disk.vg, &self.origin.name);
        // Fails if somebody has it open; and from then on nobody can open it.
        lvm.deactivate(&self.full_name())?;
        let put_away = lvm.rename(vg, name, &self.old);
        let renamed = put_away.and_then(|()| {
            lvm.rename(vg, &self.fresh, name).inspect_err(|_| {
                // If that fails too, the error says of which volume.
                let _ = lvm.rename(vg, &self.old, name);
            })
        });
        if let Err(failure) = renamed {
            let _ = lvm.activate(&self.full_name());
            return Err(failure);
        }
        let old = format!("{vg}/{}", self.old);
        Ok(lvm.remove(&old).is_err().then_some(old))
    }
}

/// The volume that a disk was on; an error if it cannot be put back.
fn origin_of<'v>(disk: &Disk, there: &'v [Volume]) -> Result<&'v Volume, Refusal> {
    let name = format!("{}/{}", disk.vg, disk.origin);
    let vdev = || disk.vdev.clone();
    let found = there.iter().find(|volume| volume.full_name() == name);
    let is_same_kind = |volume: &&Volume| match &disk.source {
        Source::Thin(_) => volume.layout == Layout::Thin,
        // Only to the volume that it is a snapshot of.
        Source::Thick(snapshot) => {
            volume.layout == Layout::Thick && snapshot.origin.as_ref() == Some(&volume.name)
        }
        Source::Copy { .. } => matches!(volume.layout, Layout::Thin | Layout::Thick),
    };
    let Some(volume) = found.filter(is_same_kind) else {
        return Err(Refusal::OriginGone { vdev: vdev(), name });
    };
    if volume.merging {
        return Err(Refusal::Merging { vdev: vdev(), name });
    }
    if volume.open {
        return Err(Refusal::InUse { vdev: vdev(), name });
    }
    if let Source::Thick(snapshot) = &disk.source
        && snapshot.open
    {
        let name = snapshot.full_name();
        return Err(Refusal::InUse { vdev: vdev(), name });
    }
    // A thin volume is replaced as a whole.
    if volume.size != disk.size && !matches!(disk.source, Source::Thin(_)) {
        return Err(Refusal::Resized {
            vdev: vdev(),
            name,
            now: volume.size,
            then: disk.size,
        });
    }
    Ok(volume)
}

#[cfg(test)]
mod tests;
