//! A second process that outlives the save and puts the guest right when the save dies.
//!
//! A save that is killed in the middle (kill -9, out of memory, an abort) cannot clean up. So each
//! has a guardian: the same program in a session of its own, started before anything is done to
//! the guest. What is to be put right stands in the [`Journal`], which the save writes **before**
//! each step; the guardian reads it when the save has ended, or when it hangs while the guest is
//! held up.
//!
//! ```text
//! save                          journal (tmpfs, locked)       guardian
//!  begin ─────────────────────► state none
//!  start ─────────────────────────────────────────────────►   opens what it will need
//!  ◄──────────────────────────────────────────── "ready" ──
//!  about to track writes ─────► tracking
//!  a batch copied ────────────► a sign of life
//!  about to cap the CPU ──────► the caps, then
//!                               tracking, capped              looks twice a second for the save's
//!  cap put back ──────────────► tracking                      signs of life
//!  about to ask for suspension ► tracking, requested
//!  suspended ─────────────────► tracking, suspended
//!  about to hold its disks ───► tracking, suspended, disks held
//!  resumed ───────────────────► tracking, resumed
//!  others told of it ─────────► tracking
//!  disks let go ──────────────► tracking, disks made
//!  tracking off ──────────────► disks made
//!  the image has its name ────► none
//!  ends, however ── socket closes ────────────────────────►   puts right what the journal says
//! ```
//!
//! The journal is the message: a step costs one write of one byte to memory, wakes nobody in the
//! pause window, and what the guardian acts on is the same that `livesave recover` finds when both
//! were killed. The socket only tells that the guardian is ready and that the save has ended. Both
//! share the lock on the journal, so that it is free only when nothing is left to be put right, or
//! nobody is left to do it.
//!
//! Of a guest's emulator nothing is noted: it notes its writes within `tracking` only, and is stopped
//! within `suspended` only, so that whoever puts the guest right knows what to ask it.
//!
//! Where the guest is slowed by pauses instead of a cap, each of them is noted (`pulsing`) before
//! it is made and taken back from the journal after it was ended, fifty times a second: so that one
//! pause is ended, ours, and none that somebody else made. These notes are no sign of life, as the
//! thread that makes them would go on when the rest of the save hangs. A cap is put back only while
//! it is one of those that the save noted ([`Caps::remedy`]): an administrator's is left.

mod caps;
mod disks;
mod entry;
mod journal;
mod keeper;
mod link;
mod lock;
mod notes;
mod recover;
mod state;
mod watch;

pub use caps::{Caps, Remedy};
pub use disks::{DiskCare, NoDisks};
pub use entry::Entry;
pub use journal::{Journal, JournalError, Sign};
pub use keeper::Keeper;
pub use link::{Link, StartError};
pub use lock::{LockError, Locks, SaveLock};
pub use notes::Notes;
pub use recover::{Recovered, put_right, recover};
pub use state::{DiskState, Slowed, State, Stop};
pub use watch::{Outcome, Patience, PutRight, serve};
