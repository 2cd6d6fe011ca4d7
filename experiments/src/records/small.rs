//! Small files beside a ring, one for every 16th record: what a file system does to its own
//! structures is of the instant, too.

use super::block::{Found, Owner, Place};
use super::judge::{Bad, Kind, Known};
use super::slots::open_direct;
use crate::workload::pattern::Page;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Every so many records make a file.
pub const EVERY: u64 = 16;
/// So many files stay.
pub const KEPT: u64 = 8;

/// Between a file and the one that it makes go.
const LAP: u64 = EVERY * KEPT;

/// A directory of files, each named by the sequence number of its record.
pub struct SmallFiles {
    dir: PathBuf,
    owner: Owner,
}

impl SmallFiles {
    /// Of this directory.
    #[must_use]
    pub fn of(dir: &Path, owner: Owner) -> Self {
        Self {
            dir: dir.to_owned(),
            owner,
        }
    }

    /// Makes the directory too, if it is not there.
    pub fn create(dir: &Path, owner: Owner) -> io::Result<Self> {
        fs::create_dir_all(dir)?;
        if let Some(parent) = dir.parent() {
            File::open(parent)?.sync_all()?;
        }
        Ok(Self::of(dir, owner))
    }

    fn path(&self, seq: u64) -> PathBuf {
        self.dir.join(seq.to_string())
    }

    /// Makes the file of record `seq` and takes the oldest away; both are durable when it returns.
    pub fn write(&self, seq: u64) -> io::Result<()> {
        let mut block = Page::zero();
        self.owner.fill(&mut block, Place::Small, seq);
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true);
        let file = open_direct(&options, &self.path(seq))?;
        file.write_all_at(block.as_bytes(), 0)?;
        file.sync_all()?;
        if let Some(old) = seq.checked_sub(LAP).filter(|&old| old > 0) {
            match fs::remove_file(self.path(old)) {
                // Removed by a first try that failed later.
                Err(err) if err.kind() == io::ErrorKind::NotFound => {}
                other => other?,
            }
        }
        File::open(&self.dir)?.sync_all()
    }

    /// All files that are there and what they hold, read past the page cache, in order.
    pub fn read(&self) -> io::Result<Vec<(u64, Found)>> {
        let mut files = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            let name = entry?.file_name();
            let seq = name.to_str().and_then(|name| name.parse().ok());
            let seq = seq.ok_or_else(|| {
                io::Error::other(format!("{} holds {name:?}", self.dir.display()))
            })?;
            files.push((seq, self.read_one(seq)?));
        }
        files.sort_unstable_by_key(|(seq, _)| *seq);
        Ok(files)
    }

    fn read_one(&self, seq: u64) -> io::Result<Found> {
        let file = open_direct(OpenOptions::new().read(true), &self.path(seq))?;
        let mut block = Page::zero();
        match file.read_exact_at(block.as_bytes_mut(), 0) {
            Err(err) if err.kind() == io::ErrorKind::UnexpectedEof => Ok(Found::Damaged(seq)),
            other => other.map(|()| self.owner.look(&block, Place::Small)),
        }
    }
}

/// Which files are there that must not be, and are not there or not whole that must be. While one
/// is being made it may be there, in any state, or not, and so may be the one that it makes go.
#[must_use]
pub fn judge(known: Known, files: &[(u64, Found)]) -> Vec<Bad> {
    let under_way = (known.issued == known.acked + EVERY).then_some(known.issued);
    let goes = under_way.and_then(|new| new.checked_sub(LAP));
    let first = known.acked.saturating_sub(LAP) + EVERY;
    let mut bad = Vec::new();
    let mut wrong = |slot, expected, found, kind| {
        bad.push(Bad {
            place: Place::Small,
            slot,
            expected,
            found,
            kind,
        });
    };
    let kept = || (first..=known.acked).step_by(EVERY as usize);
    for seq in kept() {
        let there = files.iter().any(|(name, _)| *name == seq);
        if !there && Some(seq) != goes {
            wrong(seq, Some(seq), Found::Nothing, Kind::Lost);
        }
    }
    for &(seq, found) in files {
        if Some(seq) == under_way {
            continue;
        }
        if !kept().any(|kept| kept == seq) {
            let kind = if seq > known.acked {
                Kind::Later
            } else {
                Kind::Lost
            };
            wrong(seq, None, found, kind);
        } else if found != Found::Record(seq) {
            wrong(seq, Some(seq), found, Kind::Damaged);
        }
    }
    bad
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWNER: Owner = Owner { seed: 1, disk: 2 };

    fn known(issued: u64, acked: u64) -> Known {
        Known { issued, acked }
    }

    fn kinds(known: Known, files: &[(u64, Found)]) -> Vec<(u64, Kind)> {
        let bad = judge(known, files);
        bad.iter().map(|bad| (bad.slot, bad.kind)).collect()
    }

    #[test]
    fn eight_stay_and_all_are_whole() {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let small = SmallFiles::create(&dir.path().join("small"), OWNER).unwrap();
        assert_eq!(kinds(known(0, 0), &small.read().unwrap()), []);
        for seq in (EVERY..=20 * EVERY).step_by(EVERY as usize) {
            small.write(seq).unwrap();
            let files = small.read().unwrap();
            assert_eq!(files.len() as u64, (seq / EVERY).min(KEPT));
            assert_eq!(kinds(known(seq, seq), &files), []);
            // Before it was acknowledged, and before it was made.
            assert_eq!(kinds(known(seq, seq - EVERY), &files), []);
            assert_eq!(kinds(known(seq + EVERY, seq), &files), []);
        }
    }

    #[test]
    fn files_of_another_moment_are_told() {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let small = SmallFiles::create(dir.path(), OWNER).unwrap();
        for seq in (EVERY..=10 * EVERY).step_by(EVERY as usize) {
            small.write(seq).unwrap();
        }
        let files = small.read().unwrap();
        // The directory is of one file earlier than memory, then of one later.
        let lost = [(176, Kind::Lost), (48, Kind::Lost)];
        assert_eq!(kinds(known(176, 176), &files), lost);
        let later = [(32, Kind::Lost), (160, Kind::Later)];
        assert_eq!(kinds(known(144, 144), &files), later);
        fs::write(dir.path().join("96"), [0; 4096]).unwrap();
        fs::write(dir.path().join("112"), "short").unwrap();
        let damaged = [(96, Kind::Damaged), (112, Kind::Damaged)];
        assert_eq!(kinds(known(160, 160), &small.read().unwrap()), damaged);
    }
}
