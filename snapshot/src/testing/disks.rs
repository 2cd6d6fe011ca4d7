//! Disks of no guest.

use super::Faults;
use crate::disks::DiskFacts;
use crate::ports::{BoxError, Disks};
use crate::units::Bytes;

/// Disks that remember what is left of what was done to them.
#[derive(Default)]
pub struct FakeDisks {
    pub faults: Faults,
    /// Something was made, and no image has it.
    pub open: bool,
    /// The guest's I/O waits.
    pub held: bool,
    /// How often that ended without a use of the cut.
    pub let_go: u32,
}

impl Disks for FakeDisks {
    fn prepare(&mut self) -> Result<(), BoxError> {
        self.open = true;
        self.faults.call("disks.prepare")
    }
    fn begin_cut(&mut self) {
        self.held = true;
    }
    fn cut(&mut self) -> Result<(), BoxError> {
        assert!(self.held, "not begun");
        self.faults.call("disks.cut")
    }
    fn resumed(&mut self) {
        assert!(self.held, "not cut");
    }
    fn let_go(&mut self) -> Result<(), BoxError> {
        self.held = false;
        self.let_go += 1;
        Ok(())
    }
    fn commit(&mut self) -> Result<(), BoxError> {
        self.held = false;
        self.faults.call("disks.commit")
    }
    fn keep(
        &mut self,
        progress: &mut dyn FnMut(&str, Bytes, Bytes),
    ) -> Result<Option<DiskFacts>, BoxError> {
        self.faults.call("disks.keep")?;
        progress("xvda", Bytes(1), Bytes(2));
        Ok(Some(DiskFacts::default()))
    }
    fn settle(&mut self) -> Result<(), BoxError> {
        self.open = false;
        Ok(())
    }
    fn undo(&mut self) -> Result<(), BoxError> {
        self.open = false;
        self.held = false;
        Ok(())
    }
}
