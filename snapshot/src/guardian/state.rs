//! What of a guest may have to be put right.

/// How far the guest has been stopped.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Stop {
    /// Not at all.
    #[default]
    No,
    /// It may have been asked to suspend, and may do so at any time.
    Requested,
    /// It has suspended and waits for us.
    Suspended,
    /// It runs on, and others may not have been told.
    Resumed,
}

/// How the guest has been slowed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Slowed {
    /// Not at all.
    #[default]
    No,
    /// It may have a CPU cap of ours: see [`super::Caps`].
    Capped,
    /// It may have been paused by us, once: noted for each pause anew.
    Pulsing,
}

/// How far its disks are.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum DiskState {
    /// Nothing was done about them.
    #[default]
    No,
    /// Something may have been made for an image that is not there yet.
    Made,
    /// They may be held: the guest's I/O waits.
    Held,
}

/// What of a guest may have to be put right if the save ends now. Written before a step that adds
/// to it, and after one that takes away.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct State {
    /// Its dirty tracking may be on through us.
    pub tracking: bool,
    /// How far it is stopped.
    pub stop: Stop,
    /// How it is slowed.
    pub slowed: Slowed,
    /// How far its disks are.
    pub disks: DiskState,
}

impl State {
    /// Nothing is to be put right.
    pub const NONE: Self = Self {
        tracking: false,
        stop: Stop::No,
        slowed: Slowed::No,
        disks: DiskState::No,
    };

    /// All that one byte can tell, so that a step is told at once or not at all.
    pub(super) fn to_byte(self) -> u8 {
        let slowed = match self.slowed {
            Slowed::No => 0,
            Slowed::Capped => 1,
            Slowed::Pulsing => 2,
        };
        let stop = match self.stop {
            Stop::No => slowed * 6,
            Stop::Requested => slowed * 6 + 2,
            Stop::Suspended => slowed * 6 + 4,
            // Behind the others, which an earlier livesave may have noted.
            Stop::Resumed => 18 + slowed * 2,
        };
        let disks = match self.disks {
            DiskState::No => 0,
            DiskState::Made => 24,
            DiskState::Held => 48,
        };
        b'0' + disks + stop + u8::from(self.tracking)
    }

    pub(super) fn from_byte(byte: u8) -> Option<Self> {
        let code = byte.checked_sub(b'0')?;
        let disks = match code / 24 {
            0 => DiskState::No,
            1 => DiskState::Made,
            2 => DiskState::Held,
            _ => return None,
        };
        let code = code % 24;
        let (stop, slowed) = match (code / 2 % 3, code / 6) {
            (slowed, 3) => (Stop::Resumed, slowed),
            (0, slowed) => (Stop::No, slowed),
            (1, slowed) => (Stop::Requested, slowed),
            (_, slowed) => (Stop::Suspended, slowed),
        };
        let slowed = match slowed {
            0 => Slowed::No,
            1 => Slowed::Capped,
            2 => Slowed::Pulsing,
            _ => return None,
        };
        Some(Self {
            tracking: code % 2 == 1,
            stop,
            slowed,
            disks,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_state_is_a_byte_and_other_bytes_are_none() {
        let known: Vec<u8> = (0..=255)
            .filter(|&byte| {
                State::from_byte(byte).is_some_and(|state| {
                    assert_eq!(state.to_byte(), byte);
                    true
                })
            })
            .collect();
        assert_eq!(known, (b'0'..=b'w').collect::<Vec<_>>());
        assert_eq!(State::NONE.to_byte(), b'0');
    }
}
