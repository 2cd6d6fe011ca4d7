//! What will be made of a guest's disks, settled before anything is done, and told as a text from
//! which another process can put it right.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use snapshot::units::Bytes;

use crate::dm::Device;
use crate::inventory::{Layout, Volume};

/// A pool or its metadata that is fuller has no room for a snapshot's changes.
const FULLEST_POOL: f64 = 95.0;
/// A thick snapshot gets the tenth part of its origin, and not less than this.
const LEAST_ROOM: Bytes = Bytes::from_mib(256);
/// So much of a volume's name is in that of its snapshot.
const LONGEST_ORIGIN: usize = 60;
/// Device-mapper takes no longer name, and LVM puts something behind a volume's.
const LONGEST_DEVICE: usize = 127 - "-real".len();

/// A disk of the guest, as its configuration tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk {
    /// Its name in the guest.
    pub vdev: String,
    /// What it is on in dom0; empty for a drive with nothing in it.
    pub path: String,
    /// The guest can write to it.
    pub writable: bool,
}

/// The guest's disks cannot be cut (so).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It is on something else than a logical volume.
    #[error(
        "Disk {vdev} ({path}) cannot be snapshotted: {why}; `--disks memory-only` saves the memory \
         without the disks"
    )]
    Disk {
        /// Its name in the guest.
        vdev: String,
        /// What it is on.
        path: String,
        /// Why.
        why: String,
    },
    /// There is no room.
    #[error("No room for the disk snapshots: {0}")]
    Room(String),
}

/// What will be made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// The image's identity.
    pub id: String,
    /// Its path, absolute, as [`crate::tags::escape`] writes it.
    pub image: String,
    /// One for each disk that the guest can write to.
    pub snapshots: Vec<Planned>,
    /// Files that disks are copied to, written in the same way.
    #[serde(default)]
    pub copies: Vec<String>,
}

/// The snapshot of one disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Planned {
    /// The disk's name in the guest.
    pub vdev: String,
    /// Its path in dom0.
    pub path: String,
    /// The volume group.
    pub vg: String,
    /// The volume that the disk is on.
    pub origin: String,
    /// The device of that volume.
    pub device: Device,
    /// Its size.
    pub size: Bytes,
    /// What the snapshot will be called.
    pub name: String,
    /// How it is made.
    pub kind: Kind,
}

/// How a snapshot is made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// In the thin pool that the volume is in.
    Thin {
        /// The pool's name.
        pool: String,
        /// Its device.
        device: Device,
        /// By what number the pool knows the volume.
        origin_id: u64,
    },
    /// In a volume of its own, which takes what is overwritten.
    Thick {
        /// The size of that.
        room: Bytes,
    },
}

impl Planned {
    /// The snapshot's name for LVM's commands.
    #[must_use]
    pub fn full_name(&self) -> String {
        format!("{}/{}", self.vg, self.name)
    }

    /// The volume's name for LVM's commands.
    #[must_use]
    pub fn full_origin(&self) -> String {
        format!("{}/{}", self.vg, self.origin)
    }

    /// Every device that we may hold on the way to the snapshot, the volume's own last.
    #[must_use]
    pub fn devices(&self) -> Vec<Device> {
        let mut devices = vec![];
        if matches!(self.kind, Kind::Thick { .. }) {
            devices.push(Device::of(&self.vg, &self.origin, Some("real")));
            devices.push(Device::of(&self.vg, &self.name, Some("cow")));
            devices.push(Device::of(&self.vg, &self.name, None));
        }
        devices.push(self.device.clone());
        devices
    }

    /// Every device that a command of LVM's which was killed may have left held.
    #[must_use]
    pub fn devices_of_lvm(&self) -> Vec<Device> {
        let mut devices = vec![];
        if let Kind::Thin { device, .. } = &self.kind {
            devices.push(device.clone());
        }
        devices.extend(self.devices());
        devices
    }
}

/// Settles what will be made for the image of that identity and path. `device_of` tells the device
/// number behind a path; `room` is what a thick snapshot is to have, if that was asked for.
///
/// # Errors
/// [`Refusal`]: nothing was done.
pub fn plan(
    disks: &[Disk],
    volumes: &[Volume],
    id: &str,
    image: &Path,
    room: Option<Bytes>,
    device_of: impl Fn(&Path) -> Result<Option<(u32, u32)>, String>,
) -> Result<Plan, Refusal> {
    let mut snapshots: Vec<Planned> = vec![];
    for disk in disks
        .iter()
        .filter(|disk| disk.writable && !disk.path.is_empty())
    {
        let refused = |why: String| Refusal::Disk {
            vdev: disk.vdev.clone(),
            path: disk.path.clone(),
            why,
        };
        let number = device_of(Path::new(&disk.path)).map_err(&refused)?;
        let number = number.ok_or_else(|| refused("it is no block device".into()))?;
        let volume = volumes.iter().find(|volume| volume.device == Some(number));
        let volume = volume.ok_or_else(|| refused("it is no logical volume".into()))?;
        let device = volume.dm_device();
        if let Some(other) = snapshots.iter().find(|other| other.device == device) {
            return Err(refused(format!(
                "disk {} is on the same volume",
                other.vdev
            )));
        }
        let kind = kind(volume, volumes, room).map_err(&refused)?;
        let name = name(&volume.name, id);
        for name in [&name, &volume.name] {
            if Device::of(&volume.vg, name, None).to_string().len() > LONGEST_DEVICE {
                return Err(refused(format!(
                    "the name {}/{name} is too long",
                    volume.vg
                )));
            }
        }
        snapshots.push(Planned {
            vdev: disk.vdev.clone(),
            path: disk.path.clone(),
            vg: volume.vg.clone(),
            origin: volume.name.clone(),
            device,
            size: volume.size,
            name,
            kind,
        });
    }
    check_room(&snapshots, volumes)?;
    Ok(Plan {
        id: id.to_owned(),
        image: crate::tags::escape(image),
        snapshots,
        copies: vec![],
    })
}

/// The name of a snapshot, which no other image's has.
fn name(origin: &str, id: &str) -> String {
    let origin: String = origin.chars().take(LONGEST_ORIGIN).collect();
    let id: String = id.chars().take(12).collect();
    format!("{origin}.livesave-{id}")
}

fn kind(volume: &Volume, volumes: &[Volume], room: Option<Bytes>) -> Result<Kind, String> {
    match volume.layout {
        Layout::Thin => {
            let of_pool = |other: &&Volume| {
                other.vg_uuid == volume.vg_uuid
                    && Some(&other.name) == volume.pool.as_ref()
                    && other.layout == Layout::Pool
            };
            let pool = volumes.iter().find(of_pool);
            let pool = pool.ok_or("LVM does not tell of its thin pool")?;
            Ok(Kind::Thin {
                pool: pool.name.clone(),
                device: Device::Uuid(format!("{}-tpool", pool.dm_uuid())),
                origin_id: volume
                    .thin_id
                    .ok_or("LVM does not tell its number in its thin pool")?,
            })
        }
        Layout::Thick => Ok(Kind::Thick {
            room: room_for(volume, room),
        }),
        Layout::ThickSnapshot => Err("it is itself a snapshot of a thick volume".into()),
        Layout::Pool | Layout::Other => {
            Err("snapshots are made of linear, striped and thin volumes only".into())
        }
    }
}

/// What a thick snapshot gets: whole extents, and no more than it can use.
fn room_for(volume: &Volume, asked: Option<Bytes>) -> Bytes {
    let extent = volume.extent.0.max(1);
    // A copy of all of it, and where each 4 KiB of that stands.
    let most = volume.size.0 + volume.size.0 / 128 + extent;
    let wanted = asked.unwrap_or(Bytes(volume.size.0 / 10).max(LEAST_ROOM));
    Bytes(wanted.0.min(most).next_multiple_of(extent))
}

fn check_room(snapshots: &[Planned], volumes: &[Volume]) -> Result<(), Refusal> {
    let mut thick: BTreeMap<&str, u64> = BTreeMap::new();
    for snapshot in snapshots {
        match &snapshot.kind {
            Kind::Thick { room } => *thick.entry(&snapshot.vg).or_default() += room.0,
            Kind::Thin { pool, .. } => {
                let pool = volumes
                    .iter()
                    .find(|v| v.vg == snapshot.vg && v.name == *pool);
                let Some(pool) = pool else { continue };
                for (percent, what) in [
                    (pool.data_percent, "data"),
                    (pool.metadata_percent, "metadata"),
                ] {
                    if let Some(percent) = percent.filter(|&percent| percent > FULLEST_POOL) {
                        return Err(Refusal::Room(format!(
                            "the {what} of thin pool {} are {percent:.0} % full (disk {}); extend it \
                             (`lvextend`) or remove what it no longer needs",
                            pool.full_name(),
                            snapshot.vdev
                        )));
                    }
                }
            }
        }
    }
    for (vg, needed) in thick {
        let free = volumes
            .iter()
            .find(|volume| volume.vg == vg)
            .map_or(0, |v| v.vg_free.0);
        if free < needed {
            return Err(Refusal::Room(format!(
                "volume group {vg} has {} free, and {} are needed; `--snapshot-size` sets how much \
                 the guest may overwrite before a snapshot becomes useless",
                Bytes(free),
                Bytes(needed)
            )));
        }
    }
    Ok(())
}

/// The device number behind a path.
///
/// # Errors
/// Why it cannot be told.
pub fn device_of(path: &Path) -> Result<Option<(u32, u32)>, String> {
    use std::os::unix::fs::{FileTypeExt, MetadataExt};
    let metadata =
        std::fs::metadata(path).map_err(|error| format!("it cannot be looked at: {error}"))?;
    let number = metadata.rdev();
    let is_device = metadata.file_type().is_block_device();
    Ok(is_device.then(|| (rustix::fs::major(number), rustix::fs::minor(number))))
}

impl Plan {
    /// The text from which another process can put right what came of it.
    #[must_use]
    pub fn text(&self) -> String {
        // Plain strings and numbers: encoding cannot fail.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// The plan in such a text.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn of_text(text: &str) -> serde_json::Result<Self> {
        serde_json::from_str(text)
    }

    /// The image's path.
    #[must_use]
    pub fn image_path(&self) -> Option<PathBuf> {
        crate::tags::unescape(&self.image)
    }
}

#[cfg(test)]
mod tests;
