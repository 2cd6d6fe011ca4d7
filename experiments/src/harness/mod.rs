//! The harness: what is measured, the runs, and the tables and plots of them.

pub mod case;
pub mod manifest;
pub mod record;
