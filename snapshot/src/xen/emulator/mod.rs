//! The emulator of an HVM guest's devices (QEMU), as far as a save has to do with it.
//!
//! It writes to the guest's memory beside the guest, so it is told to note what it writes while the
//! hypervisor notes what the guest does; and it holds the state of the devices, so in the pause
//! window it is stopped and asked for that. It is the toolstack's: it is talked to under libxl's own
//! lock ([`lock`]), for each step anew, so that nothing of `xl` waits for a whole save.
//!
//! What may be left of all that when a save dies is put right by [`Emulator::run_on`] and
//! [`Emulator::forget_writes`], whatever was done of it.

mod lock;
mod qmp;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::fs::MemfdFlags;
use serde_json::{Value, json};
use xen_sys::{DomainId, DomainInfo};

use self::lock::{LockError, SocketLock};
use self::qmp::{Command, Qmp, QmpError};
use super::open::uuid_text;

pub(super) use self::qmp::Version;

/// How long it may take to talk to the emulator at all: another tool may be at it.
pub(super) const CONNECT: Duration = Duration::from_secs(10);
/// How long a remedy may take to begin with, while the guest may stand still; the remedies after
/// it have more time.
pub(super) const FIRST_AID: Duration = Duration::from_secs(3);
pub(super) const REMEDY: Duration = CONNECT;
/// How long a simple command may take.
const ANSWER: Duration = Duration::from_secs(10);
/// To stop, it finishes what its disks have under way and flushes them.
const STOP: Duration = Duration::from_secs(20);
const SAVE: Duration = Duration::from_secs(20);
/// The state of its devices is some hundred KiB; a record may not be longer than 128 MiB.
const LARGEST_STATE: u64 = 100 << 20;
/// From here on `xen-save-devices-state` knows whether a migration is meant.
const KNOWS_LIVE: Version = Version::new(2, 11);
/// This one aborts where its noting of writes is switched on twice, and so also where it is not
/// known whether it is on.
const TOUCHY: Version = Version::new(6, 2);

/// The emulator could not be made to do something.
#[derive(Debug, thiserror::Error)]
pub(super) enum EmulatorError {
    #[error(transparent)]
    Lock(#[from] LockError),
    #[error(transparent)]
    Qmp(#[from] QmpError),
    #[error("Failed to make memory for the state of its devices")]
    Room(#[source] io::Error),
    #[error("Failed to read the state of its devices")]
    Read(#[source] io::Error),
    #[error("The state of its devices has {0} bytes, which no image can hold")]
    Size(u64),
}

/// Where a guest's emulator is to be reached.
#[derive(Clone, Debug)]
pub(super) struct Emulator {
    socket: PathBuf,
    lock: PathBuf,
}

impl Emulator {
    /// That of a domain; `None` if it has none.
    pub fn of(info: &DomainInfo) -> Option<Self> {
        (info.hvm && !info.is_pvh()).then(|| Self::at(info.domid, &uuid_text(&info.uuid)))
    }

    /// That of an HVM guest.
    pub fn at(domid: DomainId, uuid: &str) -> Self {
        Self {
            socket: format!("/var/run/xen/qmp-libxl-{domid}").into(),
            // `libxl__userdata_path`.
            lock: format!("/var/lib/xen/userdata-l.{domid}.{uuid}.qmp-socket-lock").into(),
        }
    }

    /// Talks to it, as soon as nobody else does.
    pub fn session(&self) -> Result<Session, EmulatorError> {
        self.session_within(CONNECT)
    }

    /// As [`Emulator::session`], within that time.
    pub fn session_within(&self, limit: Duration) -> Result<Session, EmulatorError> {
        let until = Instant::now() + limit;
        let lock = SocketLock::take(&self.lock, until)?;
        // At least a moment: the lock may have taken all of it.
        let until = until.max(Instant::now() + limit / 4);
        let qmp = Qmp::connect(&self.socket, until)?;
        Ok(Session {
            qmp,
            until: None,
            _lock: lock,
        })
    }

    /// As [`Emulator::session_within`], with all that is said in it within that time, and a moment
    /// where the lock has taken most of it.
    fn conversation_within(&self, limit: Duration) -> Result<Session, EmulatorError> {
        let until = Instant::now() + limit;
        let mut session = self.session_within(limit)?;
        session.until = Some(until.max(Instant::now() + limit / 4));
        Ok(session)
    }

    /// Lets it run on if it is stopped; says whether it was. For those who do not know. Takes little
    /// longer than that, whatever the emulator does.
    pub fn run_on(&self, limit: Duration) -> Result<bool, EmulatorError> {
        let mut session = self.conversation_within(limit)?;
        if session.runs()? {
            return Ok(false);
        }
        session.run_on()?;
        Ok(true)
    }

    /// Ends its noting of writes, on or not. For those who do not know. Takes little longer than
    /// that, whatever the emulator does.
    pub fn forget_writes(&self, limit: Duration) -> Result<(), EmulatorError> {
        let mut session = self.conversation_within(limit)?;
        if session.can_note_writes() {
            session.note_no_writes()?;
        }
        Ok(())
    }
}

/// A conversation with an emulator. While it lasts nobody else has one.
#[derive(Debug)]
pub(super) struct Session {
    // Dropped first: the lock is free when the socket is.
    qmp: Qmp,
    /// Nothing is waited for beyond this.
    until: Option<Instant>,
    _lock: SocketLock,
}

impl Session {
    /// Which QEMU it is.
    pub fn version(&self) -> Version {
        self.qmp.version
    }

    /// Whether its noting of writes can be switched without danger.
    pub fn can_note_writes(&self) -> bool {
        self.qmp.version != TOUCHY
    }

    /// Whether it runs; a stopped one does nothing for its guest.
    pub fn runs(&mut self) -> Result<bool, EmulatorError> {
        let status = self.tell(Command::STATUS, &Value::Null, ANSWER)?;
        Ok(status.get("running").and_then(Value::as_bool) == Some(true))
    }

    /// From here on it tells the hypervisor of every page of the guest that it writes.
    pub fn note_writes(&mut self) -> Result<(), EmulatorError> {
        self.tell(Command::LOG_WRITES, &json!({"enable": true}), ANSWER)?;
        Ok(())
    }

    /// It does so no more. First switched on, which does nothing where it is: from 6.2 on it aborts
    /// when what is off is switched off.
    pub fn note_no_writes(&mut self) -> Result<(), EmulatorError> {
        self.note_writes()?;
        self.tell(Command::LOG_WRITES, &json!({"enable": false}), ANSWER)?;
        Ok(())
    }

    /// Hands it memory to write the state of its devices to, once.
    pub fn hand_over(&mut self) -> Result<StateFile, EmulatorError> {
        let file = rustix::fs::memfd_create("livesave-devices", MemfdFlags::CLOEXEC)
            .map(File::from)
            .map_err(|error| EmulatorError::Room(error.into()))?;
        // It takes one that is open for writing alone, with an offset of its own.
        let theirs = File::options()
            .write(true)
            .open(format!("/proc/self/fd/{}", file.as_raw_fd()))
            .map_err(EmulatorError::Room)?;
        let answer =
            self.qmp
                .execute(Command::ADD_FD, &Value::Null, Some(theirs.as_fd()), ANSWER)?;
        let set = answer.get("fdset-id").and_then(Value::as_u64);
        let set = set.ok_or_else(|| QmpError::Junk {
            command: "add-fd",
            what: "there is no set in it".to_owned(),
        })?;
        Ok(StateFile { file, set })
    }

    /// Stops it: what it has under way for the guest is done when this returns, and nothing more
    /// is written to the guest's memory.
    pub fn stop(&mut self) -> Result<(), EmulatorError> {
        self.tell(Command::STOP, &Value::Null, STOP)?;
        Ok(())
    }

    /// Has it write the state of its devices; it is stopped.
    pub fn save(&mut self, to: &StateFile) -> Result<(), EmulatorError> {
        let mut arguments = json!({"filename": format!("/dev/fdset/{}", to.set)});
        if self.qmp.version >= KNOWS_LIVE {
            // It runs on here: it does not give its disks away.
            arguments["live"] = Value::Bool(false);
        }
        self.tell(Command::SAVE, &arguments, SAVE)?;
        Ok(())
    }

    /// Lets it run on.
    pub fn run_on(&mut self) -> Result<(), EmulatorError> {
        self.tell(Command::CONT, &Value::Null, ANSWER)?;
        Ok(())
    }

    fn tell(
        &mut self,
        command: Command,
        arguments: &Value,
        limit: Duration,
    ) -> Result<Value, QmpError> {
        let left = self
            .until
            .map(|until| until.saturating_duration_since(Instant::now()));
        let limit = left.map_or(limit, |left| left.min(limit));
        self.qmp.execute(command, arguments, None, limit)
    }
}

/// Memory that an emulator writes the state of its devices to.
#[derive(Debug)]
pub(super) struct StateFile {
    file: File,
    set: u64,
}

impl StateFile {
    /// What it has written, behind `head`.
    pub fn read_behind(&self, mut head: Vec<u8>) -> Result<Vec<u8>, EmulatorError> {
        let length = self.file.metadata().map_err(EmulatorError::Read)?.len();
        if length == 0 || length > LARGEST_STATE {
            return Err(EmulatorError::Size(length));
        }
        let start = head.len();
        head.resize(start + length as usize, 0);
        self.file
            .read_exact_at(&mut head[start..], 0)
            .map_err(EmulatorError::Read)?;
        Ok(head)
    }
}
