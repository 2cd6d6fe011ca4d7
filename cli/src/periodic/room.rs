//! Whether an image has room, before anything is done to the guest.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use bytesize::ByteSize;
use snapshot::ports::{Room, SinkError};
use snapshot::units::Bytes;

/// What is to stay free on the file system.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum KeepFree {
    /// So much.
    Size(Bytes),
    /// So much of the whole, in percent.
    Percent(f64),
}

impl FromStr for KeepFree {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is neither a size (10GiB) nor a percentage (5%)");
        match text.strip_suffix('%') {
            Some(percent) => percent
                .trim_end()
                .parse()
                .ok()
                .filter(|percent| (0.0..=100.0).contains(percent))
                .map(Self::Percent),
            None => text
                .parse::<ByteSize>()
                .ok()
                .map(|size| Self::Size(Bytes(size.0))),
        }
        .ok_or_else(wrong)
    }
}

impl KeepFree {
    fn of(self, total: Bytes) -> Bytes {
        match self {
            Self::Size(bytes) => bytes,
            Self::Percent(percent) => Bytes((total.0 as f64 * percent / 100.0) as u64),
        }
    }
}

/// An image might not have room, or leave too little.
#[derive(Debug, thiserror::Error)]
#[error(
    "The image may take {}, and {dir} has {} left, of which {stay} are to stay free; nothing was \
     done to the guest", .room.needed, .room.free
)]
pub struct NoRoom {
    dir: String,
    room: Room,
    stay: Bytes,
}

/// Refuses an image that might leave less than that free in its directory.
pub fn check(image: &Path, needed: Bytes, keep: KeepFree) -> anyhow::Result<()> {
    let dir = directory_of(image);
    let system = rustix::fs::statvfs(&dir).map_err(|error| SinkError {
        operation: "look at the directory of",
        path: image.display().to_string(),
        source: error.into(),
    })?;
    let size = |blocks: u64| Bytes(blocks.saturating_mul(system.f_frsize));
    let room = Room {
        needed,
        free: size(system.f_bavail),
    };
    let stay = keep.of(size(system.f_blocks));
    if fits(room, stay) {
        return Ok(());
    }
    let dir = dir.display().to_string();
    Err(NoRoom { dir, room, stay }.into())
}

fn fits(room: Room, stay: Bytes) -> bool {
    let after = room.free.0.checked_sub(room.needed.0);
    after.is_some_and(|left| left >= stay.0)
}

/// The directory that a file is in.
pub fn directory_of(file: &Path) -> PathBuf {
    match file.parent() {
        Some(parent) if parent != Path::new("") => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_percentages_are_read() {
        for (text, want) in [
            ("10GiB", KeepFree::Size(Bytes(10 << 30))),
            ("5MB", KeepFree::Size(Bytes(5_000_000))),
            ("0", KeepFree::Size(Bytes(0))),
            ("5%", KeepFree::Percent(5.0)),
            ("12.5 %", KeepFree::Percent(12.5)),
        ] {
            assert_eq!(text.parse(), Ok(want), "{text}");
        }
        for text in ["", "%", "-1%", "101%", "NaN%", "-1GiB", "much"] {
            let error = text.parse::<KeepFree>().expect_err(text);
            assert!(error.contains("5%"), "{error}");
        }
        assert_eq!(KeepFree::Percent(5.0).of(Bytes(1000)), Bytes(50));
    }

    #[test]
    fn an_image_fits_if_enough_stays_free() {
        for (needed, free, stay, fit) in [
            (10, 10, 0, true),
            (11, 10, 0, false),
            (10, 15, 5, true),
            (10, 15, 6, false),
            (10, 5, u64::MAX, false),
            (u64::MAX, 5, u64::MAX, false),
        ] {
            let room = Room {
                needed: Bytes(needed),
                free: Bytes(free),
            };
            assert_eq!(fits(room, Bytes(stay)), fit, "{needed} {free} {stay}");
        }
    }

    #[test]
    fn what_is_refused_is_told_in_figures() {
        let dir = tempfile::tempdir().expect("directory");
        let image = dir.path().join("x.xl");
        check(&image, Bytes(1), KeepFree::Size(Bytes(0))).expect("a byte fits");
        for (needed, keep) in [
            (Bytes(1 << 60), KeepFree::Size(Bytes(0))),
            (Bytes(1), KeepFree::Percent(100.0)),
        ] {
            let error = check(&image, needed, keep).expect_err("refused");
            assert!(error.is::<NoRoom>(), "{error}");
            let place = dir.path().display().to_string();
            assert!(error.to_string().contains(&place), "{error}");
        }
        let missing = dir.path().join("missing/x.xl");
        let error = check(&missing, Bytes(1), KeepFree::Percent(0.0)).expect_err("refused");
        assert!(error.is::<SinkError>(), "{error}");
    }
}
