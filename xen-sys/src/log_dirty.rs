//! Log-dirty mode: the hypervisor notes which pages a domain writes.
//!
//! The mode belongs to the domain, not to the process that switched it on: it stays on until it
//! is switched off or the domain is destroyed. Beware: [`Xen::log_dirty_clean`] and
//! [`Xen::log_dirty_peek`] on a domain that is not in the mode succeed and show no dirty page.
//! Only [`Xen::log_dirty_enable`] tells whether it was on.

use crate::bindings::xenctrl::{
    XEN_DOMCTL_SHADOW_LOGDIRTY_FINAL, XEN_DOMCTL_SHADOW_OP_CLEAN,
    XEN_DOMCTL_SHADOW_OP_ENABLE_LOGDIRTY, XEN_DOMCTL_SHADOW_OP_OFF, XEN_DOMCTL_SHADOW_OP_PEEK,
    xen_domctl_shadow_op_stats,
};
use crate::control::Xen;
use crate::domain::DomainId;
use crate::error::Error;
use crate::hypercall_buffer::HypercallBuffer;

/// Why log-dirty mode could not be switched on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EnableError {
    /// It is on already, through somebody else, or the domain has a passed-through device. Xen
    /// does not say which (`EINVAL`).
    #[error(
        "The writes of domain {0} are being tracked already: it is being saved or migrated, or a \
         killed save left that on (a completed `xl save -c` ends it), or it has a passed-through \
         device"
    )]
    AlreadyOnOrPassthrough(DomainId),
    /// Another operation on the domain's memory is under way, or an emulator holds pages of it
    /// (`EBUSY`).
    #[error("The memory of domain {0} is in use by another operation")]
    Busy(DomainId),
    /// This hypervisor cannot log the domain's writes (`EOPNOTSUPP`): a PV guest without shadow
    /// paging.
    #[error("This hypervisor cannot track the writes of domain {0}")]
    Unsupported(DomainId),
    /// Something else.
    #[error(transparent)]
    Other(#[from] Error),
}

/// What a look at the dirty bitmap said (`struct xen_domctl_shadow_op_stats` of `xen/domctl.h`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct LogDirtyStats {
    /// Pages that became dirty since the last clean, by the hypervisor's own count.
    pub dirty: u32,
    /// Faults that the noting took since the last clean; 0 where the hardware notes by itself.
    pub faults: u32,
}

impl Xen {
    /// Switches log-dirty mode on; the bitmap is empty then. The domain pauses for a moment.
    /// (`xc_shadow_control` of `xenctrl.h` with `XEN_DOMCTL_SHADOW_OP_ENABLE_LOGDIRTY`.)
    ///
    /// # Errors
    /// [`EnableError`]; nothing has changed.
    pub fn log_dirty_enable(&self, domain: DomainId) -> Result<(), EnableError> {
        let operation = "start tracking the writes of";
        match self.shadow_control(operation, domain, XEN_DOMCTL_SHADOW_OP_ENABLE_LOGDIRTY) {
            Ok(()) => Ok(()),
            Err(error) => Err(match error.errno() {
                Some(libc::EINVAL) => EnableError::AlreadyOnOrPassthrough(domain),
                Some(libc::EBUSY) => EnableError::Busy(domain),
                Some(libc::EOPNOTSUPP) => EnableError::Unsupported(domain),
                _ => EnableError::Other(error),
            }),
        }
    }

    /// Switches log-dirty mode off, whoever switched it on; no error if it was off, or if this
    /// hypervisor does not have it for that domain.
    /// (`xc_shadow_control` of `xenctrl.h` with `XEN_DOMCTL_SHADOW_OP_OFF`.)
    ///
    /// # Errors
    /// [`Error::DomainCall`].
    pub fn log_dirty_disable(&self, domain: DomainId) -> Result<(), Error> {
        let off = || {
            let operation = "stop tracking the writes of";
            self.shadow_control(operation, domain, XEN_DOMCTL_SHADOW_OP_OFF)
        };
        let Err(error) = off() else {
            return Ok(());
        };
        // Without shadow paging EINVAL is all that it says (`shadow_domctl` of Xen's asm/shadow.h), and
        // is what it says of other things too.
        if error.errno() != Some(libc::EINVAL) {
            return Err(error);
        }
        match self.log_dirty_enable(domain) {
            Err(EnableError::Unsupported(_)) => Ok(()),
            Ok(()) => off(),
            Err(_) => Err(error),
        }
    }

    /// Copies the dirty bits of the first `pages` pages to `bitmap` and forgets them, so that the
    /// next call shows what is written from now on. `last` also reports the pages that the
    /// hypervisor itself holds mapped for writing (emulation); it belongs to the last call, with
    /// the domain suspended. Bits of `bitmap` behind the first `pages` are undefined. The domain pauses
    /// for the call. (`xc_logdirty_control` of `xenctrl.h` with `XEN_DOMCTL_SHADOW_OP_CLEAN`.)
    ///
    /// # Errors
    /// [`Error::Argument`] if `bitmap` is too small, nothing has changed;
    /// [`Error::ShortBitmap`], [`Error::DomainCall`]: dirty bits may be lost, so that no image
    /// can be built on what was fetched before. `ENOMEM` says that the hypervisor lost track.
    pub fn log_dirty_clean(
        &self,
        domain: DomainId,
        bitmap: &mut HypercallBuffer,
        pages: u64,
        last: bool,
    ) -> Result<LogDirtyStats, Error> {
        self.fetch(
            domain,
            XEN_DOMCTL_SHADOW_OP_CLEAN,
            mode_of(last),
            bitmap,
            pages,
        )
    }

    /// As [`Xen::log_dirty_clean`], but forgets nothing: no page becomes read-only, so that the
    /// domain takes no faults for it afterwards.
    ///
    /// # Errors
    /// As [`Xen::log_dirty_clean`], though no bits are lost.
    pub fn log_dirty_peek(
        &self,
        domain: DomainId,
        bitmap: &mut HypercallBuffer,
        pages: u64,
        last: bool,
    ) -> Result<LogDirtyStats, Error> {
        self.fetch(
            domain,
            XEN_DOMCTL_SHADOW_OP_PEEK,
            mode_of(last),
            bitmap,
            pages,
        )
    }

    fn shadow_control(
        &self,
        operation: &'static str,
        domain: DomainId,
        op: u32,
    ) -> Result<(), Error> {
        self.domain_call(operation, domain, |interface, domid| {
            // SAFETY: these operations take no memory size, so the pointer may be null.
            unsafe {
                (interface.libraries().control.xc_shadow_control)(
                    interface.handle(),
                    domid,
                    op,
                    std::ptr::null_mut(),
                    0,
                )
            }
            .into()
        })?;
        Ok(())
    }

    fn fetch(
        &self,
        domain: DomainId,
        op: u32,
        mode: u32,
        bitmap: &mut HypercallBuffer,
        pages: u64,
    ) -> Result<LogDirtyStats, Error> {
        let operation = "read the dirty pages of";
        if pages.div_ceil(8) > bitmap.size() as u64 {
            return Err(Error::Argument {
                operation,
                what: "the bitmap is too small",
            });
        }
        let mut stats = xen_domctl_shadow_op_stats {
            fault_count: 0,
            dirty_count: 0,
        };
        let mut argument = bitmap.as_argument();
        let got = self.domain_call(operation, domain, |interface, domid| {
            // SAFETY: the hypervisor writes at most one bit per page, rounded up to a byte, which
            // fits by the check above; `bitmap` is borrowed mutably for the call.
            unsafe {
                (interface.libraries().control.xc_logdirty_control)(
                    interface.handle(),
                    domid,
                    op,
                    &raw mut argument,
                    pages,
                    mode,
                    &raw mut stats,
                )
            }
        })?;
        let got = got.cast_unsigned();
        if got < pages {
            return Err(Error::ShortBitmap {
                domain,
                asked: pages,
                got,
            });
        }
        Ok(LogDirtyStats {
            dirty: stats.dirty_count,
            faults: stats.fault_count,
        })
    }
}

/// The mode bits of a look at the bitmap.
fn mode_of(last: bool) -> u32 {
    if last {
        XEN_DOMCTL_SHADOW_LOGDIRTY_FINAL
    } else {
        0
    }
}
