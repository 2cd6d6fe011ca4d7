//! Disks of a save that did not end in order: held ones are let go, snapshots that no image has are
//! removed.

use std::path::Path;

use snapshot::guardian::DiskCare;
use snapshot::image::{ImageError, Reader};
use snapshot::ports::BoxError;

use crate::commands::{self, LIMIT, LvmError};
use crate::cut::free;
use crate::dm::Dm;
use crate::inventory::{self, Volume};
use crate::plan::{Plan, Planned};
use crate::run::{Host, Run};
use crate::tags::{Tagged, unescape};

/// Looks after the disks of killed saves, from what they had planned.
#[derive(Clone, Copy, Debug)]
pub struct Care;

impl DiskCare for Care {
    fn let_go(&self, disks: &str) -> Result<Vec<String>, BoxError> {
        let plan = Plan::of_text(disks)?;
        let dm = Dm::open()?;
        let mut failed = Ok(());
        for device in plan.snapshots.iter().flat_map(Planned::devices) {
            if let Err(error) = free(&dm, &device) {
                failed = Err(error);
            }
        }
        failed?;
        Ok(vec!["its disks let go".into()])
    }

    fn tidy(&self, disks: &str) -> Result<Vec<String>, BoxError> {
        tidy(&mut Host, &Plan::of_text(disks)?)
    }
}

fn tidy(run: &mut impl Run, plan: &Plan) -> Result<Vec<String>, BoxError> {
    let image = plan.image_path();
    let stands = match &image {
        Some(path) => is_there(path, &plan.id)?,
        None => false,
    };
    let of_image = |volume: &Volume| Tagged::of(&volume.tags).is_some_and(|tag| tag.id == plan.id);
    let mut volumes = inventory::volumes(run, LIMIT)?;
    volumes.retain(of_image);
    if stands {
        finish(run, &volumes)?;
        return Ok(vec!["the image and its disk snapshots are whole".into()]);
    }
    for copy in plan.copies.iter().filter_map(|copy| unescape(copy)) {
        remove_file(&copy)?;
    }
    for volume in &volumes {
        discard(run, volume)?;
    }
    Ok(match volumes.len() {
        0 => vec![],
        1 => vec!["a disk snapshot removed".into()],
        count => vec![format!("{count} disk snapshots removed")],
    })
}

/// Marks the snapshots of an image that stands as its own.
///
/// # Errors
/// [`LvmError`].
pub fn finish(run: &mut impl Run, volumes: &[Volume]) -> Result<(), LvmError> {
    for volume in volumes {
        let unfinished = Tagged::of(&volume.tags).and_then(|tagged| tagged.unfinished);
        if unfinished.is_some() {
            let tag = volume
                .tags
                .iter()
                .find(|tag| crate::tags::is_unfinished(tag));
            if let Some(tag) = tag {
                commands::untag(run, &volume.full_name(), tag)?;
            }
        }
    }
    Ok(())
}

/// Removes a snapshot, which may be half made.
///
/// # Errors
/// [`LvmError`].
pub fn discard(run: &mut impl Run, volume: &Volume) -> Result<(), LvmError> {
    Ok(commands::remove(run, &volume.full_name())?)
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
/// It cannot be told: another time it may be.
pub fn is_there(path: &Path, id: &str) -> Result<bool, ImageError> {
    match Reader::open(path) {
        Ok(reader) => {
            let found = reader.facts().and_then(|facts| facts.id.as_ref());
            Ok(found.is_some_and(|found| found.as_str() == id))
        }
        Err(ImageError::Io { source, .. }) if source.kind() != std::io::ErrorKind::NotFound => {
            Err(ImageError::Io {
                operation: "open",
                path: path.to_owned(),
                source,
            })
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

/// All of them; those of saves at work left out.
///
/// # Errors
/// [`LvmError`].
pub fn orphans(run: &mut impl Run) -> Result<Vec<Orphan>, LvmError> {
    let mut found = vec![];
    for volume in inventory::volumes(run, LIMIT)? {
        let Some(tagged) = Tagged::of(&volume.tags) else {
            continue;
        };
        // One whose image cannot be told is not taken for an orphan.
        let stands = tagged
            .image
            .as_ref()
            .is_none_or(|path| is_there(path, &tagged.id).unwrap_or(true));
        if !stands && !tagged.is_being_made() {
            found.push(Orphan { volume, tagged });
        }
    }
    Ok(found)
}

/// The image of a clone that is not kept; its name is taken away while the clone is at work.
pub const CLONE: &str = ".livesave-clone-";

/// Whether it was made for a clone whose process is no more.
fn is_of_dead_clone(tagged: &Tagged) -> bool {
    let name = tagged
        .image
        .as_ref()
        .and_then(|path| path.file_name()?.to_str());
    let pid = name.and_then(|name| name.strip_prefix(CLONE)?.split('.').next());
    pid.is_some_and(|pid| !Path::new("/proc").join(pid).exists())
}

/// Removes what killed saves have left, after a restart of the host too; says what.
///
/// # Errors
/// [`LvmError`].
pub fn recover(run: &mut impl Run) -> Result<Vec<String>, LvmError> {
    let mut removed = vec![];
    for Orphan { volume, tagged } in orphans(run)? {
        if tagged.unfinished.is_some() || is_of_dead_clone(&tagged) {
            discard(run, &volume)?;
            removed.push(volume.full_name());
        }
    }
    Ok(removed)
}
