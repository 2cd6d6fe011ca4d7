//! Snapshots of the guest's logical volumes, as a save asks for them.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use snapshot::disks::{CopyKept, DiskFacts, DiskKept, Kept, SnapshotKept};
use snapshot::fault;
use snapshot::guardian::{DiskState, Notes};
use snapshot::ports::{BoxError, Cancel, Disks};
use snapshot::units::Bytes;

use crate::care::{discard, finish, remove_file};
use crate::commands::{self, LIMIT, LvmError};
use crate::copy::copy;
use crate::cut::{Cutter, Making};
use crate::dm::Dm;
use crate::inventory::{self, Volume};
use crate::plan::{Disk, Kind, Plan, Planned};
use crate::run::{Host, Run};
use crate::tags::{self, Tagged};

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
    /// The thread has an order that it has not answered.
    asked: bool,
    /// How long the guest's I/O waited.
    stall: Duration,
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
            asked: false,
            stall: Duration::ZERO,
        }
    }
}

impl<R: Run + Clone + Send + 'static> Snapshots<R> {
    fn make_ready(&mut self) -> Result<Vec<Making>, LvmError> {
        let image = self.plan.image_path().unwrap_or_default();
        let tags = tags::of_image(&self.plan.id, &image);
        for planned in &self.plan.snapshots {
            commands::make_ready(&mut self.run, planned, &tags)?;
            fault::point("disks-ready");
        }
        let volumes = self.volumes()?;
        let dm = Dm::open()?;
        let mut all = vec![];
        for planned in &self.plan.snapshots {
            let volume = find(&volumes, planned)?;
            if let Kind::Thin { device, .. } = &planned.kind {
                // Its pool makes another by the same number at the cut.
                let id = volume.thin_id.unwrap_or_default();
                dm.message(device, &format!("delete {id}"))?;
                fault::point("disks-deleted");
            }
            all.push(Making {
                planned: planned.clone(),
                thin_id: volume.thin_id.unwrap_or_default(),
            });
        }
        Ok(all)
    }

    /// The volumes that were made for this image.
    fn volumes(&mut self) -> Result<Vec<Volume>, LvmError> {
        let mut volumes = inventory::volumes(&mut self.run, LIMIT)?;
        volumes.retain(|volume| Tagged::of(&volume.tags).is_some_and(|tag| tag.id == self.plan.id));
        Ok(volumes)
    }

    /// What the thread answers to its last order.
    fn answer(&mut self) -> Result<Duration, BoxError> {
        let Some(cutter) = self.cutter.as_ref().filter(|_| self.asked) else {
            return Ok(Duration::ZERO);
        };
        self.asked = false;
        Ok(cutter.wait()?)
    }

    fn ask(&mut self, order: impl FnOnce(&Cutter)) {
        if let Some(cutter) = &self.cutter {
            order(cutter);
            self.asked = true;
        }
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
                commands::activate(&mut self.run, &planned.full_name())?;
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

fn find<'v>(volumes: &'v [Volume], planned: &Planned) -> Result<&'v Volume, LvmError> {
    let mut volumes = volumes.iter();
    let found = volumes.find(|volume| volume.vg == planned.vg && volume.name == planned.name);
    found.ok_or_else(|| LvmError::Missing(planned.full_name()))
}

impl<R: Run + Clone + Send + 'static> Disks for Snapshots<R> {
    fn prepare(&mut self) -> Result<(), BoxError> {
        if self.plan.snapshots.is_empty() {
            return Ok(());
        }
        self.notes.disks(DiskState::Made)?;
        fault::point("disks-noted");
        let all = self.make_ready()?;
        let cutter = Cutter::start(self.run.clone(), self.notes.clone(), all, self.limit)?;
        self.cutter = Some(cutter);
        fault::point("disks-prepared");
        Ok(())
    }

    fn begin_cut(&mut self) {
        self.ask(Cutter::hold);
    }

    fn cut(&mut self) -> Result<(), BoxError> {
        self.answer()?;
        fault::point("disks-cut");
        Ok(())
    }

    fn resumed(&mut self) {
        self.ask(Cutter::commit);
    }

    fn let_go(&mut self) -> Result<(), BoxError> {
        // Holding may be under way; that it failed was told, or is of no account.
        let _ = self.answer();
        self.ask(Cutter::let_go);
        self.answer().map(drop)
    }

    fn commit(&mut self) -> Result<(), BoxError> {
        self.stall = self.answer()?;
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
        if self.notes.state().disks == DiskState::Held {
            // It hangs.
            let dm = Dm::open()?;
            for device in self.plan.snapshots.iter().flat_map(Planned::devices) {
                crate::cut::free(&dm, &device)?;
            }
            self.notes.disks(DiskState::Made)?;
        }
        for copy in &self.copies {
            remove_file(copy)?;
        }
        for volume in self.volumes()? {
            discard(&mut self.run, &volume)?;
        }
        self.notes.disks(DiskState::No)?;
        Ok(())
    }
}
