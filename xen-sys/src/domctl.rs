//! Control calls for which libxenctrl has no function of its own.
//!
//! `xc_domctl` of `xenctrl.h` passes any of them on and fills in the version of the interface, which
//! so is the installed library's, not ours. The arguments used here are the same in Xen 4.17 to 4.23.

use crate::bindings::xenctrl::{__BindgenOpaqueArray8, xen_domctl, xen_domctl__bindgen_ty_1};
use crate::control::Xen;
use crate::domain::DomainId;
use crate::error::Error;

/// The argument of a control call: one of the structures in the union of `struct xen_domctl`.
///
/// # Safety
/// It is plain C data for which all bytes of zero are valid, no longer than the union's 128 bytes and
/// aligned to 8 at most.
pub(crate) unsafe trait Argument: Copy {}

impl Xen {
    /// Makes the control call `command` with `argument`, which the hypervisor may change.
    ///
    /// # Safety
    /// `A` is the argument of `command`, and what it points to is there for the hypervisor to use.
    pub(crate) unsafe fn domctl<A: Argument>(
        &self,
        operation: &'static str,
        domain: DomainId,
        command: u32,
        argument: &mut A,
    ) -> Result<(), Error> {
        const { assert!(size_of::<A>() <= size_of::<xen_domctl__bindgen_ty_1>()) };
        let mut call = xen_domctl {
            cmd: command,
            interface_version: 0,
            // Domains' numbers have 15 bits.
            domain: domain.get() as u16,
            _pad: [0; 3],
            u: xen_domctl__bindgen_ty_1 {
                _bindgen_opaque_blob: __BindgenOpaqueArray8([0; 128]),
            },
        };
        let place = (&raw mut call.u).cast::<A>();
        // SAFETY: it fits into the union and is aligned as that is, by the promise of `Argument`.
        unsafe { place.write(*argument) };
        let done = self.domain_call(operation, domain, |interface, _| {
            // SAFETY: a whole argument; what it points to is there, as the caller promises.
            unsafe { (interface.libraries().control.xc_domctl)(interface.handle(), &raw mut call) }
                .into()
        });
        // SAFETY: as above; written by us, and by the hypervisor with data of the same type.
        *argument = unsafe { (&raw const call.u).cast::<A>().read() };
        done.map(drop)
    }
}
