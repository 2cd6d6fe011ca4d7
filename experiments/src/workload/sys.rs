//! The few system calls that have no safe wrapper in our dependencies.

use std::io;

/// Reads the time-stamp counter.
pub(crate) fn tsc() -> u64 {
    // SAFETY: RDTSC has no preconditions; every x86-64 guest of Xen may run it.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// The frame number of the page at that address of this process, as a privileged process is told it
/// (Linux, admin-guide/mm/pagemap.rst).
pub(crate) fn frame_of(address: usize) -> io::Result<u64> {
    const PRESENT: u64 = 1 << 63;
    let mut entry = [0; 8];
    let pagemap = std::fs::File::open("/proc/self/pagemap")?;
    let at = (address / 4096 * 8) as u64;
    std::os::unix::fs::FileExt::read_exact_at(&pagemap, &mut entry, at)?;
    let entry = u64::from_ne_bytes(entry);
    let frame = entry & ((1 << 55) - 1);
    if entry & PRESENT == 0 || frame == 0 {
        return Err(io::Error::other(
            "the kernel does not tell the frame of a page",
        ));
    }
    Ok(frame)
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
