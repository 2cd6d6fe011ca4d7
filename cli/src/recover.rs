//! `livesave recover`: after a power of kills, nothing stays wrong.

use std::process::ExitCode;

use anyhow::{Context, Result};
use snapshot::xen;

use crate::out::{line, note};

/// Settles every journal that nobody looks after.
pub fn run() -> Result<ExitCode> {
    let found = xen::recover().context("Failed to look for killed saves in /run/livesave")?;
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
    if found.is_empty() {
        line("nothing was to be put right");
    }
    Ok(if wrong {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}
