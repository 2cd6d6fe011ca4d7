//! What parent and guest say to each other: JSON lines over a socket pair.
//!
//! The parent asks, the guest answers with the request's number; only a suspend request has two
//! answers (`Acknowledged`, then `Suspended`), as with a real guest. An answer to a request that
//! the parent has given up waiting for is told by its number and dropped. The end of the stream is
//! the end of the other side: the guest ends itself then, and the parent calls the guest gone.
//!
//! Other processes talk to it over connections of their own, to the socket at which it was told to
//! [`Request::Listen`]. One that ends, in the middle of a request perhaps, is the end of that
//! conversation only.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::spec::GuestSpec;
use super::state::GuestState;
use super::tracker::TrackerKind;

/// No message is longer.
const MAX_MESSAGE: usize = 4 << 20;

/// What the parent asks for.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Request {
    /// Be this guest: map the memory. Always first, and once.
    Start(GuestSpec),
    /// Take conversations with other processes at a socket of that name (the parent only).
    Listen {
        /// The socket's path.
        path: PathBuf,
        /// The tracker that was found to work.
        tracker: TrackerKind,
    },
    /// Say who you are; always first in a further conversation.
    Hello,
    /// End all conversations but this one and the parent's: what was asked there and is not yet
    /// done is never done.
    Alone,
    /// Say how you are.
    Status,
    /// Start dirty tracking.
    Arm(TrackerKind),
    /// Fetch and clear the bitmap of the `mprotect` tracker.
    Fetch,
    /// End dirty tracking.
    Disarm,
    /// Write to these pages without changing them (idle guests only).
    Touch(Vec<u64>),
    /// Fill the memory with its first content, get the threads ready, stay suspended.
    Fill,
    /// Take over the state of a saved guest, its memory being in place; stay suspended.
    Adopt(GuestState),
    /// Suspend: acknowledge, and answer again when no thread writes any more.
    Suspend,
    /// Forget a suspend request, if there was one; run.
    Cancel,
    /// Run on.
    Resume,
    /// The state record; suspended only.
    State,
    /// Compute the checksum from the memory as it is; suspended only.
    Verify,
    /// The counters.
    Stats,
    /// Forget the largest gap seen so far.
    ResetGap,
    /// Use at most so many percent of one CPU; 0: as much as there is.
    Cap(u32),
    /// Show a sign of life.
    Ping,
}

/// What the guest answers.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Reply {
    /// It is done.
    Done,
    /// The guest exists; its pfn 0 is mapped at `base`.
    Started {
        /// The address.
        base: u64,
    },
    /// Who it is.
    Welcome(Welcome),
    /// How it is.
    Status(GuestStatus),
    /// The suspend request was received.
    Acknowledged,
    /// No thread writes any more.
    Suspended,
    /// The state record.
    State(GuestState),
    /// The checksum computed from the memory.
    Verified {
        /// The checksum.
        computed: u64,
    },
    /// The counters.
    Stats(GuestStats),
    /// It could not be done.
    Failed {
        /// Why.
        reason: String,
    },
}

/// What another process needs to know of the guest to save it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Welcome {
    /// What kind of guest it is.
    pub spec: GuestSpec,
    /// Its process.
    pub pid: u32,
    /// The address of its pfn 0.
    pub base: u64,
    /// Its own descriptor of its memory.
    pub memory: i32,
    /// Its own descriptor of the bitmaps of the `mprotect` tracker.
    pub bitmap: i32,
    /// The tracker that was found to work.
    pub tracker: TrackerKind,
}

/// How a guest is, by its own account.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestStatus {
    /// It stands still.
    pub suspended: bool,
    /// Its writes are tracked.
    pub tracked: bool,
    /// Its CPU cap in percent of one CPU; 0: none.
    pub cap: u32,
}

/// What the guest itself notices of its life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestStats {
    /// Pages written by all threads since the guest first started.
    pub written: u64,
    /// Readings taken by the guest's clock thread, two per millisecond when nothing is in its way.
    pub ticks: u64,
    /// The largest gap between two readings since the last reset, in nanoseconds.
    pub largest_gap_ns: u64,
    /// CPU time that the guest has used, in nanoseconds.
    pub cpu_ns: u64,
}

/// A message and the number of its request.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Numbered<T> {
    /// The number of the request.
    pub number: u64,
    /// The message.
    pub body: T,
}

/// One end of the conversation.
#[derive(Debug)]
pub struct Channel {
    stream: UnixStream,
    /// What was read and is not yet a whole line.
    pending: Vec<u8>,
}

impl Channel {
    /// An end of a socket pair.
    pub fn new(stream: UnixStream) -> Self {
        Self {
            stream,
            pending: Vec::new(),
        }
    }

    /// Says something.
    pub fn send<T: Serialize>(&mut self, number: u64, body: T) -> io::Result<()> {
        let mut line = serde_json::to_vec(&Numbered { number, body })?;
        line.push(b'\n');
        self.stream.write_all(&line)
    }

    /// Waits for the next message, until `deadline` if there is one; `None` if it passed. The end
    /// of the stream is the error `UnexpectedEof`.
    pub fn receive<T: DeserializeOwned>(
        &mut self,
        deadline: Option<Instant>,
    ) -> io::Result<Option<Numbered<T>>> {
        loop {
            if let Some(end) = self.pending.iter().position(|&byte| byte == b'\n') {
                let line: Vec<u8> = self.pending.drain(..=end).collect();
                return Ok(Some(serde_json::from_slice(&line)?));
            }
            if self.pending.len() > MAX_MESSAGE {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "an endless message",
                ));
            }
            let wait =
                match deadline.map(|deadline| deadline.saturating_duration_since(Instant::now())) {
                    Some(Duration::ZERO) => return Ok(None),
                    wait => wait,
                };
            self.stream.set_read_timeout(wait)?;
            let mut chunk = [0; 4096];
            match self.stream.read(&mut chunk) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(read) => self.pending.extend_from_slice(&chunk[..read]),
                Err(error) => match error.kind() {
                    // A signal: whoever waits may want to look at what it said.
                    io::ErrorKind::Interrupted if deadline.is_some() => return Ok(None),
                    io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => return Ok(None),
                    io::ErrorKind::Interrupted => {}
                    _ => return Err(error),
                },
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn soon() -> Option<Instant> {
        Some(Instant::now() + Duration::from_millis(20))
    }

    #[test]
    fn messages_arrive_whole_in_order_and_end_with_the_stream() {
        let (here, there) = UnixStream::pair().expect("a pair");
        let (mut here, mut there) = (Channel::new(here), Channel::new(there));
        assert!(
            there
                .receive::<Request>(soon())
                .expect("nothing yet")
                .is_none()
        );
        here.send(1, Request::Touch((0..10_000).collect()))
            .expect("sent");
        here.send(2, Request::Ping).expect("sent");
        let touch = there
            .receive::<Request>(soon())
            .expect("received")
            .expect("a message");
        assert!(
            matches!(touch, Numbered { number: 1, body: Request::Touch(p) } if p.len() == 10_000)
        );
        let ping = there
            .receive::<Request>(soon())
            .expect("received")
            .expect("a message");
        assert!(matches!(
            ping,
            Numbered {
                number: 2,
                body: Request::Ping
            }
        ));
        here.stream.write_all(b"{\"number\":3").expect("sent");
        assert!(
            there
                .receive::<Request>(soon())
                .expect("half a message")
                .is_none()
        );
        drop(here);
        let end = there.receive::<Request>(None).expect_err("the end");
        assert_eq!(end.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn what_is_no_message_is_an_error() {
        let (mut here, there) = UnixStream::pair().expect("a pair");
        here.write_all(b"hello\n").expect("sent");
        assert!(Channel::new(there).receive::<Request>(soon()).is_err());
    }
}
