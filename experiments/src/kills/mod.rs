//! Saves killed at random instants, on the embedded guest, where a kill costs a fraction of a second
//! rather than a boot of Xen.
//!
//! Engine, image, journal, guardian and recovery are the ones that save domUs. The guest belongs to
//! the harness and outlives its saves. Each save is a process of its own ([`worker`]) with a
//! guardian of its own; the harness strikes at an instant of its choice ([`strike`]) and then looks
//! at what is left ([`check`]): by what the guest and the kernel say, never by livesave's own notes.

pub mod check;
pub mod evidence;
pub mod image;
pub mod lane;
pub mod plan;
pub mod rng;
pub mod strike;
pub mod tally;
pub mod worker;
