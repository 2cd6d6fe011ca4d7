//! Which image is built on which: identities, and what an increment needs of the one before it.
//!
//! A full image stands alone. An increment holds the pages that were written since the cut of
//! another image of the same guest, its parent; the two, and what the parent is built on, are a
//! chain. The guest's dirty tracking stays on in between, or all of its memory is compared with that
//! of the chain.

use std::fmt;
use std::io;

use serde::{Deserialize, Serialize};

use crate::image::existing::Ranges;

/// Which image: made at random for each save, 32 hexadecimal digits. An image that was merged
/// out of a chain keeps that of the chain's last, whose content it has.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ImageId(String);

impl ImageId {
    /// One that no other image has.
    ///
    /// # Errors
    /// The kernel gives no random numbers.
    pub fn random() -> io::Result<Self> {
        let text = std::fs::read_to_string("/proc/sys/kernel/random/uuid")?;
        let text = text.trim().replace('-', "");
        Self::try_from(text).map_err(io::Error::other)
    }

    /// The digits.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for ImageId {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let digits = text
            .bytes()
            .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        if text.len() == 32 && digits {
            Ok(Self(text))
        } else {
            Err("the identity of an image has 32 hexadecimal digits")
        }
    }
}

impl From<ImageId> for String {
    fn from(id: ImageId) -> Self {
        id.0
    }
}

impl fmt::Display for ImageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What an increment says of the image that it is built on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parent {
    /// Which.
    pub id: ImageId,
    /// The name of its file when the increment was made.
    pub file: String,
    /// Its cut, RFC 3339 in UTC.
    pub cut: String,
    /// How many increments the increment's chain has, itself included.
    pub depth: u32,
}

/// The image that an increment is to be built on.
#[derive(Clone, Debug)]
pub struct Base {
    /// What the increment will say of it.
    pub parent: Parent,
    /// The pages that the guest had at its cut.
    pub pages: Ranges,
    /// The guest's writes have been tracked since; else its memory is compared.
    pub tracked: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identities_differ_and_nonsense_is_none() {
        let one = ImageId::random().expect("random");
        assert_ne!(one, ImageId::random().expect("random"));
        let json = serde_json::to_string(&one).expect("encoded");
        assert_eq!(serde_json::from_str::<ImageId>(&json).expect("read"), one);
        let short = "a".repeat(31);
        let foreign = "A".repeat(32);
        for text in ["", "../../etc/passwd", &short, &foreign] {
            assert!(
                serde_json::from_value::<ImageId>(text.into()).is_err(),
                "{text}"
            );
        }
    }
}
