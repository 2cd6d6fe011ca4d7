//! Which domains there are, and what each is doing.

use std::fmt;
use std::mem::MaybeUninit;

use crate::bindings::xenctrl::{
    SHUTDOWN_crash, SHUTDOWN_poweroff, SHUTDOWN_reboot, SHUTDOWN_soft_reset, SHUTDOWN_suspend,
    SHUTDOWN_watchdog, XEN_DOMINF_blocked, XEN_DOMINF_dying, XEN_DOMINF_hap, XEN_DOMINF_hvm_guest,
    XEN_DOMINF_paused, XEN_DOMINF_running, XEN_DOMINF_shutdown, XEN_DOMINF_shutdownmask,
    XEN_DOMINF_shutdownshift, XEN_INVALID_MAX_VCPU_ID, XEN_X86_EMU_LAPIC, xen_domctl_getdomaininfo,
};
use crate::control::Xen;
use crate::error::Error;

/// The number of an ordinary domain: 0 to 0x7FEF.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct DomainId(u16);

impl DomainId {
    /// The control domain.
    pub const DOM0: Self = Self(0);

    /// Who owns the hypervisor's own pages (`DOMID_XEN` of `xen.h`).
    pub(crate) const XEN: Self = Self(0x7FF2);

    /// From here on the numbers have meanings of their own (`DOMID_FIRST_RESERVED` of `xen.h`).
    const FIRST_RESERVED: u16 = 0x7FF0;

    /// A domain's number; `None` from 0x7FF0 on.
    #[must_use]
    pub fn new(domid: u32) -> Option<Self> {
        let domid = u16::try_from(domid).ok()?;
        (domid < Self::FIRST_RESERVED).then_some(Self(domid))
    }

    /// The number.
    #[must_use]
    pub fn get(self) -> u32 {
        self.0.into()
    }

    /// The next number, if there is one.
    fn next(self) -> Option<Self> {
        Self::new(self.get() + 1)
    }
}

impl fmt::Display for DomainId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Why a domain has shut down (`SHUTDOWN_*` of `xen/sched.h`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ShutdownReason {
    /// It has powered off.
    Poweroff,
    /// It wants to be started again.
    Reboot,
    /// It has suspended: its state is complete, and it can be resumed.
    Suspend,
    /// It has crashed.
    Crash,
    /// Its watchdog has expired.
    Watchdog,
    /// It wants its devices reset while it stays.
    SoftReset,
    /// A reason that this program does not know.
    Other(u8),
}

impl ShutdownReason {
    #[expect(non_upper_case_globals, reason = "C's names in patterns")]
    pub(crate) fn from_code(code: u8) -> Self {
        match u32::from(code) {
            SHUTDOWN_poweroff => Self::Poweroff,
            SHUTDOWN_reboot => Self::Reboot,
            SHUTDOWN_suspend => Self::Suspend,
            SHUTDOWN_crash => Self::Crash,
            SHUTDOWN_watchdog => Self::Watchdog,
            SHUTDOWN_soft_reset => Self::SoftReset,
            _ => Self::Other(code),
        }
    }

    pub(crate) fn code(self) -> i32 {
        let code = match self {
            Self::Poweroff => SHUTDOWN_poweroff,
            Self::Reboot => SHUTDOWN_reboot,
            Self::Suspend => SHUTDOWN_suspend,
            Self::Crash => SHUTDOWN_crash,
            Self::Watchdog => SHUTDOWN_watchdog,
            Self::SoftReset => SHUTDOWN_soft_reset,
            Self::Other(code) => code.into(),
        };
        code.cast_signed()
    }
}

/// What the hypervisor says of a domain (`struct xen_domctl_getdomaininfo` of `xen/domctl.h`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DomainInfo {
    /// Its number.
    pub domid: DomainId,
    /// It is being destroyed; its memory may still be there.
    pub dying: bool,
    /// Why it has shut down, if it has.
    pub shutdown: Option<ShutdownReason>,
    /// Why it is about to, if so: some of its vCPUs have not come to rest yet (they wait for an
    /// emulator, say). A guest can also just have announced it.
    pub shutting_down: Option<ShutdownReason>,
    /// The toolstack has paused it (`xl pause`, a debugger).
    pub paused: bool,
    /// None of its vCPUs is runnable.
    pub blocked: bool,
    /// At least one vCPU is on a CPU now.
    pub running: bool,
    /// It is an HVM or PVH guest; else a PV guest.
    pub hvm: bool,
    /// Its memory is translated by hardware (EPT, NPT).
    pub hap: bool,
    /// Pages that it has now.
    pub tot_pages: u64,
    /// Pages that it may have.
    pub max_pages: u64,
    /// Pages set aside for it and not yet given.
    pub outstanding_pages: u64,
    /// Pages that are paged out to disk by `xenpaging`.
    pub paged_pages: u64,
    /// Frame of its `shared_info` page: a guest frame for HVM and PVH, a machine frame for PV.
    pub shared_info_frame: u64,
    /// CPU time used by all its vCPUs together, in nanoseconds.
    pub cpu_time_ns: u64,
    /// vCPUs that are online.
    pub online_vcpus: u32,
    /// The highest vCPU number; `None` for a domain without vCPUs.
    pub max_vcpu_id: Option<u32>,
    /// The CPU pool that it runs in.
    pub cpupool: u32,
    /// Its UUID.
    pub uuid: [u8; 16],
    /// Which PC devices the hypervisor emulates for it (`XEN_X86_EMU_*`).
    pub emulation_flags: u32,
}

impl DomainInfo {
    /// Whether it is a PVH guest: hardware virtualised, and of all emulated devices it has the
    /// local APIC at most.
    #[must_use]
    pub fn is_pvh(&self) -> bool {
        self.hvm && self.emulation_flags & !XEN_X86_EMU_LAPIC == 0
    }

    /// Whether it has suspended itself and waits to be resumed.
    #[must_use]
    pub fn is_suspended(&self) -> bool {
        self.shutdown == Some(ShutdownReason::Suspend)
    }

    /// `None` for a number that is not an ordinary domain's.
    fn from_raw(raw: &xen_domctl_getdomaininfo) -> Option<Self> {
        let has = |flag: u32| raw.flags & flag != 0;
        let code = (raw.flags >> XEN_DOMINF_shutdownshift) & XEN_DOMINF_shutdownmask;
        let reason = ShutdownReason::from_code(code as u8);
        let has_shut_down = has(XEN_DOMINF_shutdown);
        Some(Self {
            domid: DomainId::new(raw.domain.into())?,
            dying: has(XEN_DOMINF_dying),
            shutdown: has_shut_down.then_some(reason),
            // Set before the flag is; all ones for none (`SHUTDOWN_CODE_INVALID` of Xen's sched.h).
            shutting_down: (!has_shut_down && code != XEN_DOMINF_shutdownmask).then_some(reason),
            paused: has(XEN_DOMINF_paused),
            blocked: has(XEN_DOMINF_blocked),
            running: has(XEN_DOMINF_running),
            hvm: has(XEN_DOMINF_hvm_guest),
            hap: has(XEN_DOMINF_hap),
            tot_pages: raw.tot_pages,
            max_pages: raw.max_pages,
            outstanding_pages: raw.outstanding_pages,
            paged_pages: raw.paged_pages,
            shared_info_frame: raw.shared_info_frame,
            cpu_time_ns: raw.cpu_time,
            online_vcpus: raw.nr_online_vcpus,
            max_vcpu_id: Some(raw.max_vcpu_id)
                .filter(|&id| id != XEN_INVALID_MAX_VCPU_ID.cast_unsigned()),
            cpupool: raw.cpupool,
            uuid: raw.handle,
            emulation_flags: raw.arch_config.emulation_flags,
        })
    }
}

impl Xen {
    /// The state of one domain; `None` if there is no such domain. It allocates nothing and costs
    /// one hypercall, so it can be polled. (`xc_domain_getinfolist` of `xenctrl.h`.)
    ///
    /// # Errors
    /// [`Error::HostCall`].
    pub fn domain_info(&self, domain: DomainId) -> Result<Option<DomainInfo>, Error> {
        // The hypervisor answers with the next domain there is, which may be another one.
        Ok(self
            .domain_from(domain)?
            .filter(|info| info.domid == domain))
    }

    /// The state of all domains, by ascending number. Domains that come and go meanwhile may be
    /// in it or not.
    ///
    /// # Errors
    /// [`Error::HostCall`].
    pub fn domains(&self) -> Result<Vec<DomainInfo>, Error> {
        let mut domains = Vec::new();
        let mut from = Some(DomainId::DOM0);
        while let Some(first) = from {
            let Some(info) = self.domain_from(first)? else {
                break;
            };
            from = info.domid.next();
            domains.push(info);
        }
        Ok(domains)
    }

    /// The domain with the lowest number from `first` on.
    fn domain_from(&self, first: DomainId) -> Result<Option<DomainInfo>, Error> {
        let mut raw = MaybeUninit::<xen_domctl_getdomaininfo>::zeroed();
        let found = self.host_call("read the list of domains", |interface| {
            // SAFETY: room for the one entry asked for; its layout is that of the library's
            // version (the same in all supported ones).
            unsafe {
                (interface.libraries().control.xc_domain_getinfolist)(
                    interface.handle(),
                    first.get(),
                    1,
                    raw.as_mut_ptr(),
                )
            }
            .into()
        })?;
        if found == 0 {
            return Ok(None);
        }
        // SAFETY: zeroed, and every bit pattern is valid for these integers.
        Ok(DomainInfo::from_raw(unsafe { raw.assume_init_ref() }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw() -> xen_domctl_getdomaininfo {
        // SAFETY: integers only.
        unsafe { MaybeUninit::zeroed().assume_init() }
    }

    #[test]
    fn only_ordinary_domains_have_an_id() {
        assert_eq!(DomainId::new(0), Some(DomainId::DOM0));
        assert_eq!(DomainId::new(0x7FEF).map(DomainId::get), Some(0x7FEF));
        assert_eq!(DomainId::new(0x7FF0), None);
        assert_eq!(DomainId::new(0x1_0000), None);
        assert_eq!(DomainId::new(0x7FEF).and_then(DomainId::next), None);
    }

    #[test]
    fn flags_are_decoded() {
        let mut raw = raw();
        raw.domain = 7;
        raw.flags = XEN_DOMINF_hvm_guest | XEN_DOMINF_hap | XEN_DOMINF_running;
        raw.max_vcpu_id = 3;
        let info = DomainInfo::from_raw(&raw).expect("an ordinary domain");
        assert!(info.hvm && info.hap && info.running);
        assert!(!info.dying && !info.paused && !info.blocked && !info.is_suspended());
        assert_eq!((info.shutdown, info.max_vcpu_id), (None, Some(3)));
    }

    #[test]
    fn a_shutdown_reason_counts_only_with_its_flag() {
        let mut raw = raw();
        raw.flags = 2 << XEN_DOMINF_shutdownshift;
        let info = DomainInfo::from_raw(&raw).expect("dom0");
        assert_eq!(info.shutdown, None);
        assert_eq!(info.shutting_down, Some(ShutdownReason::Suspend));
        raw.flags |= XEN_DOMINF_shutdown;
        let info = DomainInfo::from_raw(&raw).expect("dom0");
        assert!(info.is_suspended());
        assert_eq!(info.shutting_down, None);
        raw.flags = XEN_DOMINF_shutdown | 200 << XEN_DOMINF_shutdownshift;
        let info = DomainInfo::from_raw(&raw).expect("dom0");
        assert_eq!(info.shutdown, Some(ShutdownReason::Other(200)));
        raw.flags = XEN_DOMINF_shutdownmask << XEN_DOMINF_shutdownshift;
        let info = DomainInfo::from_raw(&raw).expect("dom0");
        assert_eq!((info.shutdown, info.shutting_down), (None, None));
    }

    #[test]
    fn shutdown_reasons_survive_the_way_there_and_back() {
        for code in 0..=u8::MAX {
            assert_eq!(ShutdownReason::from_code(code).code(), i32::from(code));
        }
    }

    #[test]
    fn pvh_is_hvm_without_pc_devices() {
        let mut raw = raw();
        raw.arch_config.emulation_flags = XEN_X86_EMU_LAPIC;
        assert!(!DomainInfo::from_raw(&raw).expect("dom0").is_pvh());
        raw.flags = XEN_DOMINF_hvm_guest;
        assert!(DomainInfo::from_raw(&raw).expect("dom0").is_pvh());
        raw.arch_config.emulation_flags |= 2;
        assert!(!DomainInfo::from_raw(&raw).expect("dom0").is_pvh());
    }

    #[test]
    fn a_domain_without_vcpus_has_no_highest_one() {
        let mut raw = raw();
        raw.max_vcpu_id = u32::MAX;
        assert_eq!(DomainInfo::from_raw(&raw).expect("dom0").max_vcpu_id, None);
    }
}
