//! A disk's content into a volume, block by block.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use snapshot::ports::Cancel;
use snapshot::units::Bytes;

use super::error::Failure;

/// Read and written at once.
const BLOCK: usize = 1 << 20;

/// What becomes of blocks of zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Zeros {
    /// They are written: something else may stand there.
    Write,
    /// They are left out: a new thin volume is zero, and they would take room.
    Skip,
}

/// Counts what was copied and looks whether the user wants to stop.
pub(super) struct Progress<'a> {
    pub cancel: &'a Cancel,
    pub done: Bytes,
    pub total: Bytes,
    pub tell: &'a mut dyn FnMut(Bytes, Bytes),
}

impl Progress<'_> {
    fn step(&mut self, copied: usize) -> Result<(), Failure> {
        self.done += Bytes(copied as u64);
        (self.tell)(self.done, self.total);
        self.stop()
    }

    /// An error if the user wants to stop.
    pub fn stop(&self) -> Result<(), Failure> {
        self.cancel
            .raised()
            .map_or(Ok(()), |signal| Err(Failure::Cancelled(signal)))
    }
}

/// Copies a device to another, durably.
pub(super) fn device(
    from: &Path,
    to: &Path,
    size: Bytes,
    progress: &mut Progress<'_>,
) -> Result<(), Failure> {
    let failed = |source| Failure::Copy {
        from: from.to_owned(),
        to: to.to_owned(),
        source,
    };
    let mut source = File::open(from).map_err(failed)?;
    let target = open(to).map_err(failed)?;
    let mut block = vec![0; BLOCK];
    let mut at = 0;
    while let Some(part) = next(&mut source, &mut block, size.0 - at).map_err(failed)? {
        target.write_all_at(part, at).map_err(failed)?;
        at += part.len() as u64;
        progress.step(part.len())?;
    }
    target.sync_all().map_err(failed)
}

/// Writes a zstd file's content to a device, durably.
pub(super) fn unpack(
    file: &Path,
    to: &Path,
    size: Bytes,
    zeros: Zeros,
    progress: &mut Progress<'_>,
) -> Result<(), Failure> {
    let failed = |source| Failure::Copy {
        from: file.to_owned(),
        to: to.to_owned(),
        source,
    };
    let target = open(to).map_err(failed)?;
    each_block(file, size, failed, |part, at| {
        if zeros == Zeros::Write || part.iter().any(|&byte| byte != 0) {
            target.write_all_at(part, at).map_err(failed)?;
        }
        progress.step(part.len())
    })?;
    target.sync_all().map_err(failed)
}

/// Reads a zstd file to its end: that it is whole, and of that size.
pub(super) fn check(file: &Path, size: Bytes, progress: &mut Progress<'_>) -> Result<(), Failure> {
    let failed = |source| Failure::BadCopy {
        file: file.to_owned(),
        source,
    };
    each_block(file, size, failed, |part, _| progress.step(part.len()))
}

fn each_block(
    file: &Path,
    size: Bytes,
    failed: impl Fn(io::Error) -> Failure + Copy,
    mut with: impl FnMut(&[u8], u64) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let source = File::open(file).map_err(failed)?;
    let mut source = zstd::stream::read::Decoder::new(source).map_err(failed)?;
    let mut block = vec![0; BLOCK];
    let mut at = 0;
    while let Some(part) = next(&mut source, &mut block, size.0 - at).map_err(failed)? {
        with(part, at)?;
        at += part.len() as u64;
    }
    // Its end also has the last checksum.
    match source.read(&mut block).map_err(failed)? {
        0 => Ok(()),
        _ => Err(failed(io::Error::new(
            ErrorKind::InvalidData,
            "it holds more than the disk had",
        ))),
    }
}

/// The next whole block, or what is left of the disk; none at its end.
fn next<'b>(
    source: &mut impl Read,
    block: &'b mut [u8],
    left: u64,
) -> io::Result<Option<&'b mut [u8]>> {
    let length = usize::try_from(left).unwrap_or(BLOCK).min(BLOCK);
    let part = &mut block[..length];
    if part.is_empty() {
        return Ok(None);
    }
    source.read_exact(part)?;
    Ok(Some(part))
}

/// To be written to by nobody else who asks as politely: a mounted file system.
fn open(to: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).custom_flags(libc::O_EXCL).open(to)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: Bytes = Bytes(3 * BLOCK as u64 + 4096);

    /// Two blocks with content, one of zeros, and a rest.
    fn content() -> Vec<u8> {
        let mut content = vec![7; SIZE.0 as usize];
        content[BLOCK..2 * BLOCK].fill(0);
        content
    }

    fn run(work: impl FnOnce(&Path, &mut Progress<'_>) -> Result<(), Failure>) -> Vec<u64> {
        let directory = tempfile::tempdir().expect("directory");
        let mut told = vec![];
        let cancel = Cancel::new();
        let mut progress = Progress {
            cancel: &cancel,
            done: Bytes(0),
            total: SIZE,
            tell: &mut |done, _| told.push(done.0),
        };
        work(directory.path(), &mut progress).expect("done");
        told
    }

    #[test]
    fn a_device_is_copied_whole() {
        let told = run(|dir, progress| {
            let (from, to) = (dir.join("from"), dir.join("to"));
            std::fs::write(&from, content()).expect("written");
            std::fs::write(&to, "old").expect("written");
            device(&from, &to, SIZE, progress)?;
            assert!(std::fs::read(&to).expect("read") == content());
            let more = Bytes(SIZE.0 + 1);
            let short = device(&from, &to, more, progress).expect_err("too short");
            assert!(matches!(short, Failure::Copy { .. }));
            Ok(())
        });
        assert_eq!(told[3], SIZE.0);
    }

    #[test]
    fn zeros_take_no_room_where_none_are_wanted() {
        run(|dir, progress| {
            let (from, to) = (dir.join("from"), dir.join("to"));
            let packed = zstd::encode_all(&content()[..], 1).expect("packed");
            std::fs::write(&from, packed).expect("written");
            for (zeros, middle) in [(Zeros::Skip, 1), (Zeros::Write, 0)] {
                std::fs::write(&to, vec![1; SIZE.0 as usize]).expect("written");
                unpack(&from, &to, SIZE, zeros, progress)?;
                let got = std::fs::read(&to).expect("read");
                assert!(got[..BLOCK] == content()[..BLOCK]);
                assert_eq!(got[BLOCK], middle);
                assert!(got[2 * BLOCK..] == content()[2 * BLOCK..]);
            }
            check(&from, SIZE, progress)
        });
    }

    #[test]
    fn a_copy_that_is_not_whole_is_found_out() {
        run(|dir, progress| {
            let file = dir.join("file");
            let packed = zstd::encode_all(&content()[..], 1).expect("packed");
            for (bytes, size) in [
                (&packed[..packed.len() - 3], SIZE),
                (&packed[..], Bytes(SIZE.0 - 4096)),
                (&packed[..], Bytes(SIZE.0 + 4096)),
                (b"no zstd at all", SIZE),
            ] {
                std::fs::write(&file, bytes).expect("written");
                let bad = check(&file, size, progress).expect_err("bad");
                assert!(matches!(bad, Failure::BadCopy { .. }), "{bad}");
            }
            Ok(())
        });
    }

    #[test]
    fn it_stops_when_the_user_wants() {
        let directory = tempfile::tempdir().expect("directory");
        let (from, to) = (directory.path().join("from"), directory.path().join("to"));
        std::fs::write(&from, content()).expect("written");
        std::fs::write(&to, "").expect("written");
        let cancel = Cancel::new();
        let raise = cancel.clone();
        let mut progress = Progress {
            cancel: &cancel,
            done: Bytes(0),
            total: SIZE,
            tell: &mut |_, _| raise.raise(2),
        };
        let stopped = device(&from, &to, SIZE, &mut progress).expect_err("stopped");
        assert!(matches!(stopped, Failure::Cancelled(2)));
        let written = std::fs::metadata(&to).expect("metadata").len();
        assert_eq!(written, BLOCK as u64);
    }
}
