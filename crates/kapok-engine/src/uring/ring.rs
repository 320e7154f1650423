//! The two rings of io_uring(7): mapped memory, indices and io_uring_enter(2).
//!
//! ```text
//!              tail: ours, published by `enter`                tail: the kernel's
//!                │                                               │
//!   SQ  ░░░░░████▼░░░░░░   entries the kernel has not   CQ ░░░███▼░░░░  completions we have
//!            ▲             consumed yet                       ▲         not taken yet
//!            └ head: the kernel's                             └ head: ours, published by `reap`
//! ```
//!
//! Invariants: one thread uses a ring (it holds raw pointers and is not `Send`); entries between
//! head and tail belong to the kernel; pointers point into mappings that live as long as the ring.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering, fence};
use std::time::Duration;

use linux_raw_sys::io_uring as abi;

use crate::sys::errno;
use crate::sys::own::{OwnDescriptor, made};

/// A submission queue entry. Here it has its `user_data`.
pub(super) use crate::entry::Entry as Sqe;

/// A completion queue entry.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(super) struct Cqe {
    pub(super) user_data: u64,
    pub(super) res: i32,
    pub(super) flags: u32,
}

const _: () = assert!(size_of::<Cqe>() == 16);

impl Drop for Ring {
    fn drop(&mut self) {
        DROPPED.store(true, Ordering::Relaxed);
        if !self.is_registered() {
            return;
        }
        // The registration holds the ring open until its thread ends.
        let mut update =
            abi::io_uring_rsrc_update { offset: self.enter_fd as u32, resv: 0, data: 0 };
        // SAFETY: one update, which outlives the call. A failure leaves things as they were.
        let _ = unsafe {
            self.register(
                abi::io_uring_register_op::IORING_UNREGISTER_RING_FDS as u32,
                (&raw mut update).cast(),
                1,
            )
        };
    }
}

/// How a ring is set up, from the best to the least that Kapok runs on. A kernel that does not know
/// a flag answers `EINVAL`, and the next line is tried.
const SETUP_LADDER: [u32; 3] = [
    // 6.6: no index array between us and the entries.
    abi::IORING_SETUP_SINGLE_ISSUER
        | abi::IORING_SETUP_DEFER_TASKRUN
        | abi::IORING_SETUP_COOP_TASKRUN
        | abi::IORING_SETUP_TASKRUN_FLAG
        | abi::IORING_SETUP_SUBMIT_ALL
        | abi::IORING_SETUP_NO_SQARRAY,
    // 6.1: completions are processed when we ask, and by us.
    abi::IORING_SETUP_SINGLE_ISSUER
        | abi::IORING_SETUP_DEFER_TASKRUN
        | abi::IORING_SETUP_COOP_TASKRUN
        | abi::IORING_SETUP_TASKRUN_FLAG
        | abi::IORING_SETUP_SUBMIT_ALL,
    // 5.19: no interrupts for task work. Older rings lack more than that: cancelling everything,
    // polling before a send, accepts that wait on a descriptor that does not block.
    abi::IORING_SETUP_COOP_TASKRUN | abi::IORING_SETUP_TASKRUN_FLAG | abi::IORING_SETUP_SUBMIT_ALL,
];

/// What the kernel must have, and has since 5.13: one mapping for both rings, completions that are
/// never dropped for want of room, poll-driven retries, waits with a time limit, multishot polls.
const REQUIRED_FEATURES: u32 = abi::IORING_FEAT_SINGLE_MMAP
    | abi::IORING_FEAT_NODROP
    | abi::IORING_FEAT_FAST_POLL
    | abi::IORING_FEAT_EXT_ARG
    | abi::IORING_FEAT_RSRC_TAGS;

/// The smallest ring that is tried where memory is short: a page of each.
const FEWEST_SUBMISSIONS: u32 = 64;
const FEWEST_COMPLETIONS: u32 = 128;

/// So many of the kernel's workers for files at least. Of 8, 16, 32 and 64 with two processors: a write and
/// fdatasync(2), 32 at a time, 38, 43, 44 and 44 thousand a second; 128 at a time 41, 51, 48 and 45.
const FEWEST_WORKERS: u32 = 16;

/// The last of the pauses, each twice as long as the one before, for memory of rings that are gone. They
/// may be another process's of this user.
const LONGEST_PAUSE: Duration = Duration::from_millis(256);

/// The same where this process has dropped one. That memory does come back, as soon as the kernel's worker
/// has a processor for it.
const LONGEST_PAUSE_AFTER_DROP: Duration = Duration::from_millis(2048);

/// Whether this process has dropped a ring.
static DROPPED: AtomicBool = AtomicBool::new(false);

fn longest_pause() -> Duration {
    if DROPPED.load(Ordering::Relaxed) { LONGEST_PAUSE_AFTER_DROP } else { LONGEST_PAUSE }
}

fn too_old() -> io::Error {
    io::Error::new(io::ErrorKind::Unsupported, "this kernel's io_uring is older than 5.19")
}

/// A mapping that is unmapped when dropped.
struct Mapping {
    start: NonNull<u8>,
    len: usize,
}

impl Mapping {
    fn new(fd: RawFd, len: usize, offset: u32) -> io::Result<Mapping> {
        // SAFETY: a new shared mapping of the ring's descriptor at an address the kernel chooses.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_POPULATE,
                fd,
                offset as libc::off_t,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // A fork must not leave two processes writing into one ring. Failing to say so only
        // matters to a child that touches the ring, which it must not.
        // SAFETY: advice on the mapping that was just made.
        unsafe { libc::madvise(start, len, libc::MADV_DONTFORK) };
        Ok(Mapping { start: NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?, len })
    }

    /// A pointer into the mapping; `offset` is the kernel's own.
    fn at<T>(&self, offset: u32) -> NonNull<T> {
        assert!(offset as usize + size_of::<T>() <= self.len, "the kernel named a place outside");
        // SAFETY: within the mapping, by the assertion.
        unsafe { self.start.add(offset as usize).cast() }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours and its pointers go away with the ring.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) };
    }
}

pub(super) struct Ring {
    /// What `io_uring_enter` is given: an index of a registered ring, or the descriptor.
    enter_fd: RawFd,
    enter_flags: u32,

    sq_head: NonNull<AtomicU32>,
    sq_tail: NonNull<AtomicU32>,
    sq_flags: NonNull<AtomicU32>,
    sqes: NonNull<Sqe>,
    sq_mask: u32,
    sq_entries: u32,
    /// Our tail; the shared one follows when we enter.
    sq_local_tail: u32,

    cq_head: NonNull<AtomicU32>,
    cq_tail: NonNull<AtomicU32>,
    cq_overflow: NonNull<AtomicU32>,
    cq_flags: NonNull<AtomicU32>,
    cqes: NonNull<Cqe>,
    cq_mask: u32,

    /// Calls of io_uring_enter(2).
    enters: u64,

    // Dropped in this order: the mappings, then the descriptor.
    _rings: Mapping,
    _entries: Mapping,
    fd: OwnDescriptor,
}

impl Ring {
    /// Sets up a ring with this many submission entries and completion entries, or with fewer where the
    /// kernel has no memory for so many: the pages are charged to RLIMIT_MEMLOCK, and some kernels want
    /// them in one piece. What a ring gives up when it is dropped comes back only a while later, so even
    /// the smallest is tried more than once.
    pub(super) fn new(submissions: u32, completions: u32) -> io::Result<Ring> {
        let (mut submissions, mut completions) = (submissions, completions);
        let mut pause = Duration::from_millis(1);
        loop {
            match Ring::of_size(submissions, completions) {
                Err(error) if error.raw_os_error() == Some(libc::ENOMEM) => {
                    if submissions > FEWEST_SUBMISSIONS || completions > FEWEST_COMPLETIONS {
                        submissions = submissions.min(FEWEST_SUBMISSIONS.max(submissions / 2));
                        completions = completions.min(FEWEST_COMPLETIONS.max(completions / 2));
                        tracing::debug!(submissions, completions, "no memory for a larger ring");
                    } else if pause <= longest_pause() {
                        std::thread::sleep(pause);
                        pause *= 2;
                    } else {
                        return Err(error);
                    }
                }
                result => return result,
            }
        }
    }

    fn of_size(submissions: u32, completions: u32) -> io::Result<Ring> {
        for flags in SETUP_LADDER {
            match Ring::with_flags(submissions, completions, flags) {
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
                result => return result,
            }
        }
        Err(too_old())
    }

    /// The same with these `IORING_SETUP_*`, or not at all.
    pub(super) fn with_flags(
        submissions: u32,
        completions: u32,
        setup_flags: u32,
    ) -> io::Result<Ring> {
        // SAFETY: plain integers, for which zero is a value.
        let mut params: abi::io_uring_params = unsafe { std::mem::zeroed() };
        params.flags = setup_flags | abi::IORING_SETUP_CQSIZE | abi::IORING_SETUP_CLAMP;
        params.cq_entries = completions.max(submissions);
        // SAFETY: the kernel reads and writes `params`, which outlives the call.
        let fd =
            unsafe { libc::syscall(libc::SYS_io_uring_setup, submissions.max(1), &raw mut params) };
        // SAFETY: a descriptor that the kernel has just made for us.
        let fd = OwnDescriptor::new(unsafe { made(fd as RawFd) }?);
        if params.features & REQUIRED_FEATURES != REQUIRED_FEATURES {
            return Err(too_old());
        }

        let sq_len = params.sq_off.array as usize + params.sq_entries as usize * size_of::<u32>();
        let cq_len = params.cq_off.cqes as usize + params.cq_entries as usize * size_of::<Cqe>();
        let rings = Mapping::new(fd.as_raw_fd(), sq_len.max(cq_len), abi::IORING_OFF_SQ_RING)?;
        let entries_len = params.sq_entries as usize * size_of::<Sqe>();
        let entries = Mapping::new(fd.as_raw_fd(), entries_len, abi::IORING_OFF_SQES)?;
        if setup_flags & abi::IORING_SETUP_NO_SQARRAY == 0 {
            for index in 0..params.sq_entries {
                let slot = rings.at::<u32>(params.sq_off.array + index * size_of::<u32>() as u32);
                // SAFETY: inside the mapping, checked by `at`; the kernel does not look before the
                // tail moves. The array stays the identity for good.
                unsafe { slot.write(index) };
            }
        }

        let mut ring = Ring {
            enter_fd: fd.as_raw_fd(),
            enter_flags: 0,
            sq_head: rings.at(params.sq_off.head),
            sq_tail: rings.at(params.sq_off.tail),
            sq_flags: rings.at(params.sq_off.flags),
            sqes: entries.at(0),
            sq_mask: params.sq_entries - 1,
            sq_entries: params.sq_entries,
            sq_local_tail: 0,
            cq_head: rings.at(params.cq_off.head),
            cq_tail: rings.at(params.cq_off.tail),
            cq_overflow: rings.at(params.cq_off.overflow),
            cq_flags: rings.at(params.cq_off.flags),
            cqes: rings.at(params.cq_off.cqes),
            cq_mask: params.cq_entries - 1,
            _rings: rings,
            enters: 0,
            _entries: entries,
            fd,
        };
        ring.register_descriptor();
        ring.allow_workers();
        Ok(ring)
    }

    /// Has the kernel use enough workers for what would block in it on a file: syncs, buffered writes. By
    /// itself it takes four for each processor (5.15), and those of a journal wait for each other's commit. They
    /// are the thread's, not the ring's, and stay so: other rings of the thread have them too.
    fn allow_workers(&self) {
        // Bounded workers, those for files, and unbounded ones; 0 asks.
        let mut most = [0_u32; 2];
        let register = |argument: &mut [u32; 2]| {
            // SAFETY: two numbers, which outlive the call.
            unsafe {
                self.register(
                    abi::io_uring_register_op::IORING_REGISTER_IOWQ_MAX_WORKERS as u32,
                    argument.as_mut_ptr().cast(),
                    2,
                )
            }
        };
        // The kernel makes what is asked for as few as the limit on processes, even where it does not hold that
        // against the workers that it takes by itself: then those would become fewer.
        let wanted = FEWEST_WORKERS.min(processes_allowed());
        if register(&mut most).is_ok() && (1..wanted).contains(&most[0]) {
            // One that may not goes on with fewer.
            let _ = register(&mut [wanted, 0]);
        }
    }

    /// Spares the look-up of the descriptor on each enter (5.18). A kernel that cannot goes on with
    /// the plain descriptor.
    fn register_descriptor(&mut self) {
        let mut update = abi::io_uring_rsrc_update {
            offset: u32::MAX,
            resv: 0,
            data: self.fd.as_raw_fd() as u64,
        };
        // SAFETY: one update, which outlives the call.
        let registered = unsafe {
            self.register(
                abi::io_uring_register_op::IORING_REGISTER_RING_FDS as u32,
                (&raw mut update).cast(),
                1,
            )
        };
        if registered == Ok(1) {
            self.enter_fd = update.offset as RawFd;
            self.enter_flags = abi::IORING_ENTER_REGISTERED_RING;
        }
    }

    /// io_uring_register(2): the result, or the errno.
    ///
    /// # Safety
    ///
    /// `argument` and `count` are what `opcode` asks for, and live as long as it says.
    pub(super) unsafe fn register(
        &self,
        opcode: u32,
        argument: *mut libc::c_void,
        count: u32,
    ) -> Result<i32, i32> {
        // SAFETY: by the caller.
        let res = unsafe {
            libc::syscall(libc::SYS_io_uring_register, self.fd.as_raw_fd(), opcode, argument, count)
        };
        if res < 0 { Err(errno()) } else { Ok(res as i32) }
    }

    /// Has the kernel take buffers of `group` from this ring of so many entries.
    pub(super) fn register_buffers(
        &self,
        group: u16,
        entries: NonNull<u8>,
        count: u16,
    ) -> io::Result<()> {
        // SAFETY: plain integers, for which zero is a value.
        let mut ring: abi::io_uring_buf_reg = unsafe { std::mem::zeroed() };
        ring.ring_addr = entries.as_ptr().expose_provenance() as u64;
        ring.ring_entries = u32::from(count);
        ring.bgid = group;
        // SAFETY: the argument outlives the call; whoever made the entries keeps them while this ring
        // has operations (`Buffers`).
        let registered = unsafe {
            self.register(
                abi::io_uring_register_op::IORING_REGISTER_PBUF_RING as u32,
                (&raw mut ring).cast(),
                1,
            )
        };
        registered.map(drop).map_err(io::Error::from_raw_os_error)
    }

    /// Has the kernel notify this eventfd(2) of what lands, while it is [asked to](Ring::announce). Any that it had
    /// is given up.
    pub(super) fn register_eventfd(&self, eventfd: RawFd) -> io::Result<()> {
        self.announce(false);
        // SAFETY: takes no memory. There may be none.
        let _ = unsafe {
            self.register(
                abi::io_uring_register_op::IORING_UNREGISTER_EVENTFD as u32,
                std::ptr::null_mut(),
                0,
            )
        };
        let mut fd = eventfd;
        // SAFETY: one descriptor, which outlives the call; the kernel holds what is behind it.
        let registered = unsafe {
            self.register(
                abi::io_uring_register_op::IORING_REGISTER_EVENTFD as u32,
                (&raw mut fd).cast(),
                1,
            )
        };
        registered.map(drop).map_err(io::Error::from_raw_os_error)
    }

    /// Whether the registered eventfd(2) is to be notified. Who asks for it looks for what has landed afterwards.
    pub(super) fn announce(&self, wanted: bool) {
        let flags = if wanted { 0 } else { abi::IORING_CQ_EVENTFD_DISABLED };
        // SAFETY: points into a mapping that lives as long as `self`; the kernel only reads it.
        unsafe { self.cq_flags.as_ref() }.store(flags, Ordering::Relaxed);
        // Before the look: the kernel says first that there is something, and reads this then.
        fence(Ordering::SeqCst);
    }

    /// The descriptor itself.
    pub(super) fn descriptor(&self) -> RawFd {
        self.fd.as_raw_fd()
    }

    /// Whether io_uring_enter is given a registered index.
    pub(super) fn is_registered(&self) -> bool {
        self.enter_flags & abi::IORING_ENTER_REGISTERED_RING != 0
    }

    /// How many entries wait to be submitted.
    #[inline]
    pub(super) fn unsubmitted(&self) -> u32 {
        // SAFETY: points into a mapping that lives as long as `self`.
        let head = unsafe { self.sq_head.as_ref() }.load(Ordering::Acquire);
        self.sq_local_tail.wrapping_sub(head)
    }

    /// Adds an entry. `false`: the queue is full.
    ///
    /// # Safety
    ///
    /// What the entry names obeys the contract of [`Engine::submit`](crate::Engine::submit).
    #[must_use]
    #[inline]
    pub(super) unsafe fn push(&mut self, sqe: Sqe) -> bool {
        if self.unsubmitted() == self.sq_entries {
            return false;
        }
        let index = (self.sq_local_tail & self.sq_mask) as usize;
        // SAFETY: the mask keeps the index inside the mapping, and an entry at the tail of a queue
        // that is not full is ours, not the kernel's.
        unsafe { self.sqes.add(index).write(sqe) };
        self.sq_local_tail = self.sq_local_tail.wrapping_add(1);
        true
    }

    /// How many entries there is room for.
    #[inline]
    pub(super) fn room(&self) -> u32 {
        self.sq_entries - self.unsubmitted()
    }

    /// How many there is room for in an empty queue.
    pub(super) fn capacity(&self) -> u32 {
        self.sq_entries
    }

    /// `count` or more: so many entries that no chain is cut. One that is cut ends there for the
    /// kernel.
    fn with_whole_chains(&self, mut count: u32, unsubmitted: u32) -> u32 {
        let head = self.sq_local_tail.wrapping_sub(unsubmitted);
        while 0 < count && count < unsubmitted {
            let last = (head.wrapping_add(count - 1) & self.sq_mask) as usize;
            // SAFETY: the mask keeps the index inside the mapping. The kernel reads entries only
            // while this thread is inside `enter`, so what it has not consumed is ours.
            if !unsafe { self.sqes.add(last).as_ref() }.is_linked() {
                break;
            }
            count += 1;
        }
        count
    }

    /// Puts `instead` in the place of the entry with this `user_data`, if the kernel has not consumed
    /// it yet.
    pub(super) fn withdraw(&mut self, user_data: u64, instead: Sqe) -> bool {
        for back in 1..=self.unsubmitted() {
            let index = (self.sq_local_tail.wrapping_sub(back) & self.sq_mask) as usize;
            // SAFETY: the mask keeps the index inside the mapping. The kernel reads entries only
            // while this thread is inside `enter`, so what it has not consumed is ours to change.
            let entry = unsafe { self.sqes.add(index).as_mut() };
            if entry.user_data == user_data {
                *entry = instead;
                return true;
            }
        }
        false
    }

    /// Takes out every entry that the kernel has not consumed, oldest first.
    pub(super) fn take_unsubmitted(&mut self) -> Vec<Sqe> {
        let count = self.unsubmitted();
        let first = self.sq_local_tail.wrapping_sub(count);
        let entries = (0..count)
            .map(|at| {
                let index = (first.wrapping_add(at) & self.sq_mask) as usize;
                // SAFETY: the mask keeps the index inside the mapping. The kernel reads entries only
                // while this thread is inside `enter`, so what it has not consumed is ours.
                unsafe { self.sqes.add(index).read() }
            })
            .collect();
        self.sq_local_tail = first;
        // SAFETY: points into a mapping that lives as long as `self`.
        unsafe { self.sq_tail.as_ref() }.store(first, Ordering::Release);
        entries
    }

    /// Whether completions wait in the kernel for an enter that asks for them: deferred task work,
    /// or completions that did not fit.
    #[inline]
    pub(super) fn wants_enter(&self) -> bool {
        // SAFETY: points into a mapping that lives as long as `self`.
        let flags = unsafe { self.sq_flags.as_ref() }.load(Ordering::Relaxed);
        flags & (abi::IORING_SQ_TASKRUN | abi::IORING_SQ_CQ_OVERFLOW) != 0
    }

    /// Whether there are completions to reap.
    #[inline]
    pub(super) fn has_completions(&self) -> bool {
        // SAFETY: point into mappings that live as long as `self`; we alone move the head.
        let (head, tail) = unsafe { (self.cq_head.as_ref(), self.cq_tail.as_ref()) };
        head.load(Ordering::Relaxed) != tail.load(Ordering::Acquire)
    }

    /// Submits what was pushed, up to `most` entries and the rest of a chain, and, if `wait` and that was
    /// all, waits for a completion for at most `limit`.
    ///
    /// `Ok(false)` if the kernel took nothing now and asks to be tried again when completions have
    /// been taken (`EAGAIN`, `EBUSY`), when a signal came (`EINTR`) or the limit passed (`ETIME`).
    pub(super) fn enter(
        &mut self,
        most: u32,
        wait: bool,
        limit: Option<Duration>,
    ) -> io::Result<bool> {
        let unsubmitted = self.unsubmitted();
        let count = self.with_whole_chains(unsubmitted.min(most), unsubmitted);
        let wait = wait && count == unsubmitted;
        // SAFETY: points into a mapping that lives as long as `self`.
        unsafe { self.sq_tail.as_ref() }.store(self.sq_local_tail, Ordering::Release);
        let mut flags = self.enter_flags | abi::IORING_ENTER_GETEVENTS;
        let timespec;
        let argument;
        let (pointer, size) = match limit {
            Some(limit) if wait => {
                timespec = abi::__kernel_timespec {
                    tv_sec: limit.as_secs().min(i64::MAX as u64) as i64,
                    tv_nsec: i64::from(limit.subsec_nanos()),
                };
                argument = abi::io_uring_getevents_arg {
                    sigmask: 0,
                    sigmask_sz: 0,
                    min_wait_usec: 0,
                    ts: &raw const timespec as u64,
                };
                flags |= abi::IORING_ENTER_EXT_ARG;
                (&raw const argument, size_of::<abi::io_uring_getevents_arg>())
            }
            _ => (std::ptr::null(), 0),
        };
        self.enters += 1;
        // SAFETY: the entries up to the tail are filled, by `push`; the argument outlives the call.
        let res = unsafe {
            libc::syscall(
                libc::SYS_io_uring_enter,
                self.enter_fd,
                count,
                u32::from(wait),
                flags,
                pointer,
                size,
            )
        };
        if res >= 0 {
            return Ok(true);
        }
        match errno() {
            // A call that cannot submit does nothing else, and what it lacks is given back by operations
            // that land, which on a ring like ours they do in a call.
            libc::EAGAIN | libc::EBUSY if count > 0 => {
                self.enters += 1;
                let flags = self.enter_flags | abi::IORING_ENTER_GETEVENTS;
                let (ring, nothing) = (self.enter_fd, std::ptr::null::<u8>());
                // SAFETY: it submits nothing and is given no argument.
                let _ = unsafe {
                    libc::syscall(libc::SYS_io_uring_enter, ring, 0, 0, flags, nothing, 0_usize)
                };
                Ok(false)
            }
            libc::EAGAIN | libc::EBUSY | libc::EINTR | libc::ETIME => Ok(false),
            error => Err(io::Error::from_raw_os_error(error)),
        }
    }

    /// Takes every completion that is there.
    #[inline]
    pub(super) fn reap(&mut self, mut take: impl FnMut(Cqe)) {
        // SAFETY: point into mappings that live as long as `self`; we alone move the head.
        let (head_word, tail) =
            unsafe { (self.cq_head.as_ref(), self.cq_tail.as_ref().load(Ordering::Acquire)) };
        let mut head = head_word.load(Ordering::Relaxed);
        while head != tail {
            // SAFETY: the mask keeps the index inside the mapping; completions between head and
            // tail are ours until the head passes them.
            take(unsafe { self.cqes.add((head & self.cq_mask) as usize).read() });
            head = head.wrapping_add(1);
        }
        head_word.store(head, Ordering::Release);
    }

    /// How often io_uring_enter(2) was called.
    #[inline]
    pub(super) fn enters(&self) -> u64 {
        self.enters
    }

    /// How many completions the kernel has lost. Anything but 0 is fatal: a submitter waits for
    /// good, and memory stays lent.
    #[inline]
    pub(super) fn lost(&self) -> u32 {
        // SAFETY: points into a mapping that lives as long as `self`.
        unsafe { self.cq_overflow.as_ref() }.load(Ordering::Relaxed)
    }
}

/// How many processes and threads the user may have, by the limit of this one (`RLIMIT_NPROC`).
fn processes_allowed() -> u32 {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: writes a local of its type.
    let asked = unsafe { libc::getrlimit(libc::RLIMIT_NPROC, &raw mut limit) };
    if asked == 0 { u32::try_from(limit.rlim_cur).unwrap_or(u32::MAX) } else { 0 }
}
