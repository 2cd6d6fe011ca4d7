//! The few system calls that have no safe wrapper in our dependencies.

use std::io;
use std::mem::MaybeUninit;

/// What processes took.
#[derive(Clone, Copy, Debug)]
pub(super) struct CpuAndMemory {
    /// CPU time, in seconds.
    pub cpu_s: f64,
    /// Largest resident memory of any one, in bytes.
    pub peak_memory: u64,
}

/// What all children that were waited for took, and theirs (getrusage(2)).
pub(super) fn children_usage() -> io::Result<CpuAndMemory> {
    let mut usage = MaybeUninit::<libc::rusage>::uninit();
    // SAFETY: `usage` has room for one rusage, which the call fills.
    let rc = unsafe { libc::getrusage(libc::RUSAGE_CHILDREN, usage.as_mut_ptr()) };
    if rc != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call above succeeded, so all of it is set.
    let usage = unsafe { usage.assume_init() };
    let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 / 1e6;
    Ok(CpuAndMemory {
        cpu_s: seconds(usage.ru_utime) + seconds(usage.ru_stime),
        // In KiB.
        peak_memory: usage.ru_maxrss.unsigned_abs() * 1024,
    })
}
