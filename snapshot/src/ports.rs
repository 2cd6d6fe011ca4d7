//! What the engine needs from the world, as small traits on the consumer's side.
//!
//! [`Domain`] and [`Mapper`] are the guest, [`ImageSink`] is the image, [`Disks`] cuts the disks,
//! [`Observer`] hears how it goes, [`Cancel`] asks to stop. Back-ends implement them; the engine
//! knows nothing else.

mod cancel;
mod disks;
mod domain;
mod image;
mod mapper;
mod observer;

pub use cancel::Cancel;
pub use disks::{Disks, MemoryOnly};
pub use domain::{Cpu, Domain, DomainError, GuestKind, Identity, Idle, Meanwhile};
pub use image::{Finished, ImageSink, Room, SinkError, Written};
pub use mapper::{BATCH_PAGES, MappedPages, Mapper};
pub use observer::{Event, Observer, Silent};

/// An error of a back-end, boxed so that the engine stays free of back-end types.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;
