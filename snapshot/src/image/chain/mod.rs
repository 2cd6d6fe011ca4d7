//! An image with all that it is built on: a full image and the increments up to it.

mod merge;
mod stream;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

pub use merge::{MergeError, merge};

use super::existing::Ranges;
use super::index::PageIndex;
use super::trailer::Facts;
use super::{ImageError, Reader, SUFFIXES, Stream};
use crate::lineage::{Base, Parent};
use crate::units::PageCount;

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
        while let Some(parent) = images.last().and_then(Reader::facts).and_then(parent_of) {
            let [.., last] = images.as_slice() else {
                unreachable!("there is one");
            };
            if images.len() == MAX_IMAGES || seen(&images, &parent) {
                return Err(last.damaged(last.stream_len(), "its chain has no end"));
            }
            let found = find(last, &parent).ok_or_else(|| ImageError::Incomplete {
                path: last.path().to_owned(),
                file: parent.file.clone(),
                cut: parent.cut.clone(),
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
                depth: facts.parent.as_ref().map_or(0, |parent| parent.depth) + 1,
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

    /// Its pages, how many they are.
    ///
    /// # Errors
    /// [`ImageError`].
    pub fn count(&self) -> Result<PageCount, ImageError> {
        Ok(PageCount(self.index()?.count()))
    }
}

fn parent_of(facts: &Facts) -> Option<Parent> {
    facts.parent.clone()
}

/// Whether an image is in the chain already.
fn seen(images: &[Reader], parent: &Parent) -> bool {
    let ids = images.iter().filter_map(|image| image.facts()?.id.as_ref());
    ids.into_iter().any(|id| *id == parent.id)
}

/// The image that `child` is built on.
fn find(child: &Reader, parent: &Parent) -> Option<Reader> {
    let directory = match child.path().parent() {
        Some(directory) if directory != Path::new("") => directory,
        _ => Path::new("."),
    };
    let guest = &child.facts()?.domain.uuid;
    let is_it = |path: &PathBuf| {
        let reader = Reader::open(path).ok()?;
        let facts = reader.facts()?;
        let same = facts.id.as_ref() == Some(&parent.id) && facts.domain.uuid == *guest;
        same.then_some(reader)
    };
    // A name, and no path to somewhere else.
    let named = Path::new(&parent.file)
        .file_name()
        .map(|name| directory.join(name));
    if let Some(found) = named.as_ref().and_then(is_it) {
        return Some(found);
    }
    let entries = std::fs::read_dir(directory).ok()?;
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let mut names: Vec<_> = names
        .filter(|name| SUFFIXES.iter().any(|suffix| name.ends_with(suffix)))
        .collect();
    names.sort();
    let mut paths = names.iter().map(|name| directory.join(name));
    paths.find_map(|path| is_it(&path))
}
