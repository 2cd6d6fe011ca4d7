//! Stock `xl restore` as a child that reads the image from a pipe.
//!
//! The pipe is what keeps it in order: a stream that ends before its time makes `xl` fail and
//! destroy what it has built, whether we end it (Ctrl-C) or are killed ourselves. Only an `xl`
//! that does nothing any more is killed, with its helper.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::process::{Child, ChildStdin, ExitStatus};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, OFlags};
use rustix::process::{Pid, Signal, kill_process_group};

use super::host::summary;
use crate::image::{ImageError, Stream};
use crate::ports::Cancel;
use crate::units::Bytes;
use crate::xen::xl;

/// How long `xl` may take to destroy what it has built, once its stream has ended before its time.
const UNDO: Duration = Duration::from_secs(60);
/// The pipe's size: fewer changes between us and `xl`.
const PIPE: usize = 1 << 20;
/// No more of what `xl` says is kept in memory.
const SAID: u64 = 64 << 10;

/// Why the guest was not restored. `xl` has ended.
#[derive(Debug)]
pub(super) enum Failure {
    /// `xl` could not be started, or not be fed.
    Io(io::Error),
    /// The image could not be read to its end.
    Image(ImageError),
    /// The user wants to stop.
    Cancelled(i32),
    /// `xl` failed: what it said.
    Xl(String),
    /// `xl` did nothing for that long, and was killed.
    Silent(Duration),
}

/// Restores a guest from the stream. `progress` is told how many bytes `xl` has taken. An `xl` that
/// does nothing for longer than `silence` is killed.
pub(super) fn restore(
    stream: &mut dyn Stream,
    paused: bool,
    silence: Duration,
    cancel: &Cancel,
    progress: &mut dyn FnMut(Bytes),
) -> Result<(), Failure> {
    let said = rustix::fs::memfd_create("xl-restore", MemfdFlags::CLOEXEC)
        .map(File::from)
        .map_err(|error| Failure::Io(error.into()))?;
    let both = || said.try_clone().map_err(Failure::Io);
    let options: &[&str] = if paused { &["-p"] } else { &[] };
    let mut child = xl::command(["restore"].iter().chain(options).chain(&["/dev/stdin"]))
        .stdin(std::process::Stdio::piped())
        .stdout(both()?)
        .stderr(both()?)
        .spawn()
        .map_err(Failure::Io)?;
    let fed = match child.stdin.take() {
        Some(pipe) => feed(&mut child, pipe, stream, silence, cancel, progress),
        None => Err(Failure::Io(io::ErrorKind::BrokenPipe.into())),
    };
    // From here on the pipe is closed.
    let ended = wait(&mut child, fed.is_ok(), silence, cancel).map_err(Failure::Io)?;
    match (fed, ended) {
        (Err(failure), _) => Err(failure),
        (Ok(()), Some(status)) if status.success() => Ok(()),
        (Ok(()), Some(status)) => Err(Failure::Xl(told(said, status))),
        (Ok(()), None) => Err(cancel
            .raised()
            .map_or(Failure::Silent(silence), Failure::Cancelled)),
    }
}

/// Writes the stream into the pipe and closes it. Also `Ok` if `xl` stops reading: why, it says
/// itself.
fn feed(
    child: &mut Child,
    mut pipe: ChildStdin,
    stream: &mut dyn Stream,
    silence: Duration,
    cancel: &Cancel,
    progress: &mut dyn FnMut(Bytes),
) -> Result<(), Failure> {
    // As it is, it is large enough too.
    let _ = rustix::pipe::fcntl_setpipe_size(&pipe, PIPE);
    rustix::fs::fcntl_setfl(&pipe, OFlags::NONBLOCK).map_err(|error| Failure::Io(error.into()))?;
    let mut taken = Bytes(0);
    let mut last = Instant::now();
    loop {
        let mut rest = stream.piece().map_err(Failure::Image)?;
        if rest.is_empty() {
            return Ok(());
        }
        while !rest.is_empty() {
            if let Some(signal) = cancel.raised() {
                return Err(Failure::Cancelled(signal));
            }
            match pipe.write(rest) {
                Ok(written) => {
                    rest = &rest[written..];
                    last = Instant::now();
                    taken += Bytes(written as u64);
                    progress(taken);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    wait_for_room(&pipe).map_err(Failure::Io)?;
                    if child.try_wait().map_err(Failure::Io)?.is_some() {
                        return Ok(());
                    }
                    if last.elapsed() > silence {
                        return Err(Failure::Silent(silence));
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Failure::Io(error)),
            }
        }
    }
}

/// Waits until the pipe takes more, but no longer than until one should look round.
fn wait_for_room(pipe: &ChildStdin) -> io::Result<()> {
    let limit = Timespec {
        tv_sec: 0,
        tv_nsec: i64::from(xl::LOOK.subsec_nanos()),
    };
    match poll(&mut [PollFd::new(pipe, PollFlags::OUT)], Some(&limit)) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Waits for the end of `xl`; `None` if it had to be killed. With the whole stream it has as long
/// as `silence` for the rest, and when the user wants to stop then it has as long as otherwise to
/// undo what it did: a guest that is complete by then is restored.
fn wait(
    child: &mut Child,
    fed: bool,
    silence: Duration,
    cancel: &Cancel,
) -> io::Result<Option<ExitStatus>> {
    let undo = UNDO.min(silence);
    let mut began = Instant::now();
    let mut limit = if fed { silence } else { undo };
    let mut told = !fed;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if !told && cancel.raised().is_some() {
            told = true;
            began = Instant::now();
            limit = limit.min(undo);
        }
        if began.elapsed() > limit {
            // The helper is in its group, and would go on without it.
            let _ = kill_process_group(Pid::from_child(child), Signal::KILL);
            child.wait()?;
            return Ok(None);
        }
        thread::sleep(xl::LOOK);
    }
}

fn told(mut said: File, status: ExitStatus) -> String {
    let mut text = vec![];
    let read = said
        .rewind()
        .and_then(|()| said.take(SAID).read_to_end(&mut text));
    let text = summary(&text);
    match read {
        Ok(_) if !text.is_empty() => format!("`xl restore` ended with {status}: {text}"),
        _ => format!("`xl restore` ended with {status}"),
    }
}
