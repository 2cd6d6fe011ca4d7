//! A disk's content as a zstd file.

use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use snapshot::ports::Cancel;
use snapshot::units::Bytes;

/// Read at a time.
const BLOCK: usize = 1 << 20;
/// Zero blocks take next to nothing at any level; the rest is not to hold the disk up.
const LEVEL: i32 = 1;

/// A disk could not be copied.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// Reading or writing failed.
    #[error("Failed to {operation} {path}")]
    Io {
        /// What was being done, to stand after "failed to".
        operation: &'static str,
        /// To what.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The device has less than it should.
    #[error("{device} ended after {done} of {size}")]
    Short {
        /// The device.
        device: PathBuf,
        /// What was read.
        done: Bytes,
        /// Its size.
        size: Bytes,
    },
    /// The user asked to stop.
    #[error("Interrupted by signal {0}")]
    Interrupted(i32),
}

/// Copies `size` bytes of a device to a new file, durably. Only its owner may read it: it holds what
/// is on a guest's disk. A file that was not finished is removed.
///
/// # Errors
/// [`CopyError`].
pub fn copy(
    device: &Path,
    size: Bytes,
    to: &Path,
    cancel: &Cancel,
    progress: &mut dyn FnMut(Bytes),
) -> Result<(), CopyError> {
    let from = File::open(device).map_err(failed("open", device))?;
    let file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(to)
        .map_err(failed("create", to))?;
    let copied = fill(from, device, size, file, to, cancel, progress);
    if copied.is_err() {
        let _ = std::fs::remove_file(to);
    }
    copied
}

/// What went wrong while this was done to that.
fn failed(operation: &'static str, path: &Path) -> impl Fn(io::Error) -> CopyError {
    move |source| CopyError::Io {
        operation,
        path: path.to_owned(),
        source,
    }
}

fn fill(
    from: File,
    device: &Path,
    size: Bytes,
    file: File,
    to: &Path,
    cancel: &Cancel,
    progress: &mut dyn FnMut(Bytes),
) -> Result<(), CopyError> {
    let mut from = BufReader::with_capacity(BLOCK, from).take(size.0);
    let mut encoder = zstd::Encoder::new(file, LEVEL).map_err(failed("write", to))?;
    encoder
        .include_checksum(true)
        .and_then(|()| encoder.set_pledged_src_size(Some(size.0)))
        .map_err(failed("write", to))?;
    let (mut block, mut done) = (vec![0; BLOCK], Bytes(0));
    loop {
        if let Some(signal) = cancel.raised() {
            return Err(CopyError::Interrupted(signal));
        }
        let got = from.read(&mut block).map_err(failed("read", device))?;
        if got == 0 {
            break;
        }
        encoder
            .write_all(&block[..got])
            .map_err(failed("write", to))?;
        done.0 += got as u64;
        progress(done);
    }
    if done != size {
        let device = device.to_owned();
        return Err(CopyError::Short { device, done, size });
    }
    let file = encoder.finish().map_err(failed("write", to))?;
    file.sync_all().map_err(failed("make durable", to))?;
    // Its name too.
    let directory = to.parent().filter(|parent| !parent.as_os_str().is_empty());
    let directory = directory.unwrap_or(Path::new("."));
    File::open(directory)
        .and_then(|directory| directory.sync_all())
        .map_err(failed("make durable", directory))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_is_a_zstd_file_of_the_content() {
        let directory = tempfile::tempdir().expect("directory");
        let (device, to) = (directory.path().join("disk"), directory.path().join("copy"));
        let mut content = vec![0; 3 * BLOCK + 4096];
        content[BLOCK..BLOCK + 9].copy_from_slice(b"something");
        std::fs::write(&device, &content).expect("written");
        let size = Bytes(content.len() as u64);
        let mut told = vec![];
        copy(&device, size, &to, &Cancel::new(), &mut |done| {
            told.push(done);
        })
        .expect("copied");
        assert_eq!(told.last(), Some(&size));
        let file = std::fs::read(&to).expect("read");
        assert!(file.len() < 4096, "{} bytes", file.len());
        assert_eq!(zstd::decode_all(&file[..]).expect("zstd"), content);
        // Never over another.
        let again = copy(&device, size, &to, &Cancel::new(), &mut |_| ());
        assert!(matches!(
            again,
            Err(CopyError::Io {
                operation: "create",
                ..
            })
        ));
        assert_eq!(std::fs::read(&to).expect("read"), file);
    }

    #[test]
    fn one_that_fails_leaves_no_file() {
        let directory = tempfile::tempdir().expect("directory");
        let (device, to) = (directory.path().join("disk"), directory.path().join("copy"));
        std::fs::write(&device, [1; 5000]).expect("written");
        let short = copy(&device, Bytes(5001), &to, &Cancel::new(), &mut |_| ());
        assert!(matches!(short, Err(CopyError::Short { .. })), "{short:?}");
        let cancel = Cancel::new();
        cancel.raise(15);
        let stopped = copy(&device, Bytes(5000), &to, &cancel, &mut |_| ());
        assert!(
            matches!(stopped, Err(CopyError::Interrupted(15))),
            "{stopped:?}"
        );
        assert!(!to.exists());
    }
}
