//! Live snapshots of a running virtual machine.
//!
//! The library side of `livesave`: the pre-copy [`engine`] copies a guest's memory into an image
//! file while the guest runs, again only what was dirtied, until little enough is left to suspend
//! the guest and capture the rest. It knows only the [`ports`]; the back-ends ([`embedded`] and
//! `xen`) and the [`image`] sit behind them.

mod checksum;
pub mod disks;
pub mod embedded;
pub mod engine;
#[doc(hidden)]
pub mod fault;
pub mod forecast;
pub mod guardian;
pub mod history;
pub mod image;
pub mod lineage;
pub mod page;
pub mod page_set;
pub mod plan;
pub mod policy;
pub mod ports;
pub mod report;
pub mod units;
pub mod xen;

#[cfg(test)]
mod testing;

pub use engine::{Mode, OnMiss, Options, Save, SaveError};
pub use page::{GuestPage, PAGE_SIZE};
pub use page_set::PageSet;
pub use report::Report;
pub use units::{Bytes, CpuPercent, PageCount, Pfn};
