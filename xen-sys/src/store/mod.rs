//! xenstore, the tree of small values that domains and toolstack share.

mod allocated;
mod transaction;
mod watch;

use std::cell::Cell;
use std::ffi::CString;
use std::io;
use std::marker::PhantomData;
use std::ptr::NonNull;

use allocated::Allocated;
pub use transaction::Transaction;
pub use watch::WatchEvent;

use crate::bindings::xenstore::{XBT_NULL, XS_UNWATCH_FILTER, xs_handle, xs_transaction_t};
use crate::domain::DomainId;
use crate::error::{CallError, Error};
use crate::load::{StoreLibrary, store_names};

/// A connection to xenstore.
///
/// It can move between threads; it is not shared between them, because a request and the reading
/// of its errno belong together and concurrent users would only wait for each other. Reading the
/// daemon's answer blocks: a xenstored that hangs hangs the caller.
#[derive(Debug)]
pub struct Store {
    library: StoreLibrary,
    handle: NonNull<xs_handle>,
    // Not Sync, see above.
    _not_sync: PhantomData<Cell<()>>,
}

// SAFETY: libxenstore binds a handle to no thread (its locks are taken and released within a
// call, its reader thread is its own).
unsafe impl Send for Store {}

impl Store {
    /// Opens the library and connects to the daemon. (`xs_open` of `xenstore.h`.)
    ///
    /// # Errors
    /// [`Error::LibraryMissing`], [`Error::SymbolMissing`], [`Error::PermissionDenied`],
    /// [`Error::StoreUnavailable`].
    pub fn open() -> Result<Self, Error> {
        Self::connect(StoreLibrary::open(&store_names())?)
    }

    fn connect(library: StoreLibrary) -> Result<Self, Error> {
        // SAFETY: takes flags only. With the filter no event of a watch comes after it was taken
        // away.
        let handle = unsafe { (library.store.xs_open)(XS_UNWATCH_FILTER.into()) };
        match NonNull::new(handle) {
            Some(handle) => Ok(Self {
                library,
                handle,
                _not_sync: PhantomData,
            }),
            None => {
                let source = io::Error::last_os_error();
                Err(match source.raw_os_error() {
                    Some(libc::EACCES | libc::EPERM) => Error::PermissionDenied {
                        subject: "xenstore",
                        source: CallError::from(source),
                    },
                    _ => Error::StoreUnavailable { source },
                })
            }
        }
    }

    /// The bytes of a value; `None` if there is no such node. (`xs_read` of `xenstore.h`.)
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn read_bytes(&self, path: &str) -> Result<Option<Vec<u8>>, Error> {
        self.read_in(XBT_NULL, path)
    }

    /// A value as text; `None` if there is no such node. Bytes that are not UTF-8 are replaced.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn read(&self, path: &str) -> Result<Option<String>, Error> {
        Ok(self.read_bytes(path)?.map(|bytes| text(&bytes)))
    }

    /// Sets a value; the node is made if need be. (`xs_write` of `xenstore.h`.)
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn write(&self, path: &str, value: &str) -> Result<(), Error> {
        self.write_in(XBT_NULL, path, value)
    }

    /// Removes a node and all below it; no error if there is none. (`xs_rm` of `xenstore.h`.)
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn remove(&self, path: &str) -> Result<(), Error> {
        self.remove_in(XBT_NULL, path)
    }

    /// The names of the nodes right below a node; none if there is no such node. (`xs_directory`
    /// of `xenstore.h`.)
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn directory(&self, path: &str) -> Result<Vec<String>, Error> {
        self.directory_in(XBT_NULL, path)
    }

    /// The path under which a domain's nodes stand, such as `/local/domain/5`; it need not exist.
    /// (`xs_get_domain_path` of `xenstore.h`.)
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn domain_path(&self, domain: DomainId) -> Result<String, Error> {
        // SAFETY: the handle is open.
        let path =
            unsafe { (self.library.store.xs_get_domain_path)(self.handle.as_ptr(), domain.get()) };
        let Some(path) = Allocated::new(path.cast()) else {
            let error = io::Error::last_os_error();
            return Err(failed(
                "find the path of",
                format!("domain {domain}"),
                error,
            ));
        };
        // SAFETY: a terminated string, as the header promises.
        Ok(text(unsafe { path.whole() }))
    }

    /// Tells the daemon that a domain that had shut down runs again; without it the domain's next
    /// shutdown would not be noticed. (`xs_resume_domain` of `xenstore.h`.)
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn resume_domain(&self, domain: DomainId) -> Result<(), Error> {
        // SAFETY: the handle is open.
        let done =
            unsafe { (self.library.store.xs_resume_domain)(self.handle.as_ptr(), domain.get()) };
        succeeded(done, "resume", format!("domain {domain}"))
    }

    /// Whether the daemon knows a domain; false also if it cannot be asked.
    /// (`xs_is_domain_introduced` of `xenstore.h`.)
    #[must_use]
    pub fn is_domain_introduced(&self, domain: DomainId) -> bool {
        // SAFETY: the handle is open.
        unsafe { (self.library.store.xs_is_domain_introduced)(self.handle.as_ptr(), domain.get()) }
    }

    fn read_in(&self, id: xs_transaction_t, path: &str) -> Result<Option<Vec<u8>>, Error> {
        let operation = "read";
        let c_path = c_string(operation, path)?;
        let mut length = 0;
        // SAFETY: the path is terminated, the length an integer to write to.
        let value = unsafe {
            (self.library.store.xs_read)(self.handle.as_ptr(), id, c_path.as_ptr(), &raw mut length)
        };
        let Some(value) = Allocated::new(value) else {
            return absent(operation, path);
        };
        // SAFETY: `length` bytes, as the header promises.
        Ok(Some(unsafe { value.bytes(length as usize) }.to_vec()))
    }

    fn write_in(&self, id: xs_transaction_t, path: &str, value: &str) -> Result<(), Error> {
        let operation = "write";
        let c_path = c_string(operation, path)?;
        let Ok(length) = u32::try_from(value.len()) else {
            return Err(Error::Argument {
                operation,
                what: "a huge value for xenstore",
            });
        };
        // SAFETY: the path is terminated, the value has `length` bytes.
        let done = unsafe {
            (self.library.store.xs_write)(
                self.handle.as_ptr(),
                id,
                c_path.as_ptr(),
                value.as_ptr().cast(),
                length,
            )
        };
        succeeded(done, operation, path)
    }

    fn remove_in(&self, id: xs_transaction_t, path: &str) -> Result<(), Error> {
        let operation = "remove";
        let c_path = c_string(operation, path)?;
        // SAFETY: the path is terminated.
        let done = unsafe { (self.library.store.xs_rm)(self.handle.as_ptr(), id, c_path.as_ptr()) };
        if done {
            Ok(())
        } else {
            absent::<()>(operation, path).map(|_| ())
        }
    }

    fn directory_in(&self, id: xs_transaction_t, path: &str) -> Result<Vec<String>, Error> {
        let operation = "list";
        let c_path = c_string(operation, path)?;
        let mut count = 0;
        // SAFETY: the path is terminated, the count an integer to write to.
        let strings = unsafe {
            (self.library.store.xs_directory)(
                self.handle.as_ptr(),
                id,
                c_path.as_ptr(),
                &raw mut count,
            )
        };
        let Some(strings) = Allocated::new(strings.cast()) else {
            return Ok(absent(operation, path)?.unwrap_or_default());
        };
        // SAFETY: `count` terminated strings, as the header promises.
        Ok((0..count as usize)
            .map(|index| text(unsafe { strings.string(index) }))
            .collect())
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        // SAFETY: opened by `connect`, closed once; what borrows from it is gone.
        unsafe { (self.library.store.xs_close)(self.handle.as_ptr()) };
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn c_string(operation: &'static str, text: &str) -> Result<CString, Error> {
    CString::new(text).map_err(|_| Error::Argument {
        operation,
        what: "a NUL byte in a xenstore path",
    })
}

fn failed(operation: &'static str, path: impl Into<String>, source: io::Error) -> Error {
    Error::Store {
        operation,
        path: path.into(),
        source,
    }
}

/// The error of a call that returned false.
fn succeeded(done: bool, operation: &'static str, path: impl Into<String>) -> Result<(), Error> {
    if done {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    Err(failed(operation, path, error))
}

/// The error of a call that found nothing, unless it is that the node is not there.
fn absent<T>(operation: &'static str, path: &str) -> Result<Option<T>, Error> {
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::ENOENT) => Ok(None),
        _ => Err(failed(operation, path, error)),
    }
}
