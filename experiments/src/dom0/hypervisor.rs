//! A domain as the hypervisor alone sees it: also while xenstored is away, and `xl` with it.

use anyhow::{Context, Result, bail};
use std::thread;
use std::time::{Duration, Instant};
use xen_sys::{DomainId, DomainInfo, ShutdownReason, Store, Xen};

/// The number of the domain that bears the name, by xenstore, if it is there. What `xl list` shows,
/// in a hundredth of its time.
pub fn number_of(name: &str) -> Result<Option<u32>> {
    let (xen, store) = (Xen::open()?, Store::open()?);
    for info in xen.domains()? {
        let path = format!("/local/domain/{}/name", info.domid.get());
        if store.read(&path)?.as_deref() == Some(name) {
            return Ok(Some(info.domid.get()));
        }
    }
    Ok(None)
}

/// The numbers of all domains but dom0, without those that are being destroyed already.
pub fn guests() -> Result<Vec<u32>> {
    let domains = Xen::open()?.domains()?;
    let guests = domains.iter().filter(|info| !info.dying);
    Ok(guests
        .map(|info| info.domid.get())
        .filter(|&id| id != 0)
        .collect())
}

/// One domain.
pub struct Domain {
    xen: Xen,
    id: DomainId,
}

impl Domain {
    /// The domain of that number.
    pub fn of(domid: u32) -> Result<Self> {
        Ok(Self {
            xen: Xen::open()?,
            id: DomainId::new(domid).context("domain number out of range")?,
        })
    }

    /// What the hypervisor says of it.
    pub fn info(&self) -> Result<DomainInfo> {
        self.xen.domain_info(self.id)?.context("the guest is gone")
    }

    /// Waits until `wanted` holds; says how long that was.
    pub fn wait(
        &self,
        what: &str,
        limit: Duration,
        wanted: impl Fn(&DomainInfo) -> bool,
    ) -> Result<Duration> {
        let began = Instant::now();
        loop {
            let info = self.info()?;
            if wanted(&info) {
                return Ok(began.elapsed());
            }
            if began.elapsed() > limit {
                bail!("the guest is not {what} after {limit:?}: {info:?}");
            }
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// Waits until it is suspended.
    pub fn wait_suspended(&self, limit: Duration) -> Result<Duration> {
        self.wait("suspended", limit, DomainInfo::is_suspended)
    }

    /// Waits until it runs.
    pub fn wait_running(&self, limit: Duration) -> Result<Duration> {
        self.wait("running", limit, |info| {
            info.shutdown.is_none() && !info.paused
        })
    }

    /// Stops its vCPUs, as `xl pause` does.
    pub fn pause(&self) -> Result<()> {
        Ok(self.xen.domain_pause(self.id)?)
    }

    /// Lets them go on.
    pub fn unpause(&self) -> Result<()> {
        Ok(self.xen.domain_unpause(self.id)?)
    }

    /// Ends it: to everybody else it looks as if the guest had done so.
    pub fn end(&self, reason: ShutdownReason) -> Result<()> {
        Ok(self.xen.domain_shutdown(self.id, reason)?)
    }
}
