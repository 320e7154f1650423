//! What interrupts the code of a fiber: deadlines, and shields against being interrupted. In Rust
//! they are put around a closure; here a pair of calls brackets the code.

use std::io;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use kapok::foreign::{self, Limits};
use kapok::time;

use super::status;

/// What was in force before kapok_timeout_begin() or kapok_shield_begin(), for kapok_limits_end().
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct kapok_limits {
    /// Not for programs.
    pub deadline: u64,
    /// Not for programs.
    pub shields: u64,
}

/// What deadlines are counted from, so that they can be kept in C as a number.
fn origin() -> Instant {
    static ORIGIN: OnceLock<Instant> = OnceLock::new();
    // In the past of every deadline there may be.
    *ORIGIN.get_or_init(|| {
        let now = Instant::now();
        now.checked_sub(Duration::from_secs(1)).unwrap_or(now)
    })
}

/// Nanoseconds from the origin, not 0; 0 is no deadline.
fn as_number(deadline: Option<Instant>) -> u64 {
    let Some(deadline) = deadline else { return 0 };
    let nanos = deadline.saturating_duration_since(origin()).as_nanos();
    u64::try_from(nanos).unwrap_or(u64::MAX).max(1)
}

fn as_deadline(number: u64) -> Option<Instant> {
    match number {
        0 => None,
        nanos => origin().checked_add(Duration::from_nanos(nanos)),
    }
}

/// # Safety
///
/// `saved` may be written to.
unsafe fn change(saved: *mut kapok_limits, f: impl FnOnce(Limits) -> Limits) -> io::Result<()> {
    if saved.is_null() {
        return super::failed(libc::EINVAL);
    }
    let former = foreign::change_limits(f).unwrap_or(Limits { deadline: None, shields: 0 });
    let former =
        kapok_limits { deadline: as_number(former.deadline), shields: former.shields.into() };
    // SAFETY: by the caller.
    unsafe { saved.write(former) };
    Ok(())
}

/// Puts a deadline, so many nanoseconds from now, around the calls of this fiber up to
/// kapok_limits_end(): each that would wait longer fails with ETIMEDOUT. Of deadlines around each
/// other the nearest counts. On no fiber it has no effect.
///
/// # Safety
///
/// `saved` points to a structure that may be written to.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kapok_timeout_begin(
    saved: *mut kapok_limits,
    nanoseconds: u64,
) -> libc::c_int {
    status(|| {
        let at = time::now().checked_add(Duration::from_nanos(nanoseconds));
        let nearest = |limits: Limits| {
            let deadline = limits.deadline.into_iter().chain(at).min();
            Limits { deadline, ..limits }
        };
        // SAFETY: by the caller.
        unsafe { change(saved, nearest) }
    })
}

/// Keeps the fiber's cancellation, and deadlines set before, from interrupting its calls up to
/// kapok_limits_end(): for clean-up that has to wait. A deadline set meanwhile counts. On no fiber
/// it has no effect.
///
/// # Safety
///
/// `saved` points to a structure that may be written to.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kapok_shield_begin(saved: *mut kapok_limits) -> libc::c_int {
    let shielded = |limits: Limits| Limits { deadline: None, shields: limits.shields + 1 };
    // SAFETY: by the caller.
    status(|| unsafe { change(saved, shielded) })
}

/// Puts the limits back that were in force before a kapok_timeout_begin() or kapok_shield_begin().
/// What began last ends first.
///
/// # Safety
///
/// `saved` points to a structure that one of them filled in, on this fiber.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kapok_limits_end(saved: *const kapok_limits) -> libc::c_int {
    status(|| {
        if saved.is_null() {
            return super::failed(libc::EINVAL);
        }
        // SAFETY: by the caller.
        let saved = unsafe { saved.read() };
        let former =
            Limits { deadline: as_deadline(saved.deadline), shields: saved.shields as u32 };
        foreign::change_limits(|_| former);
        Ok(())
    })
}

/// Fails as a call that waits would fail now: with ECANCELED if the fiber is cancelled, ETIMEDOUT if
/// a deadline has passed, ECONNRESET if the peer of the connection that the fiber serves is gone. For
/// long computations that want to notice.
#[unsafe(no_mangle)]
pub extern "C" fn kapok_check() -> libc::c_int {
    status(|| kapok::check_interrupted().map_err(io::Error::from))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_survives_as_a_number() {
        assert_eq!(as_deadline(as_number(None)), None);
        let soon = Instant::now() + Duration::from_millis(7);
        assert_eq!(as_deadline(as_number(Some(soon))), Some(soon));
        // Before everything is still a deadline, that has passed.
        let past = as_deadline(as_number(Some(origin() - Duration::from_millis(1))));
        assert!(past.unwrap() < Instant::now());
    }
}
