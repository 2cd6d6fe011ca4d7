//! The ways to save a guest with Xen's own tools, to compare with.

use super::process::{check, run};
use super::xl;
use anyhow::{Context, Result, bail};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use xen_sys::Xen;

/// Xen's save helper of the running version: packagers put it in different places.
fn save_helper() -> Result<PathBuf> {
    let (major, minor) = Xen::open()?.xen_version()?;
    let places = [
        format!("/usr/lib/xen-{major}.{minor}/bin"),
        "/usr/lib/xen/bin".to_owned(),
        "/usr/libexec/xen/bin".to_owned(),
        "/usr/local/lib/xen/bin".to_owned(),
    ];
    let helpers = places.map(|place| Path::new(&place).join("libxl-save-helper"));
    let found = helpers.iter().find(|path| path.exists());
    let all = helpers.iter().map(|path| path.display().to_string());
    found.cloned().with_context(|| {
        let all = all.collect::<Vec<_>>().join(", ");
        format!("Xen's save helper is at none of {all}")
    })
}

/// `xl save -c`: suspends the guest, writes all memory, lets it go on.
pub fn checkpoint(name: &str, image: &Path) -> Result<Duration> {
    let finished = check(xl::command(&["save", "-c", name]).arg(image), xl::LIMIT)?;
    Ok(finished.took)
}

/// The **stock live loop**: `xl save -c` with a wrapped helper that switches on
/// Xen's own pre-copy (flag 1 in its fifth argument). `dir` takes the wrapper.
pub fn live_loop(name: &str, image: &Path, dir: &Path) -> Result<Duration> {
    let finished = check(&mut live_loop_command(&[], name, image, dir)?, xl::LIMIT)?;
    Ok(finished.took)
}

/// The command of [`live_loop`], with options of `xl` itself.
pub fn live_loop_command(
    options: &[&str],
    name: &str,
    image: &Path,
    dir: &Path,
) -> Result<Command> {
    let wrapper = dir.join("live-save-helper");
    if !wrapper.exists() {
        let helper = save_helper()?;
        let helper = helper.display();
        // `exec`, so that libxl's signals reach the helper.
        let script = format!(
            "#!/bin/sh\ncase $1 in\n\
             --save-domain) exec {helper} \"$1\" \"$2\" \"$3\" \"$4\" $(($5|1)) \"$6\" \"$7\" ;;\n\
             *) exec {helper} \"$@\" ;;\nesac\n"
        );
        fs::write(&wrapper, script)?;
        fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755))?;
    }
    let mut command = xl::command(options);
    command
        .args(["save", "-c", name])
        .arg(image)
        .env("LIBXL_SAVE_HELPER", &wrapper);
    Ok(command)
}

/// **VNsnap style**: a live migration to a receiver that stores the stream and
/// then does not take the guest over, so that the sender lets it go on.
/// `receiver` is the suite's own binary.
pub fn vnsnap(name: &str, image: &Path, receiver: &Path) -> Result<Duration> {
    let rune = format!("{} --receive {}", receiver.display(), image.display());
    let finished = run(
        &mut xl::command(&["migrate", "-s", "", name, &rune]),
        xl::LIMIT,
    )?;
    // The sender sees a migration that failed at the last moment: that is how
    // it is meant. What counts is the complete stream.
    if finished.status.success() {
        bail!("xl migrate succeeded: the guest was given away");
    }
    let stored = fs::metadata(image)
        .with_context(|| format!("the receiver stored no stream: {}", finished.tail()))?;
    if stored.len() == 0 {
        bail!("the receiver stored an empty stream: {}", finished.tail());
    }
    Ok(finished.took)
}
