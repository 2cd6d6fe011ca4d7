//! What differs between the supported versions of Xen: all of it, and what livesave does about it.
//!
//! The bindings are generated from the headers of Xen 4.17 and used with the libraries of every
//! supported version. So that this is not a matter of belief, `xen-sys-bindings --check --headers
//! 4.20=DIR` generates them from another version's headers, which has to give the committed ones with
//! [`DIFFERENCES`] put in: one that is not listed fails, and so does a listed one that is not there.
//!
//! | version | headers from | compared |
//! |---|---|---|
//! | 4.17 | Debian 12 | by every run of `experiments/check` |
//! | 4.20 | Debian 13 | by every run of `experiments/check` |
//! | 4.18, 4.19, 4.21, 4.22 | Xen's stable branches of 2026-07-29 | once; no Debian release has them |
//! | 4.23 | Xen's master of 2026-08-20, not released | once |
//!
//! What headers cannot show:
//! - libxenctrl and libxenguest have the version in their names, and fit no other hypervisor; the
//!   running one says which are opened ([`crate::load`]).
//! - `xc_get_pfn_type_batch` is exported but in no public header; its signature was compared in the
//!   sources of all of them. That a library has every function is seen when it is opened.
//! - Whether PV guests' writes can be tracked: that is how the hypervisor was built, not its version
//!   ([`crate::EnableError::Unsupported`]).

/// The Xen minor versions whose libraries have the interface that the bindings describe: 4.17 to
/// 4.23, newest first. A new version is added here once its headers were compared.
pub const SUPPORTED_MINORS: [u32; 7] = [23, 22, 21, 20, 19, 18, 17];

/// The minor version whose headers the committed bindings are generated from.
pub const GENERATED_FROM: u32 = 17;

/// Something that is otherwise from some version of Xen on.
#[derive(Clone, Copy, Debug)]
pub struct Difference {
    /// The first minor version that has it.
    pub since: u32,
    /// The library whose bindings it is in.
    pub library: &'static str,
    /// The text of the bindings in the version before.
    pub was: &'static str,
    /// What stands there now.
    pub is: &'static str,
    /// What livesave does about it.
    pub handled: &'static str,
}

const LIBRARYS_OWN: &str = "libxenctrl puts its own into each call, and a library of another version \
                            than the hypervisor's is refused when it is opened";

/// All of them, oldest first.
pub const DIFFERENCES: &[Difference] = &[
    Difference {
        since: 18,
        library: "xenctrl",
        was: "pub const XEN_DOMCTL_INTERFACE_VERSION: u32 = 21;",
        is: "pub const XEN_DOMCTL_INTERFACE_VERSION: u32 = 22;",
        handled: LIBRARYS_OWN,
    },
    Difference {
        since: 19,
        library: "xenctrl",
        was: "pub const XEN_DOMCTL_INTERFACE_VERSION: u32 = 22;",
        is: "pub const XEN_DOMCTL_INTERFACE_VERSION: u32 = 23;",
        handled: LIBRARYS_OWN,
    },
    Difference {
        since: 21,
        library: "xenctrl",
        was: "pub const XEN_SYSCTL_INTERFACE_VERSION: u32 = 21;",
        is: "pub const XEN_SYSCTL_INTERFACE_VERSION: u32 = 22;",
        handled: LIBRARYS_OWN,
    },
    Difference {
        since: 22,
        library: "xenctrl",
        was: "pub const XEN_DOMCTL_INTERFACE_VERSION: u32 = 23;",
        is: "pub const XEN_DOMCTL_INTERFACE_VERSION: u32 = 24;",
        handled: LIBRARYS_OWN,
    },
];

/// The differences of a version from the one that the bindings are generated from.
pub fn differences_of(minor: u32) -> impl Iterator<Item = &'static Difference> {
    DIFFERENCES.iter().filter(move |d| d.since <= minor)
}

/// What the headers of `minor` have to give for `library`, whose committed bindings are given.
///
/// # Errors
/// A difference whose text does not stand in the bindings exactly once, so that it says nothing.
pub fn expected(committed: &str, library: &str, minor: u32) -> Result<String, &'static Difference> {
    put_in(
        committed,
        differences_of(minor).filter(|d| d.library == library),
    )
}

fn put_in<'a>(
    committed: &str,
    differences: impl Iterator<Item = &'a Difference>,
) -> Result<String, &'a Difference> {
    let mut text = committed.to_owned();
    for difference in differences {
        if text.matches(difference.was).count() != 1 {
            return Err(difference);
        }
        text = text.replacen(difference.was, difference.is, 1);
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMMITTED: &[(&str, &str)] = &[
        ("xenctrl", include_str!("bindings/xenctrl.rs")),
        ("xendevicemodel", include_str!("bindings/xendevicemodel.rs")),
        (
            "xenforeignmemory",
            include_str!("bindings/xenforeignmemory.rs"),
        ),
        ("xenguest", include_str!("bindings/xenguest.rs")),
        ("xenstore", include_str!("bindings/xenstore.rs")),
    ];

    fn difference(was: &'static str, is: &'static str) -> Difference {
        Difference {
            since: 18,
            library: "xenctrl",
            was,
            is,
            handled: "",
        }
    }

    #[test]
    fn every_difference_is_one_from_the_committed_bindings() {
        for difference in DIFFERENCES {
            let known = COMMITTED
                .iter()
                .any(|(name, _)| *name == difference.library);
            assert!(known, "{difference:?}");
            assert!(
                SUPPORTED_MINORS.contains(&difference.since),
                "{difference:?}"
            );
            assert_ne!(difference.was, difference.is);
        }
        for minor in SUPPORTED_MINORS {
            for (library, committed) in COMMITTED {
                let text = expected(committed, library, minor).expect("all can be put in");
                let otherwise = differences_of(minor).any(|d| d.library == *library);
                assert_eq!(text != **committed, otherwise, "{library} of 4.{minor}");
            }
        }
    }

    #[test]
    fn differences_build_on_those_before() {
        let list = [difference("= 1;", "= 2;"), difference("= 2;", "= 3;")];
        assert_eq!(
            put_in("A = 1; B = 7;", list.iter()).expect("put in"),
            "A = 3; B = 7;"
        );
    }

    #[test]
    fn a_difference_from_nothing_or_from_many_is_refused() {
        let list = [difference("= 1;", "= 2;")];
        for text in ["A = 3;", "A = 1; B = 1;"] {
            assert!(put_in(text, list.iter()).is_err(), "{text}");
        }
    }

    #[test]
    fn a_version_has_its_own_differences_and_those_before() {
        let count = |minor| differences_of(minor).count();
        assert_eq!([17, 18, 20, 21, 23].map(count), [0, 1, 2, 3, 4]);
        assert!(differences_of(GENERATED_FROM).next().is_none());
    }
}
