//! Memory that the hypervisor can be pointed at.

use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::Arc;

use crate::bindings::xenctrl::xc_hypercall_buffer_t;
use crate::control::{Interface, PAGE_SIZE, Xen};
use crate::error::{CallError, Error};
use crate::logger;

/// A page-granular buffer for hypercalls, zeroed at first, freed when dropped.
///
/// It reads and writes as a slice of 64-bit words: bit `n % 64` of word `n / 64` is page `n` in a
/// dirty bitmap. It keeps the interface that it came from open. (`xc_hypercall_buffer_alloc_pages`
/// of `xenctrl.h`.)
#[derive(Debug)]
pub struct HypercallBuffer {
    interface: Arc<Interface>,
    words: NonNull<u64>,
    pages: i32,
}

// SAFETY: plain memory that we own alone, shared with the hypervisor only during a call that takes
// `&mut self`; freeing it from another thread is a munmap, or a cache of libxencall that has its
// own lock.
unsafe impl Send for HypercallBuffer {}
// SAFETY: through a shared reference the memory is only read.
unsafe impl Sync for HypercallBuffer {}

impl Xen {
    /// Allocates a buffer of at least `bytes` bytes, rounded up to whole pages.
    ///
    /// # Errors
    /// [`Error::Argument`] for no bytes or more than 2³¹ pages, [`Error::HostCall`] (`ENOMEM`).
    pub fn hypercall_buffer(&self, bytes: usize) -> Result<HypercallBuffer, Error> {
        let operation = "allocate a hypercall buffer";
        let pages = match i32::try_from(bytes.div_ceil(PAGE_SIZE)) {
            Ok(0) => {
                return Err(Error::Argument {
                    operation,
                    what: "no bytes",
                });
            }
            Ok(pages) => pages,
            Err(_) => {
                return Err(Error::Argument {
                    operation,
                    what: "too many bytes",
                });
            }
        };
        let interface = Arc::clone(self.interface());
        let mut handle = no_bounce(std::ptr::null_mut());
        logger::clear();
        // SAFETY: the handle is initialised as DECLARE_HYPERCALL_BUFFER does.
        let address = unsafe {
            (interface
                .libraries()
                .control
                .xc__hypercall_buffer_alloc_pages)(
                interface.handle(), &raw mut handle, pages
            )
        };
        let Some(words) = NonNull::new(address.cast()) else {
            return Err(Error::HostCall {
                operation,
                source: CallError::of(-1),
            });
        };
        Ok(HypercallBuffer {
            interface,
            words,
            pages,
        })
    }

    /// Allocates a buffer that holds a dirty bitmap of `pages` pages.
    ///
    /// # Errors
    /// As [`Xen::hypercall_buffer`].
    pub fn dirty_bitmap(&self, pages: u64) -> Result<HypercallBuffer, Error> {
        let bytes = usize::try_from(pages.div_ceil(64) * 8).unwrap_or(usize::MAX);
        self.hypercall_buffer(bytes)
    }
}

impl HypercallBuffer {
    /// The buffer's size in bytes.
    #[must_use]
    pub fn size(&self) -> usize {
        // Positive by construction.
        self.pages as usize * PAGE_SIZE
    }

    /// The handle as the calls take it; valid as long as `self`.
    pub(crate) fn as_argument(&mut self) -> xc_hypercall_buffer_t {
        no_bounce(self.words.as_ptr().cast())
    }
}

impl Deref for HypercallBuffer {
    type Target = [u64];

    fn deref(&self) -> &[u64] {
        // SAFETY: page aligned, `size` bytes, zeroed by the library and always initialised.
        unsafe { std::slice::from_raw_parts(self.words.as_ptr(), self.size() / 8) }
    }
}

impl DerefMut for HypercallBuffer {
    fn deref_mut(&mut self) -> &mut [u64] {
        // SAFETY: as in `deref`; `&mut self` makes it the only reference.
        unsafe { std::slice::from_raw_parts_mut(self.words.as_ptr(), self.size() / 8) }
    }
}

impl Drop for HypercallBuffer {
    fn drop(&mut self) {
        let mut handle = self.as_argument();
        // SAFETY: allocated by the matching call with the same interface and size; freed once.
        unsafe {
            (self
                .interface
                .libraries()
                .control
                .xc__hypercall_buffer_free_pages)(
                self.interface.handle(),
                &raw mut handle,
                self.pages,
            );
        }
    }
}

/// What the macro `DECLARE_HYPERCALL_BUFFER` of `xenctrl.h` sets up: memory that is used as it is.
fn no_bounce(memory: *mut std::ffi::c_void) -> xc_hypercall_buffer_t {
    xc_hypercall_buffer_t {
        hbuf: memory,
        param_shadow: std::ptr::null_mut(),
        dir: 0,
        ubuf: std::ptr::without_provenance_mut(usize::MAX),
        sz: 0,
    }
}
