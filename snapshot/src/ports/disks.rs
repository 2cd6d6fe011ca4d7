//! The guest's disks.

use super::BoxError;
use crate::disks::DiskFacts;
use crate::units::Bytes;

/// The guest's disks, cut at the same instant as its memory.
///
/// Order: `prepare`, then in the pause window `begin_cut` and `cut`, then `resumed`, `commit`, `keep`,
/// and once the image has its name `settle`. A cut that is not used ends by `let_go`, and another may
/// follow. On any error after `prepare` has been called `undo`, instead of what is left.
///
/// From `begin_cut` until `commit` has returned the guest's I/O may wait. That ends by itself within
/// a limit of the implementation's, whatever the caller does.
pub trait Disks {
    /// Checks that the cut will be possible and does all that can be done before. The guest runs.
    ///
    /// # Errors
    /// Any; `undo` follows.
    fn prepare(&mut self) -> Result<(), BoxError>;

    /// Begins to fix the disks' content, beside whatever the caller does next. The guest is
    /// suspended: returns at once.
    fn begin_cut(&mut self);

    /// The disks' content is fixed when this returns. The guest is suspended: milliseconds only, no
    /// process started.
    ///
    /// # Errors
    /// Any; `let_go` follows after the resume.
    fn cut(&mut self) -> Result<(), BoxError>;

    /// Begins to make the cut lasting. The guest runs again: returns at once.
    fn resumed(&mut self);

    /// The cut is not used: nothing is held any longer. Milliseconds.
    ///
    /// # Errors
    /// Any; what may still be held ends by itself.
    fn let_go(&mut self) -> Result<(), BoxError>;

    /// Waits until the cut is lasting and the guest's I/O waits no more.
    ///
    /// # Errors
    /// Any; nothing is held, `undo` follows.
    fn commit(&mut self) -> Result<(), BoxError>;

    /// Brings the disks' content to where it is kept, which may take as long as the disks are large,
    /// and says how it is kept; `None` where the disks are left out. `progress` is told how much of
    /// which disk has been done.
    ///
    /// # Errors
    /// Any; `undo` follows.
    fn keep(
        &mut self,
        progress: &mut dyn FnMut(&str, Bytes, Bytes),
    ) -> Result<Option<DiskFacts>, BoxError>;

    /// The image has its name: from here on what was kept is the image's.
    ///
    /// # Errors
    /// Any; the image stands for all that.
    fn settle(&mut self) -> Result<(), BoxError>;

    /// Takes back whatever was done; may be called at any point and more than once.
    ///
    /// # Errors
    /// Any; something that was made is left, and nothing is held.
    fn undo(&mut self) -> Result<(), BoxError>;
}

/// Leaves the disks out of the image.
#[derive(Clone, Copy, Debug, Default)]
pub struct MemoryOnly;

impl Disks for MemoryOnly {
    fn prepare(&mut self) -> Result<(), BoxError> {
        Ok(())
    }
    fn begin_cut(&mut self) {}
    fn cut(&mut self) -> Result<(), BoxError> {
        Ok(())
    }
    fn resumed(&mut self) {}
    fn let_go(&mut self) -> Result<(), BoxError> {
        Ok(())
    }
    fn commit(&mut self) -> Result<(), BoxError> {
        Ok(())
    }
    fn keep(
        &mut self,
        _: &mut dyn FnMut(&str, Bytes, Bytes),
    ) -> Result<Option<DiskFacts>, BoxError> {
        Ok(None)
    }
    fn settle(&mut self) -> Result<(), BoxError> {
        Ok(())
    }
    fn undo(&mut self) -> Result<(), BoxError> {
        Ok(())
    }
}
