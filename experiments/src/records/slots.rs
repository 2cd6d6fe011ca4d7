//! A ring of records on a disk or in a file, read and written past the page cache.

use super::SLOTS;
use super::block::{Found, Owner, Place};
use crate::workload::pattern::Page;
use std::fs::{File, OpenOptions};
use std::io::{self, IoSliceMut};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

/// Bytes of a slot.
const SLOT: u64 = 4096;

/// Slots that are read at once; a divisor of all.
const AT_ONCE: usize = 32;

/// Where slot 0 is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// On a raw disk: 1 MiB behind its start.
    Disk,
    /// In a file: at its start.
    File,
}

impl Layout {
    fn start(self) -> u64 {
        match self {
            Self::Disk => 1 << 20,
            Self::File => 0,
        }
    }
}

/// An open ring.
pub struct Slots {
    file: File,
    layout: Layout,
    owner: Owner,
}

/// Opens with O_DIRECT. A regular file may stand where that is not possible (tmpfs): there a page
/// cache hides nothing, the file has no other content.
pub(super) fn open_direct(options: &OpenOptions, path: &Path) -> io::Result<File> {
    let direct = options.clone().custom_flags(libc::O_DIRECT).open(path);
    match direct {
        Err(err) if err.raw_os_error() == Some(libc::EINVAL) => options.open(path),
        other => other,
    }
}

impl Slots {
    /// Opens a ring to write and read it.
    pub fn open(path: &Path, layout: Layout, owner: Owner) -> io::Result<Self> {
        Self::with(
            OpenOptions::new().read(true).write(true),
            path,
            layout,
            owner,
        )
    }

    /// Opens a ring to look at it.
    pub fn open_read_only(path: &Path, layout: Layout, owner: Owner) -> io::Result<Self> {
        Self::with(OpenOptions::new().read(true), path, layout, owner)
    }

    /// Makes a file that has all its blocks, written and durable, so that records in it change
    /// nothing of its file system but times.
    pub fn create_file(path: &Path, owner: Owner) -> io::Result<Self> {
        let file = File::create(path)?;
        let zero = Page::zero();
        for slot in 0..SLOTS {
            file.write_all_at(zero.as_bytes(), slot * SLOT)?;
        }
        file.sync_all()?;
        if let Some(dir) = path.parent() {
            File::open(dir)?.sync_all()?;
        }
        Self::open(path, Layout::File, owner)
    }

    fn with(options: &OpenOptions, path: &Path, layout: Layout, owner: Owner) -> io::Result<Self> {
        let file = open_direct(options, path)?;
        Ok(Self {
            file,
            layout,
            owner,
        })
    }

    /// Whose records these are.
    #[must_use]
    pub fn owner(&self) -> Owner {
        self.owner
    }

    /// What stands in a slot now.
    pub fn read(&self, slot: u64) -> io::Result<Found> {
        let mut block = Page::zero();
        let at = self.layout.start() + slot * SLOT;
        self.file.read_exact_at(block.as_bytes_mut(), at)?;
        Ok(self.owner.look(&block, Place::Ring))
    }

    /// What stands in every slot now. In few reads: on slow disks each takes a while.
    pub fn read_all(&self) -> io::Result<Vec<Found>> {
        let mut blocks = vec![Page::zero(); AT_ONCE];
        let mut found = Vec::with_capacity(SLOTS as usize);
        while (found.len() as u64) < SLOTS {
            let at = self.layout.start() + found.len() as u64 * SLOT;
            let into = blocks.iter_mut();
            let into = into.map(|block| IoSliceMut::new(block.as_bytes_mut()));
            let mut into: Vec<_> = into.collect();
            let read = rustix::io::preadv(&self.file, &mut into, at)?;
            let whole = read / SLOT as usize;
            if whole == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            // What was read in part is read again.
            let whole = blocks[..whole].iter();
            found.extend(whole.map(|block| self.owner.look(block, Place::Ring)));
        }
        Ok(found)
    }

    /// Writes record `seq` into its slot; returns when the disk has acknowledged it.
    pub fn write(&self, seq: u64) -> io::Result<()> {
        let mut block = Page::zero();
        self.owner.fill(&mut block, Place::Ring, seq);
        let at = self.layout.start() + seq % SLOTS * SLOT;
        self.file.write_all_at(block.as_bytes(), at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts_hold_the_same_records_at_their_own_place() {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let owner = Owner { seed: 1, disk: 0 };
        let disk = dir.path().join("disk");
        File::create(&disk).unwrap().set_len(2 << 20).unwrap();
        let on_disk = Slots::open(&disk, Layout::Disk, owner).unwrap();
        let in_file = Slots::create_file(&dir.path().join("file"), owner).unwrap();
        for ring in [&on_disk, &in_file] {
            assert_eq!(ring.read(3).unwrap(), Found::Nothing);
            ring.write(3 + SLOTS).unwrap();
            assert_eq!(ring.read(3).unwrap(), Found::Record(259));
            assert_eq!(ring.read(SLOTS - 1).unwrap(), Found::Nothing);
            ring.write(100).unwrap();
            let all = ring.read_all().unwrap();
            let one_by_one = (0..SLOTS).map(|slot| ring.read(slot).unwrap());
            assert_eq!(all, one_by_one.collect::<Vec<_>>());
        }
        let start = |path: &Path| {
            let mut bytes = [0; 8];
            let file = File::open(path).unwrap();
            file.read_exact_at(&mut bytes, 3 * SLOT).unwrap();
            bytes
        };
        assert_eq!(&start(&dir.path().join("file")), b"LSRECORD");
        assert_eq!(
            start(&disk),
            [0; 8],
            "the first MiB of a disk is left alone"
        );
    }
}
