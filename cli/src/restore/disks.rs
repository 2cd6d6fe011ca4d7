//! The disks of an image: new volumes, or the guest's own put back, before the guest is restored.

use std::path::Path;

use anyhow::Result;
use lvm::restore::{NewDisks, Rollback, discard};
use lvm::run::Host;
use snapshot::disks::{DiskFacts, Kept};
use snapshot::image::Chain;
use snapshot::ports::Cancel;
use snapshot::xen::restore::{GuestDisks, Refusal, RestoreError};

use super::bar;
use crate::args::{HowArgs, RestoreDisksArg};
use crate::disks::place;
use crate::out::{note, warn};

/// What is to be done with the guest's disks.
pub enum Disks {
    /// Nothing.
    AsIs,
    /// Volumes are made for it.
    New(NewDisks),
    /// Its own are put back.
    Rollback(Rollback),
}

impl Disks {
    /// Decides it, and looks whether it can be; nothing is touched.
    pub fn plan(wanted: Option<RestoreDisksArg>, chain: &Chain, how: &HowArgs) -> Result<Self> {
        let facts = of(chain);
        let is_kept = facts.is_some_and(|facts| {
            let mut disks = facts.disks.iter();
            disks.any(|disk| disk.kept != Kept::Unchanged)
        });
        let wanted = match wanted {
            Some(wanted) => wanted,
            // A configuration of the user's own says which disks.
            None if how.config.is_none() && facts.is_some() => RestoreDisksArg::New,
            None => return Ok(Self::AsIs),
        };
        match (wanted, facts) {
            (RestoreDisksArg::AsIs, _) => {
                if is_kept {
                    warn(
                        "the image has the guest's disks as they were at the cut, and they are left \
                         out: its file systems may break if the disks were written to since",
                    );
                }
                Ok(Self::AsIs)
            }
            (_, None) => Err(RestoreError::from(Refusal::NoDisks).into()),
            // LVM is not needed for it.
            (_, Some(_)) if !is_kept => Ok(Self::AsIs),
            (RestoreDisksArg::New, Some(facts)) => {
                let new = NewDisks::plan(&mut Host, facts, place(&how.dev, chain.newest().path()))?;
                Ok(Self::New(new))
            }
            (RestoreDisksArg::Rollback, Some(facts)) => {
                let back =
                    Rollback::plan(&mut Host, facts, place(&how.dev, chain.newest().path()))?;
                Ok(Self::Rollback(back))
            }
        }
    }

    /// What the library is told of it.
    pub fn for_guest(&self) -> GuestDisks {
        match self {
            Self::AsIs => GuestDisks::AsIs,
            Self::New(new) => GuestDisks::New(new.paths()),
            Self::Rollback(_) => GuestDisks::PutBack,
        }
    }

    /// Does it, with a progress bar where something is copied.
    pub fn make(&self, quiet: bool, cancel: &Cancel) -> Result<()> {
        let bar = bar(quiet, "disks");
        let mut progress = |done: snapshot::Bytes, total: snapshot::Bytes| {
            bar.set_length(total.0);
            bar.set_position(done.0);
        };
        let done = match self {
            Self::AsIs => Ok(vec![]),
            Self::New(new) => new.make(&mut Host, cancel, &mut progress).map(|()| vec![]),
            Self::Rollback(back) => {
                for snapshot in back.uses_up() {
                    note(&format!(
                        "livesave: the image's snapshot {snapshot} is used up by this; no volume \
                         can be made from it afterwards"
                    ));
                }
                back.run(&mut Host, cancel, &mut progress)
            }
        };
        bar.finish_and_clear();
        let left = done?;
        if !left.is_empty() {
            warn(&format!(
                "what was on the disks before is left in {}; remove it (`lvremove`)",
                left.join(", ")
            ));
        }
        Ok(())
    }

    /// The guest was not restored: takes back what can be. A guest that may be there keeps its disks.
    pub fn undo(&self, may_be_used: bool) {
        match self {
            Self::AsIs => {}
            Self::New(new) if may_be_used => note(&format!(
                "livesave: the new volumes {} are left, as the guest may be on them",
                new.names().join(", ")
            )),
            Self::New(new) => note(&format!("livesave: {}", new.remove(&mut Host))),
            Self::Rollback(back) => note(&format!(
                "livesave: put back to the cut for all that: {}",
                back.names().join(", ")
            )),
        }
    }

    /// What was done, to stand behind a line about the guest; empty if nothing was.
    pub fn summary(&self) -> String {
        match self {
            Self::AsIs => String::new(),
            Self::New(new) => format!("; on new volumes: {}", new.names().join(", ")),
            Self::Rollback(back) => format!("; put back to the cut: {}", back.names().join(", ")),
        }
    }
}

/// What an image says of the guest's disks.
pub fn of(chain: &Chain) -> Option<&DiskFacts> {
    chain.newest().facts()?.disks.as_ref()
}

/// Removes what an image that was not kept has kept of the disks.
pub fn give_up(facts: &DiskFacts, image: &Path, how: &HowArgs) {
    if let Err(error) = discard(&mut Host, facts, &place(&how.dev, image)) {
        warn(&format!("{:#}", anyhow::Error::from(error)));
    }
}
