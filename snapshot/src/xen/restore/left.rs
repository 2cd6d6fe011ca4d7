//! What a failed restore has left of the guest.

use std::fmt;

/// What is left, in words and as far as it matters for what the guest would use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Left {
    text: String,
    guest: bool,
}

impl Left {
    /// Nothing is left that uses the guest's disks.
    pub(super) fn nothing(text: impl Into<String>) -> Self {
        Self {
            text: text.into(),
            guest: false,
        }
    }

    /// A guest is left, or there is no telling.
    pub(super) fn guest(text: impl Into<String>) -> Self {
        Self {
            text: text.into(),
            guest: true,
        }
    }

    /// Whether there may be a guest that uses its disks.
    #[must_use]
    pub fn is_guest(&self) -> bool {
        self.guest
    }
}

impl fmt::Display for Left {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}
