//! The harness: what is measured, the runs, and the tables and plots of them.
//!
//! [`plan`] says which runs a sweep is made of; [`sweep`] makes them by a [`sweep::Runner`] ([`xen`]
//! on a real Xen, [`embedded`] without one) and stores each ([`record`]). Nothing of a run is kept in memory only.

pub mod case;
pub mod embedded;
pub mod manifest;
pub mod meter;
mod methods;
mod passes;
pub mod plan;
pub mod progress;
pub mod record;
pub mod report;
pub mod room;
pub mod study;
pub mod sweep;
mod sys;
mod taken;
pub mod testbed;
pub mod wire;
mod witness;
pub mod xen;
