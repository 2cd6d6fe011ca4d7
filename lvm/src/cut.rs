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
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use snapshot::fault;
use snapshot::guardian::{DiskState, Notes};

use crate::dm::{Device, Dm, DmError};
use crate::plan::Planned;
use crate::restart::{Restart, RestartError};

/// An order is answered within its limit; a thread that does not answer is not waited for.
const GRACE: Duration = Duration::from_secs(5);
/// So long may holding take, the guest standing still: a disk that needs longer for what is under way
/// fails the save.
const HOLDING: Duration = Duration::from_secs(5);
/// So long may letting go take before others are told that the guest runs.
const LETTING_GO: Duration = Duration::from_secs(1);

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
    #[error("The disks could not be held or let go in time (a disk that hangs?)")]
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
    /// Its pool makes it anew when it gets that message.
    Thin {
        /// The pool's device.
        pool: Device,
        /// What it is told.
        message: String,
    },
    /// It is begun anew.
    Thick(Restart),
}

#[derive(Clone, Copy)]
enum Order {
    Hold,
    Commit,
    LetGo,
}

/// What came of an order, with its number.
type Answer = (u32, Result<Duration, CutError>);

/// The thread, as the save sees it. Dropped, it ends, and nothing is held.
#[derive(Debug)]
pub struct Cutter {
    orders: Option<Sender<(u32, Order)>>,
    answers: Receiver<Answer>,
    /// The last order's number.
    last: u32,
    /// It did not answer in time once; nothing that it says is believed from then on.
    hangs: bool,
    /// The hold has ended at the time limit.
    ended: Arc<AtomicBool>,
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
        let ended = Arc::new(AtomicBool::new(false));
        let work = Work {
            dm: Dm::open()?,
            notes,
            all,
            limit,
            ended: ended.clone(),
        };
        let thread = thread::Builder::new().name("livesave-disks".into());
        let thread = thread.spawn(move || work.serve(&todo, &done));
        Ok(Self {
            orders: Some(orders),
            answers,
            last: 0,
            hangs: false,
            ended,
            limit,
            thread: Some(thread.map_err(|_| CutError::Silent)?),
        })
    }

    /// Has the origins held; [`Cutter::held`] tells when they are.
    pub fn hold(&mut self) {
        self.order(Order::Hold);
    }

    /// Whether the origins are held, waited for a short time only: the guest stands still.
    ///
    /// # Errors
    /// [`CutError`].
    pub fn held(&mut self) -> Result<(), CutError> {
        self.wait(HOLDING.min(self.limit))?;
        if self.ended.load(Ordering::SeqCst) {
            return Err(CutError::TooLong(self.limit));
        }
        Ok(())
    }

    /// Has the snapshots made and the origins let go; [`Cutter::committed`] tells when that is done.
    pub fn commit(&mut self) {
        self.order(Order::Commit);
    }

    /// Waits until that is done; says how long the guest's I/O has waited.
    ///
    /// # Errors
    /// [`CutError`].
    pub fn committed(&mut self) -> Result<Duration, CutError> {
        self.wait(self.limit + GRACE)
    }

    /// Has the origins let go, and waits for a short time until they are.
    ///
    /// # Errors
    /// [`CutError`]; it goes on by itself.
    pub fn let_go(&mut self) -> Result<(), CutError> {
        self.order(Order::LetGo);
        self.wait(LETTING_GO).map(drop)
    }

    fn order(&mut self, order: Order) {
        self.last += 1;
        // A thread that is gone does not answer: that is told by `wait`.
        let _ = self
            .orders
            .as_ref()
            .map(|orders| orders.send((self.last, order)));
    }

    /// The answer to the last order; those to earlier ones, which nobody waited for, are of no account.
    fn wait(&mut self, limit: Duration) -> Result<Duration, CutError> {
        let until = Instant::now() + limit;
        while !self.hangs {
            let left = until.saturating_duration_since(Instant::now());
            match self.answers.recv_timeout(left) {
                Ok((number, answer)) if number == self.last => return answer,
                Ok(_) => {}
                Err(_) => self.hangs = true,
            }
        }
        Err(CutError::Silent)
    }
}

impl Drop for Cutter {
    fn drop(&mut self) {
        self.orders = None;
        let Some(thread) = self.thread.take() else {
            return;
        };
        let until = Instant::now() + GRACE;
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
    ended: Arc<AtomicBool>,
}

impl Work {
    fn serve(&self, orders: &Receiver<(u32, Order)>, answers: &Sender<Answer>) {
        while let Ok((number, order)) = orders.recv() {
            let (number, answer) = match order {
                Order::Hold => {
                    let began = Instant::now();
                    let held = self.hold();
                    let holds = held.is_ok();
                    let _ = answers.send((number, held.map(|()| began.elapsed())));
                    if !holds {
                        continue;
                    }
                    match self.held(began, orders) {
                        Some(done) => done,
                        None => return,
                    }
                }
                Order::LetGo => (number, self.let_all_go().map(|()| Duration::ZERO)),
                Order::Commit => (number, Err(CutError::TooLong(self.limit))),
            };
            let _ = answers.send((number, answer));
        }
    }

    /// With the origins held: the next order is done, or at the time limit nothing but letting go. The
    /// answer to the next order; `None` if none will come.
    fn held(&self, began: Instant, orders: &Receiver<(u32, Order)>) -> Option<Answer> {
        let next = orders.recv_timeout(self.limit.saturating_sub(began.elapsed()));
        let made = match next {
            Ok((_, Order::Commit)) => self.make(began),
            Ok(_) | Err(RecvTimeoutError::Disconnected) => Ok(()),
            Err(RecvTimeoutError::Timeout) => {
                self.ended.store(true, Ordering::SeqCst);
                Err(CutError::TooLong(self.limit))
            }
        };
        // Whatever came of the snapshots, and told first if it fails.
        let done = self.let_all_go().and(made).map(|()| began.elapsed());
        fault::point("disks-let-go");
        match next {
            Ok((number, _)) => Some((number, done)),
            // Who asks next is told.
            Err(RecvTimeoutError::Timeout) => orders.recv().ok().map(|(number, _)| (number, done)),
            Err(RecvTimeoutError::Disconnected) => None,
        }
    }

    /// Holds every origin; on an error none.
    fn hold(&self) -> Result<(), CutError> {
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
    fn make(&self, began: Instant) -> Result<(), CutError> {
        fault::point("disks-making");
        for one in &self.all {
            if began.elapsed() > self.limit {
                return Err(CutError::TooLong(self.limit));
            }
            self.must_be_held(one)?;
            match &one.how {
                How::Thin { pool, message } => self.dm.message(pool, message)?,
                How::Thick(restart) => restart.run(&self.dm)?,
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
        let devices = self.all.iter().flat_map(|one| one.planned.devices());
        free_each(&self.dm, devices)?;
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

/// Lets each device go that is held, whatever becomes of another.
///
/// # Errors
/// The last of them.
pub fn free_each(dm: &Dm, devices: impl IntoIterator<Item = Device>) -> Result<(), DmError> {
    let mut done = Ok(());
    for device in devices {
        done = free(dm, &device).and(done);
    }
    done
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
