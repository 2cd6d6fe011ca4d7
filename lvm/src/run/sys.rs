//! A command that does not outlive the thread that has started it.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Has the command killed when the calling thread ends: one that would suspend devices, and whose
/// save was killed, must not go on behind the back of whoever puts things right.
pub fn dies_with_us(command: &mut Command) {
    let parent = std::process::id();
    let killed = move || {
        // SAFETY: calls without pointers; prctl and getppid are no more than system calls.
        let (done, now) = unsafe {
            let done = libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0);
            (done, libc::getppid())
        };
        if done < 0 {
            return Err(io::Error::last_os_error());
        }
        // It died before that was said.
        if now.cast_unsigned() != parent {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        Ok(())
    };
    // SAFETY: between fork and exec the closure makes two system calls and allocates nothing.
    unsafe { command.pre_exec(killed) };
}
