//! The disks of a domain that is saved.

use std::path::{Path, PathBuf, absolute};
use std::time::Duration;

use anyhow::{Context, Result};
use lvm::commands::LIMIT;
use lvm::plan::{Disk, Plan, Planned, device_of, plan};
use lvm::restore::{Place, discard};
use lvm::run::Host;
use lvm::snapshots::Snapshots;
use lvm::{MemoryOnly, inventory, tags};
use snapshot::disks::DiskFacts;
use snapshot::image::Reader;
use snapshot::lineage::ImageId;
use snapshot::ports::{Cancel, Disks};
use snapshot::units::Bytes;
use snapshot::xen::{GuestDisk, XenDomain};

use crate::args::{DiskArgs, DisksArg};
use crate::out::warn;
use crate::periodic::room::directory_of;

/// Puts right what killed saves have left of disks.
pub static CARE: lvm::care::Care = lvm::care::Care;
/// Digits of the image's identity in the name of a copy.
const COPY_ID: usize = 12;

/// What will be done about a domain's disks.
pub struct Settled {
    disks: Vec<Disk>,
    plan: Option<Plan>,
}

/// Settles it, before anything is done to the domain.
pub fn settle(
    args: &DiskArgs,
    domain: &XenDomain,
    id: Option<&ImageId>,
    image: &Path,
) -> Result<Settled> {
    let disks: Vec<Disk> = domain.disks().into_iter().map(disk).collect();
    if disks.is_empty() || args.disks == DisksArg::MemoryOnly {
        return Ok(Settled { disks, plan: None });
    }
    let id = id.context("There are no random numbers for the identity of an image")?;
    let image = absolute(image).context("Failed to tell the image's path")?;
    let volumes = if disks.iter().any(|disk| disk.writable) {
        inventory::volumes(&mut Host, LIMIT).context(
            "LVM cannot be asked for the guest's volumes; `--disks memory-only` saves the memory \
             without the disks",
        )?
    } else {
        vec![]
    };
    let room = args.snapshot_size.map(|size| Bytes(size.0));
    let mut plan = plan(&disks, &volumes, id.as_str(), &image, room, device_of)?;
    if let DisksArg::Copy(dir) = &args.disks {
        let dir = absolute(dir).context("Failed to tell the path of the copies")?;
        let metadata = dir.metadata();
        let metadata =
            metadata.with_context(|| format!("No copies can stand in {}", dir.display()))?;
        anyhow::ensure!(metadata.is_dir(), "{} is no directory", dir.display());
        let copies = plan
            .snapshots
            .iter()
            .map(|one| copy_path(&dir, &image, one, id));
        plan.copies = copies.map(|path| tags::escape(&path)).collect();
    }
    Ok(Settled {
        disks,
        plan: Some(plan),
    })
}

/// The file of a disk's copy: that of the image, with the disk's name, and so much of the image's
/// identity that no other image's copy is called so.
fn copy_path(dir: &Path, image: &Path, disk: &Planned, id: &ImageId) -> PathBuf {
    let mut name = image.file_name().unwrap_or_default().to_owned();
    let id = &id.as_str()[..COPY_ID];
    name.push(format!(".{}.{id}.zst", disk.vdev));
    dir.join(name)
}

impl Settled {
    /// What a guardian has to know of it.
    pub fn text(&self) -> String {
        self.plan.as_ref().map(Plan::text).unwrap_or_default()
    }

    /// What the save does it by; says which disks are left out.
    pub fn start(
        self,
        args: &DiskArgs,
        domain: &XenDomain,
        quiet: bool,
        cancel: &Cancel,
    ) -> Box<dyn Disks> {
        match self.plan {
            Some(plan) => Box::new(Snapshots::new(
                self.disks,
                plan,
                domain.notes(),
                args.disk_limit,
                cancel.clone(),
            )),
            None => {
                if !quiet {
                    warn_of(&self.disks);
                }
                Box::new(MemoryOnly)
            }
        }
    }
}

/// What the image that is to be replaced says of its disks; `None` if there is none.
pub fn of_replaced(image: &Path) -> Option<DiskFacts> {
    Reader::open(image).ok()?.facts()?.disks.clone()
}

/// Where an image's disks are.
pub fn place(dev: &Path, image: &Path) -> Place {
    Place {
        dev: dev.to_owned(),
        beside: Some(directory_of(image)),
        limit: LIMIT,
        look: Duration::from_millis(500),
    }
}

/// Removes the disks of an image that has been replaced.
pub fn give_up(disks: &DiskFacts, image: &Path) {
    if let Err(error) = discard(&mut Host, disks, &place(Path::new("/dev"), image)) {
        warn(&format!(
            "the disks of the image that was replaced are left: {:#}",
            anyhow::Error::from(error)
        ));
    }
}

fn disk(disk: GuestDisk) -> Disk {
    Disk {
        vdev: disk.vdev,
        path: disk.path,
        writable: disk.writable,
    }
}

fn warn_of(disks: &[Disk]) {
    if disks.is_empty() {
        return;
    }
    let list: Vec<_> = disks
        .iter()
        .map(|disk| format!("{} ({})", disk.vdev, disk.path))
        .collect();
    warn(&format!(
        "memory only: the disks {} are not part of the image; restore it only \
         with disks as they were at the cut",
        list.join(", ")
    ));
}
