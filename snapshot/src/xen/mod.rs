//! The back-end for domUs on a real Xen.
//!
//! [`XenDomain`] is the guest as the engine sees it ([`crate::ports::Domain`]); what differs between
//! PVH, HVM and PV guests is in `types`.

mod config;
mod disks;
mod domain;
mod emulator;
mod first_aid;
mod guardian;
mod guarding;
mod guest;
mod helper;
mod host;
mod mapper;
mod memory_map;
mod open;
mod pulse;
pub mod restore;
mod rhythm;
mod settle;
mod stamp;
mod suspend;
mod sys;
mod throttle;
mod types;
mod xl;

pub use crate::guardian::Recovered;
pub use config::GuestDisk;
pub use domain::{Tracked, XenDomain};
pub use guardian::{guardian_main, recover};
pub use guarding::Guarding;
pub use host::fetches_are_costly;
pub use mapper::{XenBatch, XenKept, XenMapper};
pub use open::OpenError;
