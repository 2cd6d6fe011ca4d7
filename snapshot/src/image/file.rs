//! A file that appears whole or not at all.
//!
//! Where the file system can, the image has no name at all until it is complete (`O_TMPFILE`), so
//! that not even a kill -9 leaves a partial file; elsewhere it has a temporary name beside the
//! final one, taken away when the save fails.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Mode, OFlags, RenameFlags};

use crate::fault;
use crate::ports::Finished;
use crate::units::Bytes;

/// Whether a file that stands under the final name may be replaced.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Existing {
    /// It is kept, and the save refused.
    Keep,
    /// It is replaced, in one step, once the new image is complete.
    Replace,
}

/// The name that an unfinished file for `target` has while it has one; for a guardian to remove.
///
/// # Errors
/// As [`PendingFile::create`], where there is no such directory.
pub fn partial_name(target: &Path) -> io::Result<PathBuf> {
    let (parent, name) = split(target)?;
    Ok(temporary_name(&parent.canonicalize()?.join(name)))
}

/// Directory and name of a file.
fn split(target: &Path) -> io::Result<(&Path, &OsStr)> {
    let name = target
        .file_name()
        .ok_or_else(|| invalid("it does not end in a file name"))?;
    let parent = match target.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    Ok((parent, name))
}

/// A file being written; dropped without [`PendingFile::publish`] it leaves nothing.
#[derive(Debug)]
pub struct PendingFile {
    file: File,
    directory: File,
    target: PathBuf,
    /// The temporary name, where the file has one.
    temporary: Option<PathBuf>,
    existing: Existing,
}

impl PendingFile {
    /// Opens a new file, mode 0600, that is to appear as `target`.
    ///
    /// # Errors
    /// `NotFound` without the directory; `AlreadyExists` with `Existing::Keep`; `InvalidInput` for
    /// a name that no file can have, or a directory that anybody may rename files in; else what
    /// the system says.
    pub fn create(target: &Path, existing: Existing) -> io::Result<Self> {
        let (parent, name) = split(target)?;
        let directory = File::open(parent)?;
        let metadata = directory.metadata()?;
        if !metadata.is_dir() {
            return Err(io::ErrorKind::NotADirectory.into());
        }
        if metadata.mode() & 0o1002 == 0o002 {
            return Err(invalid(
                "anybody may replace files in its directory (mode o+w)",
            ));
        }
        // Absolute, so that a later change of directory cannot move the target.
        let target = parent.canonicalize()?.join(name);
        match target.symlink_metadata() {
            Ok(found) if !found.is_file() => {
                return Err(invalid("something that is not a plain file has that name"));
            }
            Ok(_) if existing == Existing::Keep => {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let (file, temporary) = open(&directory, &target)?;
        Ok(Self {
            file,
            directory,
            target,
            temporary,
            existing,
        })
    }

    /// The file.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.file
    }

    /// A second file for the same final name, to be published instead of this one. `None` where
    /// unfinished files need names: a kill would leave it.
    ///
    /// # Errors
    /// What the system says.
    pub fn another(&self) -> io::Result<Option<Self>> {
        if self.temporary.is_some() {
            return Ok(None);
        }
        let (file, temporary) = open(&self.directory, &self.target)?;
        Ok(Some(Self {
            file,
            directory: self.directory.try_clone()?,
            target: self.target.clone(),
            temporary,
            existing: self.existing,
        }))
    }

    /// An empty file beside it that never has a name.
    ///
    /// # Errors
    /// What the system says.
    pub fn scratch(&self) -> io::Result<File> {
        let mode = Mode::RUSR | Mode::WUSR;
        let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::TMPFILE;
        if self.temporary.is_none() {
            return Ok(rustix::fs::openat(&self.directory, ".", flags, mode)?.into());
        }
        let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::CREATE | OFlags::EXCL;
        let name = temporary_name(&self.target).with_extension("scratch");
        let file = rustix::fs::open(&name, flags, mode)?;
        std::fs::remove_file(&name)?;
        Ok(file.into())
    }

    /// The final name, absolute.
    #[must_use]
    pub fn target(&self) -> &Path {
        &self.target
    }

    /// Makes the content durable. May take long.
    ///
    /// # Errors
    /// What the system says.
    pub fn sync(&self) -> io::Result<()> {
        fault::call("fsync")?;
        self.file.sync_all()
    }

    /// What it takes.
    ///
    /// # Errors
    /// What the system says.
    pub fn finished(&self) -> io::Result<Finished> {
        /// Of `st_blocks`, whatever the file system's.
        const BLOCK: u64 = 512;
        let metadata = self.file.metadata()?;
        Ok(Finished {
            size: Bytes(metadata.len()),
            allocated: Bytes(metadata.blocks() * BLOCK),
        })
    }

    /// Gives the file its final name and makes that durable.
    ///
    /// # Errors
    /// What the system says; `AlreadyExists` if meanwhile somebody took the name and it is not to
    /// be replaced. On an error the final name is as it was, but for one: where a file was to be
    /// replaced and was, and the directory could not be written to disk, the new file stands.
    pub fn publish(&mut self) -> io::Result<()> {
        if self.temporary.is_none() {
            let name = match self.existing {
                Existing::Keep => self.target.clone(),
                Existing::Replace => temporary_name(&self.target),
            };
            fault::call("link")?;
            let source = format!("/proc/self/fd/{}", fd_number(&self.file));
            rustix::fs::linkat(
                rustix::fs::CWD,
                source,
                rustix::fs::CWD,
                &name,
                AtFlags::SYMLINK_FOLLOW,
            )?;
            if self.existing == Existing::Replace {
                self.temporary = Some(name);
            }
        }
        if let Some(temporary) = &self.temporary {
            fault::call("rename")?;
            match self.existing {
                Existing::Keep => rename_to_free_name(temporary, &self.target)?,
                Existing::Replace => std::fs::rename(temporary, &self.target)?,
            }
            self.temporary = None;
        }
        let durable = fault::call("fsync-directory").and_then(|()| self.directory.sync_all());
        if durable.is_err() && self.existing == Existing::Keep {
            // It would be there now and perhaps not after a power failure: better not at all.
            let _ = std::fs::remove_file(&self.target);
        }
        durable
    }
}

impl Drop for PendingFile {
    fn drop(&mut self) {
        if let Some(temporary) = &self.temporary {
            // Nobody is left to tell; the name shows that it is a remnant.
            let _ = std::fs::remove_file(temporary);
        }
    }
}

fn invalid(why: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, why)
}

fn fd_number(file: &File) -> i32 {
    use std::os::fd::AsRawFd;
    file.as_fd().as_raw_fd()
}

fn temporary_name(target: &Path) -> PathBuf {
    let name = target.file_name().unwrap_or_default().to_string_lossy();
    target.with_file_name(format!(".{name}.livesave-{}.partial", std::process::id()))
}

/// Whether to do as if no file system could hold files without a name; in a build for tests only.
fn lacks_unnamed_files() -> bool {
    cfg!(feature = "fault-points") && std::env::var_os("LIVESAVE_NO_TMPFILE").is_some()
}

fn open(directory: &File, target: &Path) -> io::Result<(File, Option<PathBuf>)> {
    let mode = Mode::RUSR | Mode::WUSR;
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    let unnamed = if lacks_unnamed_files() {
        Err(rustix::io::Errno::OPNOTSUPP)
    } else {
        rustix::fs::openat(directory, ".", flags | OFlags::TMPFILE, mode)
    };
    match unnamed {
        Ok(fd) => return Ok((locked(fd.into()), None)),
        // What file systems and kernels without it answer.
        Err(
            rustix::io::Errno::OPNOTSUPP
            | rustix::io::Errno::ISDIR
            | rustix::io::Errno::INVAL
            | rustix::io::Errno::NOENT,
        ) => {}
        Err(error) => return Err(error.into()),
    }
    let temporary = temporary_name(target);
    fault::point("name");
    let fd = rustix::fs::open(&temporary, flags | OFlags::CREATE | OFlags::EXCL, mode)?;
    Ok((locked(fd.into()), Some(temporary)))
}

/// Locks a file until it is closed, so that those who find a partial one can tell whether its save
/// lives. Where the file system knows no locks they cannot, and leave it.
fn locked(file: File) -> File {
    let _ = file.try_lock();
    file
}

/// Renames without replacing, also where the file system cannot do both in one step.
fn rename_to_free_name(from: &Path, to: &Path) -> io::Result<()> {
    let cwd = rustix::fs::CWD;
    match rustix::fs::renameat_with(cwd, from, cwd, to, RenameFlags::NOREPLACE) {
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => {
            std::fs::hard_link(from, to)?;
            std::fs::remove_file(from)
        }
        done => Ok(done?),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn entries(directory: &Path) -> Vec<String> {
        let mut names: Vec<_> = std::fs::read_dir(directory)
            .expect("directory")
            .map(|e| e.expect("entry").file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn it_appears_whole_with_mode_0600() {
        let dir = tempfile::tempdir().expect("directory");
        let target = dir.path().join("image");
        let mut pending = PendingFile::create(&target, Existing::Keep).expect("created");
        pending.file().write_all(b"content").expect("written");
        assert!(!target.exists());
        pending.publish().expect("published");
        drop(pending);
        assert_eq!(std::fs::read(&target).expect("read"), b"content");
        let mode = target.metadata().expect("metadata").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(entries(dir.path()), ["image"]);
    }

    #[test]
    fn dropped_it_leaves_nothing_named_or_not() {
        let dir = tempfile::tempdir().expect("directory");
        let target = dir.path().join("image");
        drop(PendingFile::create(&target, Existing::Keep).expect("created"));
        let mut named = PendingFile::create(&target, Existing::Keep).expect("created");
        let temporary = temporary_name(&target);
        std::fs::write(&temporary, b"half").expect("written");
        named.temporary = Some(temporary);
        drop(named);
        assert_eq!(entries(dir.path()), Vec::<String>::new());
    }

    #[test]
    fn it_is_locked_while_it_is_written() {
        let dir = tempfile::tempdir().expect("directory");
        let target = dir.path().join("image");
        let mut pending = PendingFile::create(&target, Existing::Keep).expect("created");
        pending.publish().expect("published");
        let other = File::open(&target).expect("opened");
        assert!(other.try_lock().is_err());
        drop(pending);
        other.try_lock().expect("free");
    }

    #[test]
    fn an_existing_image_is_kept_or_replaced_in_one_step() {
        let dir = tempfile::tempdir().expect("directory");
        let target = dir.path().join("image");
        std::fs::write(&target, b"old").expect("written");
        let refused = PendingFile::create(&target, Existing::Keep).expect_err("refused");
        assert_eq!(refused.kind(), io::ErrorKind::AlreadyExists);
        let mut pending = PendingFile::create(&target, Existing::Replace).expect("created");
        pending.file().write_all(b"new").expect("written");
        assert_eq!(std::fs::read(&target).expect("read"), b"old");
        pending.publish().expect("published");
        assert_eq!(std::fs::read(&target).expect("read"), b"new");
        assert_eq!(entries(dir.path()), ["image"]);
    }

    #[test]
    fn a_name_taken_meanwhile_is_not_overwritten() {
        let dir = tempfile::tempdir().expect("directory");
        for named in [false, true] {
            let target = dir.path().join("image");
            let mut pending = PendingFile::create(&target, Existing::Keep).expect("created");
            if named {
                let temporary = temporary_name(&target);
                std::fs::write(&temporary, b"new").expect("written");
                pending.temporary = Some(temporary);
            }
            std::fs::write(&target, b"other").expect("written");
            let refused = pending.publish().expect_err("refused");
            assert_eq!(refused.kind(), io::ErrorKind::AlreadyExists);
            drop(pending);
            assert_eq!(std::fs::read(&target).expect("read"), b"other");
            assert_eq!(entries(dir.path()), ["image"]);
            std::fs::remove_file(&target).expect("removed");
        }
    }

    #[test]
    fn second_files_and_scratch_files_leave_no_names() {
        let dir = tempfile::tempdir().expect("directory");
        let target = dir.path().join("image");
        let first = PendingFile::create(&target, Existing::Keep).expect("created");
        first.scratch().expect("created");
        let mut second = first.another().expect("created").expect("no names here");
        second.file().write_all(b"second").expect("written");
        drop(first);
        assert_eq!(entries(dir.path()), Vec::<String>::new());
        second.publish().expect("published");
        assert_eq!(std::fs::read(&target).expect("read"), b"second");
        std::fs::remove_file(&target).expect("removed");

        let mut named = PendingFile::create(&target, Existing::Keep).expect("created");
        let temporary = temporary_name(&target);
        std::fs::write(&temporary, b"half").expect("written");
        named.temporary = Some(temporary);
        named.scratch().expect("created");
        assert!(named.another().expect("asked").is_none());
        drop(named);
        assert_eq!(entries(dir.path()), Vec::<String>::new());
    }

    #[test]
    fn bad_places_are_refused() {
        let dir = tempfile::tempdir().expect("directory");
        let kind = |path: &Path| {
            PendingFile::create(path, Existing::Replace)
                .expect_err("refused")
                .kind()
        };
        assert_eq!(
            kind(&dir.path().join("missing/image")),
            io::ErrorKind::NotFound
        );
        assert_eq!(kind(Path::new("/")), io::ErrorKind::InvalidInput);
        assert_eq!(kind(Path::new("/dev/null")), io::ErrorKind::InvalidInput);
        let open = dir.path().join("open");
        std::fs::create_dir(&open).expect("created");
        std::fs::set_permissions(&open, PermissionsExt::from_mode(0o777)).expect("opened up");
        assert_eq!(kind(&open.join("image")), io::ErrorKind::InvalidInput);
    }
}
