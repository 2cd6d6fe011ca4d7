//! Whether a guest and its image fit in the memory that the machine has free.
//!
//! Both are in memory here, the image on a tmpfs. A machine that swaps, or kills, measures nothing.

use crate::native::proc_size;
use anyhow::{Context, Result};
use snapshot::embedded::GuestSpec;
use snapshot::units::Bytes;
use std::path::Path;

/// Left for all else.
const MARGIN: Bytes = Bytes::from_mib(512);

/// What a guest and its images take at most, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Needs {
    /// The guest's memory: pages with data, and those that its load may yet write.
    pub guest: Bytes,
    /// Its image: the same pages, and what stands around them.
    pub image: Bytes,
}

impl Needs {
    /// Of a guest whose zero pages are not populated.
    #[must_use]
    pub fn of(spec: &GuestSpec) -> Self {
        let zero = f64::from(spec.content.zero_percent) / 100.0;
        let written = spec.workload.region.unwrap_or(spec.span).bytes().0 as f64;
        let all = spec.span.bytes().0 as f64;
        let written = if spec.workload.pattern == snapshot::embedded::Pattern::Idle {
            0.0
        } else {
            written
        };
        let guest = all * (1.0 - zero) + written * zero;
        Self {
            guest: Bytes(guest as u64),
            // Heads take 0.3 %, checksums 0.1 % of all pages.
            image: Bytes((guest + all / 200.0) as u64 + (1 << 20)),
        }
    }

    /// Why they do not fit, if they do not. `running`: the guest has its memory already. `images`:
    /// so many stand at once. `free`: memory that the machine has available; `room`: what the images'
    /// file system has left.
    #[must_use]
    pub fn lack(self, running: bool, images: u64, free: Bytes, room: Bytes) -> Option<String> {
        let images = Bytes(self.image.0 * images);
        let guest = if running { Bytes(0) } else { self.guest };
        let needed = Bytes(guest.0 + images.0 + MARGIN.0);
        if needed > free {
            return Some(format!(
                "guest and image need {needed} of memory, and {free} are free"
            ));
        }
        (images > room).then(|| format!("the image needs {images}, and its tmpfs has {room} left"))
    }
}

/// Memory that the machine can give without swapping.
///
/// # Errors
/// `/proc/meminfo` does not tell.
pub fn available() -> Result<Bytes> {
    proc_size("/proc/meminfo", "MemAvailable:").map(Bytes)
}

/// What the file system of a directory has left.
///
/// # Errors
/// What the system says.
pub fn left_in(directory: &Path) -> Result<Bytes> {
    let found = rustix::fs::statvfs(directory)
        .with_context(|| format!("cannot look at the file system of {}", directory.display()))?;
    Ok(Bytes(found.f_bavail * found.f_frsize))
}

#[cfg(test)]
mod tests {
    use super::*;
    use snapshot::embedded::{Pattern, Workload};
    use snapshot::units::PageCount;

    fn spec() -> GuestSpec {
        let mut spec = GuestSpec::new("g", Bytes::from_mib(1024));
        spec.content.zero_percent = 75;
        spec.workload = Workload {
            pattern: Pattern::Ring,
            rate: None,
            region: Some(PageCount(65_536)),
            threads: 1,
        };
        spec
    }

    #[test]
    fn zero_pages_need_nothing_unless_the_load_writes_there() {
        let mib = |bytes: Bytes| bytes.0 >> 20;
        assert_eq!(mib(Needs::of(&spec()).guest), 256 + 192);
        let idle = GuestSpec {
            workload: Workload::IDLE,
            ..spec()
        };
        assert_eq!(mib(Needs::of(&idle).guest), 256);
        assert_eq!(mib(Needs::of(&idle).image), 262);
    }

    #[test]
    fn what_does_not_fit_is_told_in_figures() {
        let needs = Needs {
            guest: Bytes::from_mib(1000),
            image: Bytes::from_mib(500),
        };
        let mib = Bytes::from_mib;
        assert_eq!(needs.lack(false, 1, mib(2012), mib(500)), None);
        let lack = needs.lack(false, 1, mib(2011), mib(500)).unwrap();
        assert!(
            lack.contains("2.0 GiB") && lack.contains("are free"),
            "{lack}"
        );
        assert_eq!(needs.lack(true, 1, mib(1012), mib(500)), None);
        assert!(needs.lack(true, 2, mib(1012), mib(4000)).is_some());
        let lack = needs.lack(true, 1, mib(4000), mib(499)).unwrap();
        assert!(lack.contains("tmpfs"), "{lack}");
    }

    #[test]
    fn the_machine_tells_of_its_memory() {
        assert!(available().unwrap() > Bytes(0));
        assert!(left_in(Path::new("/")).is_ok());
    }
}
