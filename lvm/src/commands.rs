//! What is asked of LVM for a snapshot, apart from the cut.

use std::ffi::OsString;
use std::time::Duration;

use snapshot::units::Bytes;

use crate::dm::DmError;
use crate::inventory::InventoryError;
use crate::plan::{Kind, Planned};
use crate::restart::RestartError;
use crate::run::{Run, RunError};

/// How long one of LVM's commands may take where the guest does not wait for it.
pub const LIMIT: Duration = Duration::from_secs(120);

/// Something about the snapshots went wrong.
#[derive(Debug, thiserror::Error)]
pub enum LvmError {
    /// LVM's volumes cannot be told.
    #[error(transparent)]
    Inventory(#[from] InventoryError),
    /// A command failed.
    #[error(transparent)]
    Run(#[from] RunError),
    /// A device refused something.
    #[error(transparent)]
    Device(#[from] DmError),
    /// A snapshot cannot be begun anew at the cut.
    #[error(transparent)]
    Restart(#[from] RestartError),
    /// It could not be noted how far the disks are.
    #[error("Failed to note in /run/livesave how far the disks are")]
    Note(#[source] std::io::Error),
    /// The guest has overwritten more than there is room for.
    #[error(
        "Snapshot {0} is full already, and worthless: the guest overwrites much of its volume; give it \
         more room (--snapshot-size)"
    )]
    Full(String),
    /// A volume that was made is not there.
    #[error("LVM ended well, but there is no volume {0}")]
    Missing(String),
}

/// Makes the snapshot, of now: at the cut it will become another. A thin one is inactive and read-only.
/// LVM holds the volume for a moment; after `limit` the command is killed, and may have left it held.
/// `meanwhile` is called every few milliseconds.
///
/// # Errors
/// [`RunError`].
pub fn make_ready(
    run: &mut impl Run,
    planned: &Planned,
    tags: &[String],
    limit: Duration,
    meanwhile: &mut dyn FnMut(),
) -> Result<(), RunError> {
    let mut words: Vec<String> = match &planned.kind {
        Kind::Thin { .. } => ["-q", "-s", "-pr"].map(str::to_owned).to_vec(),
        Kind::Thick { room } => {
            let Bytes(room) = room;
            let mut words = ["-q", "-y", "-s", "-L"].map(str::to_owned).to_vec();
            words.push(format!("{room}b"));
            words
        }
    };
    words.extend(["-n".to_owned(), planned.name.clone()]);
    for tag in tags {
        words.extend(["--addtag".to_owned(), tag.clone()]);
    }
    words.push(planned.full_origin());
    let arguments: Vec<OsString> = words.into_iter().map(Into::into).collect();
    run.run("lvcreate", &arguments, limit, meanwhile).map(drop)
}

/// Removes a volume.
///
/// # Errors
/// [`RunError`].
pub fn remove(run: &mut impl Run, full_name: &str, limit: Duration) -> Result<(), RunError> {
    of_words(run, "lvremove", &["-q", "-f", "-y", full_name], limit)
}

/// Takes a tag off a volume.
///
/// # Errors
/// [`RunError`].
pub fn untag(run: &mut impl Run, full_name: &str, tag: &str) -> Result<(), RunError> {
    let words = ["-q", "--deltag", tag, full_name];
    of_words(run, "lvchange", &words, LIMIT)
}

/// Gives a volume its device, also one that is to have none on its own.
///
/// # Errors
/// [`RunError`].
pub fn activate(run: &mut impl Run, full_name: &str, limit: Duration) -> Result<(), RunError> {
    of_words(run, "lvchange", &["-q", "-ay", "-K", full_name], limit)
}

/// Runs a command that nothing else is done beside, and that has nothing to say.
///
/// # Errors
/// [`RunError`].
pub(crate) fn of_words(
    run: &mut impl Run,
    program: &str,
    words: &[&str],
    limit: Duration,
) -> Result<(), RunError> {
    let arguments: Vec<_> = words.iter().map(OsString::from).collect();
    run.run(program, &arguments, limit, &mut || ()).map(drop)
}
