//! Readiness: poll(2), select(2) and epoll_wait(2).
//!
//! Each is asked without a wait, by the system call itself. If nothing is ready the fiber waits for
//! all the descriptors together, and asks again: what the call reports is what the kernel reports.

mod watched;

use std::ffi::{c_int, c_ulong};
use std::time::{Duration, Instant};

use kapok::interpose;
use kapok_engine::sys::own;
use libc::{epoll_event, fd_set, nfds_t, pollfd, sigset_t, timespec, timeval};

use crate::call::Call;
use crate::errno::Errno;
use crate::handler;
use crate::hook::hooks;
use crate::kernel::kernel;
use crate::signals;
use crate::sockets::returned::{self, has_returned};
use crate::wait::{Descriptor, Stopped};

hooks! {
    /// poll(2).
    fn poll(fds: *mut pollfd, count: nfds_t, timeout_ms: c_int) -> c_int
        = before {
            // SAFETY: by the caller.
            if let Some(ready) = at_once(|| unsafe { poll_now(fds, count) }) {
                return ready;
            }
        }
        |call| {
        poll_until(call, fds, count, after_ms(timeout_ms), std::ptr::null())
    }

    /// poll(2), as programs with checked buffers call it.
    fn __poll_chk(
        fds: *mut pollfd,
        count: nfds_t,
        timeout_ms: c_int,
        room: libc::size_t,
    ) -> c_int
        = before {
            crate::hook::check_room(count as usize, room / size_of::<pollfd>());
            // SAFETY: by the caller.
            if let Some(ready) = at_once(|| unsafe { poll_now(fds, count) }) {
                return ready;
            }
        }
        |call| {
        crate::hook::check_room(count as usize, room / size_of::<pollfd>());
        poll_until(call, fds, count, after_ms(timeout_ms), std::ptr::null())
    }

    /// ppoll(2).
    fn ppoll(
        fds: *mut pollfd,
        count: nfds_t,
        timeout: *const timespec,
        mask: *const sigset_t,
    ) -> c_int
        = before {
            // SAFETY: by the caller.
            if let Some(ready) = at_once(|| unsafe { poll_now(fds, count) }) {
                return ready;
            }
        }
        |call| {
        poll_until(call, fds, count, after(timeout)?, mask)
    }

    /// ppoll(2), as programs with checked buffers call it.
    fn __ppoll_chk(
        fds: *mut pollfd,
        count: nfds_t,
        timeout: *const timespec,
        mask: *const sigset_t,
        room: libc::size_t,
    ) -> c_int
        = before {
            crate::hook::check_room(count as usize, room / size_of::<pollfd>());
            // SAFETY: by the caller.
            if let Some(ready) = at_once(|| unsafe { poll_now(fds, count) }) {
                return ready;
            }
        }
        |call| {
        crate::hook::check_room(count as usize, room / size_of::<pollfd>());
        poll_until(call, fds, count, after(timeout)?, mask)
    }

    /// select(2). Says in `timeout` how much of it was left, as Linux does.
    fn select(
        count: c_int,
        readable: *mut fd_set,
        writable: *mut fd_set,
        exceptional: *mut fd_set,
        timeout: *mut timeval,
    ) -> c_int
        = before {
            let sets = Sets { readable, writable, exceptional };
            // SAFETY: by the caller.
            if let Some(ready) = at_once(|| unsafe { select_now(count, sets) }) {
                return ready;
            }
        }
        |call| {
        let limit = if timeout.is_null() {
            Limit::Never
        } else {
            let time = timeout.read();
            if time.tv_sec < 0 || time.tv_usec < 0 {
                return Err(Errno(libc::EINVAL));
            }
            // More than a second's worth of microseconds is carried over.
            Limit::after(
                Duration::from_secs(time.tv_sec as u64)
                    .saturating_add(Duration::from_micros(time.tv_usec as u64)),
            )
        };
        let sets = Sets { readable, writable, exceptional };
        let done = select_until(call, count, sets, limit, std::ptr::null());
        if !timeout.is_null() {
            let left = limit.left();
            timeout.write(timeval {
                tv_sec: left.as_secs() as libc::time_t,
                tv_usec: left.subsec_micros().into(),
            });
        }
        done
    }

    /// pselect(2).
    fn pselect(
        count: c_int,
        readable: *mut fd_set,
        writable: *mut fd_set,
        exceptional: *mut fd_set,
        timeout: *const timespec,
        mask: *const sigset_t,
    ) -> c_int
        = before {
            let sets = Sets { readable, writable, exceptional };
            // SAFETY: by the caller.
            if let Some(ready) = at_once(|| unsafe { select_now(count, sets) }) {
                return ready;
            }
        }
        |call| {
        let sets = Sets { readable, writable, exceptional };
        select_until(call, count, sets, after(timeout)?, mask)
    }

    /// epoll_wait(2).
    fn epoll_wait(
        epoll: c_int,
        events: *mut epoll_event,
        most: c_int,
        timeout_ms: c_int,
    ) -> c_int
        = before {
            // SAFETY: by the caller.
            if let Some(ready) = at_once(|| unsafe { epoll_now(epoll, events, most) }) {
                return ready;
            }
        }
        |call| {
        epoll_until(call, epoll, events, most, after_ms(timeout_ms), std::ptr::null())
    }

    /// epoll_pwait(2).
    fn epoll_pwait(
        epoll: c_int,
        events: *mut epoll_event,
        most: c_int,
        timeout_ms: c_int,
        mask: *const sigset_t,
    ) -> c_int
        = before {
            // SAFETY: by the caller.
            if let Some(ready) = at_once(|| unsafe { epoll_now(epoll, events, most) }) {
                return ready;
            }
        }
        |call| {
        epoll_until(call, epoll, events, most, after_ms(timeout_ms), mask)
    }

    /// epoll_pwait2(2).
    fn epoll_pwait2(
        epoll: c_int,
        events: *mut epoll_event,
        most: c_int,
        timeout: *const timespec,
        mask: *const sigset_t,
    ) -> c_int
        = before {
            // SAFETY: by the caller.
            if let Some(ready) = at_once(|| unsafe { epoll_now(epoll, events, most) }) {
                return ready;
            }
        }
        |call| {
        epoll_until(call, epoll, events, most, after(timeout)?, mask)
    }
}

/// Until when a call may wait.
#[derive(Clone, Copy)]
enum Limit {
    /// Not at all.
    Now,
    At(Instant),
    Never,
}

impl Limit {
    fn after(timeout: Duration) -> Limit {
        match Instant::now().checked_add(timeout) {
            _ if timeout.is_zero() => Limit::Now,
            Some(at) => Limit::At(at),
            // Beyond the end of time.
            None => Limit::Never,
        }
    }

    fn left(self) -> Duration {
        match self {
            Limit::At(at) => at.saturating_duration_since(Instant::now()),
            Limit::Now | Limit::Never => Duration::ZERO,
        }
    }
}

fn after_ms(timeout_ms: c_int) -> Limit {
    match u64::try_from(timeout_ms) {
        Ok(ms) => Limit::after(Duration::from_millis(ms)),
        Err(_) => Limit::Never,
    }
}

unsafe fn after(timeout: *const timespec) -> Result<Limit, Errno> {
    if timeout.is_null() {
        return Ok(Limit::Never);
    }
    // SAFETY: by the C caller.
    let time = unsafe { timeout.read() };
    if time.tv_sec < 0 || !(0..1_000_000_000).contains(&time.tv_nsec) {
        return Err(Errno(libc::EINVAL));
    }
    Ok(Limit::after(Duration::new(time.tv_sec as u64, time.tv_nsec as u32)))
}

/// Asks by `attempt` and waits for `wanted` in turns, until something is ready or the time is over.
fn ask(
    call: &Call,
    limit: Limit,
    mask: *const sigset_t,
    mut attempt: impl FnMut() -> Result<usize, Errno>,
    wanted: impl FnOnce() -> Vec<(Descriptor, i16)>,
) -> Result<c_int, Errno> {
    call.never_restarts();
    // A listener may have other numbers than those that are asked about.
    call.looks_at_others();
    // SAFETY: by the C caller.
    let _masked = unsafe { signals::masked(call, mask) };
    let mut wanted = Some(wanted);
    let mut list = Vec::new();
    let mut fruitless = 0;
    loop {
        // A close between this attempt and the wait is noticed by the epochs in the list.
        if fruitless == 0
            && let Some(wanted) = wanted.take_if(|_| !matches!(limit, Limit::Now))
        {
            list = wanted();
        }
        call.looks();
        let ready = attempt()?;
        let until = match limit {
            _ if ready > 0 => return Ok(ready as c_int),
            // By what the call's mask lets through, also by one that does not wait.
            _ if call.is_struck() => return Err(Errno(libc::EINTR)),
            Limit::Now => return Ok(0),
            Limit::At(at) if Instant::now() >= at => return Ok(0),
            Limit::At(at) => Some(at),
            Limit::Never => None,
        };
        let waited = match &list[..] {
            [] => call.wait(std::future::pending::<()>(), until),
            // What wakes and is not reported: a hang-up, to select(2) for writing.
            all if fruitless > 1 => {
                let all: Vec<_> = all.iter().map(|&(one, _)| one).collect();
                call.nap(&all, until)
            }
            [(one, events)] => call.wait_ready(*one, *events, until),
            all => call.wait_any(all, until),
        };
        match waited {
            // There may be what nothing announces.
            Ok(()) | Err(Stopped::LookAgain) if call.has_missed_a_look() => fruitless = 0,
            Ok(()) | Err(Stopped::LookAgain) => fruitless += 1,
            // Looked at once more, as the system call does.
            Err(Stopped::TimedOut) => return attempt().map(|ready| ready as c_int),
            // What became of the number is for the system call to say.
            Err(Stopped::Closed) => {
                for (one, _) in &mut list {
                    *one = Descriptor::new(one.fd);
                }
                fruitless = 0;
            }
            Err(stopped) => return Err(stopped.errno()),
        }
    }
}

const NOW: timespec = timespec { tv_sec: 0, tv_nsec: 0 };

/// # Safety
///
/// The pointers are as ppoll(2) asks.
unsafe fn poll_until(
    call: &Call,
    fds: *mut pollfd,
    count: nfds_t,
    limit: Limit,
    mask: *const sigset_t,
) -> Result<c_int, Errno> {
    // SAFETY: by the caller.
    let attempt = || unsafe { poll_now(fds, count) };
    // How many there may be is for the kernel to say, before anybody looks at them.
    if count > libc::FD_SETSIZE as nfds_t {
        let ready = attempt()?;
        if ready > 0 {
            return Ok(ready as c_int);
        }
    }
    ask(call, limit, mask, attempt, || {
        // A pointer that is none is for the kernel to find.
        if fds.is_null() {
            return Vec::new();
        }
        // SAFETY: by the caller.
        let fds = unsafe { std::slice::from_raw_parts(fds, count as usize) };
        fds.iter()
            .filter(|one| one.fd >= 0)
            .map(|one| (Descriptor::new(one.fd), one.events))
            .collect()
    })
}

/// # Safety
///
/// The pointer is as poll(2) asks.
unsafe fn poll_now(fds: *mut pollfd, count: nfds_t) -> Result<usize, Errno> {
    let mut now = NOW;
    // SAFETY: by the caller.
    let ready = unsafe { kernel!(libc::SYS_ppoll, fds, count, &raw mut now, 0, 0) }?;
    // SAFETY: by the caller: the kernel has just used them.
    Ok(ready + unsafe { announce_returned(fds, count as usize) })
}

/// What a call of any thread returns at once since there is something of which the kernel does not know, if
/// there is.
fn at_once(ask: impl FnOnce() -> Result<usize, Errno>) -> Option<c_int> {
    if !returned::any() || handler::runs() {
        return None;
    }
    // Nobody is suspended in here.
    let _inside = interpose::enter();
    // What is wrong is for the call itself to say.
    ask().ok().filter(|&ready| ready > 0).map(|ready| ready as c_int)
}

/// Announces what the kernel does not know of: connections that were accepted and given back. How many
/// were not announced before.
///
/// # Safety
///
/// There are as many.
unsafe fn announce_returned(fds: *mut pollfd, count: usize) -> usize {
    if !returned::any() {
        return 0;
    }
    const WANTED: i16 = libc::POLLIN | libc::POLLRDNORM;
    (0..count)
        .filter(|&index| {
            // SAFETY: by the caller.
            let one = unsafe { &mut *fds.add(index) };
            let returned = one.events & WANTED != 0 && has_returned(one.fd);
            let first = returned && one.revents == 0;
            if returned {
                one.revents |= one.events & WANTED;
            }
            first
        })
        .count()
}

/// How many of the numbers up to `count` select(2) looks at: as many as the process's table of descriptors
/// has room for. Programs name more than their sets hold, and rely on that.
fn numbers(count: c_int) -> Result<c_int, Errno> {
    if count < 0 {
        return Err(Errno(libc::EINVAL));
    }
    if count as usize <= libc::FD_SETSIZE {
        return Ok(count);
    }
    let size = table_size().unwrap_or(libc::FD_SETSIZE);
    Ok(c_int::try_from(size).map_or(count, |size| size.min(count)))
}

/// `FDSize` of proc_pid_status(5).
fn table_size() -> Option<usize> {
    let mut text = [0_u8; 4096];
    // SAFETY: a name that ends, and room of the length that is told.
    let read = unsafe {
        let (path, flags) = (c"/proc/self/status".as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC);
        let fd = kernel!(libc::SYS_openat, libc::AT_FDCWD, path, flags, 0).ok()?;
        let read = kernel!(libc::SYS_read, fd, text.as_mut_ptr(), text.len());
        let _ = kernel!(libc::SYS_close, fd);
        read.ok()?
    };
    let text = std::str::from_utf8(&text[..read]).ok()?;
    text.lines().find_map(|line| line.strip_prefix("FDSize:"))?.trim().parse().ok()
}

/// # Safety
///
/// The pointers are as epoll_pwait2(2) asks.
unsafe fn epoll_until(
    call: &Call,
    epoll: c_int,
    events: *mut epoll_event,
    most: c_int,
    limit: Limit,
    mask: *const sigset_t,
) -> Result<c_int, Errno> {
    let descriptor = Descriptor::new(epoll);
    let attempt = || {
        if descriptor.is_closed() {
            return Err(Errno(libc::EBADF));
        }
        // SAFETY: by the caller.
        unsafe { epoll_now(epoll, events, most) }
    };
    ask(call, limit, mask, attempt, || vec![(descriptor, libc::POLLIN)])
}

/// # Safety
///
/// The pointer is as epoll_wait(2) asks.
unsafe fn epoll_now(epoll: c_int, events: *mut epoll_event, most: c_int) -> Result<usize, Errno> {
    // SAFETY: by the caller.
    let ready = unsafe { kernel!(libc::SYS_epoll_pwait, epoll, events, most, 0, 0, 0) }?;
    // An engine's own has listeners in it that nobody waits for just now.
    if !returned::any() || own::is_own(epoll) {
        return Ok(ready);
    }
    // SAFETY: by the caller: the kernel has just used it.
    Ok(unsafe { watched::announce_returned(epoll, events, ready, most as usize) })
}

/// The sets of select(2), any of which may be missing.
#[derive(Clone, Copy)]
struct Sets {
    readable: *mut fd_set,
    writable: *mut fd_set,
    exceptional: *mut fd_set,
}

impl Sets {
    fn all(self) -> [*mut fd_set; 3] {
        [self.readable, self.writable, self.exceptional]
    }
}

/// # Safety
///
/// The pointers are as pselect(2) asks.
unsafe fn select_until(
    call: &Call,
    count: c_int,
    sets: Sets,
    limit: Limit,
    mask: *const sigset_t,
) -> Result<c_int, Errno> {
    // SAFETY: by the caller.
    let mut selection = unsafe { Selection::new(count, sets) }?;
    let wanted = selection.wanted();
    let ready = ask(call, limit, mask, || selection.ask(), || wanted)?;
    // SAFETY: by the caller.
    unsafe { selection.tell(sets) };
    Ok(ready)
}

/// # Safety
///
/// The pointers are as select(2) asks.
unsafe fn select_now(count: c_int, sets: Sets) -> Result<usize, Errno> {
    // SAFETY: by the caller.
    let mut selection = unsafe { Selection::new(count, sets) }?;
    let ready = selection.ask()?;
    if ready > 0 {
        // SAFETY: by the caller.
        unsafe { selection.tell(sets) };
    }
    Ok(ready)
}

/// What select(2) was asked, and what it has found: by set, with whole words.
struct Selection {
    bits: usize,
    given: [bool; 3],
    asked: [Vec<c_ulong>; 3],
    found: [Vec<c_ulong>; 3],
}

const WORD: usize = c_ulong::BITS as usize;

impl Selection {
    /// # Safety
    ///
    /// The pointers are as select(2) asks.
    unsafe fn new(count: c_int, sets: Sets) -> Result<Selection, Errno> {
        let bits = numbers(count)? as usize;
        let words = bits.div_ceil(WORD);
        // Sets may be larger than their type, and smaller.
        let asked = sets.all().map(|set| match set.is_null() {
            true => Vec::new(),
            // SAFETY: by the caller: as many bits as are looked at, in whole words.
            false => unsafe { std::slice::from_raw_parts(set.cast::<c_ulong>(), words) }.to_vec(),
        });
        // The attempts overwrite what they are given. The caller's own sets are written once, at the end.
        let found = asked.clone();
        Ok(Selection { bits, given: sets.all().map(|set| !set.is_null()), asked, found })
    }

    fn ask(&mut self) -> Result<usize, Errno> {
        let mut now = NOW;
        for (found, asked) in self.found.iter_mut().zip(&self.asked) {
            found.copy_from_slice(asked);
        }
        let at: [*mut c_ulong; 3] = std::array::from_fn(|index| match self.given[index] {
            false => std::ptr::null_mut(),
            true => self.found[index].as_mut_ptr(),
        });
        // SAFETY: sets of ours with as many bits.
        let ready = unsafe {
            let [readable, writable, exceptional] = at;
            kernel!(libc::SYS_pselect6, self.bits, readable, writable, exceptional, &raw mut now, 0)
        }?;
        let mut more = 0;
        let (asked, found) = (&self.asked[0], &mut self.found[0]);
        for fd in 0..if asked.is_empty() || !returned::any() { 0 } else { self.bits } {
            let (word, bit) = (fd / WORD, 1 << (fd % WORD));
            if asked[word] & bit != 0 && found[word] & bit == 0 && has_returned(fd as c_int) {
                found[word] |= bit;
                more += 1;
            }
        }
        Ok(ready + more)
    }

    /// What is to be waited for.
    fn wanted(&self) -> Vec<(Descriptor, i16)> {
        let events = [libc::POLLIN, libc::POLLOUT, libc::POLLPRI];
        let has = |set: &Vec<c_ulong>, fd: usize| {
            set.get(fd / WORD).is_some_and(|word| word >> (fd % WORD) & 1 == 1)
        };
        (0..self.bits)
            .filter_map(|fd| {
                let wanted = self
                    .asked
                    .iter()
                    .zip(events)
                    .filter(|(set, _)| has(set, fd))
                    .fold(0, |all, (_, event)| all | event);
                (wanted != 0).then(|| (Descriptor::new(fd as c_int), wanted))
            })
            .collect()
    }

    /// # Safety
    ///
    /// The sets are those that it was made of.
    unsafe fn tell(&self, sets: Sets) {
        for (set, found) in sets.all().into_iter().zip(&self.found) {
            if !set.is_null() {
                // SAFETY: as many bits as were read there.
                unsafe {
                    set.cast::<c_ulong>().copy_from_nonoverlapping(found.as_ptr(), found.len())
                };
            }
        }
    }
}
