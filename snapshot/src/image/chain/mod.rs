//! An image with all that it is built on: a full image and the increments up to it.

mod merge;
mod stream;
#[cfg(test)]
mod tests;

use std::path::Path;

pub use merge::{MergeError, merge};

use super::existing::Ranges;
use super::index::PageIndex;
use super::{ImageError, Reader, SUFFIXES, Stream};
use crate::lineage::{Base, Parent};

/// No chain is longer: each increment is opened for every use.
const MAX_IMAGES: usize = 1000;

/// An image and what it is built on, all opened. A full image, or another tool's, is a chain of one.
#[derive(Debug)]
pub struct Chain {
    /// The full image, then the increments in their order.
    images: Vec<Reader>,
}

impl Chain {
    /// Opens an image, and what it is built on: that is looked for in the same directory, first by
    /// its name and then by its identity.
    ///
    /// # Errors
    /// [`ImageError`]; [`ImageError::Incomplete`] if a part is missing.
    pub fn open(path: &Path) -> Result<Self, ImageError> {
        let mut images = vec![Reader::open(path)?];
        while let Some(last) = images.last()
            && let Some(parent) = last.facts().and_then(|facts| facts.parent.clone())
        {
            if images.len() == MAX_IMAGES || seen(&images, &parent) {
                return Err(last.damaged(last.stream_len(), "its chain has no end"));
            }
            let found = find(last, &parent)?.ok_or_else(|| ImageError::Incomplete {
                path: last.path().to_owned(),
                // From the file: not for a terminal as it is.
                file: parent.file.escape_debug().to_string(),
                cut: parent.cut.escape_debug().to_string(),
            })?;
            images.push(found);
        }
        images.reverse();
        Ok(Self { images })
    }

    /// All images, the oldest first.
    #[must_use]
    pub fn images(&self) -> &[Reader] {
        &self.images
    }

    /// The image that was opened: what it says of the guest is what counts.
    #[must_use]
    pub fn newest(&self) -> &Reader {
        let [.., newest] = self.images.as_slice() else {
            unreachable!("a chain has an image");
        };
        newest
    }

    /// Where each page stands.
    ///
    /// # Errors
    /// [`ImageError`]; also where a page that the guest had is in none of the images.
    pub fn index(&self) -> Result<PageIndex<'_>, ImageError> {
        let index = PageIndex::of_all(&self.images)?;
        let newest = self.newest();
        if let Some(existing) = newest.existing()
            && index.count() != existing.count().0
        {
            let what = "pages of the guest are in none of the images that it is built on";
            return Err(newest.damaged(newest.stream_len(), what));
        }
        Ok(index)
    }

    /// The pages that the guest had at the last cut.
    ///
    /// # Errors
    /// [`ImageError`].
    pub fn pages(&self) -> Result<Ranges, ImageError> {
        Ok(match self.newest().existing() {
            Some(pages) => pages.clone(),
            None => self.index()?.ranges(),
        })
    }

    /// What an increment on the newest image needs to know; `None` if that has no identity.
    ///
    /// # Errors
    /// [`ImageError`].
    pub fn base(&self) -> Result<Option<Base>, ImageError> {
        let newest = self.newest();
        let Some((facts, id)) = newest.facts().and_then(|f| Some((f, f.id.clone()?))) else {
            return Ok(None);
        };
        let Some(file) = newest.path().file_name() else {
            return Ok(None);
        };
        Ok(Some(Base {
            parent: Parent {
                id,
                file: file.to_string_lossy().into_owned(),
                cut: facts.cut.clone(),
                depth: facts
                    .parent
                    .as_ref()
                    .map_or(1, |parent| parent.depth.saturating_add(1)),
            },
            pages: self.pages()?,
            tracked: true,
        }))
    }

    /// What stock `xl restore` reads of it, with `config` (JSON) as the configuration.
    ///
    /// # Errors
    /// [`ImageError`].
    pub fn stream(&self, config: &[u8]) -> Result<Box<dyn Stream + '_>, ImageError> {
        Ok(match self.images.as_slice() {
            [alone] => alone.stream(config),
            _ => Box::new(stream::ChainStream::new(self, config)?),
        })
    }

    /// As [`Reader::check_structure`], for all images, and that no page is missing.
    ///
    /// # Errors
    /// [`ImageError`].
    pub fn check_structure(&self) -> Result<(), ImageError> {
        for image in &self.images {
            image.check_structure()?;
        }
        if self.newest().is_increment() {
            self.index()?;
        }
        Ok(())
    }
}

/// Whether an image is in the chain already.
fn seen(images: &[Reader], parent: &Parent) -> bool {
    let mut ids = images.iter().filter_map(|image| image.facts()?.id.as_ref());
    ids.any(|id| *id == parent.id)
}

/// The image that `child` is built on; none if it is nowhere.
///
/// # Errors
/// The file of its name is there and cannot be read.
fn find(child: &Reader, parent: &Parent) -> Result<Option<Reader>, ImageError> {
    let directory = match child.path().parent() {
        Some(directory) if directory != Path::new("") => directory,
        _ => Path::new("."),
    };
    let guest = child.facts().map(|facts| facts.domain.uuid.as_str());
    let is_it = |reader: &Reader| {
        reader.facts().is_some_and(|facts| {
            facts.id.as_ref() == Some(&parent.id) && Some(facts.domain.uuid.as_str()) == guest
        })
    };
    // A name, and no path to somewhere else.
    let named = Path::new(&parent.file)
        .file_name()
        .map(|name| directory.join(name))
        .filter(|path| is_plain(path));
    let named = named.map(|path| Reader::open(&path)).transpose();
    match named {
        Ok(Some(reader)) if is_it(&reader) => Ok(Some(reader)),
        Ok(_) => Ok(elsewhere(directory, is_it)),
        Err(error) => match elsewhere(directory, is_it) {
            Some(found) => Ok(Some(found)),
            None => Err(error),
        },
    }
}

/// The image among those of a directory.
fn elsewhere(directory: &Path, is_it: impl Fn(&Reader) -> bool) -> Option<Reader> {
    let entries = std::fs::read_dir(directory).ok()?;
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let mut names: Vec<_> = names
        .filter(|name| SUFFIXES.iter().any(|suffix| name.ends_with(suffix)))
        .collect();
    names.sort();
    let paths = names.iter().map(|name| directory.join(name));
    let mut readers = paths
        .filter(|path| is_plain(path))
        .filter_map(|path| Reader::open(&path).ok());
    readers.find(is_it)
}

/// Links are nobody's images, and a pipe would be waited for.
fn is_plain(path: &Path) -> bool {
    path.symlink_metadata().is_ok_and(|found| found.is_file())
}
