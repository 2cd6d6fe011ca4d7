//! The few system calls that have no safe wrapper in our dependencies.

use std::io;

/// Reads the time-stamp counter.
pub(crate) fn tsc() -> u64 {
    // SAFETY: RDTSC has no preconditions; every x86-64 guest of Xen may run it.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// Locks all memory of this process, now and later, so that no page of the
/// pattern is ever dropped or written back.
pub(crate) fn lock_memory() -> io::Result<()> {
    // SAFETY: takes flags only and touches no memory of ours.
    let rc = unsafe { libc::mlockall(libc::MCL_CURRENT | libc::MCL_FUTURE) };
    if rc == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Gives the calling thread a real-time priority (SCHED_FIFO).
pub(crate) fn set_fifo(priority: i32) -> io::Result<()> {
    let param = libc::sched_param {
        sched_priority: priority,
    };
    // SAFETY: `param` is a valid sched_param that lives across the call; pid 0
    // is the calling thread.
    let rc = unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const param) };
    if rc == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
