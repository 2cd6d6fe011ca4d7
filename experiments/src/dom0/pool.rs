//! Guests that are lent from test to test: under emulation one takes ten seconds to boot.
//!
//! A guest is lent again if it is of the kind wanted and as new. Whoever ends it, or leaves it in
//! any state but that, takes it out ([`Lent::own`]).

use super::guest::{Guest, write_config};
use super::harm::Harm;
use super::hypervisor;
use super::log_dirty;
use super::spec::Spec;
use super::xl;
use anyhow::{Result, bail};
use std::cell::RefCell;
use std::ops::{Deref, DerefMut};
use std::path::Path;
use std::rc::Rc;

/// Keeps one guest between two tests.
#[derive(Default)]
pub struct Pool {
    idle: RefCell<Option<Guest>>,
}

impl Pool {
    /// The guest that is there, if it is as wanted, or a new one. `dir` takes its configuration file.
    pub fn lend(self: &Rc<Self>, spec: Spec, dir: &Path) -> Result<Lent> {
        let idle = self.idle.borrow_mut().take();
        if let Some(mut guest) = idle
            && guest.spec.differs_in_rate_only(&spec)
        {
            match renew(&mut guest, &spec) {
                Ok(()) => {
                    write_config(&spec, dir)?;
                    return Ok(self.lent(guest));
                }
                Err(why) if why.is::<Harm>() => return Err(why),
                Err(why) => print!("(a new guest, for the last one is not as new: {why:#}) "),
            }
        }
        // The other one is destroyed by now: the two may have one name.
        Ok(self.lent(Guest::start(spec, dir)?))
    }

    fn lent(self: &Rc<Self>, guest: Guest) -> Lent {
        Lent {
            guest: Some(guest),
            pool: Rc::clone(self),
        }
    }

    /// Destroys what is there, so that the next guest is a new one.
    pub fn clear(&self) {
        self.idle.borrow_mut().take();
    }

    /// Destroys all guests that are not in here: tests have lost track of them.
    pub fn destroy_others(&self) -> Result<()> {
        let idle = self.idle.borrow().as_ref().map(|guest| guest.domid);
        for domid in hypervisor::guests()? {
            if Some(domid) != idle {
                xl::xl(&["destroy", &domid.to_string()])?;
            }
        }
        Ok(())
    }
}

/// Finds out whether the guest is as new, and tells it its rate.
fn renew(guest: &mut Guest, spec: &Spec) -> Result<()> {
    let beat = guest.beats_on()?;
    if beat.number("bad") != Some(0) {
        let found = format!("after the last test, the guest found bad pages in passing: {beat}");
        return Err(Harm.because(found));
    }
    log_dirty::must_be_off(guest.domid)?;
    let left = guest.request().unwrap_or_default();
    if !left.is_empty() {
        bail!("the shutdown request {left:?} is left");
    }
    match guest.cpu_share()? {
        Some(share) if share.cap != 0 || share.weight != 256 => bail!("it has {share:?}"),
        _ => {}
    }
    if guest.spec.rate != spec.rate {
        guest.ask(&format!("rate {}", spec.rate))?;
        guest.spec.rate.clone_from(&spec.rate);
    }
    Ok(())
}

/// A guest on loan: back in the pool when it is dropped.
pub struct Lent {
    guest: Option<Guest>,
    pool: Rc<Pool>,
}

impl Lent {
    /// Takes it out of the pool: it is destroyed when it is dropped.
    #[must_use]
    pub fn own(mut self) -> Guest {
        self.guest.take().expect("taken by `own` or `drop` only")
    }
}

impl Deref for Lent {
    type Target = Guest;

    fn deref(&self) -> &Guest {
        self.guest.as_ref().expect("taken by `own` or `drop` only")
    }
}

impl DerefMut for Lent {
    fn deref_mut(&mut self) -> &mut Guest {
        self.guest.as_mut().expect("taken by `own` or `drop` only")
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        if let Some(guest) = self.guest.take() {
            self.pool.idle.replace(Some(guest));
        }
    }
}
