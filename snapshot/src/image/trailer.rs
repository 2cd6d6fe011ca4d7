//! livesave's own facts at the end of an image, behind the libxl END record where stock tools do
//! not look.
//!
//! ```text
//! trailer  magic "LIVESAVE", u32 version = 1, u32 number of sections
//! section  u32 kind, u32 checksum of the body, u64 length, body, zeros to a multiple of 8
//! footer   u64 offset of the trailer, u32 version = 1, u32 checksum of trailer and sections,
//!          magic "EVASEVIL"
//! ```
//!
//! All little-endian. The footer is the last 24 bytes of the file.

use serde::{Deserialize, Serialize};

use crate::checksum;
use crate::disks::DiskFacts;
use crate::lineage::{ImageId, Parent};
use crate::policy::StopReason;
use crate::ports::Identity;
use crate::report::{Brownout, Round, Target, Window};
use crate::units::PageCount;

const MAGIC: &[u8; 8] = b"LIVESAVE";
const FOOT: &[u8; 8] = b"EVASEVIL";
const VERSION: u32 = 1;
const HEAD: usize = 16;
const SECTION_HEAD: usize = 16;
/// The size of the footer.
pub const FOOTER: usize = 24;
/// A reader does not allocate more for a trailer.
pub const MAX_TRAILER: u64 = 64 << 20;

/// Section kinds; readers skip those they do not know.
const FACTS: u32 = 1;
/// Where a raw image's checksums are ([`super::checksums`]).
pub const RAW_SUMS: u32 = 2;
/// Checksum of each frame of a zstd image but the one that this stands in, as it stands in the
/// file.
pub const FRAME_SUMS: u32 = 3;
/// An increment: the pages that the guest had ([`super::existing`]).
pub const EXISTING: u32 = 4;

/// What livesave knows of an image beyond what stock tools read.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Facts {
    /// Version of livesave that wrote it.
    pub livesave: String,
    /// `xen` or `embedded`.
    pub backend: String,
    /// Whose image.
    pub domain: Identity,
    /// `plain`, `live` or `improved`.
    pub mode: String,
    /// The cut, RFC 3339 in UTC.
    pub cut: String,
    /// Pages of the guest.
    pub memory_pages: PageCount,
    /// Pages that take no room: all zero.
    pub zero_pages: PageCount,
    /// The passes while the guest ran.
    pub rounds: Vec<Round>,
    /// Why the passes ended.
    pub stop: StopReason,
    /// The pause.
    pub window: Window,
    /// The pause that was asked for, if one was.
    #[serde(default)]
    pub target: Option<Target>,
    /// How the guest was slowed, if it was.
    #[serde(default)]
    pub brownout: Option<Brownout>,
    /// Which image it is, if it has an identity.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<ImageId>,
    /// An increment: the image that it is built on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<Parent>,
    /// An increment: how many pages it holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held_pages: Option<PageCount>,
    /// The disks at the cut; `None` for an image of the memory alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disks: Option<DiskFacts>,
}

/// A trailer that was read.
#[derive(Clone, Debug, PartialEq)]
pub struct Trailer {
    /// What livesave knows of the image.
    pub facts: Facts,
    /// The body of section [`RAW_SUMS`].
    pub raw_sums: Option<Vec<u8>>,
    /// The body of section [`FRAME_SUMS`].
    pub frame_sums: Option<Vec<u8>>,
    /// The body of section [`EXISTING`].
    pub existing: Option<Vec<u8>>,
}

/// The bytes of a trailer that starts at `offset` of the file, with the facts and more sections.
///
/// # Errors
/// What the JSON encoder says.
pub fn encode(facts: &Facts, more: &[(u32, Vec<u8>)], offset: u64) -> serde_json::Result<Vec<u8>> {
    let facts = serde_json::to_vec(facts)?;
    let mut out = Vec::new();
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(&VERSION.to_le_bytes());
    out.extend_from_slice(&(1 + more.len() as u32).to_le_bytes());
    section(FACTS, &facts, &mut out);
    for (kind, body) in more {
        section(*kind, body, &mut out);
    }
    let sum = checksum::of(&out);
    out.extend_from_slice(&offset.to_le_bytes());
    out.extend_from_slice(&VERSION.to_le_bytes());
    out.extend_from_slice(&sum.to_le_bytes());
    out.extend_from_slice(FOOT);
    Ok(out)
}

fn section(kind: u32, body: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(&kind.to_le_bytes());
    out.extend_from_slice(&checksum::of(body).to_le_bytes());
    out.extend_from_slice(&(body.len() as u64).to_le_bytes());
    out.extend_from_slice(body);
    out.resize(out.len().next_multiple_of(8), 0);
}

/// Where the trailer starts, from the last bytes of a file of `file_len` bytes. `None`: the file
/// has no trailer (a stock image, or a cut-off one).
#[must_use]
pub fn locate(footer: &[u8; FOOTER], file_len: u64) -> Option<u64> {
    let offset = u64_at(footer, 0)?;
    let room = file_len.checked_sub(FOOTER as u64)?.checked_sub(offset)?;
    (footer[16..] == *FOOT && room <= MAX_TRAILER && room >= HEAD as u64).then_some(offset)
}

/// What a whole trailer holds, footer included, which stands at `offset` of the file.
///
/// # Errors
/// A text that says what is wrong.
pub fn decode(trailer: &[u8], offset: u64) -> Result<Trailer, &'static str> {
    let (body, footer) = trailer
        .split_at_checked(trailer.len().saturating_sub(FOOTER))
        .filter(|(body, _)| body.len() >= HEAD)
        .ok_or("livesave's trailer is cut off")?;
    if footer[16..] != *FOOT || u64_at(footer, 0) != Some(offset) {
        return Err("livesave's trailer does not end as one");
    }
    if u32_at(footer, 8) != Some(VERSION) {
        return Err("livesave's trailer is of a version that this livesave does not know");
    }
    if u32_at(footer, 12) != Some(checksum::of(body)) {
        return Err("livesave's trailer fails its checksum");
    }
    if body[..8] != *MAGIC || u32_at(body, 8) != Some(VERSION) {
        return Err("livesave's trailer does not start as one");
    }
    let sections = u32_at(body, 12).unwrap_or(0);
    let mut rest = &body[HEAD..];
    let (mut facts, mut raw_sums, mut frame_sums, mut existing) = (None, None, None, None);
    for _ in 0..sections {
        let cut_off = "a section of livesave's trailer is cut off";
        let kind = u32_at(rest, 0).ok_or(cut_off)?;
        let sum = u32_at(rest, 4).ok_or(cut_off)?;
        let length = u64_at(rest, 8)
            .and_then(|l| usize::try_from(l).ok())
            .ok_or(cut_off)?;
        let end = SECTION_HEAD.checked_add(length).ok_or(cut_off)?;
        let content = rest.get(SECTION_HEAD..end).ok_or(cut_off)?;
        if checksum::of(content) != sum {
            return Err("a section of livesave's trailer fails its checksum");
        }
        let known = match kind {
            FACTS => {
                let read = serde_json::from_slice(content)
                    .map_err(|_| "livesave's facts in the trailer are not readable")?;
                facts.replace(read).is_some()
            }
            RAW_SUMS => raw_sums.replace(content.to_vec()).is_some(),
            FRAME_SUMS => frame_sums.replace(content.to_vec()).is_some(),
            EXISTING => existing.replace(content.to_vec()).is_some(),
            _ => false,
        };
        if known {
            return Err("a section of livesave's trailer comes twice");
        }
        rest = rest.get(end.next_multiple_of(8)..).ok_or(cut_off)?;
    }
    if !rest.is_empty() {
        return Err("something follows the sections of livesave's trailer");
    }
    Ok(Trailer {
        facts: facts.ok_or("livesave's trailer holds no facts")?,
        raw_sums,
        frame_sums,
        existing,
    })
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::some_facts;

    fn trailer() -> Vec<u8> {
        encode(
            &some_facts(),
            &[(99, vec![1; 3]), (RAW_SUMS, vec![7])],
            4096,
        )
        .expect("encoded")
    }

    #[test]
    fn what_is_written_is_found_and_read() {
        let trailer = trailer();
        let footer = trailer[trailer.len() - FOOTER..]
            .try_into()
            .expect("a footer");
        assert_eq!(locate(&footer, 4096 + trailer.len() as u64), Some(4096));
        let found = decode(&trailer, 4096).expect("a trailer");
        assert_eq!(found.facts, some_facts());
        assert_eq!((found.raw_sums, found.frame_sums), (Some(vec![7]), None));
        assert!(decode(&trailer, 4095).is_err());
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_refused() {
        let good = trailer();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1;
            let footer = bad[bad.len() - FOOTER..].try_into().expect("a footer");
            let found = locate(&footer, 4096 + bad.len() as u64) == Some(4096);
            assert!(!found || decode(&bad, 4096).is_err(), "byte {at}");
        }
        for length in 0..good.len() {
            assert!(decode(&good[..length], 4096).is_err(), "{length} bytes");
        }
    }

    #[test]
    fn a_footer_pointing_outside_the_file_is_no_footer() {
        let trailer = trailer();
        let footer = trailer[trailer.len() - FOOTER..]
            .try_into()
            .expect("a footer");
        for file_len in [0, 23, 24, 4000, 4096 + 24, 4096 + MAX_TRAILER + 25] {
            assert_eq!(locate(&footer, file_len), None, "{file_len}");
        }
    }
}
