//! The cut: origins held while the guest stands still, snapshots made while it runs again.
//!
//! One thread does all of it, from orders: so that what is held is let go at the time limit whatever
//! the rest of the save does, and so that holding goes on beside the copying of memory. What it may
//! have to put right is noted before it is done.

use std::ffi::OsString;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use snapshot::fault;
use snapshot::guardian::{DiskState, Notes};

use crate::dm::{Device, Dm, DmError};
use crate::plan::{Kind, Planned};
use crate::run::{Run, RunError};

/// What is left of the limit is not worth starting a command for.
const TOO_LITTLE: Duration = Duration::from_millis(50);
/// An order is answered within the limit; a thread that does not is not waited for.
const GRACE: Duration = Duration::from_secs(5);

/// The cut failed. Nothing is held.
#[derive(Debug, thiserror::Error)]
pub enum CutError {
    /// A device could not be held, told something or let go.
    #[error(transparent)]
    Device(#[from] DmError),
    /// It could not be noted that the disks are held, so they were not.
    #[error("Failed to note in /run/livesave that the disks are held")]
    Note(#[source] std::io::Error),
    /// A snapshot could not be made.
    #[error("Failed to make the snapshot of disk {vdev}; its volume goes on as it was")]
    Snapshot {
        /// The disk.
        vdev: String,
        /// Why.
        #[source]
        source: RunError,
    },
    /// LVM said that it made a snapshot, and there is none.
    #[error("LVM ended well, but there is no snapshot {0}")]
    Missing(String),
    /// It took too long.
    #[error(
        "The disks had to be let go after {0:?} (--disk-limit), before their snapshots were made"
    )]
    TooLong(Duration),
    /// The thread that does it is gone or hangs.
    #[error("The thread that holds the disks does not answer")]
    Silent,
}

/// A snapshot to be made.
#[derive(Clone, Debug)]
pub struct Making {
    /// What was settled.
    pub planned: Planned,
    /// By what number a thin pool knows the snapshot; zero for a thick one.
    pub thin_id: u64,
}

enum Order {
    Hold,
    Commit,
    LetGo,
}

/// The thread, as the save sees it. Dropped, it ends, and nothing is held.
#[derive(Debug)]
pub struct Cutter {
    orders: Option<Sender<Order>>,
    answers: Receiver<Result<Duration, CutError>>,
    limit: Duration,
    thread: Option<JoinHandle<()>>,
}

impl Cutter {
    /// Starts the thread. Held disks are let go after `limit`.
    ///
    /// # Errors
    /// Device-mapper cannot be used, or there is no thread to be had.
    pub fn start<R: Run + Send + 'static>(
        run: R,
        notes: Arc<Notes>,
        all: Vec<Making>,
        limit: Duration,
    ) -> Result<Self, CutError> {
        let (orders, todo) = mpsc::channel();
        let (done, answers) = mpsc::channel();
        let mut work = Work {
            dm: Dm::open()?,
            run,
            notes,
            all,
            limit,
        };
        let thread = thread::Builder::new().name("livesave-disks".into());
        let thread = thread.spawn(move || work.serve(&todo, &done));
        Ok(Self {
            orders: Some(orders),
            answers,
            limit,
            thread: Some(thread.map_err(|_| CutError::Silent)?),
        })
    }

    /// Has the origins held; [`Cutter::wait`] tells when they are.
    pub fn hold(&self) {
        self.order(Order::Hold);
    }

    /// Has the snapshots made and the origins let go; [`Cutter::wait`] tells when that is done.
    pub fn commit(&self) {
        self.order(Order::Commit);
    }

    /// Has the origins let go; [`Cutter::wait`] tells when they are.
    pub fn let_go(&self) {
        self.order(Order::LetGo);
    }

    /// What came of the last order: how long the guest's I/O has been waiting, or has waited.
    ///
    /// # Errors
    /// [`CutError`].
    pub fn wait(&self) -> Result<Duration, CutError> {
        let answer = self.answers.recv_timeout(self.limit + GRACE);
        answer.unwrap_or(Err(CutError::Silent))
    }

    fn order(&self, order: Order) {
        // A thread that is gone does not answer: that is told by `wait`.
        let _ = self.orders.as_ref().map(|orders| orders.send(order));
    }
}

impl Drop for Cutter {
    fn drop(&mut self) {
        self.orders = None;
        let Some(thread) = self.thread.take() else {
            return;
        };
        let until = Instant::now() + self.limit + GRACE;
        while !thread.is_finished() && Instant::now() < until {
            thread::sleep(Duration::from_millis(1));
        }
        if thread.is_finished() {
            let _ = thread.join();
        }
    }
}

struct Work<R> {
    dm: Dm,
    run: R,
    notes: Arc<Notes>,
    all: Vec<Making>,
    limit: Duration,
}

impl<R: Run> Work<R> {
    fn serve(&mut self, orders: &Receiver<Order>, answers: &Sender<Result<Duration, CutError>>) {
        while let Ok(order) = orders.recv() {
            let answer = match order {
                Order::Hold => {
                    let began = Instant::now();
                    let held = self.hold();
                    let holds = held.is_ok();
                    let _ = answers.send(held.map(|()| began.elapsed()));
                    if !holds {
                        continue;
                    }
                    let next = orders.recv_timeout(self.limit.saturating_sub(began.elapsed()));
                    let made = match next {
                        Ok(Order::Commit) => self.make(began),
                        Ok(_) | Err(RecvTimeoutError::Disconnected) => Ok(()),
                        Err(RecvTimeoutError::Timeout) => Err(CutError::TooLong(self.limit)),
                    };
                    let done = made.and(self.let_all_go()).map(|()| began.elapsed());
                    fault::point("disks-let-go");
                    if matches!(done, Err(CutError::TooLong(_))) {
                        // Nobody has asked yet; who does is told.
                        let _ = orders.recv();
                    }
                    done
                }
                Order::LetGo => self.let_all_go().map(|()| Duration::ZERO),
                Order::Commit => Err(CutError::TooLong(self.limit)),
            };
            let _ = answers.send(answer);
        }
    }

    /// Holds every origin; on an error none.
    fn hold(&mut self) -> Result<(), CutError> {
        self.notes.disks(DiskState::Held).map_err(CutError::Note)?;
        fault::point("disks-holding");
        let origins: Vec<&Device> = self.all.iter().map(|one| &one.planned.device).collect();
        let held = hold_all(&self.dm, &origins);
        fault::point("disks-held");
        if held.is_err() {
            self.let_all_go()?;
        }
        Ok(held?)
    }

    /// Makes the snapshots, thin ones first: their origins go on within milliseconds.
    fn make(&mut self, began: Instant) -> Result<(), CutError> {
        fault::point("disks-making");
        let (thin, thick): (Vec<_>, Vec<_>) = self
            .all
            .iter()
            .partition(|one| matches!(one.planned.kind, Kind::Thin { .. }));
        for one in thin {
            if let Kind::Thin {
                device, origin_id, ..
            } = &one.planned.kind
            {
                let text = format!("create_snap {} {origin_id}", one.thin_id);
                self.dm.message(device, &text)?;
                fault::point("disks-snapshot");
                self.dm.let_go(&one.planned.device)?;
            }
        }
        for one in thick {
            let left = self.limit.saturating_sub(began.elapsed());
            if left < TOO_LITTLE {
                return Err(CutError::TooLong(self.limit));
            }
            convert(&mut self.run, &one.planned, left)?;
            fault::point("disks-snapshot");
            let snapshot = Device::of(&one.planned.vg, &one.planned.name, None);
            if self.dm.status(&snapshot)?.is_none() {
                return Err(CutError::Missing(one.planned.full_name()));
            }
        }
        Ok(())
    }

    /// Lets all go that may be held; tries each, whatever becomes of another.
    fn let_all_go(&self) -> Result<(), CutError> {
        let mut failed = Ok(());
        for device in self.all.iter().flat_map(|one| one.planned.devices()) {
            if let Err(error) = free(&self.dm, &device) {
                failed = Err(error);
            }
        }
        failed?;
        // If noting fails it stays "held", and to let go once more does no harm.
        let _ = self.notes.disks(DiskState::Made);
        Ok(())
    }
}

/// Holds all, side by side: each waits for I/O of its own.
fn hold_all(dm: &Dm, origins: &[&Device]) -> Result<(), DmError> {
    let Some((first, others)) = origins.split_first() else {
        return Ok(());
    };
    thread::scope(|scope| {
        let others: Vec<_> = others
            .iter()
            .map(|device| scope.spawn(move || dm.hold(device)))
            .collect();
        let mut held = dm.hold(first);
        for other in others {
            match other.join() {
                Ok(other) => held = held.and(other),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        held
    })
}

/// Lets a device go if it is held; a table that LVM has loaded and not applied is dropped, for
/// whoever loaded it is dead.
///
/// # Errors
/// [`DmError`].
pub fn free(dm: &Dm, device: &Device) -> Result<(), DmError> {
    match dm.status(device)? {
        Some(status) if status.held => {
            if status.has_new_table {
                dm.drop_new_table(device)?;
            }
            dm.let_go(device)
        }
        _ => Ok(()),
    }
}

/// Makes the volume that was made ready a snapshot of its origin; LVM lets the origin go on the way.
fn convert(run: &mut impl Run, planned: &Planned, limit: Duration) -> Result<(), CutError> {
    let (origin, name) = (planned.full_origin(), planned.full_name());
    // -Zn: its first blocks were zeroed when it was made.
    let arguments = ["-q", "-y", "-s", "-Zn", &origin, &name].map(OsString::from);
    run.run("lvconvert", &arguments, limit, &mut || ())
        .map(drop)
        .map_err(|source| CutError::Snapshot {
            vdev: planned.vdev.clone(),
            source,
        })
}
