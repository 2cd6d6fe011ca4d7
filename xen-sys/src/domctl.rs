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

/// How long the union of the arguments is.
pub(crate) const ARGUMENT: usize = size_of::<xen_domctl__bindgen_ty_1>();

/// A call whose argument has these bytes.
fn call_with(command: u32, domain: DomainId, argument: [u8; ARGUMENT]) -> xen_domctl {
    xen_domctl {
        cmd: command,
        interface_version: 0,
        // Domains' numbers have 15 bits.
        domain: domain.get() as u16,
        _pad: [0; 3],
        u: xen_domctl__bindgen_ty_1 {
            _bindgen_opaque_blob: __BindgenOpaqueArray8(argument),
        },
    }
}

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
        const { assert!(size_of::<A>() <= ARGUMENT) };
        let mut call = call_with(command, domain, [0; ARGUMENT]);
        let place = (&raw mut call.u).cast::<A>();
        // SAFETY: it fits into the union and is aligned as that is, by the promise of `Argument`.
        unsafe { place.write(*argument) };
        // SAFETY: a whole argument; what it points to is there, as the caller promises.
        let done = unsafe { self.make_domctl(operation, domain, &mut call) };
        // SAFETY: as above; written by us, and by the hypervisor with data of the same type.
        *argument = unsafe { (&raw const call.u).cast::<A>().read() };
        done
    }

    /// Makes the control call `command` with the bytes of an argument, which the hypervisor may
    /// change. For an argument that is of use as bytes: in a structure its padding would be lost.
    ///
    /// # Safety
    /// They are the argument of `command`, and what it points to is there for the hypervisor to use.
    pub(crate) unsafe fn domctl_bytes(
        &self,
        operation: &'static str,
        domain: DomainId,
        command: u32,
        argument: &mut [u8; ARGUMENT],
    ) -> Result<(), Error> {
        let mut call = call_with(command, domain, *argument);
        // SAFETY: as the caller promises.
        let done = unsafe { self.make_domctl(operation, domain, &mut call) };
        // SAFETY: bytes, all of them written by us, and some by the hypervisor.
        *argument = unsafe { call.u._bindgen_opaque_blob.0 };
        done
    }

    /// # Safety
    /// The argument is a whole one of the command, and what it points to is there.
    unsafe fn make_domctl(
        &self,
        operation: &'static str,
        domain: DomainId,
        call: &mut xen_domctl,
    ) -> Result<(), Error> {
        let done = self.domain_call(operation, domain, |interface, _| {
            // SAFETY: as the caller promises.
            unsafe { (interface.libraries().control.xc_domctl)(interface.handle(), &raw mut *call) }
                .into()
        });
        done.map(drop)
    }
}
