//! Changes to xenstore that take effect together.

use std::cell::Cell;
use std::io;

use super::{Store, failed, text};
use crate::bindings::xenstore::{XBT_NULL, xs_transaction_t};
use crate::error::Error;

/// How often a transaction that collides with others is tried.
const TRANSACTION_ATTEMPTS: u32 = 100;

impl Store {
    /// Runs `body` so that all of it takes effect at once or not at all; `body` is run again when
    /// somebody else changed what it touched. When it fails, nothing has changed.
    /// (`xs_transaction_start` and `_end` of `xenstore.h`.)
    ///
    /// # Errors
    /// What `body` returns; [`Error::Store`], with `EAGAIN` after 100 collisions.
    pub fn transaction<T>(
        &self,
        mut body: impl FnMut(&Transaction<'_>) -> Result<T, Error>,
    ) -> Result<T, Error> {
        for _ in 0..TRANSACTION_ATTEMPTS {
            // SAFETY: the handle is open.
            let id = unsafe { (self.library.store.xs_transaction_start)(self.handle.as_ptr()) };
            if id == XBT_NULL {
                return Err(failed(
                    "start a transaction on",
                    "/",
                    io::Error::last_os_error(),
                ));
            }
            // Ended by its drop if `body` fails or panics.
            let transaction = Transaction {
                store: self,
                id,
                ended: Cell::new(false),
            };
            let result = body(&transaction)?;
            if transaction.end(false) {
                return Ok(result);
            }
            let error = io::Error::last_os_error();
            if error.raw_os_error() != Some(libc::EAGAIN) {
                return Err(failed("end a transaction on", "/", error));
            }
        }
        let collided = io::Error::from_raw_os_error(libc::EAGAIN);
        Err(failed("end a transaction on", "/", collided))
    }
}

/// Reads and changes that take effect together, see [`Store::transaction`].
#[derive(Debug)]
pub struct Transaction<'s> {
    store: &'s Store,
    id: xs_transaction_t,
    ended: Cell<bool>,
}

impl Transaction<'_> {
    /// As [`Store::read`].
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn read(&self, path: &str) -> Result<Option<String>, Error> {
        Ok(self.store.read_in(self.id, path)?.map(|bytes| text(&bytes)))
    }

    /// As [`Store::write`].
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn write(&self, path: &str, value: &str) -> Result<(), Error> {
        self.store.write_in(self.id, path, value)
    }

    /// As [`Store::remove`].
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn remove(&self, path: &str) -> Result<(), Error> {
        self.store.remove_in(self.id, path)
    }

    /// As [`Store::directory`].
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn directory(&self, path: &str) -> Result<Vec<String>, Error> {
        self.store.directory_in(self.id, path)
    }

    fn end(&self, abandon: bool) -> bool {
        self.ended.set(true);
        // SAFETY: started by `Store::transaction` and ended once.
        unsafe {
            (self.store.library.store.xs_transaction_end)(
                self.store.handle.as_ptr(),
                self.id,
                abandon,
            )
        }
    }
}

impl Drop for Transaction<'_> {
    fn drop(&mut self) {
        if !self.ended.get() {
            // If even that fails the daemon forgets the transaction with the connection.
            self.end(true);
        }
    }
}
