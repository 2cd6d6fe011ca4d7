//! The harness: what is measured, the runs, and the tables and plots of them.

pub mod case;
pub mod embedded;
pub mod manifest;
pub mod record;
pub mod room;
pub mod witness;
