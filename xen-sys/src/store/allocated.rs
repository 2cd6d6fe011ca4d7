//! What libxenstore allocates and leaves to the caller to free.

use std::ffi::{CStr, c_char, c_void};
use std::ptr::NonNull;

/// Memory from the C library's allocator, freed when dropped.
pub(super) struct Allocated(NonNull<c_void>);

impl Allocated {
    pub(super) fn new(address: *mut c_void) -> Option<Self> {
        NonNull::new(address).map(Self)
    }

    /// Its first bytes.
    ///
    /// # Safety
    /// There are that many bytes.
    pub(super) unsafe fn bytes(&self, length: usize) -> &[u8] {
        // SAFETY: as the caller promises.
        unsafe { std::slice::from_raw_parts(self.0.as_ptr().cast(), length) }
    }

    /// The whole as one string.
    ///
    /// # Safety
    /// It is a terminated string.
    pub(super) unsafe fn whole(&self) -> &[u8] {
        // SAFETY: as the caller promises.
        unsafe { CStr::from_ptr(self.0.as_ptr().cast()) }.to_bytes()
    }

    /// The `index`-th of several strings.
    ///
    /// # Safety
    /// It begins with an array of more than `index` pointers to terminated strings within it.
    pub(super) unsafe fn string(&self, index: usize) -> &[u8] {
        // SAFETY: as the caller promises.
        unsafe {
            let string: *const c_char = *self.0.as_ptr().cast::<*const c_char>().add(index);
            CStr::from_ptr(string).to_bytes()
        }
    }
}

impl Drop for Allocated {
    fn drop(&mut self) {
        // SAFETY: the header says to free it with free(), once.
        unsafe { libc::free(self.0.as_ptr()) };
    }
}
