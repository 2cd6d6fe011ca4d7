//! Dirty tracking: which pages of the guest were written to, as the kernel sees it.
//!
//! Two ways, each with a side in the guest ([`GuestTracker`], which sets it up on the guest's own
//! mapping) and one in the parent ([`Tracker`], which fetches):
//!
//! * [`pagemap_scan`]: the kernel notes the first write to each page (userfaultfd, write protection
//!   in asynchronous mode) and one call from the parent reports and protects again atomically.
//!   Linux 6.7 and up, where userfaultfd is allowed.
//! * [`mprotect`]: the guest's memory is read-only, a signal handler notes the fault. Everywhere.
//!
//! Both track the guest's mapping, not the file behind it: what the parent writes into the memfd
//! is not seen. Which one works here is found by trying, on the guest itself ([`probe`]).

pub mod mprotect;
pub mod pagemap_scan;
pub mod probe;
mod sys;

use std::fmt;
use std::io;

use serde::{Deserialize, Serialize};

use super::error::GuestError;
use super::link::Link;
use super::protocol::Request;
use super::sys::{Ram, SharedWords};
use crate::page_set::PageSet;

/// A way of dirty tracking.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TrackerKind {
    /// userfaultfd and `PAGEMAP_SCAN`.
    PagemapScan,
    /// `mprotect` and a signal handler.
    Mprotect,
}

impl fmt::Display for TrackerKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::PagemapScan => "userfaultfd and PAGEMAP_SCAN",
            Self::Mprotect => "mprotect",
        })
    }
}

/// The parent's side.
#[derive(Debug)]
pub enum Tracker {
    /// userfaultfd and `PAGEMAP_SCAN`.
    PagemapScan(pagemap_scan::Scanner),
    /// `mprotect` and a signal handler.
    Mprotect(mprotect::Bitmaps),
}

impl Tracker {
    /// Which way it is.
    pub fn kind(&self) -> TrackerKind {
        match self {
            Self::PagemapScan(_) => TrackerKind::PagemapScan,
            Self::Mprotect(_) => TrackerKind::Mprotect,
        }
    }

    /// Starts tracking: every write from its return on is seen.
    pub fn enable(&mut self, link: &Link) -> Result<(), GuestError> {
        link.call("start dirty tracking of", Request::Arm(self.kind()))?;
        match self {
            // Registered memory counts as written until it is first protected, which takes a scan.
            Self::PagemapScan(scanner) => scanner.forget(link),
            Self::Mprotect(_) => Ok(()),
        }
    }

    /// Adds what was written since the last fetch, and forgets it. A write made meanwhile is in
    /// this fetch or in the next.
    pub fn fetch(&mut self, link: &Link, into: &mut PageSet) -> Result<(), GuestError> {
        match self {
            Self::PagemapScan(scanner) => {
                scanner.fetch(link, into)?;
                // The memory of a process that was just killed must not pass for clean. Some
                // kernels say so (`ESRCH`); a sign of life from after the scan is proof on all.
                link.ping()
            }
            Self::Mprotect(bitmaps) => {
                link.call("fetch the dirty pages of", Request::Fetch)?;
                bitmaps.fetched(link, into)
            }
        }
    }

    /// Adds what was written since the last fetch, and forgets nothing. For a suspended guest this
    /// is all there is to know, and it is quicker than a fetch and slows no later write; but
    /// whether the guest still lives shows only at the next call.
    pub fn peek(&mut self, link: &Link, into: &mut PageSet) -> Result<(), GuestError> {
        match self {
            Self::PagemapScan(scanner) => scanner.peek(link, into),
            Self::Mprotect(bitmaps) => bitmaps.live(link, into),
        }
    }

    /// Ends tracking.
    pub fn disable(&mut self, link: &Link) -> Result<(), GuestError> {
        link.call("end dirty tracking of", Request::Disarm)?;
        Ok(())
    }
}

/// The guest's side.
#[derive(Debug)]
pub struct GuestTracker {
    memory: mprotect::Watch,
    armed: Option<Armed>,
}

#[derive(Debug)]
enum Armed {
    PagemapScan(
        #[expect(dead_code, reason = "registered while it is held")] pagemap_scan::Registration,
    ),
    Mprotect,
}

impl GuestTracker {
    /// A tracker of that memory, off. `bitmap` is shared with the parent and stays for good, as
    /// the signal handler may use it at any time.
    pub fn new(ram: &Ram, bitmap: &'static SharedWords) -> Self {
        Self {
            memory: mprotect::Watch::new(ram, bitmap),
            armed: None,
        }
    }

    /// Starts tracking.
    pub fn arm(&mut self, ram: &Ram, kind: TrackerKind) -> io::Result<()> {
        if self.armed.is_some() {
            return Err(io::Error::other("dirty tracking is already on"));
        }
        self.armed = Some(match kind {
            TrackerKind::PagemapScan => Armed::PagemapScan(pagemap_scan::Registration::new(ram)?),
            TrackerKind::Mprotect => {
                if let Err(error) = self.memory.start() {
                    // Half on is not on.
                    let _ = self.memory.stop();
                    return Err(error);
                }
                Armed::Mprotect
            }
        });
        Ok(())
    }

    /// Whether tracking is on.
    pub fn is_armed(&self) -> bool {
        self.armed.is_some()
    }

    /// Moves the bitmap of the `mprotect` tracker to where the parent reads it.
    pub fn fetch(&mut self) -> io::Result<()> {
        match self.armed {
            Some(Armed::Mprotect) => self.memory.fetch(),
            _ => Err(io::Error::other("the mprotect tracker is off")),
        }
    }

    /// Ends tracking; that it was off already does no harm.
    pub fn disarm(&mut self) -> io::Result<()> {
        match self.armed.take() {
            Some(Armed::Mprotect) => self.memory.stop(),
            // Closing the userfaultfd ends it.
            Some(Armed::PagemapScan(_)) | None => Ok(()),
        }
    }
}
