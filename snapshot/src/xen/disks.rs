//! A guest's disks, where a save did not end in order.

use crate::guardian::{DiskCare, DiskState, Entry, Journal, State};
use crate::ports::BoxError;

/// Lets the disks go that may be held, and notes that; says what was done.
pub(super) fn let_go(
    care: &dyn DiskCare,
    journal: &Journal,
    entry: &Entry,
    state: &mut State,
) -> Result<Vec<String>, BoxError> {
    if state.disks != DiskState::Held {
        return Ok(vec![]);
    }
    let done = care.let_go(&entry.disks)?;
    state.disks = DiskState::Made;
    // As the journal has it, but for them. Let go twice does no harm.
    let noted = journal.state()?.unwrap_or(*state);
    journal.set(State {
        disks: DiskState::Made,
        ..noted
    })?;
    Ok(done)
}
