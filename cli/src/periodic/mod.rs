//! Periodic snapshots: a directory with the images of one guest or many.
//!
//! Nothing is kept beside the images: which guest an image is of, and of which moment, stands in
//! the image itself.

mod directory;
pub mod incremental;
pub mod keep;
pub mod list;
pub mod name;
mod orphans;
pub mod prune;
pub mod room;
pub mod status;
