//! One livesave per guest to be restored: what one has half built, another that fails must not take
//! for its own.

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use super::RestoreError;
use super::identity::is_name;
use super::refusal::Refusal;

/// The right to restore a guest of one name; the kernel frees that of a dead process.
#[derive(Debug)]
pub(super) struct NameLock {
    _file: File,
}

impl NameLock {
    /// Takes the lock of a name; its file stands in `directory`.
    pub fn take(directory: &Path, name: &str) -> Result<Self, RestoreError> {
        let path = directory.join(format!("restore-{}", file_name(name)));
        let failed = |source| RestoreError::Lock {
            path: path.clone(),
            source,
        };
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .map_err(failed)?;
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(failed)?;
        match file.try_lock() {
            Ok(()) => Ok(Self { _file: file }),
            Err(TryLockError::WouldBlock) => Err(Refusal::BeingRestored(name.to_owned()).into()),
            Err(TryLockError::Error(error)) => Err(failed(error)),
        }
    }
}

/// A name that a file can have. Two names that become one only wait for each other in vain.
fn file_name(name: &str) -> String {
    if is_name(name) {
        return name.to_owned();
    }
    name.chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '_' })
        .take(100)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_locked_once() {
        let directory = tempfile::tempdir().expect("directory");
        let take = |name| NameLock::take(&directory.path().join("new"), name);
        for name in ["web1", "../../odd name", &"long".repeat(100)] {
            let first = take(name).expect("the lock");
            let second = take(name).expect_err("taken");
            assert!(matches!(
                second,
                RestoreError::Refused(Refusal::BeingRestored(_))
            ));
            take("web2").expect("another one");
            drop(first);
            take(name).expect("free again");
        }
        let entries = std::fs::read_dir(directory.path()).expect("directory");
        assert_eq!(entries.count(), 1, "something was put beside it");
    }
}
