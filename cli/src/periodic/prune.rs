//! `livesave prune`: removes the images that no rule keeps; and the same at the end of a save.
//!
//! Each image goes in one step, and what is kept does not depend on what is already gone: a prune
//! that is killed has removed some of what it would have removed, and nothing else. Whoever has an
//! image open while it is removed reads it to its end.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use jiff::tz::TimeZone;
use lvm::restore::discard;
use lvm::run::Host;
use serde_json::{Value, json};
use snapshot::SaveError;
use snapshot::image::verify::{Course, verify};
use snapshot::lineage::ImageId;
use snapshot::ports::{Cancel, Identity};
use snapshot::units::Bytes;

use super::directory::{self, FileId, Image, Listing, SaveState, Unfinished, scan};
use super::keep::{Reason, Rules, decide};
use super::list::{image_json, name_of};
use super::room::directory_of;
use crate::args::PruneArgs;
use crate::disks;
use crate::out::line;
use crate::save::copy_threads;

/// What becomes of a directory's images.
#[derive(Debug, Default)]
struct Plan {
    /// Each guest's images, from the oldest to the latest.
    guests: Vec<Vec<Verdict>>,
    /// Of killed saves.
    leftovers: Vec<Unfinished>,
}

#[derive(Debug)]
struct Verdict {
    image: Image,
    /// None: it is removed.
    reasons: Vec<Reason>,
}

/// What was done.
#[derive(Debug, Default)]
pub struct Pruned {
    plan: Plan,
    /// Nothing was.
    dry_run: bool,
    /// Files removed.
    removed: Vec<PathBuf>,
    /// Disk snapshots and copies of disks removed with them.
    disks: Vec<String>,
    /// What was allocated for the files.
    freed: Bytes,
    /// Files that could not be removed, and why.
    failed: Vec<String>,
}

/// Prunes a directory.
pub fn run(args: &PruneArgs) -> Result<()> {
    let Some(rules) = args.keep.rules() else {
        bail!("Nothing says what to keep");
    };
    must_be_ours_alone(&args.dir)?;
    let listing = scan(&args.dir)?;
    let wanted = args.domain.as_deref();
    let is_wanted = |images: &[Image]| wanted.is_none_or(|wanted| is_meant(images, wanted));
    let plan = Plan::new(&listing, &rules, &TimeZone::system(), is_wanted);
    if let Some(wanted) = wanted
        && plan.guests.is_empty()
    {
        bail!("There is no image of {wanted:?} in {}", args.dir.display());
    }
    let done = plan.carry_out(&args.dir, args.dry_run)?;
    if args.json {
        line(&done.json().to_string());
    } else {
        done.describe();
        for other in &listing.damaged {
            line(&format!("left alone, damaged: {}", name_of(&other.path)));
        }
        line(&done.sum());
    }
    done.check()
}

/// Prunes the images of one guest after its image has been saved. That must be found on disk and
/// whole, every byte of it, or nothing is removed.
pub fn after_save(image: &Path, rules: &Rules, cancel: &Cancel) -> Result<Pruned> {
    let saved = image
        .symlink_metadata()
        .map_err(anyhow::Error::from)
        .and_then(|metadata| directory::read(image, &metadata))
        .context("Nothing was pruned, for the new image cannot be read")?
        .context("Nothing was pruned, for the new image is not livesave's")?;
    let course = Course {
        threads: copy_threads(),
        progress: &|_| {},
        cancel,
    };
    let verified =
        verify(image, &course).context("Nothing was pruned, for the new image cannot be read")?;
    if let Some(signal) = cancel.raised() {
        return Err(SaveError::Interrupted(signal)).context("Nothing was pruned");
    }
    if let Some(problem) = verified.problems.first() {
        bail!(
            "Nothing was pruned, for the new image is damaged: {} (at byte {})",
            problem.what,
            problem.offset
        );
    }
    let dir = directory_of(image);
    must_be_ours_alone(&dir)?;
    let listing = scan(&dir)?;
    let is_saved = |images: &[Image]| images.iter().any(|image| image.file == saved.file);
    if !is_saved(&listing.images) {
        let dir = dir.display();
        bail!("Nothing was pruned, for the new image is not found in {dir}");
    }
    Plan::new(&listing, rules, &TimeZone::system(), is_saved).carry_out(&dir, false)
}

/// Refuses a directory in which others can put files: images of their making would push out ours.
pub fn must_be_ours_alone(dir: &Path) -> Result<()> {
    let failed = || format!("Failed to read directory {}", dir.display());
    let metadata = dir.metadata().with_context(failed)?;
    if metadata.mode() & 0o002 != 0 {
        bail!(
            "Anybody may put files into {} (mode o+w), which then decide what is removed; use a \
             directory of root's alone",
            dir.display()
        );
    }
    Ok(())
}

/// Whether a guest's images are those that the user means.
pub fn is_meant(images: &[Image], wanted: &str) -> bool {
    images
        .iter()
        .any(|image| image.guest.name == wanted || image.guest.uuid.eq_ignore_ascii_case(wanted))
}

/// The images of each guest, from the oldest to the latest. A guest is its UUID: it may have had
/// several names.
pub fn by_guest(images: &[Image]) -> Vec<Vec<Image>> {
    let mut guests: BTreeMap<String, Vec<Image>> = BTreeMap::new();
    for image in images {
        let uuid = image.guest.uuid.to_ascii_lowercase();
        guests.entry(uuid).or_default().push(image.clone());
    }
    let mut guests: Vec<_> = guests.into_values().collect();
    for images in &mut guests {
        images.sort_by(|a, b| (a.cut, &a.path).cmp(&(b.cut, &b.path)));
    }
    guests
}

/// What a kept image is built on is kept, whatever the clock said when it was made.
fn keep_bases(verdicts: &mut [Verdict]) {
    loop {
        let kept = verdicts
            .iter()
            .filter(|verdict| !verdict.reasons.is_empty());
        let parents = kept.filter_map(|verdict| verdict.image.parent.as_ref());
        let wanted: Vec<ImageId> = parents.map(|parent| parent.id.clone()).collect();
        let base = verdicts.iter_mut().find(|verdict| {
            let id = verdict.image.id.as_ref();
            verdict.reasons.is_empty() && id.is_some_and(|id| wanted.contains(id))
        });
        match base {
            Some(base) => base.reasons.push(Reason::Base),
            None => return,
        }
    }
}

impl Plan {
    /// Of the guests that are wanted.
    fn new(
        listing: &Listing,
        rules: &Rules,
        zone: &TimeZone,
        is_wanted: impl Fn(&[Image]) -> bool,
    ) -> Self {
        let mut plan = Self::default();
        for images in by_guest(&listing.images) {
            if !is_wanted(&images) {
                continue;
            }
            // The latest first, so that of two with one cut the one named last counts as later.
            let cuts: Vec<_> = images.iter().rev().map(|image| image.cut).collect();
            let reasons = decide(&cuts, rules, zone).into_iter().rev();
            let verdicts = images.into_iter().zip(reasons);
            let verdicts = verdicts.map(|(image, reasons)| Verdict { image, reasons });
            let mut verdicts: Vec<_> = verdicts.collect();
            keep_bases(&mut verdicts);
            plan.guests.push(verdicts);
        }
        let dead = |file: &&Unfinished| file.save == SaveState::Dead;
        plan.leftovers = listing.unfinished.iter().filter(dead).cloned().collect();
        plan
    }

    fn verdicts(&self, kept: bool) -> impl Iterator<Item = &Verdict> {
        let all = self.guests.iter().flatten();
        all.filter(move |verdict| verdict.reasons.is_empty() != kept)
    }

    fn carry_out(self, dir: &Path, dry_run: bool) -> Result<Pruned> {
        // An increment before what it is built on: a prune that is killed leaves none without.
        let images = self.verdicts(false).map(|Verdict { image, .. }| image);
        let mut images: Vec<_> = images.collect();
        images.sort_by_key(|image| std::cmp::Reverse(image.parent.as_ref().map_or(0, |p| p.depth)));
        let images = images.into_iter();
        let images: Vec<_> = images.cloned().collect();
        let leftovers = self.leftovers.clone();
        let mut done = Pruned {
            plan: self,
            dry_run,
            ..Pruned::default()
        };
        if dry_run {
            return Ok(done);
        }
        for image in &images {
            if done.remove_disks(image) {
                done.remove(&image.path, image.file, image.allocated);
            }
        }
        for left in &leftovers {
            done.remove(&left.path, left.file, left.allocated);
        }
        if !done.removed.is_empty() {
            let durable = File::open(dir).and_then(|dir| dir.sync_all());
            durable.with_context(|| {
                format!("Failed to make the removals in {} durable", dir.display())
            })?;
        }
        Ok(done)
    }
}

impl Pruned {
    /// Removes the disks of an image that is to be removed, unless an image that is kept has them
    /// too (it was merged); whether none are left.
    fn remove_disks(&mut self, image: &Image) -> bool {
        let (Some(id), Some(facts)) = (&image.id, &image.disks) else {
            return true;
        };
        let mut kept = self.plan.verdicts(true);
        if kept.any(|verdict| verdict.image.id.as_ref() == Some(id)) {
            return true;
        }
        let place = disks::place(Path::new("/dev"), &image.path);
        match discard(&mut Host, facts, &place) {
            Ok(removed) => {
                self.disks.extend(removed);
                true
            }
            Err(error) => {
                self.failed.push(format!(
                    "Failed to remove the disks of {}, which therefore stays: {:#}",
                    image.path.display(),
                    anyhow::Error::from(error)
                ));
                false
            }
        }
    }

    /// Removes a file, if it is still the one that was looked at.
    fn remove(&mut self, path: &Path, file: FileId, allocated: Bytes) {
        let removed = match path.symlink_metadata() {
            Ok(found) if FileId::of(&found) != file => return,
            Ok(_) => std::fs::remove_file(path),
            Err(error) => Err(error),
        };
        match removed {
            Ok(()) => {
                self.removed.push(path.to_owned());
                self.freed += allocated;
            }
            // By another prune.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                let what = format!("Failed to remove {}: {error}", path.display());
                self.failed.push(what);
            }
        }
    }

    /// A line for each image.
    fn describe(&self) {
        let remove = if self.dry_run {
            "would remove"
        } else {
            "removed"
        };
        for verdicts in &self.plan.guests {
            if let Some(Verdict { image, .. }) = verdicts.last() {
                let Identity { name, uuid, .. } = &image.guest;
                line(&format!(
                    "{} ({})",
                    name.escape_debug(),
                    uuid.escape_debug()
                ));
            }
            for Verdict { image, reasons } in verdicts {
                let cut = image.cut.strftime("%Y-%m-%d %H:%M:%SZ");
                let file = name_of(&image.path);
                if reasons.is_empty() {
                    line(&format!("  {remove} {cut}  {file}"));
                } else {
                    line(&format!(
                        "  kept {cut}  {file}: {}",
                        names(reasons).join(", ")
                    ));
                }
            }
        }
        for disk in &self.disks {
            line(&format!("removed with its image: {disk}"));
        }
        for leftover in &self.plan.leftovers {
            let file = name_of(&leftover.path);
            line(&format!("{remove} what a killed save left: {file}"));
        }
    }

    /// All of it in a line.
    fn sum(&self) -> String {
        let kept = self.plan.verdicts(true).count();
        if self.dry_run {
            let remove = self.plan.verdicts(false).count() + self.plan.leftovers.len();
            return format!("Kept: {kept}, would be removed: {remove}");
        }
        format!(
            "Kept: {kept}, removed: {} ({})",
            self.removed.len(),
            self.freed
        )
    }

    /// What is worth a line after a save.
    pub fn brief(&self) -> Vec<String> {
        let removed = self.removed.iter();
        let mut lines: Vec<_> = removed
            .map(|path| format!("Removed {}", name_of(path)))
            .collect();
        lines.push(self.sum());
        lines
    }

    /// What `--json` prints.
    pub fn json(&self) -> Value {
        let images = self.plan.guests.iter().flatten();
        let images = images.map(|Verdict { image, reasons }| {
            let mut told = image_json(image);
            told["kept_by"] = json!(names(reasons));
            told
        });
        let leftovers: Vec<_> = self.plan.leftovers.iter().map(|left| &left.path).collect();
        json!({
            "dry_run": self.dry_run,
            "images": images.collect::<Vec<_>>(),
            "leftovers": leftovers,
            "removed": self.removed,
            "removed_disks": self.disks,
            "freed_bytes": self.freed,
            "failed": self.failed,
        })
    }

    /// Tells of files that could not be removed.
    pub fn check(&self) -> Result<()> {
        match self.failed.as_slice() {
            [] => Ok(()),
            failed => bail!("{}", failed.join("; ")),
        }
    }
}

fn names(reasons: &[Reason]) -> Vec<String> {
    reasons.iter().map(ToString::to_string).collect()
}

#[cfg(test)]
mod tests;
