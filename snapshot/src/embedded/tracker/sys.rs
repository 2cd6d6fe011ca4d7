//! The raw calls of the trackers: userfaultfd, `PAGEMAP_SCAN`, `mprotect` and its signal handler.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, Ordering};

use linux_raw_sys::general::{
    PAGE_IS_WRITTEN, PM_SCAN_CHECK_WPASYNC, PM_SCAN_WP_MATCHING, UFFD_API, UFFD_FEATURE_WP_ASYNC,
    UFFD_FEATURE_WP_HUGETLBFS_SHMEM, UFFD_FEATURE_WP_UNPOPULATED, UFFD_USER_MODE_ONLY, page_region,
    pm_scan_arg, uffdio_api, uffdio_range, uffdio_register,
};
use linux_raw_sys::ioctl::{UFFDIO_API, UFFDIO_REGISTER};

use crate::page::PAGE_SIZE;

/// `_IOWR('f', 16, struct pm_scan_arg)`; linux-raw-sys has the structure but not the number.
const PAGEMAP_SCAN: u32 = 0xc060_6610;
/// `_IOWR(0xaa, 0, struct uffdio_register)`'s mode: write protection.
const MODE_WP: u64 = 1 << 1;

/// Opens a userfaultfd whose write protection the kernel itself lifts at the first write.
pub fn userfaultfd() -> io::Result<OwnedFd> {
    // SAFETY: makes a descriptor; touches no memory.
    let descriptor = unsafe {
        libc::syscall(
            libc::SYS_userfaultfd,
            libc::O_CLOEXEC | UFFD_USER_MODE_ONLY as libc::c_int,
        )
    };
    let descriptor = i32::try_from(descriptor).map_err(io::Error::other)?;
    if descriptor < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: just made, and nobody else's.
    let uffd = unsafe { OwnedFd::from_raw_fd(descriptor) };
    let features =
        UFFD_FEATURE_WP_ASYNC | UFFD_FEATURE_WP_UNPOPULATED | UFFD_FEATURE_WP_HUGETLBFS_SHMEM;
    let mut api = uffdio_api {
        api: u64::from(UFFD_API),
        features: u64::from(features),
        ioctls: 0,
    };
    // SAFETY: UFFDIO_API reads and writes one `uffdio_api`.
    check(unsafe { libc::ioctl(uffd.as_raw_fd(), request(UFFDIO_API), &raw mut api) })?;
    Ok(uffd)
}

/// Registers addresses for write protection. Ends when the descriptor is closed.
pub fn register(uffd: &OwnedFd, addresses: Range<usize>) -> io::Result<()> {
    let mut registration = uffdio_register {
        range: uffdio_range {
            start: addresses.start as u64,
            len: addresses.len() as u64,
        },
        mode: MODE_WP,
        ioctls: 0,
    };
    // SAFETY: UFFDIO_REGISTER reads and writes one `uffdio_register`; registering changes how
    // faults are handled, not what is in memory.
    check(unsafe {
        libc::ioctl(
            uffd.as_raw_fd(),
            request(UFFDIO_REGISTER),
            &raw mut registration,
        )
    })?;
    Ok(())
}

/// A buffer for what one scan call finds.
#[derive(Debug)]
pub struct Regions(Vec<page_region>);

impl Regions {
    /// Room for that many regions per call.
    pub fn new(capacity: usize) -> Self {
        Self(vec![
            page_region {
                start: 0,
                end: 0,
                categories: 0
            };
            capacity
        ])
    }
}

/// Calls `found` with the address ranges written to since they were last protected, for the
/// addresses of another process; protects them again in the same step if told so.
pub fn scan(
    pagemap: &File,
    addresses: Range<u64>,
    protect: bool,
    regions: &mut Regions,
    mut found: impl FnMut(Range<u64>),
) -> io::Result<()> {
    let flags = if protect { PM_SCAN_WP_MATCHING } else { 0 } | PM_SCAN_CHECK_WPASYNC;
    let mut start = addresses.start;
    while start < addresses.end {
        let mut arg = pm_scan_arg {
            size: size_of::<pm_scan_arg>() as u64,
            flags: u64::from(flags),
            start,
            end: addresses.end,
            walk_end: 0,
            vec: regions.0.as_mut_ptr() as u64,
            vec_len: regions.0.len() as u64,
            max_pages: 0,
            category_inverted: 0,
            category_mask: u64::from(PAGE_IS_WRITTEN),
            category_anyof_mask: 0,
            return_mask: u64::from(PAGE_IS_WRITTEN),
        };
        // SAFETY: PAGEMAP_SCAN reads and writes one `pm_scan_arg` of the size given in it and
        // fills at most `vec_len` regions at `vec`, which `regions` owns.
        let count = check(unsafe {
            libc::ioctl(pagemap.as_raw_fd(), request(PAGEMAP_SCAN), &raw mut arg)
        })?;
        for region in regions.0.iter().take(count as usize) {
            found(region.start..region.end);
        }
        if arg.walk_end <= start {
            return Err(io::Error::other("PAGEMAP_SCAN makes no progress"));
        }
        start = arg.walk_end;
    }
    Ok(())
}

/// Memory whose first writes the signal handler records.
#[derive(Debug)]
pub struct Watched {
    /// The address of pfn 0.
    pub base: usize,
    /// The pfns that exist.
    pub runs: Vec<Range<u64>>,
    /// One bit per pfn.
    pub dirty: &'static [AtomicU64],
}

/// How many pages are made writable around a faulting one, if one alone is refused: every page
/// that differs from its neighbours is a mapping of its own to the kernel, and there is a limit to
/// them (`vm.max_map_count`). A run's whole length, which needs no more mappings, comes last.
const WIDER: [u64; 3] = [1, 512, 1 << 15];

static WATCHED: AtomicPtr<Watched> = AtomicPtr::new(std::ptr::null_mut());
static WATCHING: AtomicBool = AtomicBool::new(false);

/// Takes the right to write from all watched memory in one call per run: the pages that had got it
/// back one by one are one mapping again.
pub fn protect(watched: &Watched) -> io::Result<()> {
    watched
        .runs
        .iter()
        .try_for_each(|run| set_writable(watched, run.clone(), false))
}

/// Starts watching: from now on a write to protected memory is recorded. Only one memory of a
/// process can be watched, and it stays for good.
pub fn watch(watched: &'static Watched) -> io::Result<()> {
    static INSTALLED: OnceLock<Result<(), i32>> = OnceLock::new();
    WATCHED.store(std::ptr::from_ref(watched).cast_mut(), Ordering::SeqCst);
    WATCHING.store(true, Ordering::SeqCst);
    let installed = INSTALLED.get_or_init(|| {
        // SAFETY: all zero is a valid sigaction: no flags, an empty mask, which are then set.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = on_fault as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        // SAFETY: `action` is complete, and `on_fault` has the signature of SA_SIGINFO and calls
        // only what a signal handler may.
        match unsafe { libc::sigaction(libc::SIGSEGV, &raw const action, std::ptr::null_mut()) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()
                .raw_os_error()
                .unwrap_or(libc::EINVAL)),
        }
    });
    installed.map_err(io::Error::from_raw_os_error)
}

/// Ends watching and gives the right to write back.
pub fn unwatch(watched: &Watched) -> io::Result<()> {
    for run in &watched.runs {
        set_writable(watched, run.clone(), true)?;
    }
    // Only now: a fault taken before the right came back must still find the memory watched.
    WATCHING.store(false, Ordering::SeqCst);
    Ok(())
}

fn set_writable(watched: &Watched, pfns: Range<u64>, writable: bool) -> io::Result<()> {
    let protection = if writable {
        libc::PROT_READ | libc::PROT_WRITE
    } else {
        libc::PROT_READ
    };
    let start = watched.base + pfns.start as usize * PAGE_SIZE;
    let length = (pfns.end - pfns.start) as usize * PAGE_SIZE;
    // SAFETY: the pfns are of a run of the watched memory, which stays mapped for good; taking
    // the right to write makes writers fault into `on_fault`, which gives it back.
    check(unsafe { libc::mprotect(start as *mut libc::c_void, length, protection) })?;
    Ok(())
}

/// The signal handler: makes the page writable, then records it as dirty.
///
/// The order matters. Recording first would let a fetch take the record and protect the page
/// between the two steps; the page would then become writable with no record. As it is, a page is
/// writable without a record only while a handler is between the steps, and its record follows
/// before the faulting thread writes, goes on, or reaches the barrier of a pause.
///
/// Atomics and raw system calls only: it may interrupt anything.
extern "C" fn on_fault(
    signal: libc::c_int,
    info: *mut libc::siginfo_t,
    _context: *mut libc::c_void,
) {
    // SAFETY: the address of this thread's errno, always valid.
    let errno = unsafe { libc::__errno_location() };
    // SAFETY: as above; what the interrupted code will look at must be as it was.
    let saved = unsafe { *errno };
    // SAFETY: the kernel passes a valid siginfo for SA_SIGINFO; si_addr is set for SIGSEGV.
    let address = unsafe { (*info).si_addr() } as usize;
    // SAFETY: null, or what `watch` stored, which lives for good.
    let watched = unsafe { WATCHED.load(Ordering::SeqCst).as_ref() };
    if !watched.is_some_and(|watched| make_writable(watched, address)) {
        // Not a write to guest memory: a fault of the program itself. It happens again at once,
        // with the default action. (WATCHING may already be off for a late fault: see there.)
        // SAFETY: sets a default action; allowed in a handler.
        unsafe {
            libc::signal(signal, libc::SIG_DFL);
        }
    }
    // SAFETY: as above.
    unsafe {
        *errno = saved;
    }
}

/// Whether the address is of watched memory and now writable.
fn make_writable(watched: &Watched, address: usize) -> bool {
    let Some(offset) = address.checked_sub(watched.base) else {
        return false;
    };
    let pfn = (offset / PAGE_SIZE) as u64;
    let Some(run) = watched.runs.iter().find(|run| run.contains(&pfn)) else {
        return false;
    };
    if !WATCHING.load(Ordering::SeqCst) {
        // `unwatch` has made everything writable since the fault was taken.
        return true;
    }
    let wider = WIDER.iter().map(|width| {
        let start = pfn - pfn % width;
        start.max(run.start)..(start + width).min(run.end)
    });
    for pages in wider.chain([run.clone()]) {
        if set_writable(watched, pages.clone(), true).is_ok() {
            record(watched.dirty, pages);
            return true;
        }
    }
    false
}

fn record(dirty: &[AtomicU64], pages: Range<u64>) {
    let mut pfn = pages.start;
    while pfn < pages.end {
        let bit = pfn % 64;
        let count = (64 - bit).min(pages.end - pfn);
        if let Some(word) = dirty.get((pfn / 64) as usize) {
            word.fetch_or((u64::MAX >> (64 - count)) << bit, Ordering::SeqCst);
        }
        pfn += count;
    }
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// A request's number in the type of this C library: `int` in some, `unsigned long` in others.
#[expect(
    clippy::cast_lossless,
    reason = "it is lossless only where the type is the longer"
)]
fn request(number: u32) -> libc::Ioctl {
    number as libc::Ioctl
}
