//! `livesave recover`: after a power of kills, nothing stays wrong.

use std::process::ExitCode;

use anyhow::{Context, Result};
use lvm::care::Recovered;
use lvm::commands::LvmError;
use lvm::inventory::InventoryError;
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
    let Recovered { removed, failed } = match lvm::care::recover(&mut Host) {
        Ok(recovered) => recovered,
        // A host without LVM has no snapshots.
        Err(LvmError::Inventory(InventoryError::Run(RunError::Start { .. }))) => {
            Recovered::default()
        }
        Err(error) => Recovered {
            removed: vec![],
            failed: vec![format!("{:#}", anyhow::Error::new(error))],
        },
    };
    for volume in &removed {
        line(&format!("disk snapshot {volume} of a killed save removed"));
    }
    for why in &failed {
        wrong = true;
        note(&format!("livesave: disk snapshots: {why}"));
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
