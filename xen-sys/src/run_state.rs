//! Stopping a domain and letting it run on.

use crate::control::Xen;
use crate::domain::{DomainId, ShutdownReason};
use crate::error::Error;

impl Xen {
    /// Pauses a domain. Pauses count: each needs one [`Xen::domain_unpause`].
    /// (`xc_domain_pause` of `xenctrl.h`.)
    ///
    /// # Errors
    /// [`Error::DomainCall`].
    pub fn domain_pause(&self, domain: DomainId) -> Result<(), Error> {
        self.domain_call("pause", domain, |interface, domid| {
            // SAFETY: takes integers only.
            unsafe { (interface.libraries().control.xc_domain_pause)(interface.handle(), domid) }
                .into()
        })?;
        Ok(())
    }

    /// Takes one pause back. (`xc_domain_unpause` of `xenctrl.h`.)
    ///
    /// # Errors
    /// [`Error::DomainCall`].
    pub fn domain_unpause(&self, domain: DomainId) -> Result<(), Error> {
        self.domain_call("unpause", domain, |interface, domid| {
            // SAFETY: takes integers only.
            unsafe { (interface.libraries().control.xc_domain_unpause)(interface.handle(), domid) }
                .into()
        })?;
        Ok(())
    }

    /// Marks a domain as shut down, without its co-operation: its vCPUs stop at once. With
    /// [`ShutdownReason::Suspend`] this is how an HVM guest without PV drivers is suspended.
    /// (`xc_domain_shutdown` of `xenctrl.h`.)
    ///
    /// # Errors
    /// [`Error::DomainCall`].
    pub fn domain_shutdown(&self, domain: DomainId, reason: ShutdownReason) -> Result<(), Error> {
        self.domain_call("shut down", domain, |interface, domid| {
            // SAFETY: takes integers only.
            unsafe {
                (interface.libraries().control.xc_domain_shutdown)(
                    interface.handle(),
                    domid,
                    reason.code(),
                )
            }
            .into()
        })?;
        Ok(())
    }

    /// Lets a suspended domain run on. With `fast` its suspend hypercall returns 1, "cancelled":
    /// the guest goes on with its devices as they are. Without, it returns 0 and the guest
    /// reconnects its devices as if on a new host; of a hardware-virtualised domain that is still
    /// shutting down (not all its vCPUs have come to rest) it ends that. The store's shutdown flag is another matter:
    /// [`crate::Store::resume_domain`]. (`xc_domain_resume` of `xenguest.h`.)
    ///
    /// # Errors
    /// [`Error::DomainCall`]: `EINVAL` if `fast` and the domain is not suspended.
    pub fn domain_resume(&self, domain: DomainId, fast: bool) -> Result<(), Error> {
        self.domain_call("resume", domain, |interface, domid| {
            // SAFETY: takes integers only.
            unsafe {
                (interface.libraries().guest.xc_domain_resume)(
                    interface.handle(),
                    domid,
                    fast.into(),
                )
            }
            .into()
        })?;
        Ok(())
    }
}
