//! The tags that tie a snapshot to its image, in LVM's own metadata.
//!
//! `livesave` on all of them, `livesave.id=…` for the image's identity, `livesave.image=…` for where
//! it was written, and until the image has its name `livesave.unfinished=PID.STARTTIME`, the process
//! that makes it.

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// On every snapshot of ours.
pub const OURS: &str = "livesave";
const ID: &str = "livesave.id=";
const IMAGE: &str = "livesave.image=";
const UNFINISHED: &str = "livesave.unfinished=";
/// LVM takes no longer tag.
const LONGEST: usize = 1024;

/// What the tags of a snapshot say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tagged {
    /// The image's identity.
    pub id: String,
    /// Where the image was written; `None` where the path is too long for a tag.
    pub image: Option<PathBuf>,
    /// The process that makes the image, if it is not finished: its number and when it began.
    pub unfinished: Option<String>,
}

impl Tagged {
    /// What the tags of a volume say; `None` if it is no snapshot of ours.
    #[must_use]
    pub fn of(tags: &[String]) -> Option<Self> {
        let value = |name: &str| tags.iter().find_map(|tag| tag.strip_prefix(name));
        tags.iter().find(|tag| *tag == OURS)?;
        Some(Self {
            id: value(ID)?.to_owned(),
            image: value(IMAGE).and_then(unescape),
            unfinished: value(UNFINISHED).map(str::to_owned),
        })
    }

    /// Whether the process that makes the image is at work.
    #[must_use]
    pub fn is_being_made(&self) -> bool {
        let Some((pid, began)) = self.unfinished.as_ref().and_then(|tag| tag.split_once('.'))
        else {
            return false;
        };
        pid.parse().ok().and_then(start_time).as_deref() == Some(began)
    }
}

/// The tags of a snapshot that this process makes for an image.
#[must_use]
pub fn of_image(id: &str, image: &Path) -> Vec<String> {
    let mut tags = vec![OURS.to_owned(), format!("{ID}{id}"), unfinished()];
    let path = format!("{IMAGE}{}", escape(image));
    if path.len() <= LONGEST {
        tags.push(path);
    }
    tags
}

/// The tag of what this process has not finished.
#[must_use]
pub fn unfinished() -> String {
    let pid = std::process::id();
    let began = start_time(pid).unwrap_or_default();
    format!("{UNFINISHED}{pid}.{began}")
}

/// Whether that is such a tag, of any process.
#[must_use]
pub fn is_unfinished(tag: &str) -> bool {
    tag.starts_with(UNFINISHED)
}

/// When a process was started, in the kernel's ticks; `None` if there is none.
fn start_time(pid: u32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // Behind the program's name, which may hold anything: state is field 3, the start is field 22.
    let (_, rest) = stat.rsplit_once(") ")?;
    rest.split(' ').nth(19).map(str::to_owned)
}

/// LVM takes letters, digits and `_+.-/=!:&#` in a tag; others are written as `#XX`.
#[must_use]
pub fn escape(path: &Path) -> String {
    let bytes = path.as_os_str().as_bytes().iter();
    let mut text = String::new();
    for &byte in bytes {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' | b'+' | b'.' | b'-' | b'/' | b'=' => {
                text.push(byte.into());
            }
            _ => text.push_str(&format!("#{byte:02x}")),
        }
    }
    text
}

/// The path that was escaped.
#[must_use]
pub fn unescape(text: &str) -> Option<PathBuf> {
    let mut bytes = vec![];
    let mut rest = text.as_bytes();
    while let [first, more @ ..] = rest {
        rest = more;
        if *first == b'#' {
            let (hex, more) = more.split_at_checked(2)?;
            bytes.push(u8::from_str_radix(str::from_utf8(hex).ok()?, 16).ok()?);
            rest = more;
        } else {
            bytes.push(*first);
        }
    }
    Some(OsString::from_vec(bytes).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_tagged_is_read() {
        for path in ["/images/db 1,ä#@\n.xl", "/a"] {
            let tags = of_image("0f0f", Path::new(path));
            let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_+.-/=!:&#".contains(&byte);
            assert!(tags.iter().all(|tag| tag.bytes().all(allowed)), "{tags:?}");
            let tagged = Tagged::of(&tags).expect("ours");
            assert_eq!(tagged.id, "0f0f");
            assert_eq!(tagged.image.as_deref(), Some(Path::new(path)));
            assert!(tagged.is_being_made());
        }
        let long = PathBuf::from(format!("/{}", "x".repeat(1100)));
        assert_eq!(Tagged::of(&of_image("1", &long)).expect("ours").image, None);
    }

    #[test]
    fn others_are_not_ours_and_the_dead_make_nothing() {
        let of =
            |tags: &[&str]| Tagged::of(&tags.iter().map(|&tag| tag.into()).collect::<Vec<_>>());
        assert_eq!(of(&[]), None);
        assert_eq!(of(&["livesave.id=1"]), None);
        assert_eq!(of(&["livesave"]), None);
        let finished = of(&["x", "livesave.id=1", "livesave"]).expect("ours");
        assert!(!finished.is_being_made());
        // A process of that number that began at another time.
        let tag = format!("livesave.unfinished={}.1", std::process::id());
        assert!(
            !of(&["livesave", "livesave.id=1", &tag])
                .expect("ours")
                .is_being_made()
        );
    }
}
