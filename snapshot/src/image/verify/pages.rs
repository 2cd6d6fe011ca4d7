//! The lists of pages in PAGE_DATA records.

use std::collections::HashMap;

use crate::image::existing::Ranges;
use crate::image::libxc::{page_type, record};
use crate::page::{PAGE_SIZE, PageKind};
use crate::units::{PageCount, Pfn};

/// Page numbers in an entry.
const PFN: u64 = (1 << 52) - 1;
/// Pages to a group of the set.
const GROUP: u64 = 512;

/// The pages of a PAGE_DATA record that have data, in its order. `head` is its body up to the end
/// of its entries, `length` that of the whole body.
///
/// # Errors
/// A text that says what is wrong.
pub fn of_record(head: &[u8], length: u64, hvm: bool) -> Result<Vec<Pfn>, &'static str> {
    let (fixed, entries) = head
        .split_first_chunk::<8>()
        .ok_or("a page record is too short")?;
    let [c0, c1, c2, c3, reserved @ ..] = *fixed;
    let count = u32::from_le_bytes([c0, c1, c2, c3]) as usize;
    if reserved != [0; 4] {
        return Err("a reserved field of a page record is not 0");
    }
    let entries = count
        .checked_mul(8)
        .and_then(|length| entries.get(..length))
        .ok_or("a page record is shorter than its entries")?;
    let (entries, _) = entries.as_chunks::<8>();
    let mut pfns = Vec::with_capacity(entries.len());
    for entry in entries {
        let entry = u64::from_le_bytes(*entry);
        let kind = (entry >> 60) as u8;
        // Page tables are a PV guest's.
        let known = match PageKind::of_bits(kind) {
            Some(kind) => !hvm || kind == PageKind::ORDINARY,
            None => !page_type::has_data(kind),
        };
        if entry & !PFN & !(0xf << 60) != 0 || !known {
            return Err("an entry of a page record is of no known type");
        }
        if page_type::has_data(kind) {
            pfns.push(Pfn(entry & PFN));
        }
    }
    if (8 + 8 * count + pfns.len() * PAGE_SIZE) as u64 != length {
        return Err("a page record's length is not that of its pages");
    }
    Ok(pfns)
}

/// The pages of all records in the content of a frame, which holds whole records.
///
/// # Errors
/// A text that says what is wrong.
pub fn of_frame(mut content: &[u8], hvm: bool) -> Result<Vec<Pfn>, &'static str> {
    const PART: &str = "a frame does not hold whole records";
    let mut pfns = vec![];
    while let Some((&[k0, k1, k2, k3, l0, l1, l2, l3], rest)) = content.split_first_chunk::<8>() {
        let length = u32::from_le_bytes([l0, l1, l2, l3]);
        let end = (length as usize).next_multiple_of(8);
        let (body, rest) = rest.split_at_checked(end).ok_or(PART)?;
        if u32::from_le_bytes([k0, k1, k2, k3]) == record::PAGE_DATA {
            pfns.extend(of_record(body, u64::from(length), hvm)?);
        }
        content = rest;
    }
    if content.is_empty() {
        Ok(pfns)
    } else {
        Err(PART)
    }
}

/// Page numbers that were met; memory in proportion to how many, wherever they lie.
#[derive(Default)]
pub struct PfnSet {
    groups: HashMap<u64, [u64; GROUP as usize / 64]>,
    count: u64,
    copies: u64,
}

impl PfnSet {
    /// Whether none is outside a set.
    pub fn all_in(&self, pages: &Ranges) -> bool {
        let outside = |group: u64, word: u64, bits: u64| {
            let first = group * GROUP + word * 64;
            let mut pfns = (0..64).filter(|bit| bits >> bit & 1 == 1);
            pfns.any(|bit| !pages.contains(Pfn(first + bit)))
        };
        self.groups.iter().all(|(&group, words)| {
            let mut words = (0..).zip(words);
            !words.any(|(word, &bits)| outside(group, word, bits))
        })
    }

    /// Adds pages.
    ///
    /// # Errors
    /// A text, for a page number that no guest has.
    pub fn insert_all(&mut self, pfns: &[Pfn]) -> Result<(), &'static str> {
        /// 16 PiB of memory.
        const END: u64 = 1 << 42;
        for pfn in pfns {
            if pfn.0 >= END {
                return Err("a page number is higher than any guest has");
            }
            let group = self.groups.entry(pfn.0 / GROUP).or_default();
            let word = &mut group[(pfn.0 % GROUP / 64) as usize];
            let bit = 1 << (pfn.0 % 64);
            self.count += u64::from(*word & bit == 0);
            self.copies += 1;
            *word |= bit;
        }
        Ok(())
    }

    /// How many different ones.
    pub fn count(&self) -> PageCount {
        PageCount(self.count)
    }

    /// How many were added, those that came again too.
    pub fn copies(&self) -> PageCount {
        PageCount(self.copies)
    }
}
