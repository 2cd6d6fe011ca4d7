//! The guest's side of the conversation: does what the parent asks, one thing after the other.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

use super::super::protocol::{Channel, GuestStatus, Reply, Request};
use super::super::spec::{Fault, GuestSpec, Pattern};
use super::super::state::GuestState;
use super::super::sys::{Ram, SharedWords};
use super::super::tracker::{GuestTracker, mprotect};
use super::machine::Machine;
use crate::units::Pfn;

/// How long the threads may take to come to the gate; they come by after every page.
const TO_THE_GATE: Duration = Duration::from_secs(5);

/// The guest, once it has been told what it is.
#[derive(Debug)]
pub struct Control {
    machine: Arc<Machine>,
    tracker: GuestTracker,
    stage: Stage,
}

/// How far the guest has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Its memory is empty and no thread has started.
    Empty,
    /// The threads stand still.
    Suspended,
    /// The threads work.
    Running,
}

impl Control {
    /// The guest described by `spec` on these files.
    pub fn start(spec: GuestSpec, memory: &File, bitmap: &File) -> io::Result<(Self, Reply)> {
        let layout = spec.layout().map_err(io::Error::other)?;
        let words = mprotect::file_words(layout.span());
        let ram = Ram::map(memory, layout)?;
        // For good: a signal handler looks at it, and the process is this guest and nothing else.
        let bitmap = Box::leak(Box::new(SharedWords::map(bitmap, words)?));
        let tracker = GuestTracker::new(&ram, bitmap);
        let base = ram.base() as u64;
        let machine = Arc::new(Machine::new(spec, ram));
        Ok((
            Self {
                machine,
                tracker,
                stage: Stage::Empty,
            },
            Reply::Started { base },
        ))
    }

    /// What kind of guest it is.
    pub fn spec(&self) -> &GuestSpec {
        &self.machine.spec
    }

    /// The address of its pfn 0.
    pub fn base(&self) -> u64 {
        self.machine.ram.base() as u64
    }

    /// Answers one request. An error is the conversation's; what a request fails of is told.
    pub fn answer(
        &mut self,
        channel: &mut Channel,
        number: u64,
        request: Request,
    ) -> io::Result<()> {
        if let Request::Suspend = request {
            match self.machine.spec.fault {
                Some(Fault::IgnoresSuspend) => return Ok(()),
                Some(Fault::AcknowledgesOnly) => return channel.send(number, Reply::Acknowledged),
                None if self.stage == Stage::Running => {
                    self.machine.gate.close();
                    if let Err(error) = channel.send(number, Reply::Acknowledged) {
                        // Whoever asked is gone, and it has not suspended.
                        self.machine.gate.open();
                        return Err(error);
                    }
                }
                None => {}
            }
        }
        let reply = self
            .done(request)
            .unwrap_or_else(|reason| Reply::Failed { reason });
        channel.send(number, reply)
    }

    fn done(&mut self, request: Request) -> Result<Reply, String> {
        let machine = &self.machine;
        let done = |result: io::Result<()>| match result {
            Ok(()) => Ok(Reply::Done),
            Err(error) => Err(error.to_string()),
        };
        match request {
            Request::Start(_) => Err("it is a guest already".to_owned()),
            Request::Listen { .. } | Request::Hello | Request::Alone => {
                Err("that is not for the guest itself".to_owned())
            }
            Request::Ping => Ok(Reply::Done),
            Request::Status => Ok(Reply::Status(GuestStatus {
                suspended: self.stage != Stage::Running,
                tracked: self.tracker.is_armed(),
                cap: machine.budget.percent(),
            })),
            Request::Arm(kind) => done(self.tracker.arm(&machine.ram, kind)),
            Request::Fetch => done(self.tracker.fetch()),
            Request::Disarm => done(self.tracker.disarm()),
            Request::Touch(pages) => self.touch(&pages),
            Request::Fill => {
                self.expect(Stage::Empty)?;
                machine.fill();
                self.ready()
            }
            Request::Adopt(state) => self.adopt(&state),
            Request::Suspend => self.suspended(),
            Request::Resume => {
                self.expect(Stage::Suspended)?;
                self.run()
            }
            Request::Cancel => match self.stage {
                Stage::Empty => Err("it has not started yet".to_owned()),
                Stage::Suspended | Stage::Running => self.run(),
            },
            Request::State => {
                self.expect(Stage::Suspended)?;
                Ok(Reply::State(machine.state()))
            }
            Request::Verify => {
                self.expect(Stage::Suspended)?;
                Ok(Reply::Verified {
                    computed: machine.computed_checksum(),
                })
            }
            Request::Stats => Ok(Reply::Stats(machine.stats(cpu_time()))),
            Request::ResetGap => {
                machine.ticks.reset();
                Ok(Reply::Done)
            }
            Request::Cap(percent) => {
                machine.budget.set(percent);
                Ok(Reply::Done)
            }
        }
    }

    /// Writes one word of each page as it is. Nobody else may be writing there.
    fn touch(&self, pages: &[u64]) -> Result<Reply, String> {
        let idle = self.machine.spec.workload.pattern == Pattern::Idle;
        let allowed = match self.stage {
            Stage::Empty => true,
            Stage::Suspended => false,
            Stage::Running => idle,
        };
        if !allowed {
            return Err("only the pages of an idle, running guest can be touched".to_owned());
        }
        for &pfn in pages {
            let page = self
                .machine
                .ram
                .page(Pfn(pfn))
                .ok_or_else(|| format!("{} does not exist", Pfn(pfn)))?;
            let word = page[0].load(Ordering::SeqCst);
            page[0].store(word, Ordering::SeqCst);
        }
        Ok(Reply::Done)
    }

    fn adopt(&mut self, state: &GuestState) -> Result<Reply, String> {
        self.expect(Stage::Empty)?;
        if state.spec != self.machine.spec || state.threads.len() != self.machine.places.len() {
            return Err("the state is another guest's".to_owned());
        }
        self.machine.adopt(state);
        self.ready()
    }

    /// Starts the threads at the closed gate.
    fn ready(&mut self) -> Result<Reply, String> {
        self.machine
            .start_threads()
            .map_err(|error| error.to_string())?;
        self.stage = Stage::Suspended;
        self.still().map(|()| Reply::Done)
    }

    fn suspended(&mut self) -> Result<Reply, String> {
        match self.stage {
            Stage::Empty => return Err("it has not started yet".to_owned()),
            Stage::Suspended => return Err("it is suspended already".to_owned()),
            Stage::Running => {}
        }
        if let Err(reason) = self.still() {
            self.machine.gate.open();
            return Err(reason);
        }
        self.stage = Stage::Suspended;
        Ok(Reply::Suspended)
    }

    fn still(&self) -> Result<(), String> {
        if self.machine.gate.all_still(TO_THE_GATE) {
            return Ok(());
        }
        Err(format!("a thread did not stop within {TO_THE_GATE:?}"))
    }

    fn run(&mut self) -> Result<Reply, String> {
        self.machine.gate.open();
        self.stage = Stage::Running;
        Ok(Reply::Done)
    }

    fn expect(&self, stage: Stage) -> Result<(), String> {
        if self.stage == stage {
            return Ok(());
        }
        Err(match self.stage {
            Stage::Empty => "it has not started yet",
            Stage::Suspended => "it is suspended",
            Stage::Running => "it is running",
        }
        .to_owned())
    }
}

/// The CPU time that this process has used.
fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::from_secs(time.tv_sec.unsigned_abs())
        + Duration::from_nanos(time.tv_nsec.unsigned_abs())
}
