//! `livesave untrack DOMAIN`: no increment follows.

use anyhow::Result;
use snapshot::xen::XenDomain;

use crate::args::UntrackArgs;
use crate::out::line;
use crate::{disks, signals};

/// Ends the tracking that incremental saves left on.
pub fn run(args: &UntrackArgs) -> Result<()> {
    let cancel = signals::cancel_on_signals()?;
    let mut domain = XenDomain::open(&args.domain, &disks::CARE, &cancel)?;
    line(if domain.untrack()? {
        "Its writes are no longer tracked; the next incremental image will be a full one"
    } else {
        "Its writes were not tracked by livesave"
    });
    Ok(())
}
