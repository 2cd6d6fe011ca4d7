//! Exit codes: what a script can tell apart. Documented in `livesave --help` and the README.

use std::io::ErrorKind;
use std::process::ExitCode;

use lvm::restore::RestoreError as DisksError;
use snapshot::SaveError;
use snapshot::image::ImageError;
use snapshot::image::chain::MergeError;
use snapshot::ports::{DomainError, SinkError};
use snapshot::xen::OpenError;
use snapshot::xen::restore::RestoreError;

use crate::periodic::room::NoRoom;
use crate::periodic::status;

const FAILED: u8 = 1;
const NOT_SAVABLE: u8 = 3;
const NO_XEN: u8 = 4;
const NOT_SUSPENDED: u8 = 5;
const NOT_WRITTEN: u8 = 6;
const GONE: u8 = 7;
/// The file is not an image, or a damaged one.
pub const BAD_IMAGE: u8 = 8;
const TARGET_MISSED: u8 = 9;
const NOT_RESTORABLE: u8 = 10;
const NOT_RESTORED: u8 = 11;
const NO_DISK_SNAPSHOT: u8 = 12;
/// A process ended by signal N is seen by a shell as this much more.
pub const SIGNALLED: u8 = 128;

/// Prints what is wrong with the command line, or the help that it asks for.
pub fn of_command_line(error: &clap::Error) -> ExitCode {
    // There is nobody to tell if that fails.
    let _ = error.print();
    // To a monitoring system 2 would say that the images are too old.
    let is_plugin = std::env::args_os()
        .nth(1)
        .is_some_and(|word| word == "status");
    match u8::try_from(error.exit_code()) {
        Ok(0) => ExitCode::SUCCESS,
        _ if is_plugin => ExitCode::from(status::UNKNOWN),
        code => ExitCode::from(code.unwrap_or(FAILED)),
    }
}

/// The exit code for an error.
pub fn code_of(error: &anyhow::Error) -> u8 {
    if let Some(error) = error.downcast_ref::<SaveError>() {
        if let Some(signal) = error.signal() {
            return SIGNALLED + signal as u8;
        }
        return match error {
            SaveError::Domain(error) => of_domain(error),
            SaveError::Sink(_) => NOT_WRITTEN,
            SaveError::KeepsResizing | SaveError::BaseLost(_) => NOT_SAVABLE,
            SaveError::TargetMissed { .. } => TARGET_MISSED,
            _ => FAILED,
        };
    }
    if error.is::<lvm::plan::Refusal>() {
        return NO_DISK_SNAPSHOT;
    }
    if let Some(error) = error.downcast_ref::<OpenError>() {
        return match error {
            OpenError::Xen(_) => NO_XEN,
            OpenError::NoSuchDomain(_) | OpenError::NotSavable { .. } => NOT_SAVABLE,
            OpenError::Domain(error) => of_domain(error),
        };
    }
    if let Some(error) = error.downcast_ref::<RestoreError>() {
        return match error {
            RestoreError::Image(_) | RestoreError::ImageConfig(_) => BAD_IMAGE,
            RestoreError::Refused(_) => NOT_RESTORABLE,
            RestoreError::NoSuchDomain(_) => NOT_SAVABLE,
            RestoreError::Xl { .. } => NO_XEN,
            RestoreError::Failed { .. } => NOT_RESTORED,
            RestoreError::Cancelled(signal) | RestoreError::Interrupted { signal, .. } => {
                SIGNALLED + *signal as u8
            }
            RestoreError::BadConfig { .. } | RestoreError::Lock { .. } => FAILED,
        };
    }
    if let Some(error) = error.downcast_ref::<DisksError>() {
        return match error {
            DisksError::Refused(_) => NOT_RESTORABLE,
            DisksError::Failed { .. } => NOT_RESTORED,
            DisksError::Interrupted { signal, .. } => SIGNALLED + *signal as u8,
            DisksError::Inventory(_) | DisksError::Random(_) | DisksError::Discard { .. } => FAILED,
        };
    }
    if let Some(error) = error.downcast_ref::<MergeError>() {
        return match error {
            MergeError::Image(_) | MergeError::Foreign(_) | MergeError::NoIncrements(_) => {
                BAD_IMAGE
            }
            MergeError::Sink(_) => NOT_WRITTEN,
            MergeError::Interrupted(signal) => SIGNALLED + *signal as u8,
        };
    }
    if error.is::<SinkError>() || error.is::<NoRoom>() {
        return NOT_WRITTEN;
    }
    if error.is::<ImageError>() {
        return BAD_IMAGE;
    }
    FAILED
}

/// What the user can do about an error, where that is known.
pub fn hint_for(error: &anyhow::Error) -> Option<&'static str> {
    let sink = match error.downcast_ref::<SaveError>() {
        Some(SaveError::Sink(sink)) => Some(sink),
        _ => error.downcast_ref::<SinkError>(),
    };
    if let Some(sink) = sink {
        return match sink.source.kind() {
            ErrorKind::NotFound => Some("create the directory first, or name another with -o FILE"),
            ErrorKind::AlreadyExists => {
                Some("name another file with -o, or replace it with --force")
            }
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
                Some("nothing was left there; an image takes up to the guest's memory and 1 %")
            }
            _ => None,
        };
    }
    if error.is::<NoRoom>() {
        return Some("make room (`livesave prune`), or ask for less with --keep-free");
    }
    if let Some(SaveError::TargetMissed { .. }) = error.downcast_ref::<SaveError>() {
        return Some("allow more with --max-downtime, a lower --min-cap, or --on-miss proceed");
    }
    match error.downcast_ref::<RestoreError>() {
        Some(RestoreError::NoSuchDomain(_)) => return Some("`xl list` shows the running domains"),
        Some(RestoreError::Xl { .. }) => {
            return Some("this needs a dom0 and its `xl`; `livesave demo` needs no Xen");
        }
        _ => {}
    }
    match error.downcast_ref::<OpenError>() {
        Some(OpenError::NoSuchDomain(_)) => Some("`xl list` shows the running domains"),
        Some(error) if error.is_not_dom0() => {
            Some("`livesave demo` shows a live save without Xen, on an embedded guest")
        }
        _ => None,
    }
}

fn of_domain(error: &DomainError) -> u8 {
    match error {
        DomainError::Gone(_) => GONE,
        DomainError::NotSuspended(_) => NOT_SUSPENDED,
        DomainError::Unsupported(_) => NOT_SAVABLE,
        DomainError::Interrupted(signal) => SIGNALLED + *signal as u8,
        DomainError::Call { .. } => FAILED,
    }
}
