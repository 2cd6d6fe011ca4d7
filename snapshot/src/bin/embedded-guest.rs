//! The program of the embedded guest's process, for the library's own tests.
//!
//! `embedded-guest hold` is a parent instead: it starts a guest, prints its process number and
//! waits to be killed, so that a test sees what becomes of the guest.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use snapshot::Bytes;
use snapshot::embedded::{EmbeddedGuest, GuestSpec, Pattern, Workload, guest_main};

fn main() -> ExitCode {
    let mut args = std::env::args_os();
    let program = args.next().map(PathBuf::from).unwrap_or_default();
    let args: Vec<_> = args.collect();
    if args.first().is_none_or(|arg| arg != OsStr::new("hold")) {
        return guest_main(args);
    }
    let mut spec = GuestSpec::new("held", Bytes::from_mib(16));
    spec.workload = Workload::full_speed(Pattern::Ring);
    match EmbeddedGuest::spawn(&program, &[], spec) {
        Ok(guest) => {
            println!("{}", guest.pid());
            loop {
                std::thread::sleep(Duration::from_secs(60));
            }
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
