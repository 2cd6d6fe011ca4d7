//! The cut: origins held while the guest stands still, snapshots made while it runs again.
//!
//! No process is started from here on until the origins go on: each snapshot was made before, as LVM
//! does it, and is now made to be of the cut by calls to device-mapper that take milliseconds and
//! leave everything as LVM knows it. A thin pool forgets the snapshot and makes another by the same
//! number; a thick one is begun anew ([`crate::restart`]).
//!
//! One thread does all of it, from orders: so that what is held is let go at the time limit whatever
//! the rest of the save does, and so that holding goes on beside the copying of memory. What it may
//! have to put right is noted before it is done.

use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use snapshot::fault;
use snapshot::guardian::{DiskState, Notes};

use crate::dm::{Device, Dm, DmError};
use crate::plan::{Kind, Planned};
use crate::restart::{Restart, RestartError};

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
    /// A thick snapshot could not be begun anew.
    #[error(transparent)]
    Restart(#[from] RestartError),
    /// Somebody else ended the hold.
    #[error(
        "Another tool (LVM?) let the volume of disk {0} go before its snapshot was made, so that it \
         is not of the cut"
    )]
    LetGo(String),
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
#[derive(Debug)]
pub struct Making {
    /// What was settled.
    pub planned: Planned,
    /// How it is made at the cut.
    pub how: How,
}

/// How a snapshot that was made before comes to be of the cut.
#[derive(Debug)]
pub enum How {
    /// Its pool makes it anew, by that number.
    Thin(u64),
    /// It is begun anew.
    Thick(Restart),
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
    pub fn start(notes: Arc<Notes>, all: Vec<Making>, limit: Duration) -> Result<Self, CutError> {
        let (orders, todo) = mpsc::channel();
        let (done, answers) = mpsc::channel();
        let mut work = Work {
            dm: Dm::open()?,
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

struct Work {
    dm: Dm,
    notes: Arc<Notes>,
    all: Vec<Making>,
    limit: Duration,
}

impl Work {
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

    /// Makes the snapshots; each origin goes on when its own is made.
    fn make(&mut self, began: Instant) -> Result<(), CutError> {
        fault::point("disks-making");
        for one in &self.all {
            if began.elapsed() > self.limit {
                return Err(CutError::TooLong(self.limit));
            }
            self.must_be_held(one)?;
            match (&one.how, &one.planned.kind) {
                (
                    How::Thin(id),
                    Kind::Thin {
                        device, origin_id, ..
                    },
                ) => {
                    self.dm
                        .message(device, &format!("create_snap {id} {origin_id}"))?;
                }
                (How::Thick(restart), _) => restart.run(&self.dm)?,
                (How::Thin(_), Kind::Thick { .. }) => {}
            }
            self.must_be_held(one)?;
            fault::point("disks-snapshot");
            self.dm.let_go(&one.planned.device)?;
        }
        Ok(())
    }

    /// LVM lets a volume go at the end of whatever it does to it.
    fn must_be_held(&self, one: &Making) -> Result<(), CutError> {
        let status = self.dm.status(&one.planned.device)?;
        if status.is_some_and(|status| status.held) {
            return Ok(());
        }
        Err(CutError::LetGo(one.planned.vdev.clone()))
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
