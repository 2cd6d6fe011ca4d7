//! The parent's end of the conversation with the guest.

use std::io;
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::error::GuestError;
use super::protocol::{Channel, Numbered, Reply, Request};
use crate::ports::Cancel;

/// How long a guest may take over something quick.
const QUICK: Duration = Duration::from_secs(10);
/// How long it may take over a pass over all its memory.
const SLOW: Duration = Duration::from_secs(600);
/// How often a wait looks up to see whether it shall go on.
const LOOK_UP: Duration = Duration::from_millis(10);

/// Asks a guest and waits for its answers; shared by all who talk to it.
#[derive(Debug)]
pub struct Link {
    name: String,
    conversation: Mutex<Conversation>,
}

#[derive(Debug)]
struct Conversation {
    channel: Channel,
    number: u64,
}

impl Link {
    /// A conversation with the guest of that name.
    pub fn new(name: &str, stream: UnixStream) -> Self {
        let conversation = Conversation {
            channel: Channel::new(stream),
            number: 0,
        };
        Self {
            name: name.to_owned(),
            conversation: Mutex::new(conversation),
        }
    }

    /// The same conversation, the guest's name being known by now.
    pub fn named(self, name: &str) -> Self {
        Self {
            name: name.to_owned(),
            ..self
        }
    }

    /// The guest's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Asks for something; `operation` says what, to stand before the guest in an error's text.
    pub fn call(&self, operation: &'static str, request: Request) -> Result<Reply, GuestError> {
        let allowed = match request {
            Request::Fill | Request::Verify => SLOW,
            _ => QUICK,
        };
        self.conversation().call(self, operation, request, allowed)
    }

    /// Asks for a sign of life.
    pub fn ping(&self) -> Result<(), GuestError> {
        self.call("reach", Request::Ping).map(|_| ())
    }

    /// Asks the guest to suspend and waits until it has, at most `allowed`, and no longer than
    /// `cancel` stays quiet. If it has not, the request has been taken back: the guest runs. If it
    /// refuses, it is as it was.
    pub fn suspend(&self, allowed: Duration, cancel: &Cancel) -> Result<(), GuestError> {
        let mut conversation = self.conversation();
        let deadline = Instant::now() + allowed;
        let number = conversation.ask(self, "suspend", Request::Suspend)?;
        let mut acknowledged = false;
        let given_up = loop {
            if let Some(signal) = cancel.raised() {
                break GuestError::Interrupted(signal);
            }
            let now = Instant::now();
            if now >= deadline {
                break GuestError::NotSuspended {
                    name: self.name.clone(),
                    acknowledged,
                    waited: allowed,
                };
            }
            match conversation.answer(self, "suspend", number, deadline.min(now + LOOK_UP))? {
                Some(Reply::Acknowledged) => acknowledged = true,
                Some(Reply::Suspended) => return Ok(()),
                // It has seen to itself: it runs, or was suspended before and stays so.
                Some(Reply::Failed { reason }) => return Err(self.refused("suspend", reason)),
                Some(other) => break self.unexpected("suspend", &other),
                None => {}
            }
        };
        conversation.call(
            self,
            "cancel the suspend request to",
            Request::Cancel,
            QUICK,
        )?;
        Err(given_up)
    }

    /// An error of a system call. Of those on a process or a socket, some say that the guest is
    /// gone.
    pub fn failed(&self, operation: &'static str, source: io::Error) -> GuestError {
        if source.raw_os_error() == Some(libc::ESRCH) {
            return GuestError::Gone(self.name.clone());
        }
        match source.kind() {
            io::ErrorKind::UnexpectedEof
            | io::ErrorKind::BrokenPipe
            | io::ErrorKind::ConnectionReset => GuestError::Gone(self.name.clone()),
            _ => GuestError::Call {
                name: self.name.clone(),
                operation,
                source,
            },
        }
    }

    /// A refusal.
    pub fn refused(&self, operation: &'static str, reason: String) -> GuestError {
        GuestError::Refused {
            name: self.name.clone(),
            operation,
            reason,
        }
    }

    /// An answer to another question.
    pub fn unexpected(&self, operation: &'static str, reply: &Reply) -> GuestError {
        let source = io::Error::new(io::ErrorKind::InvalidData, format!("unexpected {reply:?}"));
        GuestError::Call {
            name: self.name.clone(),
            operation,
            source,
        }
    }

    fn conversation(&self) -> MutexGuard<'_, Conversation> {
        // A panic elsewhere leaves at worst an answer unread, which is dropped by its number.
        self.conversation
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Conversation {
    fn call(
        &mut self,
        link: &Link,
        operation: &'static str,
        request: Request,
        allowed: Duration,
    ) -> Result<Reply, GuestError> {
        let deadline = Instant::now() + allowed;
        let number = self.ask(link, operation, request)?;
        while Instant::now() < deadline {
            match self.answer(link, operation, number, deadline)? {
                Some(Reply::Failed { reason }) => return Err(link.refused(operation, reason)),
                Some(reply) => return Ok(reply),
                None => {}
            }
        }
        Err(GuestError::Silent {
            name: link.name.clone(),
            operation,
            waited: allowed,
        })
    }

    fn ask(
        &mut self,
        link: &Link,
        operation: &'static str,
        request: Request,
    ) -> Result<u64, GuestError> {
        self.number += 1;
        self.channel
            .send(self.number, request)
            .map_err(|source| link.failed(operation, source))?;
        Ok(self.number)
    }

    /// The next answer to request `number`, if one comes in time. Late ones to others are dropped.
    fn answer(
        &mut self,
        link: &Link,
        operation: &'static str,
        number: u64,
        deadline: Instant,
    ) -> Result<Option<Reply>, GuestError> {
        loop {
            let message = self.channel.receive(Some(deadline));
            match message.map_err(|source| link.failed(operation, source))? {
                Some(Numbered {
                    number: answered,
                    body,
                }) if answered == number => {
                    return Ok(Some(body));
                }
                Some(_) => {}
                None => return Ok(None),
            }
        }
    }
}
