//! New volumes for a guest, as its disks were at the cut.

use std::collections::BTreeMap;
use std::path::PathBuf;

use snapshot::disks::DiskFacts;
use snapshot::ports::Cancel;
use snapshot::units::Bytes;

use super::Place;
use super::commands::Lvm;
use super::error::{Failure, Refusal, RestoreError};
use super::fill::{self, Progress, Zeros};
use super::find::{self, Disk, Source};
use super::names::{self, RESTORED};
use crate::inventory::{self, Volume};
use crate::run::Run;

/// Volumes that are to be made: named, and looked at whether they can be.
#[derive(Debug)]
pub struct NewDisks {
    volumes: Vec<NewVolume>,
    place: Place,
}

#[derive(Debug)]
struct NewVolume {
    name: String,
    disk: Disk,
}

impl NewDisks {
    /// Looks for what the image has kept of its disks, and for room. Nothing is made.
    ///
    /// # Errors
    /// [`RestoreError`].
    pub fn plan(run: &mut impl Run, facts: &DiskFacts, place: Place) -> Result<Self, RestoreError> {
        let there = inventory::volumes(run, place.limit)?;
        let disks = find::disks(facts, &there, &place)?;
        refuse_what_has_no_room(&disks, &there)?;
        let named = disks.into_iter().map(|disk| {
            let name = names::restored(&disk.origin)?;
            Ok(NewVolume { name, disk })
        });
        let volumes = named.collect::<Result<_, RestoreError>>()?;
        Ok(Self { volumes, place })
    }

    /// Where the disks will be, by their names in the guest.
    #[must_use]
    pub fn paths(&self) -> BTreeMap<String, PathBuf> {
        let volumes = self.volumes.iter();
        volumes
            .map(|new| (new.disk.vdev.clone(), self.device(new)))
            .collect()
    }

    /// The names of the volumes, each with its group's.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        self.volumes.iter().map(NewVolume::full_name).collect()
    }

    /// Makes the volumes. `progress` is told how much of how much was copied, where anything has to
    /// be.
    ///
    /// # Errors
    /// [`RestoreError`]; it says what is left of them, which is nothing unless that could not be
    /// helped.
    pub fn make(
        &self,
        run: &mut impl Run,
        cancel: &Cancel,
        progress: &mut dyn FnMut(Bytes, Bytes),
    ) -> Result<(), RestoreError> {
        let copied = self.volumes.iter().filter(|new| !new.is_thin_snapshot());
        let mut progress = Progress {
            cancel,
            done: Bytes(0),
            total: Bytes(copied.map(|new| new.disk.size.0).sum()),
            tell: progress,
        };
        let made = self.volumes.iter().try_for_each(|new| {
            progress.stop()?;
            self.make_one(run, new, &mut progress)
        });
        made.map_err(|failure| {
            let left = self.remove(run);
            RestoreError::new(failure, left)
        })
    }

    /// Removes those of the volumes that there are, and says what is left then.
    pub fn remove(&self, run: &mut impl Run) -> String {
        let names = self.names();
        let there = match inventory::volumes(run, self.place.limit) {
            Ok(there) => there,
            Err(error) => {
                return format!(
                    "whether the new volumes {} are left could not be seen ({error}); remove them \
                     (`lvremove`)",
                    names.join(", ")
                );
            }
        };
        let is_ours = |volume: &&Volume| {
            let tagged = volume.tags.iter().any(|tag| tag == RESTORED);
            tagged && names.contains(&volume.full_name())
        };
        let mut left = vec![];
        let mut removed = 0;
        for volume in there.iter().filter(is_ours) {
            let limit = self.place.limit;
            match (Lvm { run, limit }).remove(&volume.full_name()) {
                Ok(()) => removed += 1,
                Err(_) => left.push(volume.full_name()),
            }
        }
        match (left.as_slice(), removed) {
            ([], 0) => "no new volume was left".to_owned(),
            ([], _) => "the new volumes were removed".to_owned(),
            _ => format!(
                "the new volumes {} could not be removed; remove them (`lvremove`)",
                left.join(", ")
            ),
        }
    }

    fn make_one(
        &self,
        run: &mut impl Run,
        new: &NewVolume,
        progress: &mut Progress<'_>,
    ) -> Result<(), Failure> {
        let limit = self.place.limit;
        let mut lvm = Lvm { run, limit };
        let (disk, name) = (&new.disk, new.name.as_str());
        let (vg, size) = (disk.vg.as_str(), disk.size);
        match &disk.source {
            Source::Thin(snapshot) => {
                lvm.thin_snapshot(vg, &snapshot.name, name, &[RESTORED.to_owned()])?;
                self.device_of(&mut lvm, new).map(drop)
            }
            Source::Thick(snapshot) => {
                let from = self.place.device(vg, &snapshot.name);
                if snapshot.device.is_none() {
                    lvm.activate(&snapshot.full_name())?;
                }
                lvm.thick_volume(vg, name, size)?;
                let to = self.device_of(&mut lvm, new)?;
                fill::device(&from, &to, size, progress)?;
                // It may have run full while it was read, and what was read is not what it held.
                refuse_if_lost(lvm.run, snapshot, &self.place)
            }
            Source::Copy { file, pool } => {
                let zeros = match pool {
                    Some(pool) => {
                        lvm.thin_volume(vg, pool, name, size)?;
                        Zeros::Skip
                    }
                    None => {
                        lvm.thick_volume(vg, name, size)?;
                        Zeros::Write
                    }
                };
                let to = self.device_of(&mut lvm, new)?;
                fill::unpack(file, &to, size, zeros, progress)
            }
        }
    }

    /// The device of a volume that was made, which is active.
    fn device_of(&self, lvm: &mut Lvm<'_, impl Run>, new: &NewVolume) -> Result<PathBuf, Failure> {
        let device = self.device(new);
        if !device.exists() {
            lvm.activate(&new.full_name())?;
        }
        if !device.exists() {
            return Err(Failure::NoDevice(device));
        }
        Ok(device)
    }

    fn device(&self, new: &NewVolume) -> PathBuf {
        self.place.device(&new.disk.vg, &new.name)
    }
}

impl NewVolume {
    fn full_name(&self) -> String {
        format!("{}/{}", self.disk.vg, self.name)
    }

    fn is_thin_snapshot(&self) -> bool {
        matches!(self.disk.source, Source::Thin(_))
    }

    /// What it takes of its volume group.
    fn need(disk: &Disk, extent: Bytes) -> Bytes {
        match &disk.source {
            Source::Thin(_) | Source::Copy { pool: Some(_), .. } => Bytes(0),
            Source::Thick(_) | Source::Copy { pool: None, .. } => {
                let extents = disk.size.0.div_ceil(extent.0.max(1));
                Bytes(extents.saturating_mul(extent.0.max(1)))
            }
        }
    }
}

fn refuse_what_has_no_room(disks: &[Disk], there: &[Volume]) -> Result<(), Refusal> {
    let mut need: BTreeMap<&str, (Bytes, Bytes)> = BTreeMap::new();
    for disk in disks {
        let group = there.iter().find(|volume| volume.vg == disk.vg);
        let Some(group) = group else { continue };
        let (all, free) = need.entry(&disk.vg).or_default();
        let more = NewVolume::need(disk, group.extent);
        (*all, *free) = (Bytes(all.0.saturating_add(more.0)), group.vg_free);
    }
    match need.into_iter().find(|(_, (need, free))| need > free) {
        Some((vg, (need, free))) => Err(Refusal::NoRoom {
            vg: vg.to_owned(),
            need,
            free,
        }),
        None => Ok(()),
    }
}

fn refuse_if_lost(run: &mut impl Run, snapshot: &Volume, place: &Place) -> Result<(), Failure> {
    let there = inventory::volumes(run, place.limit)?;
    let now = there.iter().find(|volume| volume.uuid == snapshot.uuid);
    match now {
        Some(now) if !now.invalid => Ok(()),
        _ => Err(Failure::SnapshotLost(snapshot.full_name())),
    }
}

#[cfg(test)]
mod tests;
