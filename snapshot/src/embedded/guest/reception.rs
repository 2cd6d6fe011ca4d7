//! Who talks to the guest: the parent, whose end is the guest's, and any number of others.
//!
//! Each has a conversation and a thread of its own; requests are done one at a time, in the order
//! in which they got the guest. What a process asked for that was killed meanwhile is still done,
//! as with a real guest, unless [`Request::Alone`] came first.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use super::super::protocol::{Channel, Numbered, Reply, Request, Welcome};
use super::super::tracker::TrackerKind;
use super::control::Control;

/// How long a failed accept (no descriptors left, say) is left alone.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The parent's number as a caller; the others count from there.
const PARENT: u64 = 0;

/// The guest and its callers.
#[derive(Debug)]
pub struct Reception {
    memory: File,
    bitmap: File,
    guest: Mutex<Guest>,
}

#[derive(Debug)]
struct Guest {
    /// Once it has been told what it is.
    control: Option<Control>,
    /// Once it has been told to listen.
    tracker: Option<TrackerKind>,
    callers: Callers,
}

/// Which callers are still listened to.
#[derive(Debug)]
struct Callers {
    next: u64,
    /// Callers below this number have been sent away, but for one.
    sent_away: u64,
    kept: u64,
}

impl Callers {
    fn new() -> Self {
        Self {
            next: PARENT + 1,
            sent_away: PARENT,
            kept: PARENT,
        }
    }

    fn arrive(&mut self) -> u64 {
        let caller = self.next;
        self.next += 1;
        caller
    }

    /// Sends all away who are there now, but for that one and the parent.
    fn keep_only(&mut self, caller: u64) {
        self.sent_away = self.next;
        self.kept = caller;
    }

    fn is_welcome(&self, caller: u64) -> bool {
        caller == PARENT || caller == self.kept || caller >= self.sent_away
    }
}

impl Reception {
    /// A guest on these files that has not been told yet what it is.
    pub fn new(memory: File, bitmap: File) -> Arc<Self> {
        Arc::new(Self {
            memory,
            bitmap,
            guest: Mutex::new(Guest {
                control: None,
                tracker: None,
                callers: Callers::new(),
            }),
        })
    }

    /// Talks to the parent, until its end.
    pub fn parent(self: &Arc<Self>, mut channel: Channel) -> io::Result<()> {
        match self.converse(PARENT, &mut channel) {
            Err(error) if !is_end(&error) => Err(error),
            _ => Ok(()),
        }
    }

    fn converse(self: &Arc<Self>, caller: u64, channel: &mut Channel) -> io::Result<()> {
        loop {
            let Some(Numbered { number, body }) = channel.receive(None)? else {
                continue;
            };
            let mut guest = self.guest();
            if !guest.callers.is_welcome(caller) {
                return Ok(());
            }
            let reply = match body {
                Request::Start(spec) if guest.control.is_none() => {
                    Control::start(spec, &self.memory, &self.bitmap)
                        .map(|(control, reply)| {
                            guest.control = Some(control);
                            reply
                        })
                        .map_err(|error| error.to_string())
                }
                Request::Listen { path, tracker } if caller == PARENT => {
                    guest.tracker = Some(tracker);
                    self.listen(&path)
                        .map(|()| Reply::Done)
                        .map_err(|error| error.to_string())
                }
                Request::Hello => self.welcome(&guest),
                Request::Alone => {
                    guest.callers.keep_only(caller);
                    Ok(Reply::Done)
                }
                request => match &mut guest.control {
                    Some(control) => {
                        control.answer(channel, number, request)?;
                        continue;
                    }
                    None => Err("it is no guest yet".to_owned()),
                },
            };
            channel.send(
                number,
                reply.unwrap_or_else(|reason| Reply::Failed { reason }),
            )?;
        }
    }

    fn welcome(&self, guest: &Guest) -> Result<Reply, String> {
        let (Some(control), Some(tracker)) = (&guest.control, guest.tracker) else {
            return Err("it does not listen yet".to_owned());
        };
        Ok(Reply::Welcome(Welcome {
            spec: control.spec().clone(),
            pid: std::process::id(),
            base: control.base(),
            memory: self.memory.as_raw_fd(),
            bitmap: self.bitmap.as_raw_fd(),
            tracker,
        }))
    }

    fn listen(self: &Arc<Self>, path: &Path) -> io::Result<()> {
        let listener = UnixListener::bind(path)?;
        let reception = Arc::clone(self);
        thread::Builder::new()
            .name("reception".to_owned())
            .spawn(move || reception.accept(&listener))?;
        Ok(())
    }

    fn accept(self: &Arc<Self>, listener: &UnixListener) {
        for stream in listener.incoming() {
            if stream.and_then(|stream| self.take(stream)).is_err() {
                thread::sleep(ACCEPT_PAUSE);
            }
        }
    }

    fn take(self: &Arc<Self>, stream: UnixStream) -> io::Result<()> {
        let caller = self.guest().callers.arrive();
        let reception = Arc::clone(self);
        thread::Builder::new()
            .name(format!("caller {caller}"))
            .spawn(move || {
                // Whatever it ends of is the caller's affair.
                let _ = reception.converse(caller, &mut Channel::new(stream));
            })?;
        Ok(())
    }

    fn guest(&self) -> MutexGuard<'_, Guest> {
        self.guest.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether an error is the end of the other side.
fn is_end(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::UnexpectedEof | io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_was_sent_away_stays_away() {
        let mut callers = Callers::new();
        let save = callers.arrive();
        let guardian = callers.arrive();
        assert!(
            [PARENT, save, guardian]
                .iter()
                .all(|&c| callers.is_welcome(c))
        );
        callers.keep_only(guardian);
        let next = callers.arrive();
        for (caller, welcome) in [
            (PARENT, true),
            (save, false),
            (guardian, true),
            (next, true),
        ] {
            assert_eq!(callers.is_welcome(caller), welcome, "{caller}");
        }
        // The parent can send everybody away.
        callers.keep_only(PARENT);
        for (caller, welcome) in [
            (PARENT, true),
            (save, false),
            (guardian, false),
            (next, false),
        ] {
            assert_eq!(callers.is_welcome(caller), welcome, "{caller}");
        }
    }
}
