//! QEMU's monitor protocol (QMP) on a Unix socket: a greeting, then one JSON object in a line for
//! each command, and one for its answer, with events in between.
//!
//! (`docs/interop/qmp-spec` of QEMU.) What comes from the emulator is distrusted: it may hang, be
//! cut off, or be junk. Everything has a time limit; after one error the connection is of no more
//! use, for an answer that comes late would be taken for another's.

use std::io::{self, IoSlice, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix,
    SocketFlags, SocketType, connect, sendmsg, socket_with,
};
use serde_json::{Value, json};

use crate::fault;

/// An answer is not longer.
const LONGEST: usize = 1 << 20;
/// How often a socket that takes no more clients is tried.
const LOOK: Duration = Duration::from_millis(5);

/// A command, and the name of the point at which a test may have it fail.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Command {
    name: &'static str,
    point: &'static str,
}

impl Command {
    pub const CAPABILITIES: Self = Self::new("qmp_capabilities", "qmp-capabilities");
    pub const STATUS: Self = Self::new("query-status", "qmp-status");
    pub const LOG_WRITES: Self = Self::new("xen-set-global-dirty-log", "qmp-dirty-log");
    pub const ADD_FD: Self = Self::new("add-fd", "qmp-add-fd");
    pub const STOP: Self = Self::new("stop", "qmp-stop");
    pub const SAVE: Self = Self::new("xen-save-devices-state", "qmp-save");
    pub const CONT: Self = Self::new("cont", "qmp-cont");

    const fn new(name: &'static str, point: &'static str) -> Self {
        Self { name, point }
    }
}

/// The emulator could not be talked to.
#[derive(Debug, thiserror::Error)]
pub(in crate::xen) enum QmpError {
    #[error("Failed to connect to its control socket {path}")]
    Connect {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("It did not answer {command} within {limit:?}; it hangs, or another tool talks to it")]
    Silent {
        command: &'static str,
        limit: Duration,
    },
    #[error("Failed to send {command} or to read the answer")]
    Io {
        command: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("Its answer to {command} is none: {what}")]
    Junk { command: &'static str, what: String },
    #[error("It refuses {command}: {why}")]
    Refused { command: &'static str, why: String },
}

/// A version of QEMU.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(in crate::xen) struct Version {
    pub major: u64,
    pub minor: u64,
}

impl Version {
    pub const fn new(major: u64, minor: u64) -> Self {
        Self { major, minor }
    }
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// A connection on which commands can be given.
#[derive(Debug)]
pub(super) struct Qmp {
    stream: UnixStream,
    /// What was read and is not yet an answer.
    read: Vec<u8>,
    next_id: u64,
    pub version: Version,
}

impl Qmp {
    /// Connects and gets through the greeting, until then.
    pub fn connect(path: &Path, until: Instant) -> Result<Self, QmpError> {
        let left = || until.saturating_duration_since(Instant::now());
        let stream = open(path, until).map_err(|source| QmpError::Connect {
            path: path.to_owned(),
            source,
        })?;
        let mut qmp = Self {
            stream,
            read: vec![],
            next_id: 1,
            version: Version::new(0, 0),
        };
        let wait = Wait {
            command: "a greeting",
            limit: left(),
            until,
        };
        let greeting = qmp.message(&wait)?;
        let number = |part| {
            let path = format!("/QMP/version/qemu/{part}");
            greeting.pointer(&path).and_then(Value::as_u64)
        };
        let (Some(major), Some(minor)) = (number("major"), number("minor")) else {
            return Err(wait.junk("there is no version in it"));
        };
        qmp.version = Version::new(major, minor);
        qmp.execute(Command::CAPABILITIES, &Value::Null, None, left())?;
        Ok(qmp)
    }

    /// Gives a command, with a descriptor to go with it, and waits for its answer.
    pub fn execute(
        &mut self,
        command: Command,
        arguments: &Value,
        descriptor: Option<BorrowedFd<'_>>,
        limit: Duration,
    ) -> Result<Value, QmpError> {
        let wait = Wait {
            command: command.name,
            limit,
            until: Instant::now() + limit,
        };
        let id = self.next_id;
        self.next_id += 1;
        let mut message = json!({"execute": command.name, "id": id});
        if !arguments.is_null() {
            message["arguments"] = arguments.clone();
        }
        fault::call(command.point)
            .and_then(|()| self.send(format!("{message}\r\n").as_bytes(), descriptor, &wait))
            .map_err(|source| wait.io(source))?;
        loop {
            let mut answer = self.message(&wait)?;
            if answer.get("event").is_some() {
                continue;
            }
            // An error without a number is about a line that could not be read at all: ours.
            let ours = answer.get("id").and_then(Value::as_u64) == Some(id);
            if let Some(error) = answer.get("error") {
                let why = error.get("desc").and_then(Value::as_str);
                return Err(QmpError::Refused {
                    command: command.name,
                    why: why.unwrap_or("it does not say why").to_owned(),
                });
            }
            return match answer.get_mut("return") {
                Some(value) if ours => Ok(value.take()),
                Some(_) => Err(wait.junk("it is an answer to something else")),
                None => Err(wait.junk("there is neither a result nor an error in it")),
            };
        }
    }

    fn send(
        &self,
        mut text: &[u8],
        mut descriptor: Option<BorrowedFd<'_>>,
        wait: &Wait,
    ) -> io::Result<()> {
        while !text.is_empty() {
            self.stream.set_write_timeout(Some(wait.left()?))?;
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut extra = SendAncillaryBuffer::new(&mut space);
            let descriptors = descriptor.map(|fd| [fd]);
            if let Some(descriptors) = &descriptors {
                extra.push(SendAncillaryMessage::ScmRights(descriptors));
            }
            let pieces = [IoSlice::new(text)];
            match sendmsg(&self.stream, &pieces, &mut extra, SendFlags::NOSIGNAL) {
                Ok(sent) => {
                    // It went with the first byte.
                    descriptor = None;
                    text = &text[sent..];
                }
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// The next line, which must be a JSON object.
    fn message(&mut self, wait: &Wait) -> Result<Value, QmpError> {
        let mut looked = 0;
        loop {
            if let Some(end) = self.read[looked..].iter().position(|&byte| byte == b'\n') {
                let line: Vec<u8> = self.read.drain(..=looked + end).collect();
                let value: Value =
                    serde_json::from_slice(&line).map_err(|error| wait.junk(&error.to_string()))?;
                if !value.is_object() {
                    return Err(wait.junk("it is no object"));
                }
                return Ok(value);
            }
            looked = self.read.len();
            if looked > LONGEST {
                return Err(wait.junk("it has no end"));
            }
            self.read_more(wait).map_err(|source| wait.io(source))?;
        }
    }

    fn read_more(&mut self, wait: &Wait) -> io::Result<()> {
        self.stream.set_read_timeout(Some(wait.left()?))?;
        let mut more = [0; 4096];
        match self.stream.read(&mut more) {
            Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(length) => {
                self.read.extend_from_slice(&more[..length]);
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// What is waited for, and how long.
struct Wait {
    command: &'static str,
    limit: Duration,
    until: Instant,
}

impl Wait {
    fn left(&self) -> io::Result<Duration> {
        match self.until.checked_duration_since(Instant::now()) {
            Some(left) if !left.is_zero() => Ok(left),
            _ => Err(io::ErrorKind::TimedOut.into()),
        }
    }

    fn io(&self, source: io::Error) -> QmpError {
        let command = self.command;
        match source.kind() {
            io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => QmpError::Silent {
                command,
                limit: self.limit,
            },
            _ => QmpError::Io { command, source },
        }
    }

    fn junk(&self, what: &str) -> QmpError {
        QmpError::Junk {
            command: self.command,
            what: what.to_owned(),
        }
    }
}

/// Connects without waiting for longer than that: the emulator talks to one client at a time, and
/// only some may stand in the queue.
fn open(path: &Path, until: Instant) -> io::Result<UnixStream> {
    let address = SocketAddrUnix::new(path)?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    loop {
        match connect(socket.as_fd(), &address) {
            Ok(()) => break,
            Err(Errno::AGAIN | Errno::INTR) if Instant::now() < until => thread::sleep(LOOK),
            Err(error) => return Err(error.into()),
        }
    }
    let stream = UnixStream::from(socket);
    stream.set_nonblocking(false)?;
    Ok(stream)
}
