//! What no test is forgiven, and what no test is blamed for.

use std::fmt;

/// Marks an error that tells of harm: a guest that does not run on as it was, an image that is not
/// what it says. A test that ends with one is not run again.
#[derive(Clone, Copy, Debug)]
pub struct Harm;

impl Harm {
    /// An error that says what was harmed.
    #[must_use]
    pub fn because(self, what: String) -> anyhow::Error {
        anyhow::Error::msg(what).context(self)
    }
}

/// Marks an error that says why a test is not run on this Xen. It counts neither as passed nor as
/// failed.
#[derive(Clone, Copy, Debug)]
pub struct NotHere;

impl NotHere {
    /// An error that says why.
    #[must_use]
    pub fn because(self, what: &str) -> anyhow::Error {
        anyhow::Error::msg(what.to_owned()).context(self)
    }
}

impl fmt::Display for NotHere {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not here")
    }
}

impl fmt::Display for Harm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HARM")
    }
}
