//! What a directory of images holds.

use std::fs::{File, Metadata, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use jiff::Timestamp;
use snapshot::disks::DiskFacts;
use snapshot::image::{ImageError, Reader, SUFFIXES};
use snapshot::lineage::{ImageId, Parent};
use snapshot::ports::Identity;
use snapshot::units::Bytes;

/// A save locks its unfinished file at once after it has made it; one that is this young may be
/// about to.
const YOUNG: Duration = Duration::from_secs(60);

/// A good image of livesave's: its structure has been walked from end to end.
#[derive(Clone, Debug)]
pub struct Image {
    /// The file.
    pub path: PathBuf,
    /// Whose it is.
    pub guest: Identity,
    /// The moment that it shows.
    pub cut: Timestamp,
    /// The file's length.
    pub bytes: Bytes,
    /// What is allocated for it.
    pub allocated: Bytes,
    /// `plain`, `live` or `improved`.
    pub mode: String,
    /// Which image it is.
    pub id: Option<ImageId>,
    /// An increment: what it is built on, which is in the directory.
    pub parent: Option<Parent>,
    /// Its disks, if it has them.
    pub disks: Option<DiskFacts>,
    /// How long the guest paused for it, seconds.
    pub pause_s: f64,
    /// Which file it was, whatever has its name later.
    pub file: FileId,
}

/// A file by what it is, not by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileId(u64, u64);

impl FileId {
    /// Of a file.
    pub fn of(metadata: &Metadata) -> Self {
        Self(metadata.dev(), metadata.ino())
    }
}

/// A file that is no image of livesave's, and why.
#[derive(Clone, Debug)]
pub struct Other {
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it, or what it is.
    pub what: String,
}

/// An unfinished image, where the file system had no room for files without a name.
#[derive(Clone, Debug)]
pub struct Unfinished {
    /// The file.
    pub path: PathBuf,
    /// The process that wrote it.
    pub pid: u32,
    /// Whether that still does.
    pub save: SaveState,
    /// What is allocated for it.
    pub allocated: Bytes,
    /// Which file it was.
    pub file: FileId,
}

/// Whether a save goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SaveState {
    /// It does, or it may only just have begun.
    Runs,
    /// It was killed.
    Dead,
    /// The file system knows no locks.
    Unknown,
}

/// All that livesave has to do with in a directory; the rest is left out.
#[derive(Debug, Default)]
pub struct Listing {
    /// Good images: by the guest's name and UUID, then from the oldest cut to the latest.
    pub images: Vec<Image>,
    /// Files with an image's suffix that cannot be read as one.
    pub damaged: Vec<Other>,
    /// Images by other tools.
    pub foreign: Vec<Other>,
    /// Unfinished images.
    pub unfinished: Vec<Unfinished>,
}

/// Looks through a directory. Plain files only: links are nobody's images.
pub fn scan(dir: &Path) -> Result<Listing> {
    let failed = || format!("Failed to read directory {}", dir.display());
    let mut listing = Listing::default();
    for entry in std::fs::read_dir(dir).with_context(failed)? {
        let entry = entry.with_context(failed)?;
        // Of a name that is no text livesave makes none.
        let Ok(name) = entry.file_name().into_string() else {
            continue;
        };
        let metadata = match entry.metadata() {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error).with_context(failed),
        };
        if !metadata.is_file() {
            continue;
        }
        if let Some(pid) = saver_of(&name) {
            let path = entry.path();
            listing.unfinished.push(Unfinished {
                pid,
                save: save_state(&path, &metadata),
                allocated: allocated(&metadata),
                file: FileId::of(&metadata),
                path,
            });
        } else if SUFFIXES.iter().any(|suffix| name.ends_with(suffix)) {
            listing.add(entry.path(), &metadata);
        }
    }
    listing.set_aside_incomplete();
    let key = |image: &Image| {
        (
            image.guest.name.clone(),
            image.guest.uuid.clone(),
            image.cut,
        )
    };
    listing
        .images
        .sort_by(|a, b| key(a).cmp(&key(b)).then_with(|| a.path.cmp(&b.path)));
    for others in [&mut listing.damaged, &mut listing.foreign] {
        others.sort_by(|a, b| a.path.cmp(&b.path));
    }
    listing.unfinished.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(listing)
}

impl Listing {
    /// The image with that identity, of that guest.
    pub fn find(&self, id: &ImageId, uuid: &str) -> Option<&Image> {
        let mut images = self.images.iter();
        images.find(|image| image.id.as_ref() == Some(id) && image.guest.uuid == uuid)
    }

    /// Increments of which something that they are built on is missing are no good images.
    fn set_aside_incomplete(&mut self) {
        loop {
            let stands = |image: &Image| match &image.parent {
                Some(parent) => self.find(&parent.id, &image.guest.uuid).is_some(),
                None => true,
            };
            let (good, incomplete): (Vec<_>, Vec<_>) =
                self.images.iter().cloned().partition(stands);
            if incomplete.is_empty() {
                return;
            }
            self.images = good;
            for image in incomplete {
                let file = image.parent.map_or_else(String::new, |parent| parent.file);
                self.damaged.push(Other {
                    path: image.path,
                    what: format!("the image that it is built on is missing ({file})"),
                });
            }
        }
    }

    fn add(&mut self, path: PathBuf, metadata: &Metadata) {
        match read(&path, metadata) {
            Ok(Some(image)) => self.images.push(image),
            Ok(None) => self.foreign.push(Other {
                path,
                what: "written by another tool than livesave".into(),
            }),
            // Pruned meanwhile.
            Err(error) if is_gone(&error) => {}
            Err(error) => self.damaged.push(Other {
                path,
                what: format!("{error:#}"),
            }),
        }
    }
}

/// Opens an image; `None` if it is another tool's.
pub fn read(path: &Path, metadata: &Metadata) -> Result<Option<Image>> {
    let reader = Reader::open(path)?;
    let Some(facts) = reader.facts() else {
        return Ok(None);
    };
    let cut = facts
        .cut
        .parse()
        .with_context(|| format!("Image {} has no readable time of its cut", path.display()))?;
    Ok(Some(Image {
        path: path.to_owned(),
        guest: facts.domain.clone(),
        cut,
        bytes: Bytes(reader.size()),
        allocated: allocated(metadata),
        mode: facts.mode.clone(),
        id: facts.id.clone(),
        parent: facts.parent.clone(),
        disks: facts.disks.clone(),
        pause_s: facts.window.total_s,
        file: FileId::of(metadata),
    }))
}

fn allocated(metadata: &Metadata) -> Bytes {
    Bytes(metadata.blocks() * 512)
}

fn is_gone(error: &anyhow::Error) -> bool {
    match error.downcast_ref() {
        Some(ImageError::Io { source, .. }) => source.kind() == io::ErrorKind::NotFound,
        _ => false,
    }
}

/// The process that an unfinished image's name tells of; see `snapshot::image::file`.
fn saver_of(name: &str) -> Option<u32> {
    let name = name.strip_prefix('.')?.strip_suffix(".partial")?;
    let (_, pid) = name.rsplit_once(".livesave-")?;
    let digits = !pid.is_empty() && pid.bytes().all(|b| b.is_ascii_digit());
    digits.then(|| pid.parse().ok()).flatten()
}

/// A save locks its file for as long as it lives, and the kernel frees the locks of the dead. So it
/// is told apart from a process that only has the number, and, where locks reach that far, on
/// another host too.
fn save_state(path: &Path, metadata: &Metadata) -> SaveState {
    let age = metadata
        .modified()
        .ok()
        .and_then(|at| SystemTime::now().duration_since(at).ok());
    if age.is_none_or(|age| age < YOUNG) {
        return SaveState::Runs;
    }
    let file: io::Result<File> = OpenOptions::new().read(true).write(true).open(path);
    match file.map(|file| file.try_lock()) {
        Ok(Ok(())) => SaveState::Dead,
        Ok(Err(TryLockError::WouldBlock)) => SaveState::Runs,
        Ok(Err(TryLockError::Error(_))) | Err(_) => SaveState::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_names_of_unfinished_images_are_taken_for_such() {
        let made = snapshot::image::file::partial_name(Path::new("/tmp/a-20261124T034500Z.xl"));
        let made = made.expect("a name");
        let made = made
            .file_name()
            .expect("a name")
            .to_string_lossy()
            .into_owned();
        assert_eq!(saver_of(&made), Some(std::process::id()));
        for name in [
            "a.xl.livesave-1.partial",
            ".a.xl.livesave-.partial",
            ".a.xl.livesave-+1.partial",
            ".a.xl.livesave-1x.partial",
            ".a.xl.livesave-99999999999.partial",
            ".a.xl.livesave-1.partial.xl",
            ".partial",
        ] {
            assert_eq!(saver_of(name), None, "{name}");
        }
    }

    #[test]
    fn a_save_lives_as_long_as_it_holds_its_lock() {
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join(".a.xl.livesave-1.partial");
        let file = File::create(&path).expect("created");
        let state = || save_state(&path, &path.metadata().expect("metadata"));
        assert_eq!(state(), SaveState::Runs);
        let old = SystemTime::now() - Duration::from_secs(120);
        file.set_modified(old).expect("aged");
        assert_eq!(state(), SaveState::Dead);
        file.lock().expect("locked");
        assert_eq!(state(), SaveState::Runs);
        drop(file);
        assert_eq!(state(), SaveState::Dead);
    }
}
