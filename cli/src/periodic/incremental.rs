//! On which image an increment can be built.

use anyhow::Result;
use snapshot::image::Chain;
use snapshot::lineage::Base;
use snapshot::ports::Domain;
use snapshot::units::PageCount;
use snapshot::xen::{Tracked, XenDomain};

use super::directory::scan;
use crate::args::PeriodicArgs;
use crate::out::note;

/// The guest may write while it is saved: room for as much again, and some, is asked for.
const SPARE: u64 = 16_384;

/// The image that an increment can be built on, and how many pages will have to be saved at most
/// or so. Without one it is told why the image is a full one.
pub fn base(domain: &XenDomain, args: &PeriodicArgs) -> Result<(Option<Base>, PageCount)> {
    let all = domain.memory()?;
    let found = match domain.tracked_since()? {
        Ok(tracked) => in_directory(domain, args, &tracked)?
            .map(|base| (base, PageCount(2 * tracked.dirty.0 + SPARE))),
        Err(why) => Err(why),
    };
    Ok(match found {
        Ok((base, pages)) => (Some(base), pages.min(all)),
        Err(why) => {
            note(&format!("livesave: this is a full image: {why}"));
            (None, all)
        }
    })
}

fn in_directory(
    domain: &XenDomain,
    args: &PeriodicArgs,
    tracked: &Tracked,
) -> Result<Result<Base, String>> {
    let Some(dir) = &args.dir else {
        return Ok(Err("there is no directory to look in".into()));
    };
    let listing = scan(dir)?;
    let Some(image) = listing.find(&tracked.since, &domain.identity().uuid) else {
        let dir = dir.display();
        return Ok(Err(format!("the image before it is not whole in {dir}")));
    };
    // An image that cannot be read is no base, and no reason to save nothing.
    let base = match Chain::open(&image.path).and_then(|chain| chain.base()) {
        Ok(base) => base,
        Err(error) => return Ok(Err(error.to_string())),
    };
    let base = base.ok_or_else(|| "the image before it has no identity".to_owned());
    Ok(base.and_then(|base| {
        if base.parent.depth > args.full_every {
            return Err(format!("{} increments were made", args.full_every));
        }
        Ok(base)
    }))
}
