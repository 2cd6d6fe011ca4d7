//! How much CPU a domain gets.

use crate::bindings::xenctrl::{xen_domctl_sched_credit, xen_domctl_sched_credit2};
use crate::control::Xen;
use crate::domain::DomainId;
use crate::error::Error;

/// A scheduler of Xen that knows weights and caps.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Scheduler {
    /// `credit`: the cap is enforced in slices of 30 ms.
    Credit,
    /// `credit2`, Xen's default: the cap is enforced in periods of 10 ms.
    Credit2,
}

/// A domain's share of the CPUs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CpuShare {
    /// The scheduler of the domain's CPU pool.
    pub scheduler: Scheduler,
    /// Its share relative to the other domains; 256 by default.
    pub weight: u16,
    /// The most CPU that it gets, in percent of one CPU over all its vCPUs: 50 is half a CPU, 400
    /// are four; 0 is no limit.
    pub cap: u16,
}

impl Xen {
    /// A domain's share; `None` if its scheduler has none (`rtds`, `null`, `arinc653`).
    /// (`xc_sched_credit2_domain_get` and `xc_sched_credit_domain_get` of `xenctrl.h`.)
    ///
    /// # Errors
    /// [`Error::DomainCall`].
    pub fn cpu_share(&self, domain: DomainId) -> Result<Option<CpuShare>, Error> {
        // The host's scheduler says nothing of a domain in another CPU pool. Asking with the wrong
        // one is EINVAL, so ask with each.
        for scheduler in [Scheduler::Credit2, Scheduler::Credit] {
            match self.share_under(scheduler, domain) {
                Ok(share) => return Ok(Some(share)),
                Err(error) if error.errno() == Some(libc::EINVAL) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    fn share_under(&self, scheduler: Scheduler, domain: DomainId) -> Result<CpuShare, Error> {
        let operation = "read the CPU share of";
        let (mut weight, mut cap) = (0, 0);
        self.domain_call(operation, domain, |interface, domid| {
            let control = &interface.libraries().control;
            match scheduler {
                Scheduler::Credit => {
                    let mut share = xen_domctl_sched_credit { weight, cap };
                    // SAFETY: a structure to write to.
                    let result = unsafe {
                        (control.xc_sched_credit_domain_get)(
                            interface.handle(),
                            domid,
                            &raw mut share,
                        )
                    };
                    (weight, cap) = (share.weight, share.cap);
                    result.into()
                }
                Scheduler::Credit2 => {
                    let mut share = xen_domctl_sched_credit2 { weight, cap };
                    // SAFETY: a structure to write to.
                    let result = unsafe {
                        (control.xc_sched_credit2_domain_get)(
                            interface.handle(),
                            domid,
                            &raw mut share,
                        )
                    };
                    (weight, cap) = (share.weight, share.cap);
                    result.into()
                }
            }
        })?;
        Ok(CpuShare {
            scheduler,
            weight,
            cap,
        })
    }

    /// Sets a domain's share; takes effect at once. Both weight and cap are set, so change a share
    /// that was read before. (`xc_sched_credit_domain_set` and `xc_sched_credit2_domain_set` of
    /// `xenctrl.h`.)
    ///
    /// # Errors
    /// [`Error::DomainCall`]: `EINVAL` if the domain has another scheduler, or for a cap of more
    /// than all its vCPUs.
    pub fn set_cpu_share(&self, domain: DomainId, share: CpuShare) -> Result<(), Error> {
        let CpuShare {
            scheduler,
            weight,
            cap,
        } = share;
        self.domain_call("set the CPU share of", domain, |interface, domid| {
            let control = &interface.libraries().control;
            match scheduler {
                Scheduler::Credit => {
                    let mut share = xen_domctl_sched_credit { weight, cap };
                    // SAFETY: a structure to read from.
                    unsafe {
                        (control.xc_sched_credit_domain_set)(
                            interface.handle(),
                            domid,
                            &raw mut share,
                        )
                    }
                }
                Scheduler::Credit2 => {
                    let mut share = xen_domctl_sched_credit2 { weight, cap };
                    // SAFETY: a structure to read from.
                    unsafe {
                        (control.xc_sched_credit2_domain_set)(
                            interface.handle(),
                            domid,
                            &raw mut share,
                        )
                    }
                }
            }
            .into()
        })?;
        Ok(())
    }
}
