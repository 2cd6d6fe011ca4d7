//! What stands in a journal, as text.
//!
//! ```text
//! livesave journal 2
//! state 3                 one byte, rewritten in place at every step (see State)
//! beat 0000000000         a number, raised to show life
//! caps 00040 00040 00020  rewritten before the state says that the guest is capped (see Caps)
//! pid 4711
//! uuid 5f3a…
//! partial 31              bytes of the path that follows; 0 if the image has no temporary name
//! /images/.g.xl.livesave-4711.partial
//! disks 240              bytes of the text that follows, by those who look after the disks; 0 if none do
//! {"image":…}
//! xxh64 89abcdef         of all of the above, with state 0, beat 0 and caps 0
//! ```

use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use super::caps::Caps;
use super::state::State;
use crate::checksum;

pub(super) const MAGIC: &str = "livesave journal ";
const VERSION: &str = "2";
/// Where the state's byte stands.
pub(super) const STATE_AT: usize = 25;
/// Where the sign of life is written.
pub(super) const BEAT_AT: usize = 32;
pub(super) const BEAT_LENGTH: usize = 10;
/// Where the caps stand.
pub(super) const CAPS_AT: usize = 48;
/// Whose guest a journal is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The saving process.
    pub pid: u32,
    /// The domain's UUID.
    pub uuid: String,
    /// A name that the unfinished image may have.
    pub partial: Option<PathBuf>,
    /// Its CPU caps, while the state says that it is capped. A journal begins without.
    pub caps: Caps,
    /// What [`super::DiskCare`] has to know of its disks; empty if nothing is done to them.
    pub disks: String,
}

impl Entry {
    /// Removes the unfinished image; says whether there was one.
    ///
    /// # Errors
    /// What the system says.
    pub fn remove_partial(&self) -> io::Result<bool> {
        let Some(path) = &self.partial else {
            return Ok(false);
        };
        match std::fs::remove_file(path) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let partial = self
            .partial
            .as_ref()
            .map(|path| path.as_os_str().as_bytes());
        let partial = partial.unwrap_or_default();
        let mut text = format!(
            "{MAGIC}{VERSION}\nstate 0\nbeat 0000000000\ncaps 00000 00000 00000\npid {}\nuuid {}\n\
             partial {}\n",
            self.pid,
            self.uuid,
            partial.len()
        )
        .into_bytes();
        text.extend_from_slice(partial);
        text.extend_from_slice(
            format!("\ndisks {}\n{}\n", self.disks.len(), self.disks).as_bytes(),
        );
        let sum = checksum::of(&text);
        text.extend_from_slice(format!("xxh64 {sum:08x}\n").as_bytes());
        text
    }

    /// `None` for a text that is cut off or damaged.
    pub(super) fn decode(mut text: Vec<u8>) -> Option<(Self, State)> {
        let state = State::from_byte(*text.get(STATE_AT)?)?;
        text[STATE_AT] = State::NONE.to_byte();
        let beat = text.get_mut(BEAT_AT..BEAT_AT + BEAT_LENGTH)?;
        beat.fill(b'0');
        let field = text.get_mut(CAPS_AT..CAPS_AT + Caps::LENGTH)?;
        let caps = Caps::decode(field)?;
        field.copy_from_slice(&Caps::default().encode());
        let mut rest = &text[..];
        let mut field = |name: &str| {
            let end = rest.iter().position(|&byte| byte == b'\n')?;
            let line = str::from_utf8(&rest[..end]).ok()?;
            rest = &rest[end + 1..];
            line.strip_prefix(name).map(str::to_owned)
        };
        field(MAGIC)?;
        field("state ")?;
        field("beat ")?;
        field("caps ")?;
        let pid = field("pid ")?.parse().ok()?;
        let uuid = field("uuid ")?;
        let length: usize = field("partial ")?.parse().ok()?;
        let (path, rest) = rest.split_at_checked(length)?;
        let rest = rest.strip_prefix(b"\ndisks ")?;
        let end = rest.iter().position(|&byte| byte == b'\n')?;
        let disks: usize = str::from_utf8(&rest[..end]).ok()?.parse().ok()?;
        let (disks, rest) = rest[end + 1..].split_at_checked(disks)?;
        let summed = text.len() - rest.len() + 1;
        let sum = checksum::of(text.get(..summed)?);
        if rest != format!("\nxxh64 {sum:08x}\n").as_bytes() {
            return None;
        }
        let partial = (length > 0).then(|| std::ffi::OsString::from_vec(path.to_vec()).into());
        let entry = Self {
            pid,
            uuid,
            partial,
            caps,
            disks: str::from_utf8(disks).ok()?.to_owned(),
        };
        Some((entry, state))
    }
}

/// The version that a whole first line tells.
fn version(text: &[u8]) -> Option<&[u8]> {
    let rest = text.strip_prefix(MAGIC.as_bytes())?;
    let end = rest.iter().position(|&byte| byte == b'\n')?;
    Some(&rest[..end])
}

/// The version of a text that this livesave does not know.
pub(super) fn unknown_version(text: &[u8]) -> Option<String> {
    let version = String::from_utf8_lossy(version(text)?);
    (version != VERSION).then(|| version.into_owned())
}
