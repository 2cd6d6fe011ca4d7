//! Opening Xen's libraries at run time, by their versioned names.
//!
//! Nothing is linked, so that one binary starts on a machine with no Xen package and runs in a
//! dom0 of any supported version. libxenctrl and libxenguest change their names with every Xen
//! release and must match the hypervisor; libxendevicemodel, libxenforeignmemory and libxenstore have
//! stable names.

use std::path::Path;

use libloading::Library;
use libloading::os::unix::{self, RTLD_LOCAL, RTLD_NOW};

use crate::bindings::xenctrl::Xenctrl;
use crate::bindings::xenforeignmemory::Xenforeignmemory;
use crate::bindings::xenguest::Xenguest;
use crate::bindings::xenstore::Xenstore;
use crate::error::Error;
use crate::versions::SUPPORTED_MINORS;

/// Where distributions put libraries; looked through only to name what was found instead.
const LIBRARY_FOLDERS: [&str; 6] = [
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib64",
    "/usr/lib",
    "/lib64",
    "/usr/local/lib",
    "/usr/local/lib64",
];

/// Declares a table of C functions that is filled from a library at run time.
///
/// Takes the declarations as bindgen writes them in an `extern` block, and the table's name; makes
/// a struct with one function pointer each and `load`, which fails on the first missing symbol
/// with its name.
macro_rules! symbols {
    (
        pub struct $table:ident;
        $( pub fn $name:ident( $( $argument:ident : $type:ty ),* $(,)? ) $( -> $result:ty )?; )+
    ) => {
        #[derive(Clone, Copy, Debug)]
        pub struct $table {
            $( pub $name: unsafe extern "C" fn( $( $type ),* ) $( -> $result )?, )+
        }

        impl $table {
            /// Looks all symbols up.
            ///
            /// # Safety
            /// `library` has these functions with these signatures and outlives the table.
            pub unsafe fn load(library: &crate::load::Opened) -> Result<Self, crate::error::Error> {
                Ok(Self {
                    $( $name: unsafe { library.symbol(stringify!($name)) }?, )+
                })
            }

            /// The names of all functions of the table.
            pub const NAMES: &'static [&'static str] = &[ $( stringify!($name) ),+ ];
        }
    };
}
pub(crate) use symbols;

/// An opened library and the name it was opened by.
#[derive(Debug)]
pub struct Opened {
    library: Library,
    name: String,
}

impl Opened {
    /// Opens a library by name, through the usual search of the dynamic linker.
    fn open(name: &str) -> Result<Self, libloading::Error> {
        // RTLD_NOW: a library whose own dependencies are incomplete is refused here, not in the
        // pause window. RTLD_LOCAL: its symbols stay out of everybody's way. RTLD_NODELETE: it
        // stays in memory, because libxenctrl leaves a destructor with every thread that it ever
        // failed in, to run when that thread ends.
        // SAFETY: the names opened are Xen's own libraries, whose constructors only set up
        // library state (tests open other names that do not exist).
        let library = unsafe {
            unix::Library::open(Some(name), RTLD_NOW | RTLD_LOCAL | libc::RTLD_NODELETE)
        }?;
        Ok(Self {
            library: library.into(),
            name: name.to_owned(),
        })
    }

    /// The function `name` as a pointer.
    ///
    /// # Safety
    /// `T` is a function pointer type that fits the symbol; it is not called once `self` is gone.
    pub(crate) unsafe fn symbol<T: Copy>(&self, name: &'static str) -> Result<T, Error> {
        // SAFETY: as the caller promises.
        let symbol = unsafe { self.library.get::<T>(name.as_bytes()) };
        symbol
            .map(|found| *found)
            .map_err(|source| Error::SymbolMissing {
                symbol: name,
                library: self.name.clone(),
                source,
            })
    }

    /// The name it was opened by.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }
}

/// One library to open: the names to try in this order, and which package ships it.
#[derive(Clone, Debug)]
pub struct Candidates {
    /// File names as the dynamic linker takes them, best first.
    pub names: Vec<String>,
    /// What to install, for the error text.
    pub package: String,
}

impl Candidates {
    /// Opens the first that opens.
    ///
    /// # Errors
    /// [`Error::LibraryMissing`] with every name tried.
    pub fn open(&self) -> Result<Opened, Error> {
        let mut last = None;
        for name in &self.names {
            match Opened::open(name) {
                Ok(opened) => return Ok(opened),
                // Of many names the first failure that is more than "no such file" would be the
                // telling one, but the linker has no code for it: keep the first.
                Err(error) => last = last.or(Some(error)),
            }
        }
        Err(Error::LibraryMissing {
            tried: self.names.join(", "),
            package: self.package.clone(),
            found: installed_beside(&self.names, &LIBRARY_FOLDERS),
            source: last,
        })
    }
}

/// Versions of the same library that are installed but were not among `names`, as `", found a b"`
/// for the error text; empty where there are none.
fn installed_beside(names: &[String], folders: &[&str]) -> String {
    let Some(stem) = names.first().and_then(|name| name.split(".so").next()) else {
        return String::new();
    };
    let prefix = format!("{stem}.so.");
    let mut found: Vec<String> = folders
        .iter()
        .filter_map(|folder| std::fs::read_dir(folder).ok())
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        // Full versions such as libxenctrl.so.4.17.0 stand behind the name without the last part.
        .filter(|name| {
            name.starts_with(&prefix) && !names.iter().any(|n| name.starts_with(n.as_str()))
        })
        .collect();
    found.sort();
    found.dedup();
    if found.is_empty() {
        String::new()
    } else {
        format!("; found only {}", found.join(", "))
    }
}

/// The names of all libraries that a control connection needs.
#[derive(Clone, Debug)]
pub struct LibraryNames {
    /// libxenctrl by version: minor and candidates, best first.
    pub control: Vec<(u32, Candidates, Candidates)>,
    /// libxenforeignmemory.
    pub foreign: Candidates,
}

impl LibraryNames {
    /// The names for the hypervisor that runs here, or for all supported versions, newest first,
    /// where that cannot be told.
    ///
    /// # Errors
    /// [`Error::UnsupportedVersion`] for a hypervisor outside [`SUPPORTED_MINORS`].
    pub fn for_running_xen() -> Result<Self, Error> {
        Self::for_version(running_version(Path::new("/sys/hypervisor")))
    }

    fn for_version(running: Option<(u32, u32)>) -> Result<Self, Error> {
        match running {
            None => Ok(Self::for_minors(&SUPPORTED_MINORS)),
            Some((4, minor)) if SUPPORTED_MINORS.contains(&minor) => Ok(Self::for_minors(&[minor])),
            Some((major, minor)) => Err(Error::UnsupportedVersion { major, minor }),
        }
    }

    /// The names for the given minor versions of Xen 4, in that order.
    #[must_use]
    pub fn for_minors(minors: &[u32]) -> Self {
        let versioned = |stem: &str, minor: u32| Candidates {
            names: vec![format!("{stem}.so.4.{minor}")],
            package: format!("libxenmisc4.{minor} (Debian) or xen-libs (RPM)"),
        };
        Self {
            control: minors
                .iter()
                .map(|&m| (m, versioned("libxenctrl", m), versioned("libxenguest", m)))
                .collect(),
            foreign: Candidates {
                names: vec!["libxenforeignmemory.so.1".to_owned()],
                package: "libxenforeignmemory1 (Debian) or xen-libs (RPM)".to_owned(),
            },
        }
    }
}

/// The names of the emulators' library.
#[must_use]
pub fn device_model_names() -> Candidates {
    Candidates {
        names: vec!["libxendevicemodel.so.1".to_owned()],
        package: "libxendevicemodel1 (Debian) or xen-libs (RPM)".to_owned(),
    }
}

/// The names of the xenstore library.
#[must_use]
pub fn store_names() -> Candidates {
    Candidates {
        names: vec![
            "libxenstore.so.4".to_owned(),
            "libxenstore.so.3.0".to_owned(),
        ],
        package: "libxenstore4 (Debian) or xen-libs (RPM)".to_owned(),
    }
}

/// Major and minor version of the running hypervisor as sysfs tells them; `None` outside Xen or
/// without sysfs.
fn running_version(hypervisor: &Path) -> Option<(u32, u32)> {
    let read = |name: &str| std::fs::read_to_string(hypervisor.join(name)).ok();
    if read("type")?.trim() != "xen" {
        return None;
    }
    Some((
        read("version/major")?.trim().parse().ok()?,
        read("version/minor")?.trim().parse().ok()?,
    ))
}

/// The control libraries, opened, with their functions.
#[derive(Debug)]
pub struct ControlLibraries {
    pub(crate) control: Xenctrl,
    pub(crate) guest: Xenguest,
    pub(crate) foreign: Xenforeignmemory,
    /// Xen 4's minor version by the library names.
    pub minor: u32,
    // Kept for as long as the tables above are used.
    _opened: [Opened; 3],
}

impl ControlLibraries {
    /// Opens all of them.
    ///
    /// # Errors
    /// [`Error::LibraryMissing`], [`Error::SymbolMissing`].
    pub fn open(names: &LibraryNames) -> Result<Self, Error> {
        let (minor, control, guest) = open_pair(&names.control)?;
        let foreign = names.foreign.open()?;
        // SAFETY: the libraries' names carry their versions, and the signatures of all functions
        // listed were compared for exactly these versions; the libraries are kept in `Self`.
        unsafe {
            Ok(Self {
                control: Xenctrl::load(&control)?,
                guest: Xenguest::load(&guest)?,
                foreign: Xenforeignmemory::load(&foreign)?,
                minor,
                _opened: [control, guest, foreign],
            })
        }
    }
}

/// Opens libxenctrl of the first version that is there, and libxenguest of the same version.
fn open_pair(versions: &[(u32, Candidates, Candidates)]) -> Result<(u32, Opened, Opened), Error> {
    let mut tried = Vec::new();
    let mut first_error = None;
    for (minor, control, guest) in versions {
        match control.open() {
            Ok(opened) => return Ok((*minor, opened, guest.open()?)),
            Err(Error::LibraryMissing { source, .. }) => {
                tried.extend(control.names.iter().cloned());
                first_error = first_error.or(source);
            }
            Err(other) => return Err(other),
        }
    }
    Err(Error::LibraryMissing {
        found: installed_beside(&tried, &LIBRARY_FOLDERS),
        package: match versions {
            [(_, only, _)] => only.package.clone(),
            _ => "libxenmisc4.N of your Xen's version (Debian) or xen-libs (RPM)".to_owned(),
        },
        tried: tried.join(", "),
        source: first_error,
    })
}

/// libxenstore, opened, with its functions.
#[derive(Debug)]
pub struct StoreLibrary {
    pub(crate) store: Xenstore,
    _opened: Opened,
}

impl StoreLibrary {
    /// Opens it.
    ///
    /// # Errors
    /// [`Error::LibraryMissing`], [`Error::SymbolMissing`].
    pub fn open(names: &Candidates) -> Result<Self, Error> {
        let opened = names.open()?;
        // SAFETY: as in `ControlLibraries::open`; the functions used have not changed since
        // libxenstore.so.3.0.
        let store = unsafe { Xenstore::load(&opened) }?;
        Ok(Self {
            store,
            _opened: opened,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn names(names: &LibraryNames) -> Vec<&str> {
        names
            .control
            .iter()
            .map(|(_, control, _)| control.names[0].as_str())
            .collect()
    }

    #[test]
    fn the_running_version_decides_which_library_is_opened() {
        let found = LibraryNames::for_version(Some((4, 20))).expect("supported");
        assert_eq!(names(&found), ["libxenctrl.so.4.20"]);
        assert_eq!(found.control[0].2.names, ["libxenguest.so.4.20"]);
    }

    #[test]
    fn without_a_hypervisor_all_supported_versions_are_tried_newest_first() {
        let found = LibraryNames::for_version(None).expect("supported");
        let names = names(&found);
        assert_eq!((names[0], names.len()), ("libxenctrl.so.4.23", 7));
        assert_eq!(names[6], "libxenctrl.so.4.17");
    }

    #[test]
    fn versions_outside_the_range_are_refused() {
        for version in [(4, 16), (4, 24), (5, 0), (3, 17)] {
            let error = LibraryNames::for_version(Some(version)).expect_err("refused");
            let Error::UnsupportedVersion { major, minor } = error else {
                panic!("{error:?}");
            };
            assert_eq!((major, minor), version);
        }
    }

    #[test]
    fn the_version_is_read_from_sysfs() {
        let hypervisor = tempfile::tempdir().expect("a folder");
        let path = hypervisor.path();
        assert_eq!(running_version(path), None);
        fs::create_dir(path.join("version")).expect("a folder");
        fs::write(path.join("version/major"), "4\n").expect("written");
        fs::write(path.join("version/minor"), "17\n").expect("written");
        fs::write(path.join("type"), "xen\n").expect("written");
        assert_eq!(running_version(path), Some((4, 17)));
        fs::write(path.join("type"), "other\n").expect("written");
        assert_eq!(running_version(path), None);
    }

    #[test]
    fn what_is_installed_instead_is_named() {
        let folder = tempfile::tempdir().expect("a folder");
        for name in [
            "libxenctrl.so.4.16",
            "libxenctrl.so.4.17.0",
            "libxenctrl.a",
            "libx.so.1",
        ] {
            fs::write(folder.path().join(name), "").expect("written");
        }
        let folders = [folder.path().to_str().expect("UTF-8"), "/nowhere"];
        let tried = ["libxenctrl.so.4.17".to_owned()];
        assert_eq!(
            installed_beside(&tried, &folders),
            "; found only libxenctrl.so.4.16"
        );
        let tried = ["libxenguest.so.4.17".to_owned()];
        assert_eq!(installed_beside(&tried, &folders), "");
    }
}
