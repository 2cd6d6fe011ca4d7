//! `livesave clone DOMAIN --name NEW`: save and restore in one go, the original running on.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use lvm::care::CLONE;
use serde_json::json;
use snapshot::image::Chain;
use snapshot::xen::restore::{GuestDisks, check_clone};

use crate::args::{CloneArgs, DisksArg, SaveArgs};
use crate::out::line;
use crate::restore::{Wanted, disks};
use crate::{restore, save, signals};

/// Where the image stands for a moment.
const TEMPORARY: &str = "/var/tmp";

/// Clones a running domain.
pub fn run(mut args: CloneArgs) -> Result<()> {
    if args.save.periodic.dir.is_some() {
        bail!("A clone makes no periodic image: leave out --dir and what belongs to it");
    }
    let cancel = signals::cancel_on_signals()?;
    // A configuration of the user's own says which disks.
    let disks = match keeps_disks(&args.save) && args.how.config.is_none() {
        true => GuestDisks::NewLater,
        false => GuestDisks::AsIs,
    };
    let request = restore::request(Some(args.name.clone()), &args.how, disks);
    // Before the save, whose pause would be for nothing.
    check_clone(&args.save.domain, &request, &cancel)?;
    let keep = args.save.output.is_some();
    let path = args.save.output.take().unwrap_or_else(|| {
        let directory = args.tmp_dir.as_deref().unwrap_or(Path::new(TEMPORARY));
        directory.join(temporary_name())
    });
    args.save.output = Some(path.clone());
    let report = save::save(&args.save, &cancel)?;
    let opened = Chain::open(&path);
    if !keep {
        // From here on it has no name, and whatever becomes of us, it will be gone with us.
        std::fs::remove_file(&path).with_context(|| {
            format!(
                "Failed to remove the temporary image {}, which holds the guest's memory",
                path.display()
            )
        })?;
    }
    let chain = opened?;
    let wanted = Wanted {
        name: Some(args.name.clone()),
        how: &args.how,
        disks: None,
    };
    let restored = restore::restore(&chain, wanted, args.save.quiet, &cancel);
    if let Some(facts) = disks::of(&chain).filter(|_| !keep) {
        // The second guest's volumes do not need them.
        disks::give_up(facts, &path, &args.how);
    }
    let (restored, summary) = restored?;
    if args.save.json {
        line(&json!({ "save": report, "restored": restored }).to_string());
    } else if !args.save.quiet {
        line(&summary);
    }
    Ok(())
}

/// Whether the image will have the guest's disks.
fn keeps_disks(save: &SaveArgs) -> bool {
    save.disk.disks != DisksArg::MemoryOnly
}

/// Nobody else has that name: the image's file is never one that is there already, and another
/// clone of ours has another number.
fn temporary_name() -> PathBuf {
    PathBuf::from(format!("{CLONE}{}.xl", std::process::id()))
}
