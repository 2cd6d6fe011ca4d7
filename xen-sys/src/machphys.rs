//! The hypervisor's table from machine frames to the page numbers of whoever owns them (the M2P),
//! for PV guests, whose page tables hold machine frames.

use crate::control::{PAGE_SIZE, Xen};
use crate::domain::DomainId;
use crate::error::Error;
use crate::foreign::ForeignWords;

/// The table is handed out in pieces of 2 MiB.
const PIECE_PAGES: u64 = 512;
/// Entries in a piece.
const PIECE: u64 = PIECE_PAGES * PAGE_SIZE as u64 / 8;

/// The M2P, mapped: 8 bytes of addresses for each page of the host, and no memory.
///
/// It shows what the hypervisor knows now. An entry may be of any domain, or of none: that a frame is
/// a guest's is known only if that guest's own table leads back to the frame.
#[derive(Debug)]
pub struct MachineToPhys {
    pieces: Vec<ForeignWords>,
    /// Frames that there are.
    end: u64,
}

impl Xen {
    /// Maps the M2P. (`xc_maximum_ram_page` and `xc_machphys_mfn_list` of `xenctrl.h`.)
    ///
    /// # Errors
    /// [`Error::HostCall`], [`Error::DomainCall`].
    pub fn machine_to_phys(&self) -> Result<MachineToPhys, Error> {
        let mut end = 0;
        self.host_call("read the size of the host's memory", |interface| {
            // SAFETY: an integer to write to.
            unsafe {
                (interface.libraries().control.xc_maximum_ram_page)(
                    interface.handle(),
                    &raw mut end,
                )
            }
            .into()
        })?;
        let mut starts = vec![0; end.div_ceil(PIECE) as usize];
        self.host_call("find the table of machine frames", |interface| {
            // SAFETY: as many entries to write to as are asked for.
            unsafe {
                (interface.libraries().control.xc_machphys_mfn_list)(
                    interface.handle(),
                    starts.len() as u64,
                    starts.as_mut_ptr(),
                )
            }
            .into()
        })?;
        let piece = |&start: &u64| {
            let frames: Vec<u64> = (start..start.saturating_add(PIECE_PAGES)).collect();
            self.map_words(DomainId::XEN, &frames)
        };
        Ok(MachineToPhys {
            pieces: starts.iter().map(piece).collect::<Result<_, _>>()?,
            end,
        })
    }
}

impl MachineToPhys {
    /// Frames that the host has are below this.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.end
    }

    /// What the table has for a frame; `None` where it has nothing.
    #[must_use]
    pub fn get(&self, frame: u64) -> Option<u64> {
        if frame >= self.end {
            return None;
        }
        let piece = self.pieces.get((frame / PIECE) as usize)?;
        piece.get((frame % PIECE) as usize)
    }
}
