//! Guards: the inaccessible low end of a slot, where an overflow faults.
//!
//! Two ways to make one. Guard markers live in the page table and cost no mapping. `mprotect`
//! splits the mapping around each guard: two mappings a stack, and `vm.max_map_count` (65,530 by
//! default) ends it near 32,000 stacks. Either outlives `MADV_DONTNEED` on the slot.

use std::{
    io, ptr,
    sync::{
        OnceLock,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

/// Size of every guard in bytes: a multiple of all page sizes in use (4, 16 and 64 KiB).
pub(crate) const GUARD_BYTES: usize = 64 * 1024;

/// `MADV_GUARD_INSTALL`, Linux 6.13; see madvise(2).
#[cfg(target_os = "linux")]
const MADV_GUARD_INSTALL: libc::c_int = 102;

/// Mappings that page protection leaves to the rest of the process. Without them the allocator,
/// not the spawn of a fiber, is the first to meet the limit, and it aborts.
const MAPPINGS_LEFT_FREE: usize = 2048;

/// How guards are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum GuardKind {
    /// Page table markers by `MADV_GUARD_INSTALL`.
    Marker,
    /// `mprotect(PROT_NONE)`.
    Protection,
}

impl GuardKind {
    /// The cheapest kind that works here, found once by installing a guard and touching it.
    pub(crate) fn best() -> Self {
        static BEST: OnceLock<GuardKind> = OnceLock::new();
        *BEST.get_or_init(|| if markers_work() { Self::Marker } else { Self::Protection })
    }

    /// Makes the [`GUARD_BYTES`] at `start` inaccessible. `existing` counts the guards there are.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::OutOfMemory`] where page protection meets `vm.max_map_count`.
    ///
    /// # Safety
    ///
    /// The range lies in a mapping of ours, is page-aligned, and nothing refers to its memory.
    pub(crate) unsafe fn install(self, start: usize, existing: usize) -> io::Result<()> {
        let start = ptr::with_exposed_provenance_mut::<libc::c_void>(start);
        match self {
            #[cfg(target_os = "linux")]
            Self::Marker => {
                // SAFETY: the caller vouches for the range.
                if unsafe { libc::madvise(start, GUARD_BYTES, MADV_GUARD_INSTALL) } == 0 {
                    return Ok(());
                }
                let error = io::Error::last_os_error();
                Err(io::Error::new(
                    error.kind(),
                    format!(
                        "cannot guard fiber stack number {} (MADV_GUARD_INSTALL): {error}",
                        existing + 1
                    ),
                ))
            }
            _ => {
                if mappings_used_up(existing) {
                    return Err(mapping_limit(existing, None));
                }
                // SAFETY: the caller vouches for the range.
                if unsafe { libc::mprotect(start, GUARD_BYTES, libc::PROT_NONE) } == 0 {
                    return Ok(());
                }
                Err(mapping_limit(existing, Some(io::Error::last_os_error())))
            }
        }
    }
}

/// Installs a guard on a page of its own and lets the kernel write there: some emulators accept
/// advice that they do not know.
#[cfg(target_os = "linux")]
fn markers_work() -> bool {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    let access = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: a fresh anonymous mapping touches nothing that exists.
    let page = unsafe { libc::mmap(ptr::null_mut(), GUARD_BYTES, access, flags, -1, 0) };
    if page == libc::MAP_FAILED {
        return false;
    }
    // SAFETY: the mapping is ours, of this size and unmapped once. uname(2) writes less than a
    // page at its start, or says EFAULT where it may not.
    unsafe {
        let installed = libc::madvise(page, GUARD_BYTES, MADV_GUARD_INSTALL) == 0;
        let holds = installed
            && libc::syscall(libc::SYS_uname, page) == -1
            && io::Error::last_os_error().raw_os_error() == Some(libc::EFAULT);
        libc::munmap(page, GUARD_BYTES);
        holds
    }
}

#[cfg(not(target_os = "linux"))]
fn markers_work() -> bool {
    false
}

/// Whether two more mappings would eat into what is left to the rest of the process. The limit is
/// read again before saying yes, since it may have been raised.
fn mappings_used_up(existing: usize) -> bool {
    static LIMIT: AtomicUsize = AtomicUsize::new(0);
    let wanted = 2 * (existing + 1) + MAPPINGS_LEFT_FREE;
    if wanted <= LIMIT.load(Relaxed) {
        return false;
    }
    let limit = max_map_count().unwrap_or(usize::MAX);
    LIMIT.store(limit, Relaxed);
    wanted > limit
}

/// `vm.max_map_count`, where there is such a limit.
fn max_map_count() -> Option<usize> {
    if cfg!(target_os = "linux") {
        std::fs::read_to_string("/proc/sys/vm/max_map_count").ok()?.trim().parse().ok()
    } else {
        None
    }
}

#[cold]
fn mapping_limit(existing: usize, error: Option<io::Error>) -> io::Error {
    let cause = error.map_or(String::new(), |error| format!(" (mprotect: {error})"));
    let text = match max_map_count() {
        Some(limit) => format!(
            "cannot guard another fiber stack{cause}: {existing} stacks exist, each guard takes two \
             mappings, and vm.max_map_count is {limit}. Raise it (sysctl -w vm.max_map_count={}), \
             run on Linux 6.13 or newer, where guards take none, or keep fewer fibers at once",
            (limit * 4).next_power_of_two(),
        ),
        None => format!(
            "cannot guard another fiber stack{cause}: {existing} stacks exist. Keep fewer fibers \
             at once or raise the limit on a process's mappings",
        ),
    };
    io::Error::new(io::ErrorKind::OutOfMemory, text)
}
