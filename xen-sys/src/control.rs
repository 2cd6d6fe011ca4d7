//! The connection to the hypervisor.

use std::path::Path;
use std::ptr::NonNull;
use std::sync::Arc;

use crate::bindings::xenctrl::{XENVER_version, xc_interface};
use crate::bindings::xenforeignmemory::xenforeignmemory_handle;
use crate::domain::DomainId;
use crate::error::{CallError, Error};
use crate::load::{ControlLibraries, LibraryNames};
use crate::logger;

/// The size of a page in bytes, of a guest's and of ours (`XC_PAGE_SIZE`).
pub const PAGE_SIZE: usize = 4096;

/// The devices through which a control domain's process makes hypercalls; one is enough.
const DEVICES: [&str; 2] = ["/dev/xen/privcmd", "/proc/xen/privcmd"];

/// A connection to the hypervisor that this control domain runs under.
///
/// Cheap to clone; all clones, buffers and mappings share one connection, closed with the last.
///
/// It may be used from several threads at once. libxenctrl allows that unless told otherwise
/// (`XC_OPENFLAG_NON_REENTRANT` of `xenctrl.h`, not given here): a call is an ioctl on an open
/// file, and the one thing shared, its cache of bounce buffers, has a lock. What is not kept apart
/// is the text of the last error inside the library; it is always terminated and never read here,
/// messages come through a logger with a place per thread instead. It must not be used in a child
/// after `fork`.
#[derive(Clone, Debug)]
pub struct Xen {
    interface: Arc<Interface>,
}

/// The open handles, and the libraries that they belong to.
#[derive(Debug)]
pub(crate) struct Interface {
    libraries: ControlLibraries,
    control: NonNull<xc_interface>,
    foreign: NonNull<xenforeignmemory_handle>,
}

// SAFETY: the handles are not bound to a thread (see `Xen`).
unsafe impl Send for Interface {}
// SAFETY: libxenctrl is reentrant on one handle (see `Xen`); libxenforeignmemory's calls are mmap,
// an ioctl and munmap on a descriptor that does not change.
unsafe impl Sync for Interface {}

impl Xen {
    /// Opens the libraries of the running Xen and connects.
    ///
    /// # Errors
    /// [`Error::NotControlDomain`] without Xen or in another domain than dom0,
    /// [`Error::PermissionDenied`], [`Error::UnsupportedVersion`], [`Error::LibraryMissing`],
    /// [`Error::SymbolMissing`], [`Error::VersionMismatch`], [`Error::HostCall`].
    pub fn open() -> Result<Self, Error> {
        if !DEVICES.iter().any(|device| Path::new(device).exists()) {
            return Err(Error::NotControlDomain {
                reason: "there is neither /dev/xen/privcmd nor /proc/xen/privcmd",
                source: None,
            });
        }
        Self::open_with(&LibraryNames::for_running_xen()?)
    }

    /// Connects through the first of the given libraries that open.
    ///
    /// # Errors
    /// As [`Xen::open`], but for [`Error::UnsupportedVersion`].
    pub fn open_with(names: &LibraryNames) -> Result<Self, Error> {
        let xen = Self {
            interface: Arc::new(Interface::open(ControlLibraries::open(names)?)?),
        };
        xen.probe()?;
        Ok(xen)
    }

    /// Makes the cheapest privileged call, so that a connection without the right to use it is
    /// told from a later failure.
    fn probe(&self) -> Result<(), Error> {
        match self.domain_info(DomainId::DOM0) {
            Ok(_) => Ok(()),
            Err(Error::HostCall { source, .. }) if source.errno() == Some(libc::EACCES) => {
                Err(Error::VersionMismatch {
                    libraries: format!("4.{}", self.interface.libraries.minor),
                    source,
                })
            }
            Err(Error::HostCall { source, .. })
                if matches!(source.errno(), Some(libc::EPERM | libc::ENOSYS)) =>
            {
                Err(Error::NotControlDomain {
                    reason: "the hypervisor refuses its control calls",
                    source: Some(source),
                })
            }
            Err(other) => Err(other),
        }
    }

    /// The hypervisor's version: major and minor, such as (4, 17). (`xc_version` of `xenctrl.h`.)
    ///
    /// # Errors
    /// [`Error::HostCall`].
    pub fn xen_version(&self) -> Result<(u16, u16), Error> {
        let version = self.host_call("read the version of the hypervisor", |interface| {
            // SAFETY: this command takes no argument.
            unsafe {
                (interface.libraries.control.xc_version)(
                    interface.handle(),
                    XENVER_version.cast_signed(),
                    std::ptr::null_mut(),
                )
            }
            .into()
        })?;
        Ok(((version >> 16) as u16, version as u16))
    }

    pub(crate) fn interface(&self) -> &Arc<Interface> {
        &self.interface
    }

    /// Runs a library call that is about the host; a negative result is an error.
    pub(crate) fn host_call(
        &self,
        operation: &'static str,
        call: impl FnOnce(&Interface) -> i64,
    ) -> Result<i64, Error> {
        logger::clear();
        match call(&self.interface) {
            result if result < 0 => Err(Error::HostCall {
                operation,
                source: CallError::of(result),
            }),
            result => Ok(result),
        }
    }

    /// Runs a library call that is about a domain; a negative result is an error.
    pub(crate) fn domain_call(
        &self,
        operation: &'static str,
        domain: DomainId,
        call: impl FnOnce(&Interface, u32) -> i64,
    ) -> Result<i64, Error> {
        logger::clear();
        match call(&self.interface, domain.get()) {
            result if result < 0 => Err(Error::DomainCall {
                operation,
                domain,
                source: CallError::of(result),
            }),
            result => Ok(result),
        }
    }
}

impl Interface {
    fn open(libraries: ControlLibraries) -> Result<Self, Error> {
        logger::clear();
        // SAFETY: the logger lives forever. The second one would log the building of domains,
        // which nobody does here, and by default to a file: so it is the same.
        let control =
            unsafe { (libraries.control.xc_interface_open)(logger::logger(), logger::logger(), 0) };
        let Some(control) = NonNull::new(control) else {
            return Err(open_error(CallError::of(-1)));
        };
        // SAFETY: as above.
        let foreign = unsafe { (libraries.foreign.xenforeignmemory_open)(logger::logger(), 0) };
        let Some(foreign) = NonNull::new(foreign) else {
            let error = open_error(CallError::of(-1));
            // SAFETY: just opened, and nobody else has it.
            unsafe { (libraries.control.xc_interface_close)(control.as_ptr()) };
            return Err(error);
        };
        Ok(Self {
            libraries,
            control,
            foreign,
        })
    }

    pub(crate) fn libraries(&self) -> &ControlLibraries {
        &self.libraries
    }

    pub(crate) fn handle(&self) -> *mut xc_interface {
        self.control.as_ptr()
    }

    pub(crate) fn foreign_handle(&self) -> *mut xenforeignmemory_handle {
        self.foreign.as_ptr()
    }
}

impl Drop for Interface {
    fn drop(&mut self) {
        // SAFETY: both were opened by `open`; buffers and mappings hold the interface, so that
        // none is left.
        unsafe {
            (self.libraries.foreign.xenforeignmemory_close)(self.foreign_handle());
            (self.libraries.control.xc_interface_close)(self.handle());
        }
    }
}

/// What a failure to open the devices means.
fn open_error(source: CallError) -> Error {
    match source.errno() {
        Some(libc::EACCES | libc::EPERM) => Error::PermissionDenied {
            subject: "/dev/xen/privcmd",
            source,
        },
        Some(libc::ENOENT | libc::ENXIO | libc::ENODEV) => Error::NotControlDomain {
            reason: "Xen's control device cannot be opened",
            source: Some(source),
        },
        _ => Error::HostCall {
            operation: "connect to the hypervisor",
            source,
        },
    }
}
