//! What an image says of its disks, and what there is of it.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use snapshot::disks::{CopyKept, DiskFacts, Kept, SnapshotKept};
use snapshot::units::Bytes;

use super::Place;
use super::error::Refusal;
use super::names::is_name;
use crate::inventory::{Layout, Volume};

/// With what every zstd file starts.
const ZSTD: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// A disk that is kept.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Disk {
    /// Its name in the guest.
    pub vdev: String,
    /// The volume group that it was in, and that a new volume is made in.
    pub vg: String,
    /// The name that its volume had.
    pub origin: String,
    /// Its size.
    pub size: Bytes,
    /// Where its content is.
    pub source: Source,
}

/// Where the content of a disk at the cut is.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Source {
    /// In a thin snapshot.
    Thin(Volume),
    /// In a thick snapshot, which has room left.
    Thick(Volume),
    /// In a zstd file.
    Copy {
        file: PathBuf,
        /// The thin pool that the disk was in, if that is still there.
        pool: Option<String>,
    },
}

/// The disks that are kept, with what they are kept in.
pub(super) fn disks(
    facts: &DiskFacts,
    volumes: &[Volume],
    place: &Place,
) -> Result<Vec<Disk>, Refusal> {
    let mut found = vec![];
    for disk in &facts.disks {
        // From a file: not for a terminal as it is.
        let vdev = disk.vdev.escape_debug().to_string();
        let (origin, size) = match &disk.kept {
            Kept::Snapshot(kept) => (&kept.origin, kept.size),
            Kept::Copy(kept) => (&kept.origin, kept.size),
            Kept::Unchanged => continue,
        };
        if !is_name(origin) {
            return Err(Refusal::OddName {
                vdev,
                name: origin.clone(),
            });
        }
        let (vg, source) = match &disk.kept {
            Kept::Snapshot(kept) => snapshot(&vdev, kept, volumes)?,
            Kept::Copy(kept) => copy(&vdev, kept, volumes, place)?,
            Kept::Unchanged => continue,
        };
        found.push(Disk {
            vdev: disk.vdev.clone(),
            vg,
            origin: origin.clone(),
            size,
            source,
        });
    }
    Ok(found)
}

/// The snapshot that an image tells of, whatever it is called by now.
pub(super) fn by_uuid<'v>(kept: &SnapshotKept, volumes: &'v [Volume]) -> Option<&'v Volume> {
    volumes.iter().find(|volume| volume.uuid == kept.uuid)
}

/// Where a copy is: where it was made, or beside the image.
pub(super) fn copy_file(kept: &CopyKept, place: &Place) -> PathBuf {
    let moved = place.beside.as_deref().zip(kept.file.file_name());
    match moved.map(|(directory, name)| directory.join(name)) {
        Some(moved) if !kept.file.exists() && moved.exists() => moved,
        _ => kept.file.clone(),
    }
}

/// An error if it is no zstd file that can be read.
pub(super) fn look_at_copy(file: &Path) -> Result<(), String> {
    // A pipe would be waited for.
    let metadata = file.metadata().map_err(|error| error.to_string())?;
    if !metadata.is_file() {
        return Err("it is no file".into());
    }
    let mut start = [0; 4];
    File::open(file)
        .and_then(|mut file| file.read_exact(&mut start))
        .map_err(|error| error.to_string())?;
    if start != ZSTD {
        return Err("it is no zstd file".into());
    }
    Ok(())
}

fn snapshot(
    vdev: &str,
    kept: &SnapshotKept,
    volumes: &[Volume],
) -> Result<(String, Source), Refusal> {
    let vdev = || vdev.to_owned();
    let Some(volume) = by_uuid(kept, volumes) else {
        // LVM hides a snapshot that a volume is being put back to.
        let is_origin = |volume: &&Volume| volume.vg == kept.vg && volume.name == kept.origin;
        if let Some(origin) = volumes.iter().find(is_origin)
            && origin.merging
        {
            let name = origin.full_name();
            return Err(Refusal::Merging { vdev: vdev(), name });
        }
        let name = format!("{}/{}", kept.vg, kept.name);
        return Err(Refusal::SnapshotGone {
            vdev: vdev(),
            name: name.escape_debug().to_string(),
            uuid: kept.uuid.escape_debug().to_string(),
        });
    };
    let name = volume.full_name();
    let changed = |what| Refusal::SnapshotChanged {
        vdev: vdev(),
        name: name.clone(),
        what,
    };
    let source = match (volume.layout, &kept.pool) {
        (Layout::Thin, Some(_)) => Source::Thin(volume.clone()),
        (Layout::ThickSnapshot, None) if volume.is_full_snapshot() => {
            return Err(Refusal::SnapshotFull { vdev: vdev(), name });
        }
        (Layout::ThickSnapshot, None) => Source::Thick(volume.clone()),
        _ => return Err(changed("it is another kind of volume")),
    };
    // Of a thin one that counts: it is what the guest gets.
    if volume.size != kept.size && kept.pool.is_some() {
        return Err(changed("its size is another one"));
    }
    Ok((volume.vg.clone(), source))
}

fn copy(
    vdev: &str,
    kept: &CopyKept,
    volumes: &[Volume],
    place: &Place,
) -> Result<(String, Source), Refusal> {
    let vdev = || vdev.to_owned();
    let vg = kept.vg.clone();
    if volumes.iter().all(|volume| volume.vg != vg) {
        let vg = vg.escape_debug().to_string();
        return Err(Refusal::NoGroup { vdev: vdev(), vg });
    }
    let file = copy_file(kept, place);
    look_at_copy(&file).map_err(|why| Refusal::CopyUnreadable {
        vdev: vdev(),
        file: file.clone(),
        why,
    })?;
    let is_there = |pool: &&String| {
        let is_it = |volume: &&Volume| volume.vg == vg && volume.name == **pool;
        let found = volumes.iter().find(is_it);
        found.is_some_and(|volume| volume.layout == Layout::Pool)
    };
    let pool = kept.pool.as_ref().filter(is_there).cloned();
    Ok((vg, Source::Copy { file, pool }))
}
