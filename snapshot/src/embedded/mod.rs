//! A guest that needs no hypervisor: a child process with real memory, really tracked.
//!
//! Its memory is a memfd that the child maps shared; its threads write pages there as a workload
//! would; the kernel tracks what they write (`tracker`); a pause is a handshake after which no
//! thread writes; a CPU cap is enforced every 10 ms. It backs the tests and the demonstration
//! where there is no Xen, and is never called Xen.
//!
//! The guest proves a cut by itself: it keeps the sum of the hashes of its pages while it writes
//! them, and hands that sum over as its device state (`state`). A guest restored from an image
//! computes the sum from the memory that it got, so that one wrong byte is seen.
//!
//! Parent's side: [`EmbeddedGuest`] starts, asks and ends the child, [`GuestMemory`] reads and
//! fills its memory, [`EmbeddedDomain`] is the port that the engine saves it through. Child's side:
//! [`guest_main`]. Between them: `protocol`.
//!
//! A guest that [listens](EmbeddedGuest::listen) outlives those who save it: a save in another
//! process [attaches](EmbeddedGuest::attach) to it, guarded as one of a domU is
//! ([`GuardedDomain`]), and whoever outlives a killed save puts the guest right ([`Charge`]).

mod attach;
mod content;
mod domain;
mod error;
mod guarded;
mod guest;
mod handle;
mod layout;
mod link;
mod memory;
mod protocol;
mod settle;
mod spec;
mod state;
mod sys;
mod tracker;

pub use content::page_hash_of;
pub use domain::{EmbeddedBatch, EmbeddedDomain, EmbeddedMapper};
pub use error::GuestError;
pub use guarded::{GuardedDomain, GuardedMapper, Guarding};
pub use guest::guest_main;
pub use handle::{EmbeddedGuest, Verdict};
pub use layout::Layout;
pub use memory::GuestMemory;
pub use protocol::{GuestStats, GuestStatus};
pub use settle::Charge;
pub use spec::{Content, Fault, GuestSpec, Pattern, SpecError, TrackerChoice, Workload};
pub use state::{Cursor, GuestState, StateError};
pub use tracker::TrackerKind;
