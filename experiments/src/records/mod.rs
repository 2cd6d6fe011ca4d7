//! Sequenced records on disks: whether memory and disks are of the same instant can be told from them.
//!
//! A record is one block of 4 KiB that shows whose it is, on which disk, and which in the order of
//! writes ([`block`]). A disk has a ring of them ([`slots`]). The guest writes record after record,
//! each acknowledged before the next begins, and knows in its memory which was issued and which was
//! acknowledged ([`crate::workload::records`]); so each slot must hold exactly one record
//! ([`judge`]), and every 16th has a small file beside it on disks with a file system ([`small`]).
//! A snapshot that nobody runs on is looked at without that knowledge ([`look`]).

pub mod block;
pub mod judge;
pub mod look;
pub mod slots;
pub mod small;

/// Slots of a ring; record `s` stands in slot `s % SLOTS`. The first record is 1.
pub const SLOTS: u64 = 256;

/// Which disk a virtual device is, by its letter: `xvda` is 0.
#[must_use]
pub fn disk_number(vdev: &str) -> Option<u8> {
    match vdev.strip_prefix("xvd")?.as_bytes() {
        [letter @ b'a'..=b'z'] => Some(letter - b'a'),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_are_numbered_by_their_letter() {
        assert_eq!(disk_number("xvda"), Some(0));
        assert_eq!(disk_number("xvdz"), Some(25));
        for other in ["", "xvd", "xvda1", "sda", "xvdA"] {
            assert_eq!(disk_number(other), None, "{other}");
        }
    }
}
