//! What of a guest can be put right without xenstore.
//!
//! xenstored may be away for a while, or hang, and every request to it blocks. A guest that stands
//! still does not wait for that: what the hypervisor alone can do is done first, of all else.

use xen_sys::{DomainId, Xen};

use super::emulator::{self, Emulator};
use super::guest::resume_if_suspended;
use super::helper;
use super::open::uuid_text;
use super::throttle;
use crate::guardian::{Entry, Journal, Slowed, State, Stop};

/// Ends our pause of the guest of `entry`, puts its CPU cap back, resumes it and ends its dirty
/// tracking, as far as `state` says that the save did otherwise. Says what was done, and what is left: the announcement in xenstore, a request
/// to be taken back, or a CPU cap. What fails here is left too.
pub(super) fn first_aid(
    xen: &Xen,
    domid: DomainId,
    journal: &Journal,
    entry: &Entry,
    state: State,
) -> (Vec<String>, State) {
    let mut left = state;
    let mut done = vec![];
    let info = xen.domain_info(domid).ok().flatten();
    let Some(info) = info.filter(|info| !info.dying && uuid_text(&info.uuid) == entry.uuid) else {
        return (done, left);
    };
    // A pause must not be ended twice: that it has been is noted.
    if state.slowed == Slowed::Pulsing && info.paused && xen.domain_unpause(domid).is_ok() {
        left.slowed = Slowed::No;
        if journal.set(left).is_ok() {
            done.push("the guest's pause ended".into());
        }
    }
    if state.slowed == Slowed::Capped
        && let Ok(remedy) = throttle::put_back(xen, domid, entry.caps)
    {
        left.slowed = Slowed::No;
        done.push(throttle::deed(remedy));
    }
    // What another tool's save does to the guest is its own affair.
    if helper::saving(domid.get()).is_some() {
        return (done, left);
    }
    let emulator = Emulator::of(&info);
    if let Some(emulator) = &emulator
        && state.stop != Stop::No
        // A guest that runs finds its devices there. What fails is tried again once it runs.
        && emulator.run_on(emulator::FIRST_AID).unwrap_or(false)
    {
        done.push("its emulator let run on".into());
    }
    let stopped = matches!(state.stop, Stop::Requested | Stop::Suspended);
    if stopped && resume_if_suspended(xen, domid) {
        left.stop = Stop::Resumed;
        done.push("the suspended guest resumed".into());
    }
    if state.tracking {
        let forgotten = emulator.is_none_or(|it| it.forget_writes(emulator::FIRST_AID).is_ok());
        if xen.log_dirty_disable(domid).is_ok() && forgotten {
            left.tracking = false;
            done.push("its dirty tracking switched off".into());
        }
    }
    (done, left)
}
