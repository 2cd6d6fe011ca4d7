//! What runs in the guest's process.
//!
//! The [`reception`] takes requests, from the parent and other processes; [`control`] does what
//! they ask; the [`machine`] is memory and threads: [`worker`]s write
//! pages, the [`ticker`] watches the clock. All of them come by the [`gate`] between two steps and
//! pay for their CPU time from one [`budget`].

mod budget;
mod control;
mod gate;
mod machine;
mod reception;
mod ticker;
mod worker;

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;

use super::protocol::Channel;
use super::sys;
use reception::Reception;

/// The program of the guest's process: the descriptors' numbers as arguments, in the order in which
/// the parent gives them. Returns when the parent is gone.
///
/// Not for people to call: a program that offers embedded guests has it behind a hidden
/// subcommand, and names itself and that subcommand to [`EmbeddedGuest::spawn`].
///
/// [`EmbeddedGuest::spawn`]: super::EmbeddedGuest::spawn
pub fn guest_main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let descriptors: Option<Vec<i32>> = args
        .into_iter()
        .map(|arg| arg.to_str().and_then(|arg| arg.parse().ok()))
        .collect();
    let Some([control, memory, bitmap]) = descriptors.as_deref() else {
        eprintln!("Started with something other than three descriptors: not by livesave itself?");
        return ExitCode::from(2);
    };
    match serve(*control, *memory, *bitmap) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("Embedded guest failed: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Answers requests until the parent is gone, which ends the process with all its threads.
fn serve(control: i32, memory: i32, bitmap: i32) -> io::Result<()> {
    let channel = Channel::new(UnixStream::from(sys::inherited(control)?));
    let memory = File::from(sys::inherited(memory)?);
    let bitmap = File::from(sys::inherited(bitmap)?);
    Reception::new(memory, bitmap).parent(channel)
}
