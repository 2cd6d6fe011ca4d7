//! The guest's disks at the cut of its memory, on LVM.
//!
//! The engine asks for them through [`Disks`], whose contract it is that nothing slow happens in
//! the pause window. [`plan`] settles what will be made of which volume, or says why it cannot be;
//! [`snapshots`] does it: snapshots made by LVM's own commands before the save, the volumes held in the
//! window and the snapshots made to be of the cut right after it ([`cut`], [`restart`]), kept as they
//! are or copied to files ([`copy`]). [`care`] puts right what killed saves leave, by the [`tags`] that
//! tie each snapshot to its image; [`restore`] brings the disks of an image back.
//!
//! Beneath them: the volumes as LVM tells them ([`inventory`]), LVM's commands with a time limit
//! ([`run`], [`commands`]), and the few calls of device-mapper that have to take milliseconds ([`dm`]).

pub mod care;
pub mod commands;
pub mod copy;
pub mod cut;
pub mod dm;
pub mod inventory;
pub mod plan;
pub mod restart;
pub mod restore;
pub mod run;
pub mod snapshots;
pub mod tags;

pub use snapshot::ports::{Disks, MemoryOnly};
