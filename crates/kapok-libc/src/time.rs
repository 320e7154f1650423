//! Sleeping.
//!
//! A fiber that is cancelled sleeps no longer: its sleep ends as if its time had come, since no
//! error but `EINTR` is expected of these functions, and who gets that sleeps on.

use std::ffi::{c_int, c_uint};
use std::time::{Duration, Instant};

use libc::{clockid_t, timespec, useconds_t};

use crate::call::Call;
use crate::errno::Errno;
use crate::hook::hooks;
use crate::kernel::kernel;
use crate::wait::Stopped;

/// How long a sleep to a time of day may go on before the clock, which can be set, is read again.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

hooks! {
    /// sleep(3). Returns the seconds that were left when a signal ended it.
    fn sleep(seconds: c_uint) -> c_uint = |call| {
        let left = sleep_for(call, Duration::from_secs(seconds.into())).err().unwrap_or_default();
        // Whole seconds, as the C library counts them.
        Ok(left.as_secs() as c_uint)
    }

    /// usleep(3).
    fn usleep(microseconds: useconds_t) -> c_int = |call| {
        match sleep_for(call, Duration::from_micros(microseconds.into())) {
            Ok(()) => Ok(0),
            Err(_) => Err(Errno(libc::EINTR)),
        }
    }

    /// nanosleep(2).
    fn nanosleep(time: *const timespec, left: *mut timespec) -> c_int = |call| {
        let Some(duration) = duration(time) else {
            return kernel!(libc::SYS_nanosleep, time, left).map(|_| 0);
        };
        match sleep_for(call, duration) {
            Ok(()) => Ok(0),
            Err(remaining) => {
                tell(left, remaining);
                Err(Errno(libc::EINTR))
            }
        }
    }

    /// clock_nanosleep(2). Returns its error and leaves errno alone.
    fn clock_nanosleep(
        clock: clockid_t,
        flags: c_int,
        time: *const timespec,
        left: *mut timespec,
    ) -> c_int = |call| {
        Ok(sleep_on(call, clock, flags, time, left).err().map_or(0, |Errno(error)| error))
    }

    /// The sleep of C11: -1 for a signal, and below that for an error.
    fn thrd_sleep(time: *const timespec, left: *mut timespec) -> c_int = |call| {
        // Its clock is that of the time of day, by which a duration is not shorter or longer.
        match sleep_on(call, libc::CLOCK_REALTIME, 0, time, left) {
            Ok(()) => Ok(0),
            Err(Errno(libc::EINTR)) => Ok(-1),
            Err(_) => Ok(-2),
        }
    }
}

/// A duration as the kernel understands it, if it does.
unsafe fn duration(time: *const timespec) -> Option<Duration> {
    if time.is_null() {
        return None;
    }
    // SAFETY: by the C caller.
    let time = unsafe { time.read() };
    ((0..1_000_000_000).contains(&time.tv_nsec) && time.tv_sec >= 0)
        .then(|| Duration::new(time.tv_sec as u64, time.tv_nsec as u32))
}

unsafe fn tell(left: *mut timespec, remaining: Duration) {
    if !left.is_null() {
        // SAFETY: by the C caller.
        unsafe {
            left.write(timespec {
                tv_sec: remaining.as_secs() as libc::time_t,
                tv_nsec: remaining.subsec_nanos().into(),
            });
        }
    }
}

/// Sleeps, or says how long it should have gone on when a signal ended it.
fn sleep_for(call: &Call, duration: Duration) -> Result<(), Duration> {
    if duration.is_zero() {
        return Ok(());
    }
    call.never_restarts();
    // Beyond the end of time.
    let until = Instant::now().checked_add(duration);
    match call.wait(std::future::pending::<()>(), until) {
        Err(Stopped::Signal) => {
            Err(until.map_or(duration, |until| until.saturating_duration_since(Instant::now())))
        }
        _ => Ok(()),
    }
}

/// What clock_nanosleep(2) does.
///
/// # Safety
///
/// The pointers are as clock_nanosleep(2) asks.
unsafe fn sleep_on(
    call: &Call,
    clock: clockid_t,
    flags: c_int,
    time: *const timespec,
    left: *mut timespec,
) -> Result<(), Errno> {
    let absolute = flags & libc::TIMER_ABSTIME != 0;
    let counts_real_time = matches!(
        clock,
        libc::CLOCK_REALTIME | libc::CLOCK_MONOTONIC | libc::CLOCK_BOOTTIME | libc::CLOCK_TAI
    );
    // SAFETY: by the caller.
    let understood = counts_real_time.then(|| unsafe { duration(time) }).flatten();
    let Some(wanted) = understood else {
        // Those that count something else, and those that would wake the machine.
        // SAFETY: by the caller.
        if unsafe { duration(time) }.is_some() {
            let (time, left) = (time as usize, left as usize);
            // SAFETY: by the caller, who waits here meanwhile.
            return call
                .offload(move || unsafe {
                    kernel!(libc::SYS_clock_nanosleep, clock, flags, time, left)
                })?
                .map(drop);
        }
        // An error of the arguments.
        // SAFETY: by the caller.
        return unsafe { kernel!(libc::SYS_clock_nanosleep, clock, flags, time, left) }.map(drop);
    };
    if !absolute {
        return sleep_for(call, wanted).map_err(|remaining| {
            // SAFETY: by the caller.
            unsafe { tell(left, remaining) };
            Errno(libc::EINTR)
        });
    }
    call.never_restarts();
    loop {
        let mut now = timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: writes to a local.
        unsafe { kernel!(libc::SYS_clock_gettime, clock, &raw mut now) }?;
        let now = Duration::new(now.tv_sec.max(0) as u64, now.tv_nsec as u32);
        let Some(rest) = wanted.checked_sub(now).filter(|rest| !rest.is_zero()) else {
            return Ok(());
        };
        // The monotonic clock is the one by which fibers wait.
        let steps = clock != libc::CLOCK_MONOTONIC;
        let until = Instant::now().checked_add(if steps { rest.min(LOOK_AGAIN) } else { rest });
        match call.wait(std::future::pending::<()>(), until) {
            Err(Stopped::TimedOut) => {}
            Err(Stopped::Signal) => return Err(Errno(libc::EINTR)),
            _ => return Ok(()),
        }
    }
}
