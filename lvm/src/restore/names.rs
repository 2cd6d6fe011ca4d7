//! Names for new volumes.

use std::io;

use super::error::RestoreError;

/// The tag of volumes that a restore has made.
pub const RESTORED: &str = "livesave.restored";

/// What a new volume's name has between that of the volume it takes the place of and a number.
const MARK: &str = ".restored-";
/// LVM takes 127 bytes, and device-mapper counts the group's name and doubles each `-` in it.
const LONGEST: usize = 60;

/// A name like `root.restored-1a2b3c4d` for a volume that takes the place of `origin`.
pub(super) fn restored(origin: &str) -> Result<String, RestoreError> {
    // The place of one that a restore has made, too.
    let base = match origin.rsplit_once(MARK) {
        Some((base, number)) if !base.is_empty() && is_number(number) => base,
        _ => origin,
    };
    beside(base, MARK)
}

/// The name `origin` with `mark` and a number of its own.
pub(super) fn beside(origin: &str, mark: &str) -> Result<String, RestoreError> {
    let base: String = origin.chars().take(LONGEST).collect();
    let mut number = [0; 4];
    getrandom::fill(&mut number)
        .map_err(|error| RestoreError::Random(io::Error::other(error.to_string())))?;
    Ok(format!("{base}{mark}{:08x}", u32::from_le_bytes(number)))
}

/// Whether LVM would take it as the name of a group or a volume.
pub(super) fn is_name(name: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"+_.-".contains(&byte);
    (1..128).contains(&name.len())
        && name.bytes().all(fits)
        && !name.starts_with('-')
        && ![".", ".."].contains(&name)
}

fn is_number(text: &str) -> bool {
    text.len() == 8 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_name_tells_the_old_one() {
        let name = restored("root").expect("a name");
        let number = name.strip_prefix("root.restored-").expect("the old one");
        assert!(is_number(number), "{name}");
        assert_ne!(name, restored("root").expect("a name"));
        let again = restored(&name).expect("a name");
        assert_eq!(again.len(), name.len(), "{again}");
        let long = restored(&"x".repeat(127)).expect("a name");
        assert!(is_name(&long) && long.len() == 60 + MARK.len() + 8);
    }

    #[test]
    fn what_is_no_name_is_known() {
        for name in [
            "",
            "-f",
            ".",
            "..",
            "a/b",
            "a b",
            "a\n",
            "ä",
            &"x".repeat(128),
        ] {
            assert!(!is_name(name), "{name:?}");
        }
        assert!(is_name("root-1.x_y+z"));
    }
}
