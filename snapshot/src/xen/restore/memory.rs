//! Whether the host has the memory that a guest needs. Pure functions.
//!
//! The need is a lower bound, so that nothing is refused that would have been possible: the pages
//! of the image and the hypervisor's tables for the guest.

use super::config::Memory;
use super::refusal::Refusal;
use crate::units::{Bytes, PageCount};

/// What `xl info` says of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// Memory that nobody has.
    pub free: Bytes,
    /// `xl` takes memory from dom0 when a new guest needs it.
    pub autoballoon: bool,
}

/// What a guest will take: `pages` of memory, or where that is not known what its configuration
/// says it has now.
#[must_use]
pub fn need(memory: &Memory, pages: Option<PageCount>) -> Bytes {
    let content = pages.map_or(memory.target, PageCount::bytes);
    // `libxl__get_required_paging_memory`: 1 MiB for each vCPU and 4 KiB for each MiB.
    let tables = memory.tables.unwrap_or_else(|| {
        let vcpus = memory.vcpus.saturating_mul(1 << 20);
        Bytes(vcpus.saturating_add(memory.max.0 / 256))
    });
    Bytes(content.0.saturating_add(tables.0))
}

/// Refuses what cannot be; a warning where it depends on dom0.
///
/// # Errors
/// [`Refusal::MemoryShort`].
pub fn judge(need: Bytes, host: &Host) -> Result<Option<String>, Refusal> {
    if need <= host.free {
        return Ok(None);
    }
    if !host.autoballoon {
        let free = host.free;
        return Err(Refusal::MemoryShort { need, free });
    }
    Ok(Some(format!(
        "the guest needs {need} of memory and the host has {} free: xl has to take {} from dom0",
        host.free,
        Bytes(need.0 - host.free.0)
    )))
}

/// Reads what `xl info` prints, and xl's own settings.
///
/// # Errors
/// What is missing.
pub fn host(info: &str, xl_conf: &str) -> Result<Host, String> {
    let field = |name: &str| {
        info.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            (key.trim() == name).then(|| value.trim())
        })
    };
    let mib = |name: &str| field(name).and_then(|text| text.parse::<u64>().ok());
    let free = mib("free_memory").ok_or("it does not tell the free memory")?;
    // Promised to guests that are just being built.
    let claimed = mib("outstanding_claims").unwrap_or(0);
    let fixed_dom0 = field("xen_commandline")
        .unwrap_or("")
        .split_whitespace()
        .any(|word| word.starts_with("dom0_mem="));
    Ok(Host {
        free: Bytes::from_mib(free.saturating_sub(claimed).min(u64::MAX >> 20)),
        autoballoon: match autoballoon(xl_conf) {
            Some("off" | "0") => false,
            Some("on" | "1") => true,
            _ => !fixed_dom0,
        },
    })
}

/// The setting in `/etc/xen/xl.conf`; the last one counts.
fn autoballoon(xl_conf: &str) -> Option<&str> {
    xl_conf.lines().rev().find_map(|line| {
        let (key, value) = line.split_once('=')?;
        let value = value.split('#').next()?.trim();
        (key.trim() == "autoballoon").then(|| value.trim_matches(['"', '\'']))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const INFO: &str = "host                   : testbed\nfree_memory            : 2492\n\
        outstanding_claims     : 100\n\
        xen_commandline        : console=com1 dom0_mem=3072M,max:3072M\n";

    #[test]
    fn the_hosts_memory_is_read() {
        let read = host(INFO, "").expect("read");
        assert_eq!(read.free, Bytes::from_mib(2392));
        assert!(!read.autoballoon);
        let read = host("free_memory : 7\nxen_commandline : console=vga", "").expect("read");
        assert_eq!((read.free, read.autoballoon), (Bytes::from_mib(7), true));
        assert!(host("total_memory : 7", "").is_err());
        assert!(host("free_memory : much", "").is_err());
        assert!(host(&format!("free_memory : {}", u64::MAX), "").is_ok());
    }

    #[test]
    fn xls_own_setting_goes_before_the_hypervisors_command_line() {
        for (conf, want) in [
            ("autoballoon=\"off\"", false),
            ("#autoballoon=\"on\"", false),
            ("autoballoon = \"on\" # always", true),
            ("autoballoon=0\nautoballoon='on'", true),
            ("autoballoon=\"auto\"", false),
        ] {
            assert_eq!(host(INFO, conf).expect("read").autoballoon, want, "{conf}");
        }
    }

    #[test]
    fn the_need_is_pages_and_tables() {
        let memory = Memory {
            max: Bytes::from_mib(512),
            target: Bytes::from_mib(256),
            tables: None,
            vcpus: 2,
        };
        assert_eq!(need(&memory, None), Bytes::from_mib(260));
        assert_eq!(need(&memory, Some(PageCount(256))), Bytes::from_mib(5));
        let memory = Memory {
            tables: Some(Bytes(u64::MAX)),
            ..memory
        };
        assert_eq!(need(&memory, Some(PageCount(256))), Bytes(u64::MAX));
    }

    #[test]
    fn too_little_is_refused_or_dom0_has_to_give() {
        let host = |autoballoon| Host {
            free: Bytes::from_mib(100),
            autoballoon,
        };
        let need = Bytes::from_mib(101);
        assert_eq!(judge(Bytes::from_mib(100), &host(false)), Ok(None));
        let refused = judge(need, &host(false)).expect_err("refused").to_string();
        assert!(
            refused.contains("101.0 MiB") && refused.contains("100.0 MiB"),
            "{refused}"
        );
        let warned = judge(need, &host(true)).expect("allowed").expect("warned");
        assert!(warned.contains("1.0 MiB from dom0"), "{warned}");
    }
}
