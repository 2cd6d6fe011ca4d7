//! What an image is made of where no guest gives it: for tests, benchmarks and measurements, which
//! say only in what theirs is another (`..samples::facts()`).

use super::trailer::Facts;
use super::{GuestType, Preamble, Record, Tail, libxc};
use crate::page_set::PageSet;
use crate::policy::StopReason;
use crate::ports::Identity;
use crate::report::Window;
use crate::units::PageCount;

/// The first so many pages of a guest.
#[must_use]
pub fn first_pages(count: u64) -> PageSet {
    let mut pages = PageSet::new(PageCount(count));
    pages.insert_range(0..count);
    pages
}

/// Before the memory: an HVM guest of which nothing is told.
#[must_use]
pub fn preamble() -> Preamble {
    Preamble {
        config: b"{\"c_info\":{}}".to_vec(),
        guest: GuestType::Hvm,
        xen_version: (4, 17),
        static_data: vec![],
        before_memory: vec![],
        increment: false,
    }
}

/// Behind the memory: no more than an HVM guest's image must have.
#[must_use]
pub fn tail() -> Tail {
    Tail {
        libxc: vec![Record::new(libxc::record::HVM_CONTEXT, vec![7; 5])],
        libxl: vec![],
    }
}

/// Facts of a full image of the memory alone.
#[must_use]
pub fn facts() -> Facts {
    Facts {
        livesave: "0.1.0".into(),
        backend: "embedded".into(),
        domain: Identity {
            domid: 3,
            name: "db".into(),
            uuid: "u".into(),
        },
        mode: "live".into(),
        cut: "2026-11-20T12:00:00Z".into(),
        memory_pages: PageCount(10),
        zero_pages: PageCount(4),
        rounds: vec![],
        stop: StopReason::SmallEnough,
        window: Window::default(),
        target: None,
        brownout: None,
        id: None,
        parent: None,
        held_pages: None,
        disks: None,
    }
}
