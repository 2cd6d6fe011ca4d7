//! HVM guests: hardware virtualised, with an emulator of a PC's devices (QEMU).
//!
//! The hypervisor's side is that of a PVH guest. The emulator's comes to it: it notes what it writes
//! to the guest's memory, is stopped in the pause window, and its state stands behind the libxc
//! image.

use std::time::Duration;

use xen_sys::state::hvm_param;

use super::hardware::{self, Context};
use super::{GuestOps, GuestType, Record, Suspension, Tail, emulated};
use crate::fault;
use crate::page_set::PageSet;
use crate::ports::DomainError;
use crate::units::{PageCount, Pfn};
use crate::xen::config::GuestConfig;
use crate::xen::emulator::{
    CONNECT, Emulator, EmulatorError, FIRST_AID, Session, StateFile, Version,
};
use crate::xen::guest::Guest;
use crate::xen::memory_map::QUERY;

/// From here on the emulator has all the commands that a save needs.
const OLDEST: Version = Version::new(2, 10);

/// The memory of a display is here or above.
const DISPLAYS: u64 = 0xf_0000;
/// How many page numbers are asked about to see whether its memory is where it was, in the pause
/// window too: some milliseconds at most.
const MOST_EDGES: usize = 8 * QUERY;

/// An HVM guest.
#[derive(Default)]
pub(super) struct Hvm {
    context: Context,
    emulator: Option<Emulator>,
    /// It may be noting its writes through us.
    notes: bool,
    /// Begun before the guest is asked to suspend, so that nothing is waited for in the window.
    session: Option<(Session, StateFile)>,
    /// It may be stopped through us.
    stopped: bool,
    /// What stands in xenstore of its memory.
    keys: Vec<u8>,
    /// Where its stretches of memory begin and end.
    edges: Vec<u64>,
}

impl Hvm {
    fn emulator(&self, guest: &Guest) -> Result<&Emulator, DomainError> {
        self.emulator.as_ref().ok_or_else(|| DomainError::Call {
            operation: "find the emulator of",
            domain: guest.name.clone(),
            source: "nobody has looked for it".into(),
        })
    }

    /// Looks for the emulator, and at it.
    fn refuse_by_emulator(&mut self, guest: &Guest) -> Result<Option<String>, DomainError> {
        let Some(emulator) = Emulator::of(&guest.info()?) else {
            return Ok(Some(
                "it is configured as an HVM guest, and the hypervisor emulates no PC for it".into(),
            ));
        };
        let mut session = emulator
            .session()
            .map_err(failed(guest, "talk to the emulator (QEMU) of"))?;
        let version = session.version();
        if version < OLDEST {
            return Ok(Some(format!(
                "its emulator is QEMU {version}, which lacks what a save needs; start it with QEMU \
                 {OLDEST} or later"
            )));
        }
        if !session
            .runs()
            .map_err(failed(guest, "ask the emulator (QEMU) of"))?
        {
            return Ok(Some(
                "its emulator (QEMU) is stopped, by another save perhaps; if none is under way, \
                 `xl qemu-monitor-command DOMAIN cont` lets it run"
                    .into(),
            ));
        }
        self.emulator = Some(emulator);
        Ok(None)
    }
}

impl Hvm {
    /// Takes the emulator for us alone, as soon as nobody else has it, and hands it what it needs.
    fn begin(&mut self, guest: &Guest, limit: Duration) -> Result<(), DomainError> {
        let session = self.emulator(guest)?.session_within(limit);
        let begun = session.and_then(|mut session| {
            let state = session.hand_over()?;
            Ok((session, state))
        });
        self.session = Some(begun.map_err(failed(guest, "talk to the emulator (QEMU) of"))?);
        Ok(())
    }

    fn stop_and_save(&mut self, guest: &Guest) -> Result<(), DomainError> {
        if self.session.is_none() {
            // Others were let at it meanwhile. The guest stands still: not for long.
            self.begin(guest, FIRST_AID)?;
        }
        let Some((session, state)) = &mut self.session else {
            // What has just been begun.
            return Err(DomainError::Call {
                operation: "stop the emulator (QEMU) of",
                domain: guest.name.clone(),
                source: "there is no connection to it".into(),
            });
        };
        self.stopped = true;
        fault::point("emulator-stopping");
        session
            .stop()
            .map_err(failed(guest, "stop the emulator (QEMU) of"))?;
        fault::point("emulator-stopped");
        session
            .save(state)
            .map_err(failed(guest, "save the devices of"))?;
        fault::point("emulator-saved");
        Ok(())
    }
}

/// The first and the last page of each stretch, those first that the memory of a display can be in:
/// a balloon can leave more stretches below it than are looked at.
fn edges(pages: &PageSet) -> Vec<u64> {
    let (mut edges, mut low) = (vec![], vec![]);
    for range in pages.ranges() {
        let last = range.end - 1;
        let list = if last >= DISPLAYS {
            &mut edges
        } else {
            &mut low
        };
        list.push(range.start);
        if last != range.start {
            list.push(last);
        }
    }
    edges.append(&mut low);
    edges.truncate(MOST_EDGES);
    edges
}

/// An emulator's failure as the engine's error.
fn failed(
    guest: &Guest,
    operation: &'static str,
) -> impl FnOnce(EmulatorError) -> DomainError + use<> {
    let domain = guest.name.clone();
    move |error| DomainError::Call {
        operation,
        domain,
        source: error.into(),
    }
}

impl GuestOps for Hvm {
    fn stream_type(&self) -> GuestType {
        GuestType::Hvm
    }

    fn refusal(
        &mut self,
        guest: &Guest,
        config: &GuestConfig,
    ) -> Result<Option<String>, DomainError> {
        if let Some(why) = emulated::refusal(config).or(emulated::in_stub_domain(guest)?) {
            return Ok(Some(why));
        }
        if let Some(why) = hardware::refusal(guest)? {
            return Ok(Some(why));
        }
        self.refuse_by_emulator(guest)
    }

    fn no_increments(&self) -> Option<&'static str> {
        Some("tracking is not left on for HVM guests yet (--incremental=compared needs none)")
    }

    fn suspension(&mut self, guest: &Guest) -> Result<Suspension, DomainError> {
        guest.suspension()
    }

    fn tracking_begins(&mut self, guest: &Guest) -> Result<(), DomainError> {
        let mut session = self
            .emulator(guest)?
            .session()
            .map_err(failed(guest, "talk to the emulator (QEMU) of"))?;
        if !session.can_note_writes() {
            return Err(DomainError::Unsupported(format!(
                "Domain {} cannot be saved while it runs: its emulator is QEMU {}, which may die \
                 of having its writes tracked; --mode plain saves it, suspended for as long as \
                 that takes",
                guest.name,
                session.version()
            )));
        }
        fault::point("emulator-log-starting");
        self.notes = true;
        session
            .note_writes()
            .map_err(failed(guest, "track what the emulator (QEMU) writes of"))?;
        fault::point("emulator-log-on");
        Ok(())
    }

    fn tracking_ended(&mut self, guest: &Guest) -> Result<(), DomainError> {
        // One made ready for a window that never came would lock us out.
        self.let_others();
        if !self.notes {
            return Ok(());
        }
        self.emulator(guest)?
            .session()
            .and_then(|mut session| session.note_no_writes())
            .map_err(failed(
                guest,
                "stop tracking what the emulator (QEMU) writes of",
            ))?;
        self.notes = false;
        fault::point("emulator-log-off");
        Ok(())
    }

    fn make_ready(&mut self, guest: &Guest) -> Result<(), DomainError> {
        self.begin(guest, CONNECT)?;
        self.keys = emulated::keys(guest)?;
        fault::point("emulator-ready");
        Ok(())
    }

    fn let_others(&mut self) {
        if !self.stopped {
            self.session = None;
        }
    }

    fn quiesce(&mut self, guest: &Guest) -> Result<bool, DomainError> {
        let stopped = self.stop_and_save(guest);
        if stopped.is_err() {
            // An answer that comes late would be taken for another's.
            self.session = None;
        }
        stopped.map(|()| true)
    }

    fn wake(&mut self, guest: &Guest) -> Result<(), DomainError> {
        let session = self.session.take();
        if !self.stopped {
            return Ok(());
        }
        let woken = session.map(|(mut session, _)| session.run_on());
        if !matches!(woken, Some(Ok(()))) {
            self.emulator(guest)?
                .session()
                .and_then(|mut session| session.run_on())
                .map_err(failed(guest, "let run on the emulator (QEMU) of"))?;
        }
        self.stopped = false;
        fault::point("emulator-runs");
        Ok(())
    }

    fn look(&mut self, guest: &Guest) -> Result<PageCount, DomainError> {
        hardware::span(guest)
    }

    fn hints(&self, guest: &Guest) -> Vec<Pfn> {
        let mut hints = hardware::hints(guest);
        hints.extend(emulated::HINTS);
        hints
    }

    fn exist(
        &mut self,
        guest: &Guest,
        pfns: &[u64],
        answers: &mut Vec<bool>,
    ) -> Result<(), DomainError> {
        hardware::exist(guest, pfns, answers)
    }

    fn found(&mut self, pages: &PageSet) {
        self.edges = edges(pages);
    }

    /// A guest can move the memory of its display to another place, with its number of pages as it
    /// was and (up to Xen 4.18) none of them dirty: a stretch is not there any more then.
    fn map_holds(&mut self, guest: &Guest) -> Result<bool, DomainError> {
        let mut there = vec![];
        for edges in self.edges.chunks(QUERY) {
            hardware::exist(guest, edges, &mut there)?;
            if there.contains(&false) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn static_data(&mut self, guest: &Guest) -> Result<Vec<Record>, DomainError> {
        self.context.make_room(guest)?;
        Ok(vec![])
    }

    fn final_state(&mut self, guest: &Guest) -> Result<Tail, DomainError> {
        let libxc = self.context.records(guest)?;
        if !self.keys.is_empty() {
            // An old emulator: what it moved since is in them.
            self.keys = emulated::keys(guest)?;
        }
        let state = match &self.session {
            Some((_, state)) => state
                .read_behind(emulated::HEAD.to_vec())
                .map_err(failed(guest, "read the devices of"))?,
            None => vec![],
        };
        Ok(Tail {
            libxc,
            libxl: emulated::records(&self.keys, state),
        })
    }
}

impl Guest {
    /// How it is brought to suspend, by what its drivers have told the hypervisor.
    pub fn suspension(&self) -> Result<Suspension, DomainError> {
        let param = |index| {
            self.xen
                .hvm_param_get(self.id, index)
                .map_err(|error| self.failed("read how to suspend", error))
        };
        // As libxl decides: no interrupt to hear of events by, or asleep.
        let answers = param(hvm_param::CALLBACK_IRQ)? != 0 && param(hvm_param::ACPI_S_STATE)? == 0;
        Ok(if answers {
            Suspension::Handshake
        } else {
            Suspension::Hypervisor
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ends_of_a_stretch_are_looked_at_and_the_display_first() {
        let mut pages = PageSet::new(PageCount(0x11_0000));
        // Every second page is ballooned out.
        for pfn in (0..0x8000).step_by(2) {
            pages.insert(Pfn(pfn));
        }
        pages.insert_range(0x8000..0x9000);
        pages.insert_range(0xf_0000..0xf_0800);
        pages.insert_range(0xf_ffff..0xf_ffff + 1);
        pages.insert_range(0x10_0000..0x11_0000);
        let edges = edges(&pages);
        let high = [0xf_0000, 0xf_07ff, 0xf_ffff, 0x10_ffff];
        assert_eq!(edges[..4], high);
        assert_eq!(edges[4..6], [0, 2]);
        assert_eq!(edges.len(), MOST_EDGES);
    }
}
