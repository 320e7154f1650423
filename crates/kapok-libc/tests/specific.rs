//! Thread-specific data, a fiber's own.

#![cfg(target_os = "linux")]

use std::cell::Cell;
use std::ffi::c_void;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};
use std::time::Duration;

use kapok::Runtime;

static DESTROYED: AtomicUsize = AtomicUsize::new(0);

extern "C" fn destroy(value: *mut c_void) {
    // A destructor may wait: it runs on the fiber.
    if kapok::on_fiber() {
        kapok::sleep(Duration::from_micros(100)).unwrap();
    }
    DESTROYED.fetch_add(value.addr(), Ordering::SeqCst);
}

fn key(destructor: Option<unsafe extern "C" fn(*mut c_void)>) -> libc::pthread_key_t {
    let mut key = 0;
    // SAFETY: writes to a local.
    assert_eq!(unsafe { libc::pthread_key_create(&raw mut key, destructor) }, 0);
    key
}

fn get(key: libc::pthread_key_t) -> usize {
    // SAFETY: no conditions.
    unsafe { libc::pthread_getspecific(key) }.addr()
}

fn set(key: libc::pthread_key_t, value: usize) -> i32 {
    // SAFETY: the value is a number, and its destructor takes it for one.
    unsafe { libc::pthread_setspecific(key, std::ptr::without_provenance(value)) }
}

fn delete(key: libc::pthread_key_t) {
    // SAFETY: no conditions.
    assert_eq!(unsafe { libc::pthread_key_delete(key) }, 0);
}

/// The tests count the destructors of the process.
static ALONE: std::sync::Mutex<()> = std::sync::Mutex::new(());

fn alone() -> std::sync::MutexGuard<'static, ()> {
    let guard = ALONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    kapok_libc::install();
    DESTROYED.store(0, Ordering::SeqCst);
    guard
}

#[test]
fn each_fiber_has_its_own_and_the_thread_its_own() {
    let _alone = alone();
    let key = key(Some(destroy));
    assert_eq!(set(key, 1_000_000), 0);
    Runtime::new().unwrap().run(move || {
        assert_eq!(get(key), 0, "the thread's value is nobody else's");
        let fibers: Vec<_> = (1..=100)
            .map(|number| {
                kapok::spawn_local(move || {
                    assert_eq!(get(key), 0);
                    assert_eq!(set(key, number), 0);
                    for _ in 0..3 {
                        kapok::yield_now();
                        assert_eq!(get(key), number);
                    }
                })
            })
            .collect();
        for fiber in fibers {
            fiber.join().unwrap();
        }
        assert_eq!(DESTROYED.load(Ordering::SeqCst), 5_050);
        assert_eq!(get(key), 0);
    });
    assert_eq!(get(key), 1_000_000);
    assert_eq!(DESTROYED.load(Ordering::SeqCst), 5_050);
    assert_eq!(set(key, 0), 0);
    delete(key);
}

#[test]
fn destructors_run_again_for_what_they_leave_but_not_for_ever() {
    let _alone = alone();
    static KEY: AtomicUsize = AtomicUsize::new(0);
    extern "C" fn again(_: *mut c_void) {
        DESTROYED.fetch_add(1, Ordering::SeqCst);
        assert_eq!(set(KEY.load(Ordering::SeqCst) as libc::pthread_key_t, 7), 0);
    }
    let key = key(Some(again));
    KEY.store(key as usize, Ordering::SeqCst);
    let by_threads = {
        std::thread::spawn(move || set(key, 7)).join().unwrap();
        DESTROYED.swap(0, Ordering::SeqCst)
    };
    Runtime::new().unwrap().run(move || {
        kapok::spawn_local(move || assert_eq!(set(key, 7), 0)).join().unwrap();
    });
    assert_eq!(DESTROYED.load(Ordering::SeqCst), by_threads);
    delete(key);
}

#[test]
fn a_key_that_is_made_again_is_empty() {
    let _alone = alone();
    Runtime::new().unwrap().run(|| {
        let first = key(Some(destroy));
        assert_eq!(set(first, 5), 0);
        delete(first);
        assert_eq!(set(first, 6), libc::EINVAL);
        let second = key(None);
        assert_eq!(second, first, "the C library gives the lowest");
        assert_eq!(get(second), 0);
        assert_eq!(set(second, 8), 0);
        assert_eq!(get(second), 8);
        delete(second);
        assert_eq!(set(100_000, 1), libc::EINVAL);
    });
    assert_eq!(DESTROYED.load(Ordering::SeqCst), 0);
}

#[test]
fn a_fiber_that_panics_leaves_nothing() {
    let _alone = alone();
    Runtime::new().unwrap().run(|| {
        let key = key(Some(destroy));
        let fiber = kapok::spawn_local(move || {
            assert_eq!(set(key, 9), 0);
            std::panic::resume_unwind(Box::new("on purpose"));
        });
        assert!(fiber.join().is_err());
        assert_eq!(DESTROYED.load(Ordering::SeqCst), 9);
        delete(key);
    });
}

#[test]
fn a_fiber_is_told_of_its_own_stack() {
    let _alone = alone();
    Runtime::new().unwrap().run(|| {
        let fiber = kapok::Builder::new().stack_size(400 << 10).spawn_local(|| {
            let here = 0_u8;
            let here = (&raw const here).addr();
            // SAFETY: attributes are initialised before they are used, and destroyed after.
            let (lowest, bytes) = unsafe {
                let mut attributes: libc::pthread_attr_t = std::mem::zeroed();
                let thread = libc::pthread_self();
                assert_eq!(libc::pthread_getattr_np(thread, &raw mut attributes), 0);
                let (mut lowest, mut bytes) = (std::ptr::null_mut(), 0);
                libc::pthread_attr_getstack(&raw const attributes, &raw mut lowest, &raw mut bytes);
                libc::pthread_attr_destroy(&raw mut attributes);
                (lowest.addr(), bytes)
            };
            assert!((lowest..lowest + bytes).contains(&here), "{lowest:x} {bytes:x} {here:x}");
            assert!((400 << 10..2 << 20).contains(&bytes), "{bytes}");
        });
        fiber.join().unwrap();
    });
}

/// As libraries have it that count on a thread to be theirs: within a call there is no other.
fn alone_on_its_thread(waits: impl FnOnce()) -> Result<(), &'static str> {
    thread_local! {
        static INSIDE: Cell<bool> = const { Cell::new(false) };
    }
    if INSIDE.replace(true) {
        return Err("a call within a call");
    }
    waits();
    INSIDE.set(false);
    Ok(())
}

#[test]
fn a_fiber_with_a_thread_of_its_own_has_its_thread_locals() {
    const WAIT: Duration = Duration::from_millis(50);
    const FIBERS: usize = 4;
    kapok_libc::install();
    Runtime::builder().threads(1).build().unwrap().run(|| {
        let call = || alone_on_its_thread(|| std::thread::sleep(WAIT));
        let first = kapok::spawn_local(call);
        let second = kapok::spawn_local(call);
        assert_eq!(second.join().unwrap(), Err("a call within a call"));
        assert_eq!(first.join().unwrap(), Ok(()));

        // A thread that is blocked is so each time; a machine with much to do is late once.
        let ticks = [(); 3].map(|()| ticks_beside_threads_of_their_own(FIBERS, WAIT));
        assert!(ticks.iter().any(|&ticks| ticks >= 5), "the thread was blocked: {ticks:?} ticks");
    });
}

/// How often this fiber ticks while so many others wait for a thread each, whose loop runs a fiber alone.
fn ticks_beside_threads_of_their_own(fibers: usize, wait: Duration) -> usize {
    let inside = Arc::new(Barrier::new(fibers));
    let fibers: Vec<_> = (0..fibers)
        .map(|_| {
            let inside = Arc::clone(&inside);
            kapok::spawn_local(move || {
                let thread = std::thread::spawn(move || {
                    Runtime::builder().threads(1).build().unwrap().run(move || {
                        assert!(kapok::on_fiber());
                        alone_on_its_thread(|| {
                            // All at the same time.
                            inside.wait();
                            std::thread::sleep(wait);
                        })
                    })
                });
                thread.join().unwrap()
            })
        })
        .collect();
    let mut ticks = 0;
    while !fibers.iter().all(|fiber| fiber.is_finished()) {
        kapok::sleep(Duration::from_millis(1)).unwrap();
        ticks += 1;
    }
    for fiber in fibers {
        assert_eq!(fiber.join().unwrap(), Ok(()));
    }
    ticks
}
