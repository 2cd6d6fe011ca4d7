//! Waiting for changes in xenstore.

use std::io;
use std::os::fd::BorrowedFd;

use super::allocated::Allocated;
use super::{Store, c_string, failed, succeeded, text};
use crate::error::Error;

/// A change that a watch has seen.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WatchEvent {
    /// The path that changed: the one watched or one below it.
    pub path: String,
    /// The token given with the watch.
    pub token: String,
}

impl Store {
    /// Watches a node and all below it; the first event comes at once. The first watch starts a
    /// thread inside the library. (`xs_watch` of `xenstore.h`.)
    ///
    /// # Errors
    /// [`Error::Store`]: `EEXIST` for the same path and token twice.
    pub fn watch(&self, path: &str, token: &str) -> Result<(), Error> {
        let operation = "watch";
        let (c_path, c_token) = (c_string(operation, path)?, c_string(operation, token)?);
        // SAFETY: both are terminated.
        let done = unsafe {
            (self.library.store.xs_watch)(self.handle.as_ptr(), c_path.as_ptr(), c_token.as_ptr())
        };
        succeeded(done, operation, path)
    }

    /// Takes a watch away, its waiting events included. (`xs_unwatch` of `xenstore.h`.)
    ///
    /// # Errors
    /// [`Error::Store`]: `ENOENT` if there is no such watch.
    pub fn unwatch(&self, path: &str, token: &str) -> Result<(), Error> {
        let operation = "stop watching";
        let (c_path, c_token) = (c_string(operation, path)?, c_string(operation, token)?);
        // SAFETY: both are terminated.
        let done = unsafe {
            (self.library.store.xs_unwatch)(self.handle.as_ptr(), c_path.as_ptr(), c_token.as_ptr())
        };
        succeeded(done, operation, path)
    }

    /// The next event of a watch; `None` if there is none now. (`xs_check_watch` of `xenstore.h`.)
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn check_watch(&self) -> Result<Option<WatchEvent>, Error> {
        // SAFETY: the handle is open.
        let strings = unsafe { (self.library.store.xs_check_watch)(self.handle.as_ptr()) };
        let Some(strings) = Allocated::new(strings.cast()) else {
            let error = io::Error::last_os_error();
            return match error.raw_os_error() {
                Some(libc::EAGAIN) => Ok(None),
                _ => Err(failed("read the events of", "watches", error)),
            };
        };
        // SAFETY: two strings at least, as the header promises: path and token.
        let (path, token) = unsafe { (strings.string(0), strings.string(1)) };
        Ok(Some(WatchEvent {
            path: text(path),
            token: text(token),
        }))
    }

    /// A descriptor that becomes readable when a watch has an event. After that call
    /// [`Store::check_watch`] until it says `None`. (`xs_fileno` of `xenstore.h`.)
    ///
    /// # Errors
    /// [`Error::Store`] if it could not be made.
    pub fn watch_descriptor(&self) -> Result<BorrowedFd<'_>, Error> {
        // SAFETY: the handle is open.
        let descriptor = unsafe { (self.library.store.xs_fileno)(self.handle.as_ptr()) };
        if descriptor < 0 {
            let error = io::Error::last_os_error();
            return Err(failed("make a descriptor for", "watches", error));
        }
        // SAFETY: open until the handle is closed, which the borrow forbids.
        Ok(unsafe { BorrowedFd::borrow_raw(descriptor) })
    }
}
