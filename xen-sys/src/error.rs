//! What can go wrong between us and Xen, told apart as far as a caller can act on it.

use std::fmt;
use std::io;

use crate::domain::DomainId;
use crate::logger;

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// None of the library's names can be opened.
    #[error("Failed to open Xen's library {tried}, which ships in the package {package}{found}")]
    LibraryMissing {
        /// The file names tried, comma separated.
        tried: String,
        /// The package to install.
        package: String,
        /// Other versions of the library that are installed, worded to end the sentence; empty
        /// where there are none.
        found: String,
        /// What the dynamic linker said of the first name.
        #[source]
        source: Option<libloading::Error>,
    },
    /// The library is there and lacks a function.
    #[error("Failed to find {symbol} in {library}")]
    SymbolMissing {
        /// The function's name.
        symbol: &'static str,
        /// The name by which the library was opened.
        library: String,
        /// What the dynamic linker said.
        #[source]
        source: libloading::Error,
    },
    /// The hypervisor that runs here is of a version that this program does not know.
    #[error("Xen {major}.{minor} is not supported (4.17 to 4.23 are)")]
    UnsupportedVersion {
        /// Major version.
        major: u32,
        /// Minor version.
        minor: u32,
    },
    /// The libraries opened do not fit the running hypervisor.
    #[error("The Xen {libraries} libraries do not fit the running hypervisor")]
    VersionMismatch {
        /// The libraries' version, such as `4.17`.
        libraries: String,
        /// What the hypervisor answered (`EACCES`).
        #[source]
        source: CallError,
    },
    /// This is not the control domain of a Xen host: no hypervisor, no device to reach it, or a
    /// domain without the privilege.
    #[error("This is not the control domain (dom0) of a Xen host: {reason}")]
    NotControlDomain {
        /// How that was seen.
        reason: &'static str,
        /// The failure that showed it, if it was one.
        #[source]
        source: Option<CallError>,
    },
    /// The process may not use Xen's devices.
    #[error("No permission to use {subject} (root is needed)")]
    PermissionDenied {
        /// The device or socket.
        subject: &'static str,
        /// What the system said.
        #[source]
        source: CallError,
    },
    /// A call on a domain failed.
    #[error("Failed to {operation} domain {domain}")]
    DomainCall {
        /// What was being done, to stand after "failed to".
        operation: &'static str,
        /// The domain.
        domain: DomainId,
        /// Why.
        #[source]
        source: CallError,
    },
    /// A call on the host failed.
    #[error("Failed to {operation}")]
    HostCall {
        /// What was being done, to stand after "failed to".
        operation: &'static str,
        /// Why.
        #[source]
        source: CallError,
    },
    /// Xen looked at fewer pages than it was asked for, so that the dirty bits behind are unknown.
    #[error("Only {got} of {asked} pages of domain {domain} are in the dirty bitmap")]
    ShortBitmap {
        /// The domain.
        domain: DomainId,
        /// Pages asked for.
        asked: u64,
        /// Pages answered.
        got: u64,
    },
    /// A request on xenstore failed.
    #[error("Failed to {operation} {path} in xenstore")]
    Store {
        /// What was being done, to stand after "failed to".
        operation: &'static str,
        /// The path in xenstore (or domain) that it was done to.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The store is not reachable.
    #[error("Failed to connect to xenstore (is xenstored running?)")]
    StoreUnavailable {
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The caller asked for something that the interface cannot express.
    #[error("Invalid request to {operation}: {what}")]
    Argument {
        /// What was asked for.
        operation: &'static str,
        /// What is wrong with it.
        what: &'static str,
    },
}

impl Error {
    /// The errno behind the error, where there is one.
    #[must_use]
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::VersionMismatch { source, .. }
            | Self::PermissionDenied { source, .. }
            | Self::DomainCall { source, .. }
            | Self::HostCall { source, .. } => source.errno(),
            Self::NotControlDomain { source, .. } => source.as_ref()?.errno(),
            Self::Store { source, .. } | Self::StoreUnavailable { source } => source.raw_os_error(),
            _ => None,
        }
    }

    /// Whether the call failed because the domain does not exist (any more).
    #[must_use]
    pub fn is_no_such_domain(&self) -> bool {
        matches!(self, Self::DomainCall { source, .. } if source.errno() == Some(libc::ESRCH))
    }
}

/// Why a call failed: the errno, and what the library logged about it.
#[derive(Debug)]
pub struct CallError {
    source: io::Error,
    message: Option<String>,
}

impl CallError {
    /// The failure that this thread's last library call left: `result` is what it returned,
    /// negative.
    pub(crate) fn of(result: i64) -> Self {
        // Most functions return -1 and set errno; a few return -errno itself. Read errno first:
        // nothing below may change it.
        let last = io::Error::last_os_error();
        let source = match i32::try_from(-result) {
            Ok(errno) if errno > 1 => io::Error::from_raw_os_error(errno),
            _ => last,
        };
        Self {
            source,
            message: logger::take(),
        }
    }

    /// The errno.
    #[must_use]
    pub fn errno(&self) -> Option<i32> {
        self.source.raw_os_error()
    }
}

impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.source.fmt(f)?;
        match &self.message {
            Some(message) => write!(f, " (the library says: {message})"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for CallError {}

impl From<io::Error> for CallError {
    fn from(source: io::Error) -> Self {
        Self {
            source,
            message: None,
        }
    }
}
