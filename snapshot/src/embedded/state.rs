//! The guest's state record: what stands in an image besides the memory, as the vCPU and device
//! state of a machine would.
//!
//! JSON text: the description of the guest, the checksum over its memory at the cut, and where
//! each of its threads stood. A restored guest works on from there.

use serde::{Deserialize, Serialize};

use super::spec::GuestSpec;

/// The only version there is.
const VERSION: u32 = 1;

/// The largest record that is read.
const MAX_LENGTH: usize = 1 << 20;

/// What a suspended guest is, besides its memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GuestState {
    /// The version of the record.
    embedded_guest: u32,
    /// What kind of guest it is.
    pub spec: GuestSpec,
    /// The sum of the hashes of all its pages, as the guest kept it while it wrote them.
    pub checksum: u64,
    /// Where each thread stands.
    pub threads: Vec<Cursor>,
}

/// Where a thread of the workload stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cursor {
    /// How many pages it has written.
    pub written: u64,
    /// Its place in the ring.
    pub position: u64,
    /// The state of its dice.
    pub dice: u64,
}

impl GuestState {
    /// The state of a guest.
    #[must_use]
    pub fn new(spec: GuestSpec, checksum: u64, threads: Vec<Cursor>) -> Self {
        Self {
            embedded_guest: VERSION,
            spec,
            checksum,
            threads,
        }
    }

    /// The record's bytes.
    ///
    /// # Panics
    /// Never: numbers and strings always have a JSON form.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("numbers and strings have a JSON form")
    }

    /// Reads a record.
    ///
    /// # Errors
    /// [`StateError`] for anything but a record of this version, of a guest that can exist.
    pub fn decode(record: &[u8]) -> Result<Self, StateError> {
        if record.len() > MAX_LENGTH {
            return Err(StateError::TooLong(record.len()));
        }
        let state: Self = serde_json::from_slice(record).map_err(StateError::Text)?;
        if state.embedded_guest != VERSION {
            return Err(StateError::Version(state.embedded_guest));
        }
        state.spec.layout().map_err(StateError::Spec)?;
        if state.threads.len() != state.spec.workload.threads as usize {
            return Err(StateError::Threads);
        }
        Ok(state)
    }
}

/// The bytes are no state record of an embedded guest.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// Longer than any record.
    #[error("{0} bytes are no state record of an embedded guest")]
    TooLong(usize),
    /// Not JSON of the right form.
    #[error("Failed to read the state record of an embedded guest")]
    Text(#[source] serde_json::Error),
    /// Of another version.
    #[error("State record version {0} of an embedded guest is unknown")]
    Version(u32),
    /// The guest described cannot exist.
    #[error("The state record describes an impossible embedded guest")]
    Spec(#[source] super::spec::SpecError),
    /// Not as many cursors as threads.
    #[error("The state record's threads are not those of its workload")]
    Threads,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::Bytes;

    fn state() -> GuestState {
        let spec = GuestSpec::new("g", Bytes::from_mib(4));
        let cursor = Cursor {
            written: 7,
            position: 3,
            dice: u64::MAX,
        };
        GuestState::new(spec, u64::MAX - 1, vec![cursor])
    }

    #[test]
    fn a_record_is_read_as_written() {
        assert_eq!(
            GuestState::decode(&state().encode()).expect("a state"),
            state()
        );
    }

    #[test]
    fn damaged_records_are_refused() {
        let text = String::from_utf8(state().encode()).expect("text");
        for (from, to) in [
            ("\"embedded_guest\":1", "\"embedded_guest\":2"),
            ("\"span\":1024", "\"span\":0"),
            ("\"threads\":1", "\"threads\":2"),
            ("\"checksum\"", "\"check\""),
            ("}", ""),
        ] {
            let damaged = text.replace(from, to);
            assert_ne!(damaged, text);
            assert!(GuestState::decode(damaged.as_bytes()).is_err(), "{to}");
        }
    }
}
