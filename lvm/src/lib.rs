//! The guest's disks at the cut of its memory.
//!
//! The engine asks for them through [`Disks`], whose contract it is that nothing slow happens in
//! the pause window: what can be checked and made ready is, before (`prepare`); the window only
//! holds the origins still (`cut`, milliseconds); the snapshots are made and the origins let go
//! right after the guest runs again (`commit`); and `undo` takes everything back, at any point and
//! as often as it is called, so that no origin stays held.
//!
//! Snapshots of logical volumes are not made yet: a save is of the memory alone ([`MemoryOnly`]),
//! and the command says so of every guest that has disks. What they will be made with is here: the
//! volumes as LVM tells them ([`inventory`]), devices held still ([`dm`]), LVM's commands with a
//! time limit ([`run`]); and what an image has kept of its disks comes back ([`restore`]).

pub mod dm;
pub mod inventory;
pub mod restore;
pub mod run;

pub use snapshot::ports::{Disks, MemoryOnly};
