//! Xen's control interface for livesave: the C libraries, opened at run time, and a safe layer.
//!
//! [`Xen`] is the connection to the hypervisor and [`Store`] the one to xenstore. Both open the
//! libraries that the dom0 has installed, by their versioned names; nothing is linked, so that a
//! program with this crate in it builds and starts on any Linux. Everything unsafe about C stays
//! inside: buffers are checked before a call, mappings and buffers free themselves, and a failed
//! call is an [`Error`] with the operation, the domain, the errno and what the library said.
//!
//! | module | what it does | from |
//! |---|---|---|
//! | [`control`] | the connection | `xc_interface_*`, `xc_version` |
//! | [`domain`] | which domains there are, and their state | `xc_domain_getinfolist` |
//! | [`run_state`] | pause, shut down, resume | `xc_domain_{pause,unpause,shutdown,resume}` |
//! | [`memory`] | which pages a domain has | `xc_domain_maximum_gpfn`, `xc_get_pfn_type_batch` |
//! | [`machphys`] | whose a machine frame is, for PV | `xc_machphys_mfn_list` |
//! | [`foreign`] | another domain's pages, mapped | `xenforeignmemory_*` |
//! | [`log_dirty`] | which pages were written | `xc_shadow_control`, `xc_logdirty_control` |
//! | [`device_model`] | pages marked as written | `xendevicemodel_modified_memory` |
//! | [`hypercall_buffer`] | memory the hypervisor fills | `xc__hypercall_buffer_*` |
//! | [`policy`] | CPUID and MSR policy | `xc_cpu_policy_*` |
//! | [`state`] | TSC, vCPU and device state | `xc_domain_hvm_getcontext`, `xc_hvm_param_get` |
//! | [`vcpu`] | vCPU state of a PV guest | `xc_vcpu_getcontext`, `xc_domctl` |
//! | [`sched`] | CPU weight and cap | `xc_sched_credit{,2}_domain_{get,set}` |
//! | [`store`] | xenstore | `xs_*` |
//! | [`load`] | opening the libraries | the dynamic linker |
//! | [`versions`] | which versions of Xen, and what differs in them | their headers |
//!
//! The raw bindings are generated from Xen's headers and committed (`src/bindings`); a build needs
//! neither bindgen nor libclang nor Xen. To write them anew, or with `--check` to compare them
//! with what headers give (libclang needed, and libxen-dev 4.17, or any version's headers in a folder):
//!
//! ```text
//! cargo run -p xen-sys --features regenerate --bin xen-sys-bindings -- [--check] [--headers 4.N=DIR]...
//! ```
//!
//! Domains are named by [`DomainId`], pages by plain `u64` frame numbers of 4096 bytes.

#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
compile_error!("xen-sys knows Xen's interface on x86-64 Linux only");

mod bindings;
pub mod control;
pub mod device_model;
pub mod domain;
mod domctl;
pub mod error;
pub mod foreign;
pub mod hypercall_buffer;
pub mod load;
pub mod log_dirty;
mod logger;
pub mod machphys;
pub mod memory;
pub mod policy;
pub mod run_state;
pub mod sched;
pub mod state;
pub mod store;
pub mod vcpu;
pub mod versions;

pub use control::{PAGE_SIZE, Xen};
pub use device_model::DeviceModel;
pub use domain::{DomainId, DomainInfo, ShutdownReason};
pub use error::{CallError, Error};
pub use foreign::{ForeignMapping, ForeignWords, Protection};
pub use hypercall_buffer::HypercallBuffer;
pub use log_dirty::{EnableError, LogDirtyStats};
pub use machphys::MachineToPhys;
pub use memory::{PageType, PodTarget};
pub use policy::{CpuPolicy, PolicySize};
pub use sched::{CpuShare, Scheduler};
pub use state::TscInfo;
pub use store::{Store, Transaction, WatchEvent};
pub use vcpu::VcpuContext;
