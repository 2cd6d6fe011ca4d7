//! Is a domain's log-dirty mode on? Xen does not tell, but switching it on
//! fails if it is.

use anyhow::{Context, Result, bail};
use xen_sys::{DomainId, EnableError, Xen};

/// Fails if the domain's writes are being logged. Leaves the mode off.
pub fn must_be_off(domid: u32) -> Result<()> {
    let domain = DomainId::new(domid).context("domain number out of range")?;
    let xen = Xen::open()?;
    match xen.log_dirty_enable(domain) {
        Ok(()) => Ok(xen.log_dirty_disable(domain)?),
        Err(EnableError::AlreadyOnOrPassthrough(_)) => {
            // Off again, or every later test of this guest fails with it.
            xen.log_dirty_disable(domain)?;
            bail!("log-dirty mode was left on");
        }
        // What cannot be on is off.
        Err(EnableError::Unsupported(_)) => Ok(()),
        Err(err) => Err(err).context("log-dirty mode of the guest"),
    }
}

/// Whether the domain's writes are being logged. Leaves it so.
pub fn is_on(domid: u32) -> Result<bool> {
    let domain = DomainId::new(domid).context("domain number out of range")?;
    let xen = Xen::open()?;
    match xen.log_dirty_enable(domain) {
        Ok(()) => {
            xen.log_dirty_disable(domain)?;
            Ok(false)
        }
        Err(EnableError::AlreadyOnOrPassthrough(_)) => Ok(true),
        Err(EnableError::Unsupported(_)) => Ok(false),
        Err(err) => Err(err).context("log-dirty mode of the guest"),
    }
}

/// Whether the hypervisor can log the domain's writes at all: those of a PV guest it cannot without
/// shadow paging. They must not be being logged.
pub fn is_possible(domid: u32) -> Result<bool> {
    let domain = DomainId::new(domid).context("domain number out of range")?;
    let xen = Xen::open()?;
    match xen.log_dirty_enable(domain) {
        Ok(()) => {
            xen.log_dirty_disable(domain)?;
            Ok(true)
        }
        Err(EnableError::Unsupported(_)) => Ok(false),
        Err(err) => Err(err).context("log-dirty mode of the guest"),
    }
}

/// Switches the mode on, as another tool would have.
pub fn switch_on(domid: u32) -> Result<()> {
    let domain = DomainId::new(domid).context("domain number out of range")?;
    Ok(Xen::open()?.log_dirty_enable(domain)?)
}

/// Switches the mode off, as another tool's save does at its end.
pub fn switch_off(domid: u32) -> Result<()> {
    let domain = DomainId::new(domid).context("domain number out of range")?;
    Ok(Xen::open()?.log_dirty_disable(domain)?)
}

/// Fails if the domain's writes are not being logged. Leaves the mode off.
pub fn must_be_on(domid: u32) -> Result<()> {
    if must_be_off(domid).is_ok() {
        bail!("log-dirty mode was switched off");
    }
    Ok(())
}

/// Fetches the dirty pages and has them forgotten, as another tool would.
pub fn fetch(domid: u32) -> Result<()> {
    look_at(domid, true)
}

/// Looks at the dirty pages, as another tool would.
pub fn look(domid: u32) -> Result<()> {
    look_at(domid, false)
}

/// How many of these pages are dirty.
pub fn dirty_among(domid: u32, frames: &[u64]) -> Result<usize> {
    let domain = DomainId::new(domid).context("domain number out of range")?;
    let xen = Xen::open()?;
    let pages = xen.maximum_gpfn(domain)? + 1;
    let mut bitmap = xen.dirty_bitmap(pages)?;
    xen.log_dirty_peek(domain, &mut bitmap, pages, false)?;
    let dirty = |frame: &&u64| {
        let word = bitmap.get((**frame / 64) as usize);
        word.is_some_and(|word| word & (1 << (**frame % 64)) != 0)
    };
    Ok(frames.iter().filter(dirty).count())
}

fn look_at(domid: u32, forget: bool) -> Result<()> {
    let domain = DomainId::new(domid).context("domain number out of range")?;
    let xen = Xen::open()?;
    let pages = xen.maximum_gpfn(domain)? + 1;
    let mut bitmap = xen.dirty_bitmap(pages)?;
    if forget {
        xen.log_dirty_clean(domain, &mut bitmap, pages, false)?;
    } else {
        xen.log_dirty_peek(domain, &mut bitmap, pages, false)?;
    }
    Ok(())
}
