//! What an emulator tells the hypervisor: here, that pages of a domain were written.

use std::ptr::NonNull;

use crate::bindings::xendevicemodel::{Xendevicemodel, xendevicemodel_handle};
use crate::domain::DomainId;
use crate::error::{CallError, Error};
use crate::load::{self, Opened};
use crate::logger;

/// A connection of its own: few need it, and for a moment only.
#[derive(Debug)]
pub struct DeviceModel {
    functions: Xendevicemodel,
    handle: NonNull<xendevicemodel_handle>,
    // Kept for as long as the functions are used.
    _opened: Opened,
}

impl DeviceModel {
    /// Opens the library and connects. (`xendevicemodel_open` of `xendevicemodel.h`.)
    ///
    /// # Errors
    /// [`Error::LibraryMissing`], [`Error::SymbolMissing`], [`Error::HostCall`].
    pub fn open() -> Result<Self, Error> {
        let opened = load::device_model_names().open()?;
        // SAFETY: the library's name carries the version of its stable interface; it is kept in
        // `Self`.
        let functions = unsafe { Xendevicemodel::load(&opened) }?;
        logger::clear();
        // SAFETY: the logger lives forever.
        let handle = unsafe { (functions.xendevicemodel_open)(logger::logger(), 0) };
        let handle = NonNull::new(handle).ok_or_else(|| Error::HostCall {
            operation: "connect as an emulator to the hypervisor",
            source: CallError::of(-1),
        })?;
        Ok(Self {
            functions,
            handle,
            _opened: opened,
        })
    }

    /// Makes a page dirty for log-dirty mode, as if the domain had written it; nothing if the
    /// domain is not in that mode or has no such page. For HVM and PVH domains.
    /// (`xendevicemodel_modified_memory` of `xendevicemodel.h`.)
    ///
    /// # Errors
    /// [`Error::DomainCall`].
    pub fn mark_written(&self, domain: DomainId, pfn: u64) -> Result<(), Error> {
        logger::clear();
        // Guests' numbers have 15 bits.
        let domid = domain.get() as u16;
        // SAFETY: the handle is open; the call takes no memory of ours.
        let result = unsafe {
            (self.functions.xendevicemodel_modified_memory)(self.handle.as_ptr(), domid, pfn, 1)
        };
        if result < 0 {
            return Err(Error::DomainCall {
                operation: "mark a page as written of",
                domain,
                source: CallError::of(result.into()),
            });
        }
        Ok(())
    }
}

impl Drop for DeviceModel {
    fn drop(&mut self) {
        // SAFETY: opened by `open`, closed once.
        unsafe { (self.functions.xendevicemodel_close)(self.handle.as_ptr()) };
    }
}
