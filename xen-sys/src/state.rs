//! The state of a domain's time, vCPUs and devices.

use crate::control::Xen;
use crate::domain::DomainId;
use crate::error::Error;

/// HVM parameters by their index (`HVM_PARAM_*` of `xen/hvm/params.h`).
pub mod hvm_param {
    use crate::bindings::xenctrl as raw;

    /// How the guest is interrupted for events; 0 for a guest without PV drivers.
    pub const CALLBACK_IRQ: u32 = raw::HVM_PARAM_CALLBACK_IRQ;
    /// The ACPI sleep state that the guest is in; 0 is awake (`HVM_PARAM_ACPI_S_STATE`, not among
    /// the generated bindings).
    pub const ACPI_S_STATE: u32 = 14;
    /// Frame of the xenstore ring.
    pub const STORE_PFN: u32 = raw::HVM_PARAM_STORE_PFN;
    /// The guest's port of the xenstore event channel.
    pub const STORE_EVTCHN: u32 = raw::HVM_PARAM_STORE_EVTCHN;
    /// Frame of the console ring.
    pub const CONSOLE_PFN: u32 = raw::HVM_PARAM_CONSOLE_PFN;

    /// The parameters that an `xl save` stream carries (those of them that are not 0), with their
    /// names.
    pub const SAVED: [(u32, &str); 16] = [
        (raw::HVM_PARAM_STORE_PFN, "STORE_PFN"),
        (raw::HVM_PARAM_IOREQ_PFN, "IOREQ_PFN"),
        (raw::HVM_PARAM_BUFIOREQ_PFN, "BUFIOREQ_PFN"),
        (raw::HVM_PARAM_PAGING_RING_PFN, "PAGING_RING_PFN"),
        (raw::HVM_PARAM_MONITOR_RING_PFN, "MONITOR_RING_PFN"),
        (raw::HVM_PARAM_SHARING_RING_PFN, "SHARING_RING_PFN"),
        (raw::HVM_PARAM_VM86_TSS_SIZED, "VM86_TSS_SIZED"),
        (raw::HVM_PARAM_CONSOLE_PFN, "CONSOLE_PFN"),
        (
            raw::HVM_PARAM_ACPI_IOPORTS_LOCATION,
            "ACPI_IOPORTS_LOCATION",
        ),
        (raw::HVM_PARAM_VIRIDIAN, "VIRIDIAN"),
        (raw::HVM_PARAM_IDENT_PT, "IDENT_PT"),
        (
            raw::HVM_PARAM_VM_GENERATION_ID_ADDR,
            "VM_GENERATION_ID_ADDR",
        ),
        (raw::HVM_PARAM_IOREQ_SERVER_PFN, "IOREQ_SERVER_PFN"),
        (
            raw::HVM_PARAM_NR_IOREQ_SERVER_PAGES,
            "NR_IOREQ_SERVER_PAGES",
        ),
        (raw::HVM_PARAM_X87_FIP_WIDTH, "X87_FIP_WIDTH"),
        (raw::HVM_PARAM_MCA_CAP, "MCA_CAP"),
    ];
}

/// A domain's time stamp counter.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct TscInfo {
    /// `tsc_mode` of the domain's configuration: 0 default, 1 always emulated, 2 never.
    pub mode: u32,
    /// The guest's frequency in kHz.
    pub khz: u32,
    /// The guest's time in nanoseconds, as the counter shows it.
    pub elapsed_ns: u64,
    /// How often the domain has been restored.
    pub incarnation: u32,
}

impl Xen {
    /// A domain's time stamp counter. (`xc_domain_get_tsc_info` of `xenctrl.h`.)
    ///
    /// # Errors
    /// [`Error::DomainCall`].
    pub fn tsc_info(&self, domain: DomainId) -> Result<TscInfo, Error> {
        let mut info = TscInfo::default();
        self.domain_call("read the TSC of", domain, |interface, domid| {
            // SAFETY: four integers to write to.
            unsafe {
                (interface.libraries().control.xc_domain_get_tsc_info)(
                    interface.handle(),
                    domid,
                    &raw mut info.mode,
                    &raw mut info.elapsed_ns,
                    &raw mut info.khz,
                    &raw mut info.incarnation,
                )
            }
            .into()
        })?;
        Ok(info)
    }

    /// Bytes that [`Xen::hvm_context`] needs at most; it usually writes fewer. It does not change
    /// while a domain lives.
    /// (`xc_domain_hvm_getcontext` of `xenctrl.h`.)
    ///
    /// # Errors
    /// [`Error::DomainCall`]: for a PV guest, too.
    pub fn hvm_context_size(&self, domain: DomainId) -> Result<usize, Error> {
        self.get_context(
            "read the size of the vCPU and device state of",
            domain,
            None,
        )
    }

    /// Writes the state of a domain's vCPUs and of the devices that the hypervisor emulates for
    /// it to the front of `into`; the number of bytes written. The domain pauses for the call.
    /// (`xc_domain_hvm_getcontext` of `xenctrl.h`.)
    ///
    /// # Errors
    /// [`Error::Argument`] for a buffer of no or more than 2³¹ bytes; [`Error::DomainCall`]:
    /// `ENOSPC` if `into` is too small.
    pub fn hvm_context(&self, domain: DomainId, into: &mut [u8]) -> Result<usize, Error> {
        let operation = "read the vCPU and device state of";
        if into.is_empty() || i32::try_from(into.len()).is_err() {
            return Err(Error::Argument {
                operation,
                what: "an empty or a huge buffer",
            });
        }
        self.get_context(operation, domain, Some(into))
    }

    fn get_context(
        &self,
        operation: &'static str,
        domain: DomainId,
        into: Option<&mut [u8]>,
    ) -> Result<usize, Error> {
        let (buffer, size) = match into {
            Some(into) => (into.as_mut_ptr(), into.len() as u32),
            None => (std::ptr::null_mut(), 0),
        };
        let length = self.domain_call(operation, domain, |interface, domid| {
            // SAFETY: `size` bytes to write to; null asks for the size only.
            unsafe {
                (interface.libraries().control.xc_domain_hvm_getcontext)(
                    interface.handle(),
                    domid,
                    buffer,
                    size,
                )
            }
            .into()
        })?;
        // Not negative, and from a C int.
        Ok(length as usize)
    }

    /// One HVM parameter by its index, see [`hvm_param`]. (`xc_hvm_param_get` of `xenctrl.h`.)
    ///
    /// # Errors
    /// [`Error::DomainCall`]: `EINVAL` for an index that this hypervisor does not have.
    pub fn hvm_param_get(&self, domain: DomainId, index: u32) -> Result<u64, Error> {
        let mut value = 0;
        self.domain_call("read an HVM parameter of", domain, |interface, domid| {
            // SAFETY: an integer to write to.
            unsafe {
                (interface.libraries().control.xc_hvm_param_get)(
                    interface.handle(),
                    domid,
                    index,
                    &raw mut value,
                )
            }
            .into()
        })?;
        Ok(value)
    }
}
