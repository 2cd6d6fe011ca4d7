//! `livesave recover`: after a power of kills, nothing stays wrong.

use std::process::ExitCode;

use anyhow::{Context, Result};
use lvm::commands::LvmError;
use lvm::run::{Host, RunError};
use snapshot::xen;

use crate::disks::CARE;
use crate::out::{line, note};

/// Settles every journal that nobody looks after, and removes the disk snapshots of saves that no
/// journal tells of any more (the host was restarted).
pub fn run() -> Result<ExitCode> {
    let found = xen::recover(&CARE).context("Failed to look for killed saves in /run/livesave")?;
    let mut wrong = false;
    for recovered in &found {
        match &recovered.what {
            Ok(done) => line(&format!("domain {}: {}", recovered.domid, done.join(", "))),
            Err(why) => {
                wrong = true;
                note(&format!("livesave: domain {}: {why}", recovered.domid));
            }
        }
    }
    let removed = match lvm::care::recover(&mut Host) {
        Ok(removed) => removed,
        // A host without LVM has no snapshots.
        Err(LvmError::Inventory(lvm::inventory::InventoryError::Run(RunError::Start {
            ..
        }))) => {
            vec![]
        }
        Err(error) => {
            wrong = true;
            note(&format!(
                "livesave: disk snapshots: {:#}",
                anyhow::Error::new(error)
            ));
            vec![]
        }
    };
    for volume in &removed {
        line(&format!("disk snapshot {volume} of a killed save removed"));
    }
    if found.is_empty() && removed.is_empty() && !wrong {
        line("nothing was to be put right");
    }
    Ok(if wrong {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}
