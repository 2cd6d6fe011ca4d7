//! The raw calls of parent and child: mapping the guest's memory, handing descriptors on.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;

use super::content::PAGE_WORDS;
use super::layout::Layout;
use crate::page::{PAGE_SIZE, PageBytes};
use crate::units::Pfn;

/// The words of a page that the guest's threads write and others read at the same time.
pub type PageWords = [AtomicU64; PAGE_WORDS];

/// The guest's memory as the guest sees it: its memfd mapped shared and writable, pfn by pfn from
/// one address on; the holes are inaccessible.
#[derive(Debug)]
pub struct Ram {
    base: NonNull<u8>,
    layout: Layout,
}

// SAFETY: the mapping belongs to the process, not to a thread, and is only handed out as atomics.
unsafe impl Send for Ram {}
// SAFETY: as above.
unsafe impl Sync for Ram {}

impl Ram {
    /// Maps the memory of a guest with that layout.
    pub fn map(memory: &File, layout: Layout) -> io::Result<Self> {
        let length = bytes(layout.span().0)?;
        // SAFETY: a new mapping at an address of the kernel's choice touches nothing of ours.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                length,
                libc::PROT_NONE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        let ram = Self {
            base: mapped(base)?,
            layout,
        };
        for run in ram.layout.runs() {
            let start = bytes(run.start)?;
            // SAFETY: the run lies inside the reservation above, which is ours and not yet used.
            let at = unsafe {
                libc::mmap(
                    ram.base.as_ptr().add(start).cast(),
                    bytes(run.end - run.start)?,
                    libc::PROT_READ | libc::PROT_WRITE,
                    libc::MAP_SHARED | libc::MAP_FIXED,
                    memory.as_raw_fd(),
                    libc::off_t::try_from(start).map_err(|_| io::ErrorKind::InvalidInput)?,
                )
            };
            mapped(at)?;
        }
        Ok(ram)
    }

    /// The address of pfn 0.
    pub fn base(&self) -> usize {
        self.base.as_ptr() as usize
    }

    /// Which pages exist.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The words of a page, if it exists.
    pub fn page(&self, pfn: Pfn) -> Option<&PageWords> {
        self.layout.present().contains(pfn).then(|| {
            // SAFETY: the page lies in a run that `map` mapped readable and writable, page
            // aligned, for as long as `self`; a tracker that takes the right to write gives it
            // back on the fault. Other processes only read while guest threads run.
            unsafe {
                &*self
                    .base
                    .as_ptr()
                    .add(pfn.0 as usize * PAGE_SIZE)
                    .cast::<PageWords>()
            }
        })
    }
}

impl Drop for Ram {
    fn drop(&mut self) {
        // SAFETY: the whole reservation made by `map`; nobody holds a page of it any more, as
        // pages borrow from `self`.
        unsafe {
            libc::munmap(
                self.base.as_ptr().cast(),
                self.layout.span().0 as usize * PAGE_SIZE,
            );
        }
    }
}

/// A bitmap in a file, mapped shared.
#[derive(Debug)]
pub struct SharedWords {
    base: NonNull<AtomicU64>,
    words: usize,
}

// SAFETY: the mapping belongs to the process and is only handed out as atomics.
unsafe impl Send for SharedWords {}
// SAFETY: as above.
unsafe impl Sync for SharedWords {}

impl SharedWords {
    /// Maps the first `words` words of a file.
    pub fn map(file: &File, words: usize) -> io::Result<Self> {
        // SAFETY: a new mapping at an address of the kernel's choice touches nothing of ours.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                words * size_of::<u64>(),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                0,
            )
        };
        Ok(Self {
            base: mapped(base)?.cast(),
            words,
        })
    }

    /// The words.
    pub fn words(&self) -> &[AtomicU64] {
        // SAFETY: that many words were mapped by `map`, aligned, for as long as `self`; atomics
        // allow others to change them.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr(), self.words) }
    }
}

impl Drop for SharedWords {
    fn drop(&mut self) {
        // SAFETY: the mapping made by `map`; `words` borrows from `self`.
        unsafe {
            libc::munmap(self.base.as_ptr().cast(), self.words * size_of::<u64>());
        }
    }
}

/// Page buffers as the bytes that they are.
pub fn bytes_of(pages: &mut [PageBytes]) -> &mut [u8] {
    let length = size_of_val(pages);
    // SAFETY: `PageBytes` is 4096 bytes and nothing else, any of which may have any value.
    unsafe { std::slice::from_raw_parts_mut(pages.as_mut_ptr().cast(), length) }
}

/// Lets the child of `command` keep descriptors of ours, under the same numbers.
pub fn inherit<const N: usize>(command: &mut Command, descriptors: [BorrowedFd<'_>; N]) {
    let descriptors = descriptors.map(|descriptor| descriptor.as_raw_fd());
    // SAFETY: between fork and exec only fcntl is called, which is async-signal-safe. Should a
    // descriptor have been closed before the spawn, fcntl fails, and so does the spawn.
    unsafe {
        command.pre_exec(move || {
            for descriptor in descriptors {
                if libc::fcntl(descriptor, libc::F_SETFD, 0) == -1 {
                    return Err(io::Error::last_os_error());
                }
            }
            Ok(())
        });
    }
}

/// Takes over a descriptor that our parent left us.
pub fn inherited(descriptor: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: fcntl with F_SETFD changes nothing but a flag, whatever the number.
    if descriptor <= 2 || unsafe { libc::fcntl(descriptor, libc::F_SETFD, libc::FD_CLOEXEC) } == -1
    {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: it is open, as just seen, and was named to us by our parent to be ours; this runs
    // at the start of the process, once for each, so that nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// Makes this thread's timers go off on time rather than up to 50 µs later.
pub fn punctual_timers() {
    // SAFETY: sets a number of the calling thread; it cannot fail in a way that matters.
    unsafe {
        libc::prctl(libc::PR_SET_TIMERSLACK, 1 as libc::c_ulong, 0, 0, 0);
    }
}

fn mapped(address: *mut libc::c_void) -> io::Result<NonNull<u8>> {
    if address == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    NonNull::new(address.cast()).ok_or_else(|| io::ErrorKind::OutOfMemory.into())
}

fn bytes(pages: u64) -> io::Result<usize> {
    usize::try_from(pages)
        .ok()
        .and_then(|pages| pages.checked_mul(PAGE_SIZE))
        .ok_or_else(|| io::ErrorKind::InvalidInput.into())
}
