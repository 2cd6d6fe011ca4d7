//! From what the user named to a domain that can be saved, or the reason why not.

use xen_sys::{DomainId, DomainInfo, ShutdownReason, Store, Xen};

use super::config::GuestConfig;
use crate::ports::DomainError;

/// A domain could not be taken on.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Xen cannot be used here.
    #[error(transparent)]
    Xen(#[from] xen_sys::Error),
    /// Nothing runs under that number or name.
    #[error("There is no domain {0:?}")]
    NoSuchDomain(String),
    /// It cannot be saved.
    #[error("Domain {domain} cannot be saved: {why}")]
    NotSavable {
        /// Its name.
        domain: String,
        /// The reason, and the way out where there is one.
        why: String,
    },
    /// A call on it failed.
    #[error(transparent)]
    Domain(#[from] DomainError),
}

impl OpenError {
    /// Whether the reason is that this is no dom0 at all.
    #[must_use]
    pub fn is_not_dom0(&self) -> bool {
        matches!(self, Self::Xen(xen_sys::Error::NotControlDomain { .. }))
    }
}

/// Finds a domain by number or name, as `xl` does.
pub(super) fn resolve(
    xen: &Xen,
    store: &Store,
    wanted: &str,
) -> Result<(DomainInfo, String), OpenError> {
    let none = || OpenError::NoSuchDomain(wanted.to_owned());
    let name_of = |id: DomainId| -> Result<Option<String>, xen_sys::Error> {
        store.read(&format!("{}/name", store.domain_path(id)?))
    };
    if !wanted.is_empty() && wanted.bytes().all(|b| b.is_ascii_digit()) {
        let id = wanted
            .parse()
            .ok()
            .and_then(DomainId::new)
            .ok_or_else(none)?;
        let info = xen
            .domain_info(id)?
            .filter(|info| !info.dying)
            .ok_or_else(none)?;
        return Ok((info, name_of(id)?.unwrap_or_else(|| wanted.to_owned())));
    }
    for info in xen.domains()?.into_iter().filter(|info| !info.dying) {
        if name_of(info.domid)?.as_deref() == Some(wanted) {
            return Ok((info, wanted.to_owned()));
        }
    }
    Err(none())
}

/// Says why a domain cannot be saved in the state it is in.
pub(super) fn refuse_by_state(info: &DomainInfo) -> Option<String> {
    if info.domid == DomainId::DOM0 {
        return Some("it is dom0, which livesave itself runs in".into());
    }
    match info.shutdown {
        None => {}
        Some(ShutdownReason::Suspend) => {
            return Some("it is suspended, by another save or migration perhaps".into());
        }
        Some(ShutdownReason::Crash) => return Some("it has crashed".into()),
        Some(_) => return Some("it has shut down".into()),
    }
    if info.paused {
        return Some("it is paused and cannot answer; let it run first (`xl unpause`)".into());
    }
    if info.paged_pages > 0 {
        return Some("a part of its memory is paged out to disk (xenpaging)".into());
    }
    None
}

/// Says why a domain so configured cannot be saved, whatever its type.
pub(super) fn refuse_by_config(config: &GuestConfig) -> Option<String> {
    if config.passed_through() > 0 {
        return Some(
            "a host device is passed through to it; detach it first (`xl pci-detach`, `xl \
             usbdev-detach`)"
                .into(),
        );
    }
    if config.numa_nodes() > 0 {
        return Some("it has virtual NUMA nodes, which an xl image cannot hold".into());
    }
    None
}

/// A UUID in its usual text form.
pub(super) fn uuid_text(uuid: &[u8; 16]) -> String {
    let mut text = String::with_capacity(36);
    for (i, byte) in uuid.iter().enumerate() {
        if matches!(i, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        text.push_str(&format!("{byte:02x}"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uuid_is_printed_as_usual() {
        let bytes: [u8; 16] = std::array::from_fn(|i| i as u8 * 17);
        assert_eq!(uuid_text(&bytes), "00112233-4455-6677-8899-aabbccddeeff");
    }
}
