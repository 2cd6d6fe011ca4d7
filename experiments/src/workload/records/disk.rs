//! One disk with records: what stands on it, and what must.

use crate::records::SLOTS;
use crate::records::block::Owner;
use crate::records::judge::{Bad, Known, judge};
use crate::records::slots::{Layout, Slots};
use crate::records::small::{self, EVERY, SmallFiles};
use std::io;
use std::path::Path;

/// A disk, with what the writer knows of it.
pub struct Disk {
    /// Its name in messages.
    pub(super) name: String,
    slots: Slots,
    small: Option<SmallFiles>,
    /// Records of the ring that were issued and acknowledged.
    pub(super) ring: Known,
    /// The same of small files.
    pub(super) files: Known,
}

impl Disk {
    /// A raw disk, or a file that stands for one. Whatever is on it must not be of this owner.
    pub fn raw(name: &str, path: &Path, owner: Owner) -> io::Result<Self> {
        Ok(Self::new(
            name,
            Slots::open(path, Layout::Disk, owner)?,
            None,
        ))
    }

    /// A directory, of a file system of its own: its file `records` is made anew, small files are in
    /// `small`.
    pub fn files(name: &str, dir: &Path, owner: Owner) -> io::Result<Self> {
        let slots = Slots::create_file(&dir.join("records"), owner)?;
        let small = SmallFiles::create(&dir.join("small"), owner)?;
        Ok(Self::new(name, slots, Some(small)))
    }

    fn new(name: &str, slots: Slots, small: Option<SmallFiles>) -> Self {
        Self {
            name: name.to_owned(),
            slots,
            small,
            ring: Known::default(),
            files: Known::default(),
        }
    }

    /// Writes the next record, after a look at what it replaces; which is told, and replaced
    /// nevertheless, if it is not what must be there.
    pub(super) fn write_record(&mut self) -> io::Result<Result<(), Bad>> {
        let seq = self.ring.acked + 1;
        let slot = seq % SLOTS;
        let before = judge(self.ring, slot, self.slots.read(slot)?);
        self.ring.issued = seq;
        self.slots.write(seq)?;
        self.ring.acked = seq;
        Ok(before)
    }

    fn last_small(&self) -> u64 {
        self.ring.acked / EVERY * EVERY
    }

    /// Whether the last record is still to have its small file.
    pub(super) fn small_is_due(&self) -> bool {
        self.small.is_some() && self.last_small() > self.files.acked
    }

    /// Makes the small file that the last record is to have, if it is not there yet.
    pub(super) fn write_small(&mut self) -> io::Result<()> {
        let due = self.last_small();
        if let Some(small) = &self.small
            && self.small_is_due()
        {
            self.files.issued = due;
            small.write(due)?;
            self.files.acked = due;
        }
        Ok(())
    }

    /// Looks at the ring: how many slots it has, and what is wrong with them.
    pub(super) fn look_at_ring(&self) -> io::Result<(u64, Vec<Bad>)> {
        let found = self.slots.read_all()?;
        let count = found.len() as u64;
        let bad = (0..).zip(found);
        let bad = bad.filter_map(|(slot, found)| judge(self.ring, slot, found).err());
        Ok((count, bad.collect()))
    }

    /// Looks at the small files: how many there are, and what is wrong with them.
    pub(super) fn look_at_small(&self) -> io::Result<(u64, Vec<Bad>)> {
        let Some(small) = &self.small else {
            return Ok((0, Vec::new()));
        };
        let files = small.read()?;
        Ok((files.len() as u64, small::judge(self.files, &files)))
    }
}
