//! Driving real guests from a dom0: `xl`, the stock ways to save, and livesave.

pub mod boot_disk;
pub mod config;
pub mod console;
pub mod echo;
pub mod emulator;
pub mod guest;
pub mod harm;
pub mod hold;
pub mod hypervisor;
pub mod image;
pub mod livesave;
pub mod log_dirty;
pub mod lvm;
pub mod pool;
pub mod process;
pub mod receiver;
pub mod serial;
pub mod spec;
pub mod stock;
pub(crate) mod stream;
pub mod xenstored;
pub mod xl;
