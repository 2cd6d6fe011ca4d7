//! `livesave restore IMAGE`: a guest comes back, through stock `xl restore`.

pub mod disks;

use std::io::IsTerminal;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use snapshot::image::Chain;
use snapshot::ports::Cancel;
use snapshot::units::Bytes;
use snapshot::xen::restore::{GuestDisks, Request, Restore, Restored};

use self::disks::Disks;
use crate::args::{HowArgs, RestoreArgs, RestoreDisksArg};
use crate::out::{line, note, span};
use crate::signals;

/// Restores a guest.
pub fn run(args: &RestoreArgs) -> Result<()> {
    let cancel = signals::cancel_on_signals()?;
    let chain = Chain::open(&args.image)?;
    for image in chain.images() {
        warn_of_readers(image.path())?;
    }
    let wanted = Wanted {
        name: args.name.clone(),
        how: &args.how,
        disks: args.disks,
    };
    let (restored, summary) = restore(&chain, wanted, args.quiet, &cancel)?;
    if args.json {
        line(&serde_json::to_string(&restored).context("Failed to encode the result")?);
    } else if !args.quiet {
        line(&summary);
    }
    Ok(())
}

/// What the user asks for.
pub struct Wanted<'a> {
    /// Another name.
    pub name: Option<String>,
    /// How the guest comes back.
    pub how: &'a HowArgs,
    /// What is done with its disks.
    pub disks: Option<RestoreDisksArg>,
}

/// What the library is asked for.
pub fn request(name: Option<String>, how: &HowArgs, disks: GuestDisks) -> Request {
    Request {
        name,
        config: how.config.clone(),
        disks,
        paused: how.paused,
        silence: how.silence,
        locks: how.locks.clone(),
    }
}

/// Restores a guest from an opened image, with a progress bar; also returns a line about it.
pub fn restore(
    chain: &Chain,
    wanted: Wanted<'_>,
    quiet: bool,
    cancel: &Cancel,
) -> Result<(Restored, String)> {
    let disks = Disks::plan(wanted.disks, chain, wanted.how)?;
    let request = request(wanted.name, wanted.how, disks.for_guest());
    let restore = Restore::prepare(chain, request, cancel)?;
    if let Some(warning) = restore.warning() {
        note(&format!("livesave: warning: {warning}"));
    }
    if !quiet {
        note(&format!("Restoring {}", restore.name()));
    }
    let began = Instant::now();
    disks.make(quiet, cancel)?;
    let bar = bar(quiet, "restore");
    let mut total = Bytes(0);
    let restored = restore.run(cancel, |taken, of| {
        total = of;
        bar.set_length(of.0);
        bar.set_position(taken.0);
    });
    bar.finish_and_clear();
    let restored = restored.inspect_err(|error| disks.undo(error.may_leave_guest()))?;
    let summary = format!(
        "Restored {} as domain {}{}: {total} in {}{}",
        restored.name,
        restored.domid,
        if restored.paused { ", paused" } else { "" },
        span(began.elapsed().as_secs_f64()),
        disks.summary()
    );
    Ok((restored, summary))
}

/// How far something is, on a terminal.
fn bar(quiet: bool, what: &str) -> ProgressBar {
    if quiet || !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    // The template is fixed: were it wrong, the plain bar would do.
    let style = ProgressStyle::with_template(&format!(
        "{what} {{bar:30}} {{binary_bytes:>10}}/{{binary_total_bytes}}  \
         {{binary_bytes_per_sec}}, {{eta}} left"
    ))
    .unwrap_or_else(|_| ProgressStyle::default_bar())
    .progress_chars("█▉▊▋▌▍▎▏ ");
    ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr_with_hz(8)).with_style(style)
}

/// An image holds all that was in the guest's memory.
fn warn_of_readers(image: &Path) -> Result<()> {
    let metadata = image
        .metadata()
        .context("Failed to see whose the image is")?;
    if metadata.mode() & 0o077 != 0 {
        note(&format!(
            "livesave: warning: others than its owner may read or change the image (mode {:04o}), \
             and it holds the guest's memory; `chmod 600` it",
            metadata.mode() & 0o7777
        ));
    }
    let user = rustix::process::geteuid().as_raw();
    if ![0, user].contains(&metadata.uid()) {
        note(&format!(
            "livesave: warning: the image belongs to user {}, who may have changed it",
            metadata.uid()
        ));
    }
    Ok(())
}
