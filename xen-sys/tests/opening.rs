//! Opening the libraries and the connection, on a machine that has no Xen.
//!
//! What needs the real libraries runs where they are installed (they come with libxen-dev, which
//! the bindings are generated from) and says so where they are not.

use std::process::Command;

use xen_sys::load::{Candidates, ControlLibraries, LibraryNames, StoreLibrary};
use xen_sys::{Error, Store, Xen};

/// Set for the child of [`nothing_is_printed_when_opening_fails`].
const CHILD: &str = "XEN_SYS_TEST_CHILD";

fn candidates(name: &str) -> Candidates {
    Candidates {
        names: vec![name.to_owned()],
        package: "the-package".to_owned(),
    }
}

/// The control libraries of one version under other names.
fn libraries(control: &str, guest: &str, foreign: &str) -> LibraryNames {
    LibraryNames {
        control: vec![(17, candidates(control), candidates(guest))],
        foreign: candidates(foreign),
    }
}

/// What stands behind an error, as one text.
fn causes(error: &dyn std::error::Error) -> String {
    std::iter::successors(error.source(), |cause| cause.source())
        .map(|cause| format!("{cause}\n"))
        .collect()
}

/// The installed version's libraries; `None`, said aloud, where there are none.
fn installed() -> Option<LibraryNames> {
    let names = LibraryNames::for_minors(&xen_sys::versions::SUPPORTED_MINORS);
    match ControlLibraries::open(&names) {
        Ok(_) => Some(names),
        Err(Error::LibraryMissing { tried, .. }) => {
            eprintln!("SKIPPED: none of {tried} is installed");
            None
        }
        Err(other) => panic!("{other:?}"),
    }
}

/// Whether this is a Xen domain, where opening works; said aloud.
fn under_xen() -> bool {
    let under = ["/dev/xen/privcmd", "/proc/xen/privcmd"]
        .iter()
        .any(|d| std::fs::exists(d).is_ok_and(|e| e));
    if under {
        eprintln!("SKIPPED: this machine runs under Xen");
    }
    under
}

#[test]
fn a_missing_library_is_named_with_its_package() {
    let error = ControlLibraries::open(&LibraryNames::for_minors(&[97, 98])).expect_err("missing");
    let text = error.to_string();
    assert!(
        text.contains("libxenctrl.so.4.97, libxenctrl.so.4.98"),
        "{text}"
    );
    assert!(text.contains("libxenmisc4.N"), "{text}");
    let one = ControlLibraries::open(&LibraryNames::for_minors(&[98])).expect_err("missing");
    assert!(one.to_string().contains("package libxenmisc4.98"), "{one}");
    // Down the chain stand the linker's own words on the first name.
    let cause = causes(&error);
    assert!(cause.contains("libxenctrl.so.4.97: cannot open"), "{cause}");
}

#[test]
fn a_library_that_is_missing_beside_libxenctrl_is_named() {
    // Any library stands in for libxenctrl: its functions are looked up only once all are open.
    for (guest, foreign, missing) in [
        (
            "libguest-not-there.so.1",
            "libc.so.6",
            "libguest-not-there.so.1",
        ),
        (
            "libc.so.6",
            "libforeign-not-there.so.1",
            "libforeign-not-there.so.1",
        ),
    ] {
        let error = ControlLibraries::open(&libraries("libc.so.6", guest, foreign))
            .expect_err("not installed");
        let Error::LibraryMissing { tried, package, .. } = error else {
            panic!("{error:?}")
        };
        assert_eq!((tried.as_str(), package.as_str()), (missing, "the-package"));
    }
}

#[test]
fn a_missing_symbol_is_named_with_its_library() {
    let error = ControlLibraries::open(&libraries("libc.so.6", "libc.so.6", "libc.so.6"))
        .expect_err("the C library is not libxenctrl");
    let text = error.to_string();
    let Error::SymbolMissing {
        symbol, library, ..
    } = error
    else {
        panic!("{error:?}")
    };
    assert!(symbol.starts_with("xc_"), "{symbol}");
    assert_eq!(library, "libc.so.6");
    assert!(
        text.contains(symbol) && text.contains("libc.so.6"),
        "{text}"
    );

    let error = StoreLibrary::open(&candidates("libc.so.6")).expect_err("not libxenstore");
    assert!(error.to_string().contains("xs_"), "{error}");
}

#[test]
fn every_function_of_the_bindings_is_in_the_installed_libraries() {
    let Some(names) = installed() else { return };
    ControlLibraries::open(&names).expect("all symbols");
    StoreLibrary::open(&xen_sys::load::store_names()).expect("all symbols");
}

#[test]
fn opening_without_xen_says_that_this_is_no_control_domain() {
    if under_xen() {
        return;
    }
    let error = Xen::open().expect_err("no hypervisor");
    assert!(matches!(error, Error::NotControlDomain { .. }), "{error:?}");

    // Past the look at the devices: what the library itself says without a hypervisor.
    let Some(names) = installed() else { return };
    let error = Xen::open_with(&names).expect_err("no hypervisor");
    assert!(matches!(error, Error::NotControlDomain { .. }), "{error:?}");
    assert_eq!(error.errno(), Some(libc::ENOENT));
    let cause = causes(&error);
    assert!(cause.contains("privileged command interface"), "{cause}");
}

#[test]
fn opening_xenstore_without_its_daemon_says_so() {
    if under_xen() || installed().is_none() {
        return;
    }
    let error = Store::open().expect_err("no daemon");
    assert!(matches!(error, Error::StoreUnavailable { .. }), "{error:?}");
}

/// The library prints its errors unless it is given a logger.
#[test]
fn nothing_is_printed_when_opening_fails() {
    if under_xen() {
        return;
    }
    let Some(names) = installed() else { return };
    if std::env::var_os(CHILD).is_some() {
        let _ = Xen::open_with(&names).expect_err("no hypervisor");
        return;
    }
    let output = Command::new(std::env::current_exe().expect("this test"))
        .args([
            "--exact",
            "nothing_is_printed_when_opening_fails",
            "--nocapture",
        ])
        .env(CHILD, "1")
        .output()
        .expect("the test as a child");
    assert!(output.status.success());
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    assert!(String::from_utf8_lossy(&output.stdout).contains("1 passed"));
}

#[test]
fn connections_go_where_their_contracts_say() {
    fn send<T: Send>() {}
    fn sync<T: Sync>() {}
    send::<Xen>();
    sync::<Xen>();
    send::<Store>();
    send::<xen_sys::HypercallBuffer>();
    send::<xen_sys::ForeignMapping<Vec<i32>>>();
    send::<Error>();
    sync::<Error>();
}
