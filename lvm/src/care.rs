//! Disks of a save that did not end in order: held ones are let go, snapshots that no image has are
//! removed.

use std::path::Path;

use snapshot::guardian::DiskCare;
use snapshot::image::{ImageError, Reader};
use snapshot::ports::BoxError;

use crate::commands::{self, LIMIT, LvmError};
use crate::cut::{free, free_each};
use crate::dm::{Device, Dm, DmError};
use crate::inventory::{self, Volume};
use crate::plan::{Plan, Planned};
use crate::run::{Host, Run};
use crate::tags::{Tagged, is_unfinished, unescape};

/// Looks after the disks of killed saves, from what they had planned.
#[derive(Clone, Copy, Debug)]
pub struct Care;

impl DiskCare for Care {
    fn let_go(&self, disks: &str) -> Result<Vec<String>, BoxError> {
        free_all(&Dm::open()?, &Plan::of_text(disks)?)?;
        Ok(vec!["its disks let go".into()])
    }

    fn tidy(&self, disks: &str) -> Result<Vec<String>, BoxError> {
        let plan = Plan::of_text(disks)?;
        // A command of LVM's that dies with the save may do so after the disks were let go, and one
        // that is killed while it removes something leaves the volume held.
        let dm = Dm::open()?;
        let tidied = tidy(&mut Host, &plan);
        free_all(&dm, &plan)?;
        tidied
    }
}

/// Lets every device go that the save or LVM may hold; tries each, whatever becomes of another.
///
/// # Errors
/// [`DmError`]; some may still be held.
pub fn free_all(dm: &Dm, plan: &Plan) -> Result<(), DmError> {
    free_each(dm, plan.snapshots.iter().flat_map(Planned::devices_of_lvm))
}

/// What was made for an image is the image's own if that stands, and is removed if not.
fn tidy(run: &mut impl Run, plan: &Plan) -> Result<Vec<String>, BoxError> {
    let image = plan.image_path();
    let stands = match &image {
        Some(path) => is_there(path, &plan.id)?,
        None => false,
    };
    let volumes = of_image(run, &plan.id)?;
    if stands {
        finish(run, &volumes)?;
        return Ok(vec!["the image stands, with its disk snapshots".into()]);
    }
    let count = volumes.len();
    remove_all(run, &volumes, plan)?;
    Ok(match count {
        0 => vec![],
        1 => vec!["a disk snapshot removed".into()],
        count => vec![format!("{count} disk snapshots removed")],
    })
}

/// The volumes that were made for the image of that identity.
///
/// # Errors
/// [`LvmError`].
pub fn of_image(run: &mut impl Run, id: &str) -> Result<Vec<Volume>, LvmError> {
    let mut volumes = inventory::volumes(run, LIMIT)?;
    volumes.retain(|volume| Tagged::of(&volume.tags).is_some_and(|tag| tag.id == id));
    Ok(volumes)
}

/// Removes them, and the copies of disks that were planned for the image; tries each, whatever becomes
/// of another.
///
/// # Errors
/// The first of them.
pub fn remove_all(run: &mut impl Run, volumes: &[Volume], plan: &Plan) -> Result<(), BoxError> {
    let mut done: Result<(), BoxError> = Ok(());
    for volume in volumes {
        done = done.and(discard(run, volume).map_err(Into::into));
    }
    for copy in plan.copies.iter().filter_map(|copy| unescape(copy)) {
        done = done.and(remove_file(&copy).map_err(Into::into));
    }
    done
}

/// Marks the snapshots of an image that stands as its own.
///
/// # Errors
/// [`LvmError`].
pub fn finish(run: &mut impl Run, volumes: &[Volume]) -> Result<(), LvmError> {
    for volume in volumes {
        for tag in volume.tags.iter().filter(|tag| is_unfinished(tag)) {
            commands::untag(run, &volume.full_name(), tag)?;
        }
    }
    Ok(())
}

/// Removes a snapshot, which may be half made.
///
/// # Errors
/// [`LvmError`]; what LVM held for it is let go.
pub fn discard(run: &mut impl Run, volume: &Volume) -> Result<(), LvmError> {
    let removed = commands::remove(run, &volume.full_name(), LIMIT);
    if removed.is_err() {
        let_go_of(volume);
    }
    Ok(removed?)
}

/// A command of LVM's that would remove this snapshot was killed: what it held goes on.
pub fn let_go_of(volume: &Volume) {
    let Ok(dm) = Dm::open() else { return };
    let origin = volume.origin.as_deref();
    let origin = origin
        .map(|origin| [Some("real"), None].map(|layer| Device::of(&volume.vg, origin, layer)));
    let own = [Some("cow"), None].map(|layer| Device::of(&volume.vg, &volume.name, layer));
    for device in own.iter().chain(origin.iter().flatten()) {
        // What is not there is not held.
        let _ = free(&dm, device);
    }
}

/// Removes a file that may not be there.
///
/// # Errors
/// What the system says.
pub fn remove_file(path: &Path) -> std::io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Whether the image of that identity stands at a path.
///
/// # Errors
/// It cannot be told, another time it may be: the directory is not there (not mounted?), or the file
/// cannot be read.
pub fn is_there(path: &Path, id: &str) -> Result<bool, ImageError> {
    let cannot = |source| ImageError::Io {
        operation: "open",
        path: path.to_owned(),
        source,
    };
    let directory = path.parent().unwrap_or(Path::new("/"));
    directory.metadata().map_err(cannot)?;
    match Reader::open(path) {
        Ok(reader) => {
            let found = reader.facts().and_then(|facts| facts.id.as_ref());
            Ok(found.is_some_and(|found| found.as_str() == id))
        }
        Err(ImageError::Io { source, .. }) if source.kind() != std::io::ErrorKind::NotFound => {
            Err(cannot(source))
        }
        // None, or something else than an image, or one that is no more.
        Err(_) => Ok(false),
    }
}

/// Snapshots of images that are not there: of killed saves, and of images that somebody has removed
/// or moved.
#[derive(Clone, Debug, PartialEq)]
pub struct Orphan {
    /// The snapshot.
    pub volume: Volume,
    /// What its tags say.
    pub tagged: Tagged,
}

/// All of them; those of saves and clones at work left out.
///
/// # Errors
/// [`LvmError`].
pub fn orphans(run: &mut impl Run) -> Result<Vec<Orphan>, LvmError> {
    let mut found = vec![];
    for volume in inventory::volumes(run, LIMIT)? {
        let Some(tagged) = Tagged::of(&volume.tags) else {
            continue;
        };
        // In this order: a save that ends in between has its image by then.
        if tagged.is_being_made() || clone_of(&tagged).is_some_and(|pid| lives(&pid)) {
            continue;
        }
        let stands = match &tagged.image {
            // One whose image cannot be told is not taken for an orphan.
            Some(path) => is_there(path, &tagged.id).unwrap_or(true),
            None => tagged.unfinished.is_none(),
        };
        if !stands {
            found.push(Orphan { volume, tagged });
        }
    }
    Ok(found)
}

/// The image of a clone that is not kept; its name is taken away while the clone is at work.
pub const CLONE: &str = ".livesave-clone-";

/// The process of the clone that it was made for, if it was.
fn clone_of(tagged: &Tagged) -> Option<String> {
    let name = tagged.image.as_ref()?.file_name()?.to_str()?;
    let pid = name.strip_prefix(CLONE)?.split('.').next()?;
    Some(pid.to_owned())
}

fn lives(pid: &str) -> bool {
    Path::new("/proc").join(pid).exists()
}

/// What a recovery did about snapshots of killed saves.
#[derive(Debug, Default)]
pub struct Recovered {
    /// Removed.
    pub removed: Vec<String>,
    /// Not, and why.
    pub failed: Vec<String>,
}

/// Removes what killed saves have left, after a restart of the host too.
///
/// # Errors
/// [`LvmError`]: nothing was done.
pub fn recover(run: &mut impl Run) -> Result<Recovered, LvmError> {
    let mut done = Recovered::default();
    for Orphan { volume, tagged } in orphans(run)? {
        if tagged.unfinished.is_none() && clone_of(&tagged).is_none() {
            continue;
        }
        let name = volume.full_name();
        match discard(run, &volume) {
            Ok(()) => done.removed.push(name),
            Err(error) => done
                .failed
                .push(format!("{name} cannot be removed: {error}")),
        }
    }
    Ok(done)
}

#[cfg(test)]
mod tests;
