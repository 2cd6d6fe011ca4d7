//! What the host's processors make of dirty tracking.

/// Whether taking the dirty bits makes the guest fault on every page that it touches next: AMD's
/// nested paging has no page-modification log, and Xen corrects its entries one page at a time
/// (`do_recalc` in `xen/arch/x86/mm/p2m-pt.c`). Intel's corrects 512 at once.
#[must_use]
pub fn fetches_are_costly() -> bool {
    std::fs::read_to_string("/proc/cpuinfo").is_ok_and(|text| is_amd(&text))
}

fn is_amd(cpuinfo: &str) -> bool {
    cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("vendor_id")?.split_once(':'))
        .is_some_and(|(_, vendor)| matches!(vendor.trim(), "AuthenticAMD" | "HygonGenuine"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vendors_are_told_apart() {
        let of = |vendor| format!("processor\t: 0\nvendor_id\t: {vendor}\ncpu family\t: 6\n");
        assert!(is_amd(&of("AuthenticAMD")));
        assert!(is_amd(&of("HygonGenuine")));
        assert!(!is_amd(&of("GenuineIntel")));
        assert!(!is_amd(""));
    }
}
