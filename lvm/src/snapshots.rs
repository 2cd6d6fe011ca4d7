//! Snapshots of the guest's logical volumes, as a save asks for them.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use snapshot::disks::{CopyKept, DiskFacts, DiskKept, Kept, SnapshotKept};
use snapshot::fault;
use snapshot::guardian::{DiskState, Notes};
use snapshot::ports::{BoxError, Cancel, Disks};
use snapshot::units::Bytes;

use crate::care::{discard, finish, free_all, is_there, of_image, remove_all};
use crate::commands::{self, LIMIT, LvmError};
use crate::copy::copy;
use crate::cut::{Cutter, How, Making};
use crate::dm::{Device, Dm};
use crate::inventory::Volume;
use crate::plan::{Disk, Kind, Plan, Planned};
use crate::restart::Restart;
use crate::run::{Host, Run};
use crate::tags;

/// A guest's disks, each kept as a snapshot of its volume or as a copy of that.
#[derive(Debug)]
pub struct Snapshots<R> {
    run: R,
    disks: Vec<Disk>,
    plan: Plan,
    /// The files that the disks are copied to, in the order of the plan's snapshots; empty where the
    /// snapshots themselves are kept.
    copies: Vec<PathBuf>,
    notes: Arc<Notes>,
    limit: Duration,
    cancel: Cancel,
    cutter: Option<Cutter>,
    /// How long the guest's I/O waited for the cut.
    stall: Duration,
    /// And at the longest before, while LVM made the snapshots.
    stall_before: Duration,
}

impl Snapshots<Host> {
    /// What is planned for these disks of the guest. Nothing is done yet. The disks are held for
    /// `limit` at most; `notes` is the save's journal.
    #[must_use]
    pub fn new(
        disks: Vec<Disk>,
        plan: Plan,
        notes: Arc<Notes>,
        limit: Duration,
        cancel: Cancel,
    ) -> Self {
        let copies = plan.copies.iter().filter_map(|path| tags::unescape(path));
        Self {
            run: Host,
            disks,
            copies: copies.collect(),
            plan,
            notes,
            limit,
            cancel,
            cutter: None,
            stall: Duration::ZERO,
            stall_before: Duration::ZERO,
        }
    }
}

impl<R: Run> Snapshots<R> {
    fn make_ready(&mut self) -> Result<Vec<Making>, LvmError> {
        let image = self.plan.image_path().unwrap_or_default();
        let tags = tags::of_image(&self.plan.id, &image);
        let dm = Dm::open()?;
        for planned in &self.plan.snapshots {
            // Each of them has its time.
            self.notes.journal().beat();
            let (run, limit) = (&mut self.run, self.limit);
            let mut held = Held::default();
            let made = commands::make_ready(run, planned, &tags, limit, &mut || {
                held.look(&dm, &planned.device);
            });
            self.stall_before = self.stall_before.max(held.longest);
            if made.is_err() {
                // Killed, it may have left them so; if they cannot be let go here, `undo` tries again.
                let _ = free_all(&dm, &self.plan);
            }
            made?;
            fault::point("disks-ready");
        }
        self.notes.disks(DiskState::Made).map_err(LvmError::Note)?;
        let volumes = self.volumes()?;
        let mut all = vec![];
        for planned in &self.plan.snapshots {
            let volume = find(&volumes, planned)?;
            let how = match &planned.kind {
                Kind::Thin {
                    device, origin_id, ..
                } => {
                    let missing = || LvmError::Missing(planned.full_name());
                    let id = volume.thin_id.ok_or_else(missing)?;
                    // Its pool makes another by the same number at the cut.
                    dm.message(device, &format!("delete {id}"))?;
                    fault::point("disks-deleted");
                    How::Thin {
                        pool: device.clone(),
                        message: format!("create_snap {id} {origin_id}"),
                    }
                }
                Kind::Thick { .. } => How::Thick(Restart::of(&dm, planned)?),
            };
            let planned = planned.clone();
            all.push(Making { planned, how });
        }
        Ok(all)
    }

    /// The volumes that were made for this image.
    fn volumes(&mut self) -> Result<Vec<Volume>, LvmError> {
        of_image(&mut self.run, &self.plan.id)
    }

    /// The facts of the snapshots, or of the copies that are made of them here.
    fn kept(
        &mut self,
        progress: &mut dyn FnMut(&str, Bytes, Bytes),
    ) -> Result<Vec<Kept>, BoxError> {
        let volumes = self.volumes()?;
        let mut kept = vec![];
        for (index, planned) in self.plan.snapshots.iter().enumerate() {
            let volume = find(&volumes, planned)?;
            if volume.is_full_snapshot() {
                return Err(LvmError::Full(planned.full_name()).into());
            }
            let pool = match &planned.kind {
                Kind::Thin { pool, .. } => Some(pool.clone()),
                Kind::Thick { .. } => None,
            };
            let Some(file) = self.copies.get(index) else {
                kept.push(Kept::Snapshot(SnapshotKept {
                    vg: planned.vg.clone(),
                    name: planned.name.clone(),
                    origin: planned.origin.clone(),
                    uuid: volume.uuid.clone(),
                    size: planned.size,
                    pool,
                }));
                continue;
            };
            if pool.is_some() {
                commands::activate(&mut self.run, &planned.full_name(), LIMIT)?;
            }
            let device = PathBuf::from(format!("/dev/{}", planned.full_name()));
            copy(&device, planned.size, file, &self.cancel, &mut |done| {
                progress(&planned.vdev, done, planned.size);
            })?;
            fault::point("disks-copied");
            discard(&mut self.run, volume)?;
            kept.push(Kept::Copy(CopyKept {
                file: file.clone(),
                size: planned.size,
                vg: planned.vg.clone(),
                origin: planned.origin.clone(),
                pool,
            }));
        }
        Ok(kept)
    }
}

/// How long a device has been held at a stretch.
#[derive(Debug, Default)]
struct Held {
    since: Option<Instant>,
    longest: Duration,
}

impl Held {
    fn look(&mut self, dm: &Dm, device: &Device) {
        if dm
            .status(device)
            .is_ok_and(|status| status.is_some_and(|status| status.held))
        {
            let since = self.since.get_or_insert_with(Instant::now);
            self.longest = self.longest.max(since.elapsed());
        } else {
            self.since = None;
        }
    }
}

fn find<'v>(volumes: &'v [Volume], planned: &Planned) -> Result<&'v Volume, LvmError> {
    let mut volumes = volumes.iter();
    let found = volumes.find(|volume| volume.vg == planned.vg && volume.name == planned.name);
    found.ok_or_else(|| LvmError::Missing(planned.full_name()))
}

impl<R: Run> Disks for Snapshots<R> {
    fn prepare(&mut self) -> Result<(), BoxError> {
        if self.plan.snapshots.is_empty() {
            return Ok(());
        }
        // LVM holds the volumes for a moment, too.
        self.notes.disks(DiskState::Held)?;
        fault::point("disks-noted");
        let all = self.make_ready()?;
        let cutter = Cutter::start(self.notes.clone(), all, self.limit)?;
        self.cutter = Some(cutter);
        fault::point("disks-prepared");
        Ok(())
    }

    fn begin_cut(&mut self) {
        if let Some(cutter) = &mut self.cutter {
            cutter.hold();
        }
    }

    fn cut(&mut self) -> Result<(), BoxError> {
        if let Some(cutter) = &mut self.cutter {
            cutter.held()?;
        }
        fault::point("disks-cut");
        Ok(())
    }

    fn resumed(&mut self) {
        if let Some(cutter) = &mut self.cutter {
            cutter.commit();
        }
    }

    fn let_go(&mut self) -> Result<(), BoxError> {
        if let Some(cutter) = &mut self.cutter {
            cutter.let_go()?;
        }
        Ok(())
    }

    fn commit(&mut self) -> Result<(), BoxError> {
        if let Some(cutter) = &mut self.cutter {
            self.stall = cutter.committed()?;
        }
        fault::point("disks-committed");
        Ok(())
    }

    fn keep(
        &mut self,
        progress: &mut dyn FnMut(&str, Bytes, Bytes),
    ) -> Result<Option<DiskFacts>, BoxError> {
        // The thread's work is done.
        self.cutter = None;
        let mut kept = if self.plan.snapshots.is_empty() {
            vec![]
        } else {
            self.kept(progress)?
        }
        .into_iter()
        .zip(
            self.plan
                .snapshots
                .iter()
                .map(|planned| planned.vdev.clone()),
        )
        .collect::<Vec<_>>();
        let disks = self.disks.iter().map(|disk| {
            let at = kept.iter().position(|(_, vdev)| *vdev == disk.vdev);
            DiskKept {
                vdev: disk.vdev.clone(),
                path: disk.path.clone(),
                kept: at.map_or(Kept::Unchanged, |at| kept.swap_remove(at).0),
            }
        });
        let facts = DiskFacts {
            disks: disks.collect(),
            stall_s: self.stall.as_secs_f64(),
            stall_before_s: self.stall_before.as_secs_f64(),
        };
        fault::point("disks-kept");
        Ok(Some(facts))
    }

    fn settle(&mut self) -> Result<(), BoxError> {
        fault::point("disks-settling");
        if !self.plan.snapshots.is_empty() {
            let volumes = self.volumes()?;
            finish(&mut self.run, &volumes)?;
            self.notes.disks(DiskState::No)?;
        }
        Ok(())
    }

    fn undo(&mut self) -> Result<(), BoxError> {
        if self.notes.state().disks == DiskState::No {
            return Ok(());
        }
        // Ended, it has let all go.
        self.cutter = None;
        let dm = Dm::open()?;
        if self.notes.state().disks == DiskState::Held {
            // It hangs.
            free_all(&dm, &self.plan)?;
            self.notes.disks(DiskState::Made)?;
        }
        // The image may have its name for all that: its directory could not be made durable.
        let image = self.plan.image_path().unwrap_or_default();
        let volumes = self.volumes()?;
        if is_there(&image, &self.plan.id)? {
            finish(&mut self.run, &volumes)?;
        } else {
            remove_all(&mut self.run, &volumes, &self.plan)?;
        }
        free_all(&dm, &self.plan)?;
        self.notes.disks(DiskState::No)?;
        Ok(())
    }
}
