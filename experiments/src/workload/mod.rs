//! The self-checking workload that runs inside a testbed guest.
//!
//! Memory it owns is in two areas. The **static** area is filled once. The
//! **ring** is rewritten page by page at a set rate; the content of a page is a
//! function of (seed, writer, page, sequence number), and the writer remembers
//! which sequence number each page holds. So after a restore every page can be
//! told right from wrong: a lost, stale or half-copied page does not match.
//!
//! It also writes records to disks, if told to, of which it knows in its memory what must be on them
//! ([`records`]): so memory and disks of different instants are told.
//!
//! Processes that are forked and exit all the time, if told to ([`forks`]), keep its page tables changing.
//!
//! A 1 ms ticker reads the TSC; the largest step between two readings is the
//! guest's own view of how long it stood still (CLOCK_MONOTONIC stops while
//! the guest is suspended, the TSC does not).
//!
//! Settings come from the kernel's command line (`ls.rate=5000 …`,
//! [`config`]), commands from the console, one per line: `ID VERB ARGS…`
//! ([`commands`]). Answers carry the ID.

pub mod commands;
pub mod config;
pub mod devices;
pub mod emulated;
pub mod faults;
pub mod forks;
pub mod looks;
pub mod output;
pub mod pattern;
pub mod records;
pub mod static_area;
mod sys;
pub mod ticker;
pub mod writer;

/// Locks all memory of this process, now and later.
pub fn lock_memory() -> std::io::Result<()> {
    sys::lock_memory()
}

/// Gives the calling thread a real-time priority (SCHED_FIFO, 1 to 99).
pub fn real_time(priority: i32) -> std::io::Result<()> {
    sys::set_fifo(priority)
}
