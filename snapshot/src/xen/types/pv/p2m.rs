//! Finds a 64-bit PV guest's own table of its memory, the P2M: for each page number the machine frame,
//! 512 to a page. Pure functions: the guest's pages are read through a function of the caller's.
//!
//! Newer kernels tell of it as a list in an address space of theirs, older ones as a tree of frames.
//! (`struct arch_shared_info` of `xen/arch-x86/xen.h`.) What the guest says is not believed: whatever its
//! tables hold, a bounded number of them is read.

use super::page_table::{self, TABLE};
use super::shared_info::Anchor;

/// Entries in a page of the P2M, and in a page of its lists.
pub const PER_PAGE: u64 = 512;
/// No guest has page numbers beyond 16 TiB; it bounds what is looked through before it is known where
/// the table really ends.
const MOST: u64 = 1 << 32;
/// What the hypervisor has of a guest's address space.
const XEN: std::ops::Range<u64> = 0xffff_8000_0000_0000..0xffff_8800_0000_0000;
/// Addresses have so many bits that tell something.
const ADDRESS: u64 = (1 << 48) - 1;

/// One page of the guest as 64-bit words.
pub type Words = [u64; TABLE];

/// The P2M.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Leaves {
    /// The frames of its pages.
    pub frames: Vec<u64>,
    /// How many page numbers are in them.
    pub pages: u64,
}

/// How a guest's pages are read, and which there can be.
pub struct Memory<'m> {
    /// Reads the page in a frame; `None` if that cannot be.
    pub read: &'m mut dyn FnMut(u64) -> Option<Box<Words>>,
    /// Frames are below this.
    pub end: u64,
}

impl Memory<'_> {
    fn table(&mut self, frame: u64) -> Result<Box<Words>, &'static str> {
        self.checked(frame)?;
        (self.read)(frame).ok_or("a page of its tables cannot be read")
    }

    fn checked(&self, frame: u64) -> Result<u64, &'static str> {
        if frame == 0 || frame >= self.end {
            return Err("its tables refer to a frame that there is not");
        }
        Ok(frame)
    }
}

/// Finds the P2M of at most `limit` pages.
///
/// # Errors
/// A text that says what is wrong.
pub fn find(anchor: &Anchor, limit: u64, memory: &mut Memory<'_>) -> Result<Leaves, &'static str> {
    if anchor.pages == 0 || anchor.pages > MOST {
        return Err("it does not say how much memory it has");
    }
    let leaves = if anchor.list_root != 0 {
        list(anchor, limit, memory)?
    } else {
        tree(anchor, limit, memory)?
    };
    within(limit, leaves.pages)?;
    Ok(leaves)
}

/// Asked as soon as the number of pages is known: up to then little is read and remembered.
fn within(limit: u64, pages: u64) -> Result<(), &'static str> {
    if pages > limit {
        return Err("it has page numbers far beyond its memory");
    }
    Ok(())
}

/// The guest lets all the parts of the table that it does not need be one and the same page. So where
/// the last entries are equal there is nothing more to come. How many come before that.
fn before_shared_tail(entries: &[u64]) -> usize {
    let Some(last) = entries.last() else {
        return 0;
    };
    let other = entries.iter().rposition(|entry| entry != last);
    let tail = other.map_or(0, |index| index + 1);
    if entries.len() - tail < 2 {
        entries.len()
    } else {
        // A table that is all one entry is a small one.
        tail.max(1)
    }
}

fn list(anchor: &Anchor, limit: u64, memory: &mut Memory<'_>) -> Result<Leaves, &'static str> {
    let mut pages = anchor.pages;
    let start = anchor.list_address;
    let last = pages
        .div_ceil(PER_PAGE)
        .checked_mul(4096)
        .and_then(|bytes| start.checked_add(bytes - 1));
    let canonical = |address: u64| (address as i64) << 16 >> 16 == address as i64;
    let last = last
        .filter(|&last| {
            let (whole, near) = (start.is_multiple_of(4096), start >> 47 == last >> 47);
            whole && near && canonical(start) && (last < XEN.start || start >= XEN.end)
        })
        .ok_or("its list of its memory is at an impossible address")?;
    let (first, mut last) = (start & ADDRESS, last & ADDRESS);
    let mut tables = vec![memory.checked(anchor.list_root)?];
    for level in (1..=4).rev() {
        let shift = 12 + 9 * (level - 1);
        // Entries of this level, counted over all its tables.
        let entries = first >> shift..=last >> shift;
        let before = *entries.start() / PER_PAGE;
        let mut next = Vec::new();
        let mut read: Option<(u64, Box<Words>)> = None;
        for entry in entries {
            let number = entry / PER_PAGE - before;
            let table = match &read {
                Some((held, table)) if *held == number => table,
                _ => {
                    let frame = tables.get(number as usize).copied().unwrap_or(0);
                    &read.insert((number, memory.table(frame)?)).1
                }
            };
            let entry = table[(entry % PER_PAGE) as usize];
            next.push(memory.checked(page_table::frame(entry))?);
        }
        if level == 2 {
            // Each of these is 512 pages of the P2M, the first perhaps less.
            next.truncate(before_shared_tail(&next));
            let end = ((first >> shift) + next.len() as u64) << shift;
            last = last.min(end - 1);
            pages = pages.min((last / 4096 - first / 4096 + 1) * PER_PAGE);
            within(limit, pages)?;
        }
        tables = next;
    }
    Ok(Leaves {
        frames: tables,
        pages,
    })
}

fn tree(anchor: &Anchor, limit: u64, memory: &mut Memory<'_>) -> Result<Leaves, &'static str> {
    const PER_LIST: u64 = PER_PAGE * PER_PAGE;
    let lists = anchor.pages.div_ceil(PER_LIST);
    if lists > PER_PAGE {
        return Err("it has more memory than its tables can have");
    }
    let top = memory.table(anchor.tree_root)?;
    let top = &top[..lists as usize];
    let top = &top[..before_shared_tail(top)];
    let pages = anchor.pages.min(top.len() as u64 * PER_LIST);
    within(limit, pages)?;
    let mut frames = Vec::new();
    let mut left = pages.div_ceil(PER_PAGE);
    for &list in top {
        let list = memory.table(list)?;
        for &leaf in &list[..left.min(PER_PAGE) as usize] {
            frames.push(memory.checked(leaf)?);
        }
        left = left.saturating_sub(PER_PAGE);
    }
    Ok(Leaves { frames, pages })
}

#[cfg(test)]
mod tests;
