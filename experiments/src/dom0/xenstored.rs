//! xenstored away for a while.
//!
//! It cannot be started again on Xen 4.17 without losing what domains wait for; but it can be
//! stopped. Whoever asks it something then waits: `xl`, and most of the suite's own helpers.

use super::process::signal_process;
use anyhow::{Context, Result, bail};
use rustix::process::Signal;
use std::fs;

/// xenstored stands still until this is dropped.
pub struct Away {
    pid: u32,
}

impl Away {
    /// Stops it.
    pub fn begin() -> Result<Self> {
        let pid = find()?;
        signal_process(pid, Signal::STOP).context("xenstored")?;
        Ok(Self { pid })
    }

    /// Lets it go on.
    pub fn end(self) {
        drop(self);
    }
}

impl Drop for Away {
    fn drop(&mut self) {
        // Without it nothing works any more, so that every later test fails.
        let _ = signal_process(self.pid, Signal::CONT);
    }
}

fn find() -> Result<u32> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let entry = entry?;
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse().ok()) else {
            continue;
        };
        // One that has ended meanwhile has no name any more.
        let name = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
        if matches!(name.trim(), "xenstored" | "oxenstored") {
            found.push(pid);
        }
    }
    match found[..] {
        [pid] => Ok(pid),
        _ => bail!("the processes {found:?} are named xenstored: one was expected"),
    }
}
