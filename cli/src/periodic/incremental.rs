//! On which image an increment can be built.

use anyhow::Result;
use snapshot::image::Chain;
use snapshot::lineage::Base;
use snapshot::ports::Domain;
use snapshot::units::PageCount;
use snapshot::xen::{Tracked, XenDomain};

use super::directory::{Image, Listing, scan};
use crate::args::{IncrementalArg, PeriodicArgs};
use crate::out::note;

/// The guest may write while it is saved: room for as much again, and some, is asked for.
const SPARE: u64 = 16_384;

/// What a save begins with.
pub struct Beginning {
    /// The image that an increment is built on.
    pub base: Option<Base>,
    /// That image and what it is built on, where the guest's memory is compared with it.
    pub compared: Option<Chain>,
    /// How many pages will have to be saved, at most or so.
    pub pages: PageCount,
}

impl Beginning {
    /// All is saved.
    pub fn full(domain: &XenDomain) -> Result<Self> {
        Ok(Self {
            base: None,
            compared: None,
            pages: domain.memory()?,
        })
    }

    /// An increment, if it can be; else it is told why the image is a full one.
    pub fn of(domain: &XenDomain, args: &PeriodicArgs, how: IncrementalArg) -> Result<Self> {
        let full = Self::full(domain)?;
        let Some(dir) = &args.dir else {
            return Ok(full);
        };
        if let Some(why) = domain.only_full_images() {
            return Ok(full.because(why));
        }
        let tracked = match how {
            IncrementalArg::Compared => None,
            IncrementalArg::Tracked => match domain.tracked_since()? {
                Ok(tracked) => Some(tracked),
                Err(why) => return Ok(full.because(&why)),
            },
        };
        let uuid = &domain.identity().uuid;
        let listing = scan(dir)?;
        let found = image(&listing, uuid, tracked.as_ref())
            .ok_or_else(|| format!("the image before it is not whole in {}", dir.display()))
            .and_then(|image| base(image, args.full_every));
        let (base, chain) = match found {
            Ok(found) => found,
            Err(why) => return Ok(full.because(&why)),
        };
        Ok(match tracked {
            Some(tracked) => Self {
                base: Some(base),
                compared: None,
                pages: full.pages.min(PageCount(2 * tracked.dirty.0 + SPARE)),
            },
            None => Self {
                base: Some(Base {
                    tracked: false,
                    ..base
                }),
                compared: Some(chain),
                ..full
            },
        })
    }

    fn because(self, why: &str) -> Self {
        note(&format!("livesave: this is a full image: {why}"));
        self
    }
}

/// The image since which the guest's writes were tracked, or its latest.
fn image<'l>(listing: &'l Listing, uuid: &str, tracked: Option<&Tracked>) -> Option<&'l Image> {
    if let Some(tracked) = tracked {
        return listing.find(&tracked.since, uuid);
    }
    let mine = listing
        .images
        .iter()
        .filter(|image| image.guest.uuid == uuid);
    mine.filter(|image| image.id.is_some())
        .max_by_key(|image| image.cut)
}

/// An image that cannot be read is no base, and no reason to save nothing.
fn base(image: &Image, full_every: u32) -> Result<(Base, Chain), String> {
    let chain = Chain::open(&image.path).map_err(|error| error.to_string())?;
    let base = chain.base().map_err(|error| error.to_string())?;
    let base = base.ok_or("the image before it has no identity")?;
    if base.parent.depth > full_every {
        return Err(format!("{full_every} increments were made"));
    }
    Ok((base, chain))
}
