//! The raw reads of guest memory.

use std::fs::File;
use std::io;
use std::marker::PhantomData;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;

use super::{GuestPage, PAGE_SIZE, PageBytes, PageKind};

/// Linux takes at most this many pieces in one `pwritev` (`UIO_MAXIOV`).
const MAX_PIECES: usize = 1024;

// SAFETY: `at` and `of` promise readable bytes for the whole lifetime, to whatever thread; they are
// never read as Rust references, and nothing is written through it.
unsafe impl Send for GuestPage<'_> {}
// SAFETY: as above; it has no state but the address.
unsafe impl Sync for GuestPage<'_> {}

impl GuestPage<'_> {
    /// A page mapped at `address`.
    ///
    /// # Safety
    /// `address` is page aligned, and 4096 bytes from it stay mapped readable for the lifetime
    /// that the caller gives the result. They may change at any time.
    #[must_use]
    pub unsafe fn at(address: NonNull<u8>) -> Self {
        Self {
            address,
            kind: PageKind::ORDINARY,
            mapped: PhantomData,
        }
    }

    /// Whether all bytes were zero when looked at. A page with data is told by its first non-zero
    /// word; a zero page costs one read of it.
    #[must_use]
    pub fn is_zero(self) -> bool {
        // Eight words are folded per step: the early exit stays cheap and the reads stay wide.
        let words = self.address.as_ptr().cast::<u64>().cast_const();
        (0..PAGE_SIZE / 64).all(|step| {
            let mut seen = 0;
            for word in 0..8 {
                // SAFETY: `at` and `of` promise 4096 readable, aligned bytes; the index stays
                // below 512 words. Volatile: the guest may be writing.
                seen |= unsafe { words.add(step * 8 + word).read_volatile() };
            }
            seen == 0
        })
    }

    /// Copies the page into `to`.
    pub fn copy_to(self, to: &mut PageBytes) {
        // SAFETY: 4096 readable bytes by the promise of `at`/`of`; `to` is ours alone, so the two
        // do not overlap. A concurrent guest write can only tear the bytes, which all are valid.
        unsafe {
            std::ptr::copy_nonoverlapping(self.address.as_ptr(), to.0.as_mut_ptr(), PAGE_SIZE);
        }
    }

    /// Appends a copy of the page to `to`.
    pub fn append_to(self, to: &mut Vec<u8>) {
        to.reserve(PAGE_SIZE);
        // SAFETY: 4096 readable bytes by the promise of `at`/`of`, 4096 bytes of room behind the
        // vector's length by `reserve`, which are ours alone and are filled before they count. A
        // concurrent guest write can only tear the bytes, which all are valid.
        unsafe {
            let end = to.as_mut_ptr().add(to.len());
            std::ptr::copy_nonoverlapping(self.address.as_ptr(), end, PAGE_SIZE);
            to.set_len(to.len() + PAGE_SIZE);
        }
    }
}

pub(super) fn write_pages_at(file: &File, pages: &[GuestPage<'_>], offset: u64) -> io::Result<()> {
    let mut offset = offset;
    let mut rest = pages;
    let mut pieces: Vec<libc::iovec> = Vec::with_capacity(rest.len().min(MAX_PIECES));
    while !rest.is_empty() {
        pieces.clear();
        let taken = gather(rest, &mut pieces);
        rest = &rest[taken..];
        offset = write_pieces(file, &mut pieces, offset)?;
    }
    Ok(())
}

/// Collects pages from the front as pieces of memory, neighbours merged; says how many it took.
fn gather(pages: &[GuestPage<'_>], pieces: &mut Vec<libc::iovec>) -> usize {
    let mut end = None;
    for (taken, page) in pages.iter().enumerate() {
        if end == Some(page.address()) {
            if let Some(piece) = pieces.last_mut() {
                piece.iov_len += PAGE_SIZE;
            }
        } else if pieces.len() == MAX_PIECES {
            return taken;
        } else {
            pieces.push(libc::iovec {
                iov_base: page.address.as_ptr().cast(),
                iov_len: PAGE_SIZE,
            });
        }
        end = Some(page.address() + PAGE_SIZE);
    }
    pages.len()
}

/// Writes all pieces, however many calls it takes; the offset behind the last byte.
fn write_pieces(file: &File, pieces: &mut [libc::iovec], mut offset: u64) -> io::Result<u64> {
    let mut first = 0;
    while first < pieces.len() {
        let rest = &pieces[first..];
        let at = libc::off_t::try_from(offset)
            .map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        // SAFETY: every piece covers pages that stay mapped for the lifetime carried by the
        // `GuestPage`s that the caller still holds; the kernel only reads them.
        let written = unsafe {
            libc::pwritev(
                file.as_raw_fd(),
                rest.as_ptr(),
                rest.len() as libc::c_int,
                at,
            )
        };
        let Ok(mut written) = usize::try_from(written) else {
            let error = io::Error::last_os_error();
            if error.kind() == io::ErrorKind::Interrupted {
                continue;
            }
            return Err(error);
        };
        if written == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        offset += written as u64;
        while written > 0 {
            let piece = &mut pieces[first];
            if written >= piece.iov_len {
                written -= piece.iov_len;
                first += 1;
            } else {
                piece.iov_base = piece.iov_base.cast::<u8>().wrapping_add(written).cast();
                piece.iov_len -= written;
                written = 0;
            }
        }
    }
    Ok(offset)
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    fn pages(count: usize) -> Vec<PageBytes> {
        (0..count)
            .map(|i| {
                let mut page = PageBytes::ZERO;
                page.0[i % PAGE_SIZE] = i as u8 | 1;
                page
            })
            .collect()
    }

    #[test]
    fn a_zero_page_is_told_from_one_with_a_single_byte_set() {
        assert!(GuestPage::of(&PageBytes::ZERO).is_zero());
        for at in [0, 1, 63, 64, 2047, 4088, 4095] {
            let mut page = PageBytes::ZERO;
            page.0[at] = 1;
            assert!(!GuestPage::of(&page).is_zero(), "byte {at}");
        }
    }

    #[test]
    fn scattered_and_adjacent_pages_are_written_in_order() {
        let memory = pages(3000);
        // Every other page: no two are adjacent, and more pieces than one call takes.
        let scattered: Vec<_> = memory
            .iter()
            .step_by(2)
            .chain(&memory)
            .map(GuestPage::of)
            .collect();
        let mut file = tempfile::tempfile().expect("a temporary file");
        write_pages_at(&file, &scattered, 4096).expect("written");
        let mut found = Vec::new();
        file.read_to_end(&mut found).expect("read");
        let want: Vec<u8> = memory
            .iter()
            .step_by(2)
            .chain(&memory)
            .flat_map(|page| page.0)
            .collect();
        assert!(found[..4096].iter().all(|&b| b == 0));
        assert!(found[4096..] == want[..]);
    }

    #[test]
    fn a_page_is_copied_whole() {
        let memory = pages(2);
        let mut copy = PageBytes([9; PAGE_SIZE]);
        GuestPage::of(&memory[1]).copy_to(&mut copy);
        assert_eq!(copy, memory[1]);
        let mut bytes = vec![1, 2];
        GuestPage::of(&memory[1]).append_to(&mut bytes);
        assert_eq!(bytes[..2], [1, 2]);
        assert_eq!(bytes[2..], memory[1].0);
    }
}
