//! The receiving ends of migrations: what `xl migrate` is told to start instead of `ssh`.
//!
//! - [`receive_here`] stores the stream that comes through the pipe;
//! - [`relay`] hands it to a daemon over TCP, and [`serve`] is that daemon: it stores the stream and
//!   counts the bytes that the network carried;
//! - [`count`] hands it to a command (`xl migrate-receive`) and counts.

use crate::dom0::receiver;
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::fs;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

const BUFFER: usize = 256 << 10;

/// Bytes that passed, each way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Passed {
    /// From the sender of the guest.
    pub received: u64,
    /// To it.
    pub sent: u64,
}

impl Passed {
    /// Reads what [`count`] or [`serve`] has left.
    pub fn read(file: &Path) -> Result<Self> {
        let text =
            fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
        Ok(serde_json::from_str(&text)?)
    }

    fn write(self, file: &Path) -> Result<()> {
        fs::write(file, serde_json::to_string(&self)?)
            .with_context(|| format!("cannot write {}", file.display()))
    }
}

/// Stores a stream from standard input.
pub fn receive_here(image: &Path) -> Result<()> {
    let (from, to) = (io::stdin().lock(), io::stdout().lock());
    receiver::receive_from(from, to, image)
}

/// Takes one connection, stores the stream that comes over it, and writes what passed to `counts`.
/// `listening` is called with the address once connections are taken.
pub fn serve(image: &Path, counts: &Path, listening: impl FnOnce(SocketAddr)) -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").context("cannot listen")?;
    listening(listener.local_addr()?);
    let (stream, _) = listener.accept().context("cannot take a connection")?;
    stream.set_nodelay(true)?;
    let mut from = Counted::new(stream.try_clone()?);
    let mut to = Counted::new(stream);
    let stored = receiver::receive_from(&mut from, &mut to, image);
    let passed = Passed {
        received: from.bytes,
        sent: to.bytes,
    };
    passed.write(counts)?;
    stored
}

/// Hands standard input to the daemon, and its answers to standard output, until it goes.
pub fn relay(address: SocketAddr) -> Result<()> {
    let stream = TcpStream::connect(address).with_context(|| format!("cannot reach {address}"))?;
    stream.set_nodelay(true)?;
    let to = stream.try_clone()?;
    // Ended with the process: the sender keeps its end open until it has an answer.
    thread::spawn(move || {
        let end = pass(io::stdin().lock(), &to);
        let _ = to.shutdown(Shutdown::Write);
        end
    });
    pass(&stream, io::stdout().lock())?;
    Ok(())
}

/// Starts a command, hands it standard input and its answers to standard output, and writes what
/// passed to `counts` when it has ended. Its exit code.
pub fn count(counts: &Path, command: &[String]) -> Result<i32> {
    let (program, args) = command.split_first().context("no command to run")?;
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("{program} could not be started"))?;
    let (Some(into), Some(from)) = (child.stdin.take(), child.stdout.take()) else {
        anyhow::bail!("{program} has no pipes");
    };
    let counted = Arc::new(AtomicU64::new(0));
    let received = Arc::clone(&counted);
    thread::spawn(move || {
        let from = Tallied(io::stdin().lock(), received);
        pass(from, into)
    });
    let sent = pass(from, io::stdout().lock())?;
    let status = child.wait()?;
    let passed = Passed {
        received: counted.load(Ordering::Relaxed),
        sent,
    };
    passed.write(counts)?;
    Ok(status.code().unwrap_or(1))
}

/// Copies as it comes, until the end.
fn pass(mut from: impl Read, mut to: impl Write) -> io::Result<u64> {
    let mut buffer = vec![0; BUFFER];
    let mut passed = 0;
    loop {
        let len = match from.read(&mut buffer) {
            Ok(0) => return Ok(passed),
            Ok(len) => len,
            Err(err) if err.kind() == io::ErrorKind::Interrupted => continue,
            Err(err) => return Err(err),
        };
        to.write_all(&buffer[..len])?;
        to.flush()?;
        passed += len as u64;
    }
}

/// Counts for another thread.
struct Tallied<R>(R, Arc<AtomicU64>);

impl<R: Read> Read for Tallied<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let len = self.0.read(into)?;
        self.1.fetch_add(len as u64, Ordering::Relaxed);
        Ok(len)
    }
}

/// Counts what passes.
struct Counted<T> {
    inner: T,
    bytes: u64,
}

impl<T> Counted<T> {
    fn new(inner: T) -> Self {
        Self { inner, bytes: 0 }
    }
}

impl<T: Read> Read for Counted<T> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let len = self.inner.read(into)?;
        self.bytes += len as u64;
        Ok(len)
    }
}

impl<T: Write> Write for Counted<T> {
    fn write(&mut self, from: &[u8]) -> io::Result<usize> {
        let len = self.inner.write(from)?;
        self.bytes += len as u64;
        Ok(len)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}
