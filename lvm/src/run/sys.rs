//! A command that does not outlive the thread that has started it.

use std::os::unix::process::CommandExt;
use std::process::Command;

/// Has the command killed when the calling thread ends: one that would suspend devices, and whose
/// save was killed, must not go on behind the back of whoever puts things right.
pub fn dies_with_us(command: &mut Command) {
    let killed = || {
        // SAFETY: a call without pointers; prctl is no more than a system call.
        let done = unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0) };
        if done < 0 {
            return Err(std::io::Error::last_os_error());
        }
        Ok(())
    };
    // SAFETY: between fork and exec the closure makes one system call and allocates nothing.
    unsafe { command.pre_exec(killed) };
}
