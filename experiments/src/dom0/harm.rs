//! What no test is forgiven.

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

impl fmt::Display for Harm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HARM")
    }
}
