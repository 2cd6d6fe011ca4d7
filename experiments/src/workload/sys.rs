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

/// Who one is after a fork.
pub(crate) enum Forked {
    /// The new process.
    Child,
    /// The old one, with the new one's number.
    Parent(rustix::process::Pid),
}

/// Forks. Only a process with one thread may: in the child of another, a lock that some thread had
/// (the allocator's) would never be free again.
pub(crate) fn fork() -> io::Result<Forked> {
    if std::fs::read_dir("/proc/self/task")?.count() != 1 {
        return Err(io::Error::other("a process with threads cannot be forked"));
    }
    // SAFETY: this process has this one thread, so the child has all of it, with no lock held by
    // somebody who is not there.
    let pid = unsafe { libc::fork() };
    match pid {
        0 => Ok(Forked::Child),
        pid => match rustix::process::Pid::from_raw(pid) {
            Some(child) if pid > 0 => Ok(Forked::Parent(child)),
            _ => Err(io::Error::last_os_error()),
        },
    }
}

/// Ends a forked process, without what its parent has prepared for its own end.
pub(crate) fn exit_child(status: u8) -> ! {
    // SAFETY: _exit has no preconditions, and does not return.
    unsafe { libc::_exit(status.into()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_with_threads_is_not_forked() {
        // Tests run in threads.
        let (stay, wait) = std::sync::mpsc::channel::<()>();
        let other = std::thread::spawn(move || wait.recv());
        assert!(fork().is_err());
        drop(stay);
        let _ = other.join();
    }
}
