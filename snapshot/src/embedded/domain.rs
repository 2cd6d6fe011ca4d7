//! The embedded guest behind the engine's port.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;

use super::content::mix;
use super::error::GuestError;
use super::handle::EmbeddedGuest;
use super::memory::GuestMemory;
use crate::image::{GuestType, Preamble, Record, Tail, libxc};
use crate::lineage::ImageId;
use crate::page::{GuestPage, PageBytes};
use crate::page_set::PageSet;
use crate::ports::{Cancel, Cpu, Domain, DomainError, Identity, MappedPages, Mapper, Meanwhile};
use crate::units::{CpuPercent, Pfn};

/// An embedded guest to be saved. Others may hold the guest too, to look at it or to cap it.
#[derive(Debug)]
pub struct EmbeddedDomain {
    guest: Arc<EmbeddedGuest>,
    identity: Identity,
    /// The cap that it has when it is not throttled.
    own_cap: Option<CpuPercent>,
    throttled: bool,
}

impl EmbeddedDomain {
    /// The guest as a domain: its process number is its domain number.
    #[must_use]
    pub fn new(guest: Arc<EmbeddedGuest>) -> Self {
        let identity = Identity {
            domid: guest.pid(),
            name: guest.name().to_owned(),
            uuid: uuid_of(guest.pid(), guest.name()),
        };
        Self {
            guest,
            identity,
            own_cap: None,
            throttled: false,
        }
    }

    /// The guest as a domain that its owner has capped; the cap is the guest's until it is
    /// throttled.
    #[must_use]
    pub fn with_own_cap(mut self, cap: CpuPercent) -> Self {
        self.own_cap = Some(cap);
        self
    }

    /// The guest.
    #[must_use]
    pub fn guest(&self) -> &Arc<EmbeddedGuest> {
        &self.guest
    }
}

impl Domain for EmbeddedDomain {
    type Mapper = EmbeddedMapper;

    fn identity(&self) -> &Identity {
        &self.identity
    }

    fn preamble(&mut self) -> Result<Preamble, DomainError> {
        let pages = self.guest.layout().pages();
        // The form of a toolstack's configuration, so that it reads like one; no toolstack has a
        // guest of this type.
        let config = json!({
            "c_info": {
                "type": "embedded",
                "name": self.identity.name,
                "uuid": self.identity.uuid,
            },
            "b_info": { "max_memkb": pages.bytes().0 / 1024 },
        });
        Ok(Preamble {
            config: config.to_string().into_bytes(),
            guest: GuestType::Hvm,
            // None: there is no hypervisor.
            xen_version: (0, 0),
            static_data: Vec::new(),
            before_memory: Vec::new(),
            increment: false,
        })
    }

    fn memory_map(&mut self) -> Result<Option<PageSet>, DomainError> {
        Ok(Some(self.guest.layout().present().clone()))
    }

    fn map_holds(&mut self, stray: &PageSet) -> Result<bool, DomainError> {
        // An embedded guest's memory is never resized.
        Ok(stray.is_empty())
    }

    fn mapper(&self) -> Result<EmbeddedMapper, DomainError> {
        Ok(EmbeddedMapper {
            name: self.identity.name.clone(),
            memory: self.guest.memory().clone(),
            present: Vec::new(),
            buffer: Vec::new(),
        })
    }

    fn log_dirty_on(&mut self) -> Result<(), DomainError> {
        Ok(self.guest.track()?)
    }

    fn log_dirty_continue(&mut self, since: &ImageId) -> Result<(), DomainError> {
        if self.guest.take_kept(since) {
            return Ok(());
        }
        Err(DomainError::Unsupported(format!(
            "No increment can be saved of domain {}: its writes have not been tracked since that \
             image",
            self.identity.name
        )))
    }

    fn log_dirty_holds(&mut self) -> Result<(), DomainError> {
        // Nobody else can fetch them.
        Ok(())
    }

    fn log_dirty_keep(&mut self, of: &ImageId) -> Result<(), DomainError> {
        self.guest.keep(of);
        Ok(())
    }

    fn fetch_dirty(&mut self, into: &mut PageSet, last: bool) -> Result<(), DomainError> {
        Ok(if last {
            self.guest.peek_dirty(into)
        } else {
            self.guest.fetch_dirty(into)
        }?)
    }

    fn peek_dirty(&mut self, into: &mut PageSet) -> Result<(), DomainError> {
        Ok(self.guest.peek_dirty(into)?)
    }

    fn log_dirty_off(&mut self) -> Result<(), DomainError> {
        Ok(self.guest.untrack()?)
    }

    fn cpu(&mut self) -> Result<Cpu, DomainError> {
        Ok(Cpu {
            vcpus: self.guest.threads(),
            own: self.own_cap,
            means: "cap",
        })
    }

    fn cpu_time(&mut self) -> Result<Duration, DomainError> {
        Ok(Duration::from_nanos(self.guest.stats()?.cpu_ns))
    }

    fn throttle(&mut self, limit: CpuPercent) -> Result<(), DomainError> {
        self.throttled = true;
        Ok(self.guest.cap_cpu(limit.0)?)
    }

    fn lift_own_cap(&mut self) -> Result<bool, DomainError> {
        if self.own_cap.is_none() {
            return Ok(false);
        }
        self.throttled = true;
        self.guest.cap_cpu(0)?;
        Ok(true)
    }

    fn unthrottle(&mut self) -> Result<(), DomainError> {
        if self.throttled {
            self.guest.cap_cpu(self.own_cap.map_or(0, |cap| cap.0))?;
            self.throttled = false;
        }
        Ok(())
    }

    fn suspend(
        &mut self,
        timeout: Duration,
        cancel: &Cancel,
        _: &mut dyn Meanwhile,
    ) -> Result<(), DomainError> {
        Ok(self.guest.suspend(timeout, cancel)?)
    }

    fn final_state(&mut self) -> Result<Tail, DomainError> {
        let state = self.guest.state()?.encode();
        let libxc = vec![Record::new(libxc::record::HVM_CONTEXT, state)];
        Ok(Tail {
            libxc,
            libxl: Vec::new(),
        })
    }

    fn resume(&mut self) -> Result<(), DomainError> {
        Ok(self.guest.resume()?)
    }

    /// Nobody else need know.
    fn announce(&mut self) -> Result<(), DomainError> {
        Ok(())
    }
}

impl From<GuestError> for DomainError {
    fn from(error: GuestError) -> Self {
        match error {
            GuestError::Gone(name) => Self::Gone(format!("{name} ended")),
            GuestError::NotSuspended { .. } => Self::NotSuspended(error.to_string()),
            GuestError::Interrupted(signal) => Self::Interrupted(signal),
            GuestError::Call {
                name,
                operation,
                source,
            } => Self::Call {
                operation,
                domain: name,
                source: source.into(),
            },
            GuestError::Refused {
                name,
                operation,
                reason,
            } => Self::Call {
                operation,
                domain: name,
                source: reason.into(),
            },
            GuestError::Silent {
                ref name,
                operation,
                ..
            } => Self::Call {
                operation,
                domain: name.clone(),
                source: error.into(),
            },
            GuestError::Spec(_) | GuestError::State(_) | GuestError::NoTracker(..) => {
                Self::Unsupported(error.to_string())
            }
        }
    }
}

/// Reads batches of pages into a buffer of its own, which is as large as the largest batch.
#[derive(Debug)]
pub struct EmbeddedMapper {
    name: String,
    memory: GuestMemory,
    /// For each page of the batch, its place in the buffer if it exists.
    present: Vec<Option<usize>>,
    buffer: Vec<PageBytes>,
}

impl Mapper for EmbeddedMapper {
    type Batch<'a> = EmbeddedBatch<'a>;
    /// Its pages are read, not mapped.
    type Kept = std::convert::Infallible;

    fn keep(&mut self, _: &[Pfn]) -> Result<Option<Self::Kept>, DomainError> {
        Ok(None)
    }

    fn map<'a>(&'a mut self, pfns: &[Pfn]) -> Result<EmbeddedBatch<'a>, DomainError> {
        let mut existing = Vec::with_capacity(pfns.len());
        self.present.clear();
        for &pfn in pfns {
            let exists = self.memory.layout().present().contains(pfn);
            self.present.push(exists.then_some(existing.len()));
            if exists {
                existing.push(pfn);
            }
        }
        if self.buffer.len() < existing.len() {
            self.buffer.resize(existing.len(), PageBytes::ZERO);
        }
        self.memory
            .read(&existing, &mut self.buffer)
            .map_err(|source| DomainError::Call {
                operation: "read the memory of",
                domain: self.name.clone(),
                source: source.into(),
            })?;
        Ok(EmbeddedBatch {
            present: &self.present,
            pages: &self.buffer,
        })
    }
}

/// A batch of pages as they were when they were read.
#[derive(Debug)]
pub struct EmbeddedBatch<'a> {
    present: &'a [Option<usize>],
    pages: &'a [PageBytes],
}

impl MappedPages for EmbeddedBatch<'_> {
    fn page(&self, index: usize) -> Option<GuestPage<'_>> {
        let place = (*self.present.get(index)?)?;
        self.pages.get(place).map(GuestPage::of)
    }
}

/// A UUID in text form. It need not be random to tell apart what lives no longer than its process.
pub(super) fn uuid_of(pid: u32, name: &str) -> String {
    let hash = |hash, byte| mix(hash ^ u64::from(byte));
    let seed = name.bytes().fold(u64::from(pid), hash);
    let (high, low) = (mix(seed), mix(!seed));
    format!(
        "{:08x}-{:04x}-8{:03x}-a{:03x}-{:012x}",
        high >> 32,
        (high >> 16) & 0xffff,
        high & 0xfff,
        (low >> 48) & 0xfff,
        low & 0xffff_ffff_ffff,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_engine_can_tell_why_a_guest_failed() {
        let name = || "g".to_owned();
        let gone = DomainError::from(GuestError::Gone(name()));
        assert!(matches!(gone, DomainError::Gone(domain) if domain == "g ended"));
        let deaf = DomainError::from(GuestError::NotSuspended {
            name: name(),
            acknowledged: false,
            waited: Duration::from_secs(3),
        });
        assert!(matches!(deaf, DomainError::NotSuspended(_)));
        assert_eq!(
            deaf.to_string(),
            "Embedded guest g did not acknowledge the suspend request within 3s"
        );
        let signal = DomainError::from(GuestError::Interrupted(15));
        assert!(matches!(signal, DomainError::Interrupted(15)));
        let refused = DomainError::from(GuestError::Refused {
            name: name(),
            operation: "resume",
            reason: "it is running".to_owned(),
        });
        assert_eq!(refused.to_string(), "Failed to resume domain g");
    }

    #[test]
    fn a_uuid_has_the_usual_form_and_tells_guests_apart() {
        let uuid = uuid_of(7, "g");
        let lengths: Vec<_> = uuid.split('-').map(str::len).collect();
        assert_eq!(lengths, [8, 4, 4, 4, 12]);
        assert!(uuid.bytes().all(|b| b == b'-' || b.is_ascii_hexdigit()));
        assert_ne!(uuid, uuid_of(8, "g"));
        assert_ne!(uuid, uuid_of(7, "h"));
    }
}
