//! A domU's control surface: what it does now, its xenstore nodes, the suspend handshake on them.

use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use xen_sys::{DomainId, DomainInfo, ShutdownReason, Store, Xen};

use super::suspend::{Handshake, RunState, Withdrawal};
use super::types::Suspension;
use crate::fault;
use crate::ports::DomainError;

/// What a guest finds in `control/shutdown` when it is to suspend.
const REQUEST: &str = "suspend";
/// Name of our watch.
const WATCH: &str = "livesave";
/// A guest that the hypervisor was told to stop has usually stopped by then. A vCPU that waits for
/// the emulator stops only when that has answered.
const SHUTDOWN_TAKES: Duration = Duration::from_secs(2);
/// How often the guest is looked at while xenstored is asked to take a request back.
const WITHDRAW_LOOK: Duration = Duration::from_millis(1);

/// The connections to one domU.
pub(super) struct Guest {
    pub xen: Xen,
    pub store: Store,
    pub id: DomainId,
    pub name: String,
    shutdown_node: String,
    /// Stands from our request until its answer is dealt with: the guest takes the request itself
    /// away when it acknowledges it, so that none tells nothing.
    asked_node: String,
    target_node: String,
    /// Says that dirty tracking has been left on for an increment ([`super::stamp`]).
    pub stamp_node: String,
    target: Option<String>,
    /// The hypervisor holds it suspended through us.
    suspended: bool,
    /// A request of ours may stand in xenstore, or the guest be about to do what it said.
    asked: bool,
    began: Instant,
    /// How many pages it is to have, and whether it was seen with another number of them.
    pages: u64,
    resized: bool,
    /// How it is brought to suspend.
    suspension: Suspension,
    pub notice: Box<dyn FnMut(&str)>,
}

/// Lets a domain run on if it is suspended; says whether it was. Nobody else may be about to do so.
pub(super) fn resume_if_suspended(xen: &Xen, id: DomainId) -> bool {
    xen.domain_info(id)
        .is_ok_and(|info| run_state(info.as_ref()) == RunState::Suspended)
        && call("resume", id, || xen.domain_resume(id, true)).is_ok()
}

/// Takes the suspend request back unless it has been acknowledged. In a transaction: the guest
/// acknowledges in one too, so exactly one of us wins.
fn take_request_back(
    store: &Store,
    node: &str,
    asked_node: &str,
) -> Result<Withdrawal, xen_sys::Error> {
    store.transaction(|transaction| {
        if transaction.read(asked_node)?.is_none() {
            return Ok(Withdrawal::NotMade);
        }
        if transaction.read(node)?.as_deref() != Some(REQUEST) {
            return Ok(Withdrawal::TooLate);
        }
        transaction.write(node, "")?;
        transaction.remove(asked_node)?;
        Ok(Withdrawal::TakenBack)
    })
}

/// What a domain does, by what the hypervisor says of it.
pub(super) fn run_state(info: Option<&DomainInfo>) -> RunState {
    let Some(info) = info.filter(|info| !info.dying) else {
        return RunState::Ended("was destroyed");
    };
    match info.shutdown {
        None => RunState::Running,
        Some(ShutdownReason::Suspend) => RunState::Suspended,
        Some(ShutdownReason::Crash) => RunState::Ended("crashed"),
        Some(ShutdownReason::Reboot) => RunState::Ended("rebooted"),
        Some(_) => RunState::Ended("shut down"),
    }
}

/// Whether it is suspended, or is going to be as soon as all its vCPUs have come to rest.
fn stops_to_suspend(info: &DomainInfo) -> bool {
    info.shutdown.or(info.shutting_down) == Some(ShutdownReason::Suspend)
}

/// A failed call on a domain as the engine's error.
pub(super) fn call_failed(
    operation: &'static str,
    id: DomainId,
    error: xen_sys::Error,
) -> DomainError {
    if error.is_no_such_domain() {
        return DomainError::Gone(format!("{id} was destroyed"));
    }
    DomainError::Call {
        operation,
        domain: id.to_string(),
        source: error.into(),
    }
}

/// Makes a call on a domain, which a test may have fail.
pub(super) fn call<T>(
    point: &str,
    id: DomainId,
    call: impl FnOnce() -> Result<T, xen_sys::Error>,
) -> Result<T, xen_sys::Error> {
    fault::call(point).map_err(|source| xen_sys::Error::DomainCall {
        operation: "make a call on",
        domain: id,
        source: source.into(),
    })?;
    call()
}

impl Guest {
    pub fn new(xen: Xen, store: Store, id: DomainId, name: String) -> Result<Self, DomainError> {
        let path = store
            .domain_path(id)
            .map_err(|error| call_failed("find the xenstore nodes of", id, error))?;
        Ok(Self {
            xen,
            store,
            id,
            name,
            shutdown_node: format!("{path}/control/shutdown"),
            asked_node: format!("{path}/livesave-asked"),
            target_node: format!("{path}/memory/target"),
            stamp_node: format!("{path}/livesave-tracking"),
            target: None,
            suspended: false,
            asked: false,
            began: Instant::now(),
            pages: 0,
            resized: false,
            suspension: Suspension::Handshake,
            notice: Box::new(|_| {}),
        })
    }

    /// A failed call as the engine's error; a guest that has gone away meanwhile explains it.
    pub fn failed(&self, operation: &'static str, error: xen_sys::Error) -> DomainError {
        match self.xen.domain_info(self.id) {
            Ok(info) if info.is_none_or(|info| info.dying) => {
                DomainError::Gone(format!("{} was destroyed", self.name))
            }
            _ => DomainError::Call {
                operation,
                domain: self.name.clone(),
                source: error.into(),
            },
        }
    }

    /// What the hypervisor says of it.
    pub fn info(&self) -> Result<DomainInfo, DomainError> {
        match self.xen.domain_info(self.id) {
            Ok(Some(info)) if !info.dying => Ok(info),
            Ok(_) => Err(DomainError::Gone(format!("{} was destroyed", self.name))),
            Err(error) => Err(self.failed("read the state of", error)),
        }
    }

    /// The shutdown request that stands, if one does.
    pub fn pending_request(&self) -> Result<Option<String>, DomainError> {
        self.store
            .read(&self.shutdown_node)
            .map(|value| value.filter(|value| !value.is_empty()))
            .map_err(|error| self.failed("read the shutdown request of", error))
    }

    /// Watches for the toolstack giving the guest another memory size.
    pub fn watch_target(&mut self) -> Result<(), DomainError> {
        call("xs-watch", self.id, || {
            self.store.watch(&self.target_node, WATCH)
        })
        .map_err(|error| self.failed("watch the memory target of", error))?;
        // The first event comes at once and means nothing.
        let until = Instant::now() + Duration::from_secs(2);
        while !self.drain_watch()? && Instant::now() < until {
            thread::sleep(Duration::from_millis(1));
        }
        self.target = self.read_target()?;
        Ok(())
    }

    /// Whether the memory target is another one than at the last call.
    pub fn target_changed(&mut self) -> Result<bool, DomainError> {
        if !self.drain_watch()? {
            return Ok(false);
        }
        let target = self.read_target()?;
        let changed = target != self.target;
        self.target = target;
        Ok(changed)
    }

    pub fn read_target(&self) -> Result<Option<String>, DomainError> {
        self.store
            .read(&self.target_node)
            .map_err(|error| self.failed("read the memory target of", error))
    }

    /// Takes in what the watch has seen; whether that was anything.
    fn drain_watch(&self) -> Result<bool, DomainError> {
        let mut seen = false;
        while self
            .store
            .check_watch()
            .map_err(|error| self.failed("watch the memory target of", error))?
            .is_some()
        {
            seen = true;
        }
        Ok(seen)
    }

    /// Lets the guest run on if it is suspended, its suspend call answered with "cancelled". May be
    /// called again if it failed.
    pub fn run_on(&mut self) -> Result<(), DomainError> {
        if self.suspended {
            call("resume", self.id, || self.xen.domain_resume(self.id, true))
                .map_err(|error| self.failed("resume", error))?;
            self.suspended = false;
            fault::point("half-resumed");
        }
        Ok(())
    }

    /// Tells xenstore that it runs on: without that the next shutdown would not be noticed. xenstored
    /// may be away for long. May be called again if it failed.
    pub fn announce(&mut self) -> Result<(), DomainError> {
        call("xs-resume", self.id, || self.store.resume_domain(self.id))
            .map_err(|error| self.failed("announce in xenstore the resumption of", error))?;
        self.forget()
    }

    /// Whether a request of ours may still stand, or the guest be about to do what it said.
    pub fn is_asked(&self) -> bool {
        self.asked
    }

    /// The clock of the handshake starts, which is to go so.
    pub fn begin_handshake(&mut self, suspension: Suspension) {
        self.began = Instant::now();
        self.suspension = suspension;
    }

    /// From here on every look at what it does tells whether it has so many pages.
    pub fn watch_size(&mut self, pages: u64) {
        self.pages = pages;
        self.resized = false;
    }

    /// Whether a look has found it with another number of pages.
    pub fn was_resized(&self) -> bool {
        self.resized
    }

    /// Has the hypervisor stop it: it knows nothing of being asked.
    fn stop_by_hypervisor(&mut self) -> Result<(), DomainError> {
        self.asked = true;
        let stopped = call("shutdown", self.id, || {
            self.xen.domain_shutdown(self.id, ShutdownReason::Suspend)
        });
        stopped.map_err(|error| {
            self.asked = false;
            self.failed("suspend", error)
        })?;
        fault::point("requested");
        Ok(())
    }

    /// Whether it is a guest that only the hypervisor can suspend.
    fn is_stopped_by_hypervisor(&self) -> bool {
        if self.suspension == Suspension::Hypervisor {
            return true;
        }
        let emulated = self.info().is_ok_and(|info| info.hvm && !info.is_pvh());
        emulated && matches!(self.suspension(), Ok(Suspension::Hypervisor))
    }

    /// Waits for a guest that the hypervisor may have been told to stop, and lets it run on; if it
    /// does not come to rest, its stopping is cancelled. `None` if it was not about to stop.
    fn undo_stop(&self) -> Result<Option<Withdrawal>, DomainError> {
        let began = Instant::now();
        loop {
            if resume_if_suspended(&self.xen, self.id) {
                return Ok(Some(Withdrawal::Resumed));
            }
            if began.elapsed() > SHUTDOWN_TAKES {
                break;
            }
            thread::sleep(WITHDRAW_LOOK);
        }
        if !stops_to_suspend(&self.info()?) {
            return Ok(None);
        }
        // Left so, it would suspend whenever its emulator answers, and nobody would resume it. A
        // plain resumption (no answer to a suspend call: it has made none) ends a stop on its way.
        call("cancel-shutdown", self.id, || {
            self.xen.domain_resume(self.id, false)
        })
        .map_err(|error| self.failed("cancel the suspension of", error))?;
        Ok(Some(Withdrawal::Cancelled))
    }
}

impl Handshake for Guest {
    fn state(&mut self) -> Result<RunState, DomainError> {
        let info = call("state", self.id, || self.xen.domain_info(self.id))
            .map_err(|error| self.failed("read the state of", error))?;
        let state = run_state(info.as_ref());
        self.resized |= info.is_some_and(|info| info.tot_pages != self.pages);
        self.suspended |= state == RunState::Suspended;
        Ok(state)
    }

    fn request(&mut self) -> Result<(), DomainError> {
        if self.suspension == Suspension::Hypervisor {
            return self.stop_by_hypervisor();
        }
        // In a transaction and only where nobody else has asked for anything: another tool's
        // request must not be lost, and its suspension must not be taken for ours.
        let (node, asked_node) = (&self.shutdown_node, &self.asked_node);
        let asked = &mut self.asked;
        let standing = call("xs-request", self.id, || {
            self.store.transaction(|transaction| {
                let standing = transaction.read(node)?;
                if standing.as_deref() == Some("") {
                    // If the end of the transaction fails, it may stand or not.
                    *asked = true;
                    transaction.write(asked_node, REQUEST)?;
                    transaction.write(node, REQUEST)?;
                }
                Ok(standing)
            })
        })
        .map_err(|error| self.failed("ask for suspension of", error))?;
        match standing.as_deref() {
            Some("") => {
                fault::point("requested");
                Ok(())
            }
            Some(other) => Err(DomainError::Unsupported(format!(
                "Domain {} has been asked to {other} by another tool; nothing was saved",
                self.name
            ))),
            None => Err(DomainError::Unsupported(format!(
                "Domain {} has no {node} in xenstore to be asked through",
                self.name
            ))),
        }
    }

    fn withdraw(&mut self) -> Result<Withdrawal, DomainError> {
        let (xen, id) = (&self.xen, self.id);
        let (node, asked_node) = (&self.shutdown_node, &self.asked_node);
        let store = Mutex::new(&mut self.store);
        let ask = || {
            let store = store.lock().unwrap_or_else(PoisonError::into_inner);
            call("xs-withdraw", id, || {
                take_request_back(&store, node, asked_node)
            })
        };
        // xenstored may not answer for long. A guest that had acknowledged the request and suspends
        // meanwhile does not wait for that answer.
        let mut resumed = false;
        let answer = thread::scope(|scope| {
            let Ok(asking) = thread::Builder::new().spawn_scoped(scope, ask) else {
                return ask();
            };
            while !asking.is_finished() {
                resumed |= resume_if_suspended(xen, id);
                thread::sleep(WITHDRAW_LOOK);
            }
            asking
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        });
        if resumed {
            return Ok(Withdrawal::Resumed);
        }
        let answer = answer.map_err(|error| self.failed("take back the suspend request to", error));
        if matches!(answer, Ok(Withdrawal::NotMade))
            && self.is_stopped_by_hypervisor()
            && let Some(undone) = self.undo_stop()?
        {
            return Ok(undone);
        }
        self.asked &= !matches!(answer, Ok(Withdrawal::TakenBack | Withdrawal::NotMade));
        answer
    }

    fn forget(&mut self) -> Result<(), DomainError> {
        self.store.remove(&self.asked_node).map_err(|error| {
            self.failed("take away the note of its suspend request from", error)
        })?;
        self.asked = false;
        Ok(())
    }

    fn resume(&mut self) -> Result<(), DomainError> {
        self.run_on()?;
        self.announce()
    }

    fn name(&self) -> String {
        self.name.clone()
    }

    fn notice(&mut self, text: &str) {
        (self.notice)(text);
    }

    fn nap(&mut self, time: Duration) {
        thread::sleep(time);
    }

    fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }
}
