//! Processes that are forked, use some memory and exit, all the time: so do the guest's page tables come
//! and go, and its kernel writes to those that stay.
//!
//! That is the hard part of saving a PV guest, whose page tables hold machine frames. Each child checks
//! what it inherited and what it wrote itself, and says by its exit status whether that was right.
//!
//! Forking is done by **breeders**, processes of their own with one thread: the workload has many, and
//! locks its memory.

use super::output::Output;
use super::pattern::{Page, Stamp};
use super::sys::{self, Forked};
use super::writer::area_seed;
use rustix::process::{Pid, WaitOptions, waitpid};
use std::hint::black_box;
use std::io::{self, Read, Write};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

/// The argument with which the workload's program is a breeder; number and seed follow.
pub const BREED: &str = "breed";

/// Pages of a breeder, which its children inherit: more than one page table's worth with the rest.
const INHERITED: usize = 256;
/// A child writes to every so-manieth of them, so that it gets a copy.
const COPIED: usize = 8;
/// Pages that a child writes to in fresh memory, and how far they are apart: one page table maps 512.
const FRESH: usize = 32;
const APART: usize = 128;
/// 64-bit words of a page.
const WORDS: usize = 512;
/// The number of the first breeder's area ([`area_seed`]).
const AREA: u64 = 2001;
/// Between two children. The writers are to have their share of the CPU.
const PAUSE: Duration = Duration::from_millis(2);

/// What a breeder says of a child.
const RIGHT: u8 = b'.';
const WRONG: u8 = b'!';

/// What became of all children so far.
#[derive(Default)]
pub struct Progress {
    /// Children that have exited.
    pub done: AtomicU64,
    /// Those among them that found wrong pages or were killed; and breeders that went away.
    pub bad: AtomicU64,
}

/// Starts so many breeders.
pub fn start(count: u64, seed: u64, out: &Output) -> io::Result<Arc<Progress>> {
    let progress = Arc::new(Progress::default());
    for number in 0..count {
        let breeder = Command::new("/proc/self/exe")
            .args([BREED, &number.to_string(), &seed.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()?;
        let (theirs, out) = (Arc::clone(&progress), out.clone());
        thread::spawn(move || {
            let why = match listen(breeder, &theirs) {
                Ok(()) => "it ended".to_owned(),
                Err(error) => error.to_string(),
            };
            theirs.bad.fetch_add(1, Ordering::Relaxed);
            out.error("breeder", why);
        });
    }
    Ok(progress)
}

/// Counts what a breeder says, until it ends.
fn listen(mut breeder: Child, progress: &Progress) -> io::Result<()> {
    let Some(mut said) = breeder.stdout.take() else {
        return Ok(());
    };
    let mut buffer = [0; 64];
    loop {
        let len = said.read(&mut buffer)?;
        if len == 0 {
            return breeder.wait().map(drop);
        }
        let bad = buffer[..len].iter().filter(|&&byte| byte != RIGHT).count();
        progress.bad.fetch_add(bad as u64, Ordering::Relaxed);
        progress.done.fetch_add(len as u64, Ordering::Relaxed);
    }
}

/// Is a breeder, with these arguments, until nobody listens. The process must have one thread.
pub fn breed(number: &str, seed: &str) -> io::Result<()> {
    let [number, seed] = [number, seed].map(str::parse::<u64>);
    let seed = seed.map_err(io::Error::other)?;
    let area = AREA + number.map_err(io::Error::other)?;
    let mut memory = Memory::new(area_seed(seed, area));
    loop {
        let word = if memory.one_child()? { RIGHT } else { WRONG };
        let mut out = io::stdout().lock();
        out.write_all(&[word])?;
        out.flush()?;
        thread::sleep(PAUSE);
    }
}

/// What a breeder has of its own.
struct Memory {
    seed: u64,
    pages: Vec<Page>,
    /// Children so far; each page was last written before the child of its number among them.
    round: u64,
    holds: Vec<u64>,
}

impl Memory {
    fn new(seed: u64) -> Self {
        let mut memory = Self {
            seed,
            pages: vec![Page::zero(); INHERITED],
            round: 0,
            holds: vec![0; INHERITED],
        };
        for index in 0..INHERITED {
            memory.write(index, 0);
        }
        memory
    }

    fn stamp(&self, index: usize, seq: u64) -> Stamp {
        Stamp {
            seed: self.seed,
            page: index as u64,
            seq,
            body: seq,
        }
    }

    fn write(&mut self, index: usize, seq: u64) {
        let stamp = self.stamp(index, seq);
        self.pages[index].fill(stamp);
        self.holds[index] = seq;
    }

    fn is_right(&self) -> bool {
        let stamps = (0..INHERITED).map(|index| self.stamp(index, self.holds[index]));
        let mut pages = self.pages.iter().zip(stamps);
        pages.all(|(page, stamp)| page.check(stamp).is_ok())
    }

    /// Forks a child and waits for its end; whether all was right, with the child and here.
    fn one_child(&mut self) -> io::Result<bool> {
        self.round += 1;
        let first = self.round as usize % COPIED;
        for index in (first..INHERITED).step_by(COPIED) {
            self.write(index, self.round);
        }
        match sys::fork()? {
            Forked::Child => sys::exit_child(u8::from(!self.live())),
            Forked::Parent(child) => Ok(ended_well(child)? && self.is_right()),
        }
    }

    /// A child's life; whether it found everything right.
    fn live(&mut self) -> bool {
        if !self.is_right() {
            return false;
        }
        let own = self.round + (1 << 40);
        for index in (self.round as usize % COPIED..INHERITED).step_by(COPIED) {
            self.write(index, own);
        }
        // Zeros that are there on paper only: each page written to gets memory, and its page table.
        let mut fresh = vec![0_u64; FRESH * APART * WORDS];
        for page in 0..FRESH {
            fresh[page * APART * WORDS + page] = own + page as u64;
        }
        // Or the compiler would see that nobody else does.
        black_box(&mut fresh);
        let kept = (0..FRESH).all(|page| fresh[page * APART * WORDS + page] == own + page as u64);
        black_box(&self.pages);
        kept && self.is_right()
    }
}

/// Waits for a child's end.
fn ended_well(child: Pid) -> io::Result<bool> {
    let ended = waitpid(Some(child), WaitOptions::empty())?;
    Ok(ended.is_some_and(|(_, status)| status.exit_status() == Some(0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_finds_what_is_right_and_what_is_not() {
        let mut memory = Memory::new(7);
        assert!(memory.is_right() && memory.live());
        memory.round += 1;
        assert!(memory.live());
        let stale = memory.pages[3].clone();
        memory.write(3, 99);
        assert!(memory.is_right());
        memory.pages[3] = stale;
        assert!(!memory.is_right() && !memory.live());
    }
}
