//! Names that few programs call any more, and that have no test with those that all do.

#![cfg(target_os = "linux")]

mod isolated;

use std::ffi::{c_int, c_void};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use isolated::{
    HANDLED, SOON, change, errno, handle, is_blocked, isolated, register, send, send_after,
};
use libc::sighandler_t;

/// `struct sigvec`.
#[repr(C)]
#[derive(Default)]
struct Vector {
    handler: sighandler_t,
    mask: c_int,
    flags: c_int,
}

unsafe extern "C" {
    fn __xpg_sigpause(signal: c_int) -> c_int;
    fn __sigpause(signal_or_mask: c_int, is_signal: c_int) -> c_int;
    fn sigpause(mask: c_int) -> c_int;
    fn bsd_signal(signal: c_int, handler: sighandler_t) -> sighandler_t;
    fn sigvec(signal: c_int, new: *const Vector, old: *mut Vector) -> c_int;
    fn tss_create(key: *mut libc::pthread_key_t, destructor: *const c_void) -> c_int;
    fn tss_set(key: libc::pthread_key_t, value: *mut c_void) -> c_int;
    fn tss_get(key: libc::pthread_key_t) -> *mut c_void;
    fn tss_delete(key: libc::pthread_key_t);
    fn thrd_current() -> libc::pthread_t;
}

fn suspended(name: &str) -> u64 {
    kapok_libc::hooks().find(|hook| hook.name() == name).unwrap().counts().suspended
}

/// A pause, by the mask that it may take.
type Pause = fn(c_int) -> c_int;

const SIGNAL: c_int = libc::SIGUSR1;
const OTHER: c_int = libc::SIGUSR2;

#[test]
fn a_pause_of_old_lets_what_it_names_and_suspends_the_fiber() {
    isolated("a_pause_of_old_lets_what_it_names_and_suspends_the_fiber", || {
        // In masks of old a signal is a bit, from the lowest on.
        let without = |signal: c_int| (1 << (OTHER - 1) | 1 << (SIGNAL - 1)) & !(1 << (signal - 1));
        // SAFETY: no memory.
        let ways: [(&str, Pause); 4] = [
            ("__xpg_sigpause", |_| unsafe { __xpg_sigpause(SIGNAL) }),
            ("__sigpause", |_| unsafe { __sigpause(SIGNAL, 1) }),
            ("__sigpause", |mask| unsafe { __sigpause(mask, 0) }),
            ("sigpause", |mask| unsafe { sigpause(mask) }),
        ];
        for (name, pause) in ways {
            register(SIGNAL, libc::SA_RESTART);
            change(libc::SIG_BLOCK, &[SIGNAL, OTHER]);
            let before = suspended("sigsuspend");
            let ticks = Arc::new(AtomicUsize::new(0));
            let (counted, seen) = (Arc::clone(&ticks), Arc::clone(&ticks));
            let ticker = kapok::spawn_local(move || {
                while kapok::sleep(SOON / 30).is_ok() {
                    counted.fetch_add(1, Ordering::SeqCst);
                }
            });
            let sender = send_after(SIGNAL, move || {
                while seen.load(Ordering::SeqCst) == 0 {
                    std::thread::sleep(SOON / 30);
                }
            });
            assert_eq!((pause(without(SIGNAL)), errno()), (-1, libc::EINTR), "{name}");
            assert_eq!(HANDLED.load(Ordering::SeqCst), 1, "{name}");
            // The mask is what it was, and the thread was not blocked meanwhile.
            assert!(is_blocked(SIGNAL) && is_blocked(OTHER), "{name}");
            assert_eq!(suspended("sigsuspend"), before + 1, "{name}");
            assert!(ticks.load(Ordering::SeqCst) > 0, "{name}");
            ticker.cancel();
            ticker.join().unwrap();
            sender.join().unwrap();
            change(libc::SIG_UNBLOCK, &[SIGNAL, OTHER]);
        }
        // SAFETY: no memory.
        assert_eq!((unsafe { __xpg_sigpause(9999) }, errno()), (-1, libc::EINVAL));
        let left = c_int::from(is_blocked(SIGNAL)) + c_int::from(is_blocked(OTHER));
        assert_eq!(left, 0);
    });
}

/// Whether the handler ends a call that may start again.
fn ends_a_receive() -> bool {
    let (one, mut other) = std::os::unix::net::UnixStream::pair().unwrap();
    let handled = HANDLED.load(Ordering::SeqCst);
    let sender = send(SIGNAL, SOON);
    let writer = std::thread::spawn(move || {
        while HANDLED.load(Ordering::SeqCst) == handled {
            std::thread::sleep(SOON / 30);
        }
        std::thread::sleep(SOON);
        // Nobody may be there any more.
        let _ = std::io::Write::write(&mut other, b"x");
    });
    let mut byte = 0_u8;
    // SAFETY: room for a byte.
    let received =
        unsafe { libc::recv(std::os::fd::AsRawFd::as_raw_fd(&one), (&raw mut byte).cast(), 1, 0) };
    let ended = (received, errno()) == (-1, libc::EINTR);
    assert!(ended || received == 1);
    sender.join().unwrap();
    writer.join().unwrap();
    ended
}

#[test]
fn bsd_signal_registers_a_handler_that_stays_and_lets_calls_go_on() {
    isolated("bsd_signal_registers_a_handler_that_stays_and_lets_calls_go_on", || {
        let handler = handle as *const () as sighandler_t;
        HANDLED.store(0, Ordering::SeqCst);
        // SAFETY: a handler that may run anywhere.
        unsafe {
            bsd_signal(SIGNAL, libc::SIG_DFL);
            assert_eq!(bsd_signal(SIGNAL, handler), libc::SIG_DFL);
            assert!(!ends_a_receive());
            assert!(!ends_a_receive());
            assert_eq!(HANDLED.load(Ordering::SeqCst), 2);
            assert_eq!(bsd_signal(SIGNAL, libc::SIG_IGN), handler);
            assert_eq!(bsd_signal(9999, handler), libc::SIG_ERR);
            assert_eq!(errno(), libc::EINVAL);
        }
    });
}

#[test]
fn sigvec_registers_what_its_flags_say() {
    const INTERRUPTS: c_int = 2;
    const ONCE: c_int = 4;
    isolated("sigvec_registers_what_its_flags_say", || {
        let handler = handle as *const () as sighandler_t;
        for flags in [0, INTERRUPTS, ONCE, ONCE | INTERRUPTS] {
            HANDLED.store(0, Ordering::SeqCst);
            let new = Vector { handler, mask: 1 << (OTHER - 1), flags };
            let mut old = Vector::default();
            // SAFETY: locals, and a handler that may run anywhere.
            unsafe {
                assert_eq!(sigvec(SIGNAL, &raw const new, std::ptr::null_mut()), 0);
                assert_eq!(sigvec(SIGNAL, std::ptr::null(), &raw mut old), 0);
            }
            assert_eq!((old.handler, old.flags, old.mask), (handler, flags, 1 << (OTHER - 1)));
            assert_eq!(ends_a_receive(), flags & INTERRUPTS != 0, "{flags}");
            assert_eq!(HANDLED.load(Ordering::SeqCst), 1, "{flags}");
            // SAFETY: a local.
            unsafe { assert_eq!(sigvec(SIGNAL, std::ptr::null(), &raw mut old), 0) };
            let stays = if flags & ONCE != 0 { libc::SIG_DFL } else { handler };
            assert_eq!(old.handler, stays, "{flags}");
        }
        // SAFETY: nothing is read.
        let refused = unsafe { sigvec(9999, std::ptr::null(), std::ptr::null_mut()) };
        assert_eq!((refused, errno()), (-1, libc::EINVAL));
    });
}

#[test]
fn a_key_of_c11_is_gone_for_all_fibers_once_it_is_deleted() {
    isolated("a_key_of_c11_is_gone_for_all_fibers_once_it_is_deleted", || {
        let value = std::ptr::without_provenance_mut::<c_void>(7);
        let mut key = 0;
        // SAFETY: a local, and values that nobody follows.
        unsafe {
            assert_eq!(tss_create(&raw mut key, std::ptr::null()), 0);
            assert_eq!(tss_set(key, value), 0);
            let other = kapok::spawn_local(move || {
                assert!(tss_get(key).is_null());
                assert_eq!(tss_set(key, value), 0);
                kapok::sleep(SOON).unwrap();
                assert!(tss_get(key).is_null(), "it was deleted meanwhile");
                assert_ne!(tss_set(key, value), 0);
            });
            kapok::sleep(SOON / 10).unwrap();
            tss_delete(key);
            assert!(tss_get(key).is_null());
            assert_ne!(tss_set(key, value), 0);
            other.join().unwrap();
            // Whoever has its number next finds nothing there.
            let mut next = 0;
            assert_eq!(tss_create(&raw mut next, std::ptr::null()), 0);
            assert_eq!(next, key);
            assert!(tss_get(next).is_null());
            tss_delete(next);
        }
    });
}

#[test]
fn who_runs_is_the_thread() {
    isolated("who_runs_is_the_thread", || {
        // SAFETY: no conditions.
        unsafe { assert_eq!(thrd_current(), libc::pthread_self()) };
        // SAFETY: as above.
        let one = kapok::spawn_local(|| unsafe { thrd_current() });
        // SAFETY: as above.
        assert_eq!(one.join().unwrap(), unsafe { thrd_current() });
    });
}
