//! How images are named: for people, and so that no two saves meet.
//!
//! Whose image it is stands in the image; nothing is read from its name.

use std::path::{Path, PathBuf};

use jiff::Timestamp;
use snapshot::image::SUFFIXES;
use snapshot::ports::Identity;

/// An encoded name is not longer, in bytes: file names have 255 at most, and time, number and the
/// surroundings of an unfinished file's name take some.
const LONGEST: usize = 140;

/// A name for a new image in a directory: NAME-20261124T034500Z.xl, with -2, -3 and so on before
/// the suffix if there is one of that second already. The saves of one guest follow each other
/// (each holds the domain's lock), and no two domains are encoded alike.
pub fn free_path(dir: &Path, identity: &Identity, now: Timestamp, suffix: &str) -> PathBuf {
    let stem = format!("{}-{}", encode(identity), now.strftime("%Y%m%dT%H%M%SZ"));
    let mut number = 1;
    loop {
        let stem = match number {
            1 => stem.clone(),
            more => format!("{stem}-{more}"),
        };
        let taken = |suffix: &&str| {
            dir.join(format!("{stem}{suffix}"))
                .symlink_metadata()
                .is_ok()
        };
        if !SUFFIXES.iter().any(taken) {
            return dir.join(format!("{stem}{suffix}"));
        }
        number += 1;
    }
}

/// A domain's name as a part of a file's: letters and digits of any script and `._-+@` stand for
/// themselves, all else is %XX for each byte, and so is a dot or a dash at the start. A name that
/// is too long is cut and its domain's UUID added.
pub fn encode(identity: &Identity) -> String {
    let mut text = String::new();
    for (n, c) in identity.name.chars().enumerate() {
        let plain = c.is_alphanumeric() || "._-+@".contains(c);
        let mut part = String::new();
        if plain && !(n == 0 && ".-".contains(c)) {
            part.push(c);
        } else {
            for byte in c.encode_utf8(&mut [0; 4]).bytes() {
                part.push_str(&format!("%{byte:02X}"));
            }
        }
        if text.len() + part.len() > LONGEST {
            return format!("{text}~{}", identity.uuid);
        }
        text.push_str(&part);
    }
    text
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn identity(name: &str) -> Identity {
        Identity {
            domid: 1,
            name: name.into(),
            uuid: "00112233-4455-6677-8899-aabbccddeeff".into(),
        }
    }

    fn at() -> Timestamp {
        "2026-11-24T03:45:00.9Z".parse().expect("a time")
    }

    #[test]
    fn the_name_tells_guest_and_time_and_stays_in_the_directory() {
        let dir = Path::new("/nowhere");
        for (name, want) in [
            ("db1", "db1-20261124T034500Z.xl"),
            ("../etc/x", "%2E.%2Fetc%2Fx-20261124T034500Z.xl"),
            (".hidden", "%2Ehidden-20261124T034500Z.xl"),
            ("-rf", "%2Drf-20261124T034500Z.xl"),
            ("a b%\n", "a%20b%25%0A-20261124T034500Z.xl"),
            ("größe", "größe-20261124T034500Z.xl"),
            ("a\u{202e}b", "a%E2%80%AEb-20261124T034500Z.xl"),
        ] {
            let path = free_path(dir, &identity(name), at(), ".xl");
            assert_eq!(path, dir.join(want));
        }
    }

    #[test]
    fn two_saves_in_a_second_have_names_of_their_own() {
        let dir = tempfile::tempdir().expect("directory");
        let mut seen = vec![];
        for suffix in [".xl", ".xl.zst", ".xl"] {
            let path = free_path(dir.path(), &identity("a"), at(), suffix);
            std::fs::write(&path, "").expect("written");
            seen.push(
                path.file_name()
                    .expect("a name")
                    .to_string_lossy()
                    .into_owned(),
            );
        }
        assert_eq!(
            seen,
            [
                "a-20261124T034500Z.xl",
                "a-20261124T034500Z-2.xl.zst",
                "a-20261124T034500Z-3.xl"
            ]
        );
    }

    #[test]
    fn no_two_names_are_encoded_alike_and_long_ones_fit() {
        let long = "x".repeat(139);
        let names = [
            "a/b",
            "a%2Fb",
            "a%b",
            "a b",
            "a_b",
            ".a",
            "%2Ea",
            &long,
            &format!("{long}yy"),
            &format!("{long}ä"),
            &"\u{1F600}".repeat(100),
        ]
        .map(identity);
        let mut encoded = HashSet::new();
        for (n, mut identity) in names.into_iter().enumerate() {
            identity.uuid = format!("00112233-4455-6677-8899-{n:012x}");
            let text = encode(&identity);
            let path = free_path(Path::new("."), &identity, at(), ".xl.zst");
            let unfinished = snapshot::image::file::partial_name(&path).expect("a name");
            assert!(unfinished.file_name().expect("a name").len() <= 255);
            assert!(encoded.insert(text), "{:?}", identity.name);
        }
    }
}
