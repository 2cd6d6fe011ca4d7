//! The journal of one save: whose guest, and what of it may have to be put right.
//!
//! A small text file on a tmpfs ([`super::entry`]), so that nothing of it needs to be made durable.
//!
//! The text is written with state 0, before anything is done to the guest. So a text that is cut
//! off (its writer was killed in the middle) says that nothing had been done.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::caps::Caps;
use super::entry::{BEAT_AT, BEAT_LENGTH, CAPS_AT, Entry, STATE_AT, unknown_version};
use super::state::State;

/// A journal is not longer: a path has 4096 bytes at most, a disk takes some 300.
const LONGEST: u64 = 256 << 10;

/// A sign of life: another one than before says that the save lives.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sign([u8; BEAT_LENGTH]);

/// A journal could not be read.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// It cannot be read at all.
    #[error("Failed to read the journal of a save")]
    Io(#[from] io::Error),
    /// Another livesave wrote it.
    #[error("The journal was written by another version of livesave ({0:?})")]
    Foreign(String),
}

/// The open file of a journal.
#[derive(Debug)]
pub struct Journal {
    file: File,
    /// Signs of life given so far.
    beats: Arc<AtomicU32>,
}

impl Journal {
    /// The journal in a file open for reading and writing.
    #[must_use]
    pub fn new(file: File) -> Self {
        Self {
            file,
            beats: Arc::default(),
        }
    }

    /// The file; whoever inherits it shares its lock.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Another handle of the same open file.
    ///
    /// # Errors
    /// What the system says.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self {
            file: self.file.try_clone()?,
            beats: self.beats.clone(),
        })
    }

    /// Notes a save that has done nothing yet.
    ///
    /// # Errors
    /// What the system says.
    pub fn begin(&self, entry: &Entry) -> io::Result<()> {
        self.clear()?;
        let text = entry.encode();
        if text.len() as u64 > LONGEST {
            return Err(io::Error::other("what there is to be noted is too long"));
        }
        self.file.write_all_at(&text, 0)
    }

    /// Notes what may have to be put right from now on. Allocates nothing.
    ///
    /// # Errors
    /// What the system says.
    pub fn set(&self, state: State) -> io::Result<()> {
        self.file.write_all_at(&[state.to_byte()], STATE_AT as u64)
    }

    /// Notes the caps that a guest is given from now on; before the state says so, or before the
    /// next one is set. Allocates nothing.
    ///
    /// # Errors
    /// What the system says.
    pub fn set_caps(&self, caps: Caps) -> io::Result<()> {
        self.file.write_all_at(&caps.encode(), CAPS_AT as u64)
    }

    /// Shows that the save lives. Allocates nothing. For those only whose standing still is the
    /// save's: not for a thread that goes on by itself.
    pub fn beat(&self) {
        let beats = self.beats.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
        let mut text = [b'0'; BEAT_LENGTH];
        // A u32 has ten digits at most, so it always fits.
        let _ = write!(&mut text[..], "{beats:010}");
        // One that is missed does not matter.
        let _ = self.file.write_all_at(&text, BEAT_AT as u64);
    }

    /// What is noted now; `None` if there is no journal.
    ///
    /// # Errors
    /// What the system says.
    pub fn state(&self) -> io::Result<Option<State>> {
        let mut byte = [0];
        let got = self.file.read_at(&mut byte, STATE_AT as u64)?;
        Ok((got == 1).then(|| State::from_byte(byte[0])).flatten())
    }

    /// The save's last sign of life; `None` if there is no journal.
    ///
    /// # Errors
    /// What the system says.
    pub fn last_sign(&self) -> io::Result<Option<Sign>> {
        let mut beat = [0; BEAT_LENGTH];
        let got = self.file.read_at(&mut beat, BEAT_AT as u64)?;
        Ok((got == BEAT_LENGTH).then_some(Sign(beat)))
    }

    /// The journal of a save that has not ended in order; `None` if there is none.
    ///
    /// # Errors
    /// [`JournalError`].
    pub fn read(&self) -> Result<Option<(Entry, State)>, JournalError> {
        let length = self.file.metadata()?.len().min(LONGEST);
        let mut text = vec![0; length as usize];
        self.file.read_exact_at(&mut text, 0)?;
        if let Some(version) = unknown_version(&text) {
            return Err(JournalError::Foreign(version));
        }
        Ok(Entry::decode(text))
    }

    /// Notes that nothing is to be put right.
    ///
    /// # Errors
    /// What the system says.
    pub fn clear(&self) -> io::Result<()> {
        self.file.set_len(0)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStringExt;
    use std::path::PathBuf;

    use super::super::entry::MAGIC;
    use super::super::state::Slowed;
    use super::*;

    fn journal(content: &[u8]) -> Journal {
        let file = tempfile::tempfile().expect("file");
        file.write_all_at(content, 0).expect("written");
        Journal::new(file)
    }

    fn entry() -> Entry {
        Entry {
            pid: 4711,
            uuid: "5f3a0000-0000-0000-0000-000000000001".into(),
            partial: Some(PathBuf::from(std::ffi::OsString::from_vec(
                b"/images/a\nb\xff.partial".to_vec(),
            ))),
            caps: Caps::default(),
            disks: "{\"disks\":\n[]}".into(),
        }
    }

    #[test]
    fn what_was_noted_is_read_at_every_step() {
        let journal = journal(b"");
        assert_eq!(journal.read().expect("read"), None);
        assert_eq!(journal.state().expect("read"), None);
        for entry in [
            entry(),
            Entry {
                partial: None,
                disks: String::new(),
                ..entry()
            },
        ] {
            journal.begin(&entry).expect("begun");
            for byte in b'0'..=b'w' {
                let state = State::from_byte(byte).expect("a state");
                let caps = Caps::next(None, byte.into(), 65535);
                let entry = Entry {
                    caps,
                    ..entry.clone()
                };
                journal.set_caps(caps).expect("set");
                journal.set(state).expect("set");
                journal.beat();
                assert_eq!(journal.state().expect("read"), Some(state));
                assert_eq!(journal.read().expect("read"), Some((entry, state)));
            }
        }
        journal.clear().expect("cleared");
        assert_eq!(journal.read().expect("read"), None);
    }

    #[test]
    fn a_text_that_is_cut_off_or_damaged_is_none() {
        let whole = entry().encode();
        for length in 0..whole.len() {
            let cut = journal(&whole[..length]);
            assert_eq!(cut.read().expect("read"), None, "{length} bytes");
        }
        for at in MAGIC.len() + 2..whole.len() {
            let written = [
                STATE_AT..STATE_AT + 1,
                BEAT_AT..BEAT_AT + BEAT_LENGTH,
                CAPS_AT..CAPS_AT + 17,
            ];
            if written.iter().any(|range| range.contains(&at)) {
                continue;
            }
            let mut damaged = whole.clone();
            damaged[at] ^= 1;
            let damaged = journal(&damaged);
            assert_eq!(damaged.read().expect("read"), None, "byte {at}");
        }
    }

    #[test]
    fn other_versions_are_told_apart() {
        let older = journal(b"livesave journal 1\nwhatever");
        assert!(matches!(older.read(), Err(JournalError::Foreign(v)) if v == "1"));
    }

    #[test]
    fn only_a_sign_of_life_is_one() {
        let journal = journal(b"");
        assert_eq!(journal.last_sign().expect("read"), None);
        journal.begin(&entry()).expect("begun");
        let before = journal.last_sign().expect("read");
        assert!(before.is_some());
        // A thread that pauses the guest in turns does no more than this.
        for slowed in [Slowed::Pulsing, Slowed::No] {
            journal
                .set(State {
                    slowed,
                    ..State::NONE
                })
                .expect("set");
            assert_eq!(journal.last_sign().expect("read"), before);
        }
        journal.try_clone().expect("cloned").beat();
        let then = journal.last_sign().expect("read");
        assert_ne!(then, before);
        journal.beat();
        assert_ne!(journal.last_sign().expect("read"), then);
    }
}
