//! Read-write locks, semaphores, barriers, what is done once, and joining threads.

use std::cell::Cell;
use std::ffi::c_void;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::calls::{Object, pthread_once, pthread_timedjoin_np, soon};
use crate::world::{PATIENCE, on_fibers, rounds, suspended, until};

type ReadWrite = Object<libc::pthread_rwlock_t>;
type Semaphore = Object<libc::sem_t>;
type Barrier = Object<libc::pthread_barrier_t>;

fn read_write() -> ReadWrite {
    // SAFETY: initialises the object.
    Object::made(|lock| unsafe { libc::pthread_rwlock_init(lock, std::ptr::null()) })
}

fn semaphore(value: u32) -> Semaphore {
    // SAFETY: initialises the object.
    Object::made(|semaphore| unsafe { libc::sem_init(semaphore, 0, value) })
}

/// So many fibers and plain threads, all doing the same.
fn together(fibers: usize, threads: usize, work: impl Fn(usize) + Clone + Send + 'static) {
    let plain: Vec<_> = (0..threads)
        .map(|index| {
            let work = work.clone();
            std::thread::spawn(move || work(index))
        })
        .collect();
    let fibers: Vec<_> = (0..fibers)
        .map(|index| {
            let work = work.clone();
            kapok::spawn(move || work(threads + index))
        })
        .collect();
    for fiber in fibers {
        fiber.join().unwrap();
    }
    for thread in plain {
        thread.join().unwrap();
    }
}

#[test]
fn a_read_write_lock_among_fibers_and_threads() {
    let total = rounds(8_000);
    for (threads, plain) in [(1, 0), (2, 2)] {
        on_fibers(threads, move || {
            let shared = Arc::new((read_write(), AtomicUsize::new(0), AtomicUsize::new(0)));
            let each = total / (6 + plain);
            let there = Arc::clone(&shared);
            together(6, plain, move |index| {
                let (lock, one, other) = &*there;
                for round in 0..each {
                    let writes = (round + index).is_multiple_of(4);
                    // SAFETY: initialised, and shared as such objects are.
                    let error = unsafe {
                        if writes {
                            libc::pthread_rwlock_wrlock(lock.get())
                        } else {
                            libc::pthread_rwlock_rdlock(lock.get())
                        }
                    };
                    assert_eq!(error, 0);
                    let seen = one.load(Ordering::Relaxed);
                    assert_eq!(seen, other.load(Ordering::Relaxed));
                    if writes {
                        one.store(seen + 1, Ordering::Relaxed);
                    }
                    if round.is_multiple_of(8) && kapok::on_fiber() {
                        kapok::yield_now();
                    }
                    if writes {
                        other.store(seen + 1, Ordering::Relaxed);
                    }
                    // SAFETY: as above.
                    assert_eq!(unsafe { libc::pthread_rwlock_unlock(lock.get()) }, 0);
                }
            });
            let (_, one, other) = &*shared;
            assert_eq!(one.load(Ordering::Relaxed), other.load(Ordering::Relaxed));
            assert!(one.load(Ordering::Relaxed) > 0);
        });
    }
}

#[test]
fn semaphores_count_over_fibers_and_threads() {
    let total = rounds(10_000);
    for (threads, plain) in [(1, 0), (2, 2)] {
        on_fibers(threads, move || {
            let shared = Arc::new((semaphore(0), semaphore(3), AtomicUsize::new(0)));
            let each = total / (4 + plain);
            let there = Arc::clone(&shared);
            together(4 + plain, plain, move |index| {
                let (full, empty, moved) = &*there;
                let (from, to) =
                    if index.is_multiple_of(2) { (empty, full) } else { (full, empty) };
                for _ in 0..each {
                    // SAFETY: initialised, and shared as such objects are.
                    unsafe {
                        assert_eq!(libc::sem_wait(from.get()), 0);
                        moved.fetch_add(1, Ordering::Relaxed);
                        assert_eq!(libc::sem_post(to.get()), 0);
                    }
                }
            });
            let mut value = -1;
            // SAFETY: writes to a local.
            unsafe { libc::sem_getvalue(shared.1.get(), &raw mut value) };
            assert_eq!(value, 3);
        });
    }
}

#[test]
fn barriers_have_one_who_is_told() {
    let total = rounds(1_000) / 20;
    on_fibers(2, move || {
        // SAFETY: initialises the object.
        let barrier: Barrier =
            Object::made(|at| unsafe { libc::pthread_barrier_init(at, std::ptr::null(), 6) });
        let shared = Arc::new((barrier, AtomicUsize::new(0), AtomicUsize::new(0)));
        let there = Arc::clone(&shared);
        together(4, 2, move |_| {
            let (barrier, arrived, told) = &*there;
            for round in 0..total {
                arrived.fetch_add(1, Ordering::SeqCst);
                // SAFETY: initialised, and shared as such objects are.
                match unsafe { libc::pthread_barrier_wait(barrier.get()) } {
                    0 => {}
                    libc::PTHREAD_BARRIER_SERIAL_THREAD => {
                        told.fetch_add(1, Ordering::SeqCst);
                    }
                    error => panic!("{error}"),
                }
                assert!(arrived.load(Ordering::SeqCst) >= 6 * (round + 1));
            }
        });
        assert_eq!(shared.2.load(Ordering::SeqCst), total);
        // SAFETY: nobody waits.
        assert_eq!(unsafe { libc::pthread_barrier_destroy(shared.0.get()) }, 0);
    });
}

#[test]
fn what_is_done_once_is_waited_for() {
    static DONE: AtomicUsize = AtomicUsize::new(0);
    extern "C" fn initialise() {
        kapok::sleep(Duration::from_millis(5)).unwrap();
        DONE.fetch_add(1, Ordering::SeqCst);
    }
    on_fibers(1, || {
        let once = Arc::new(AtomicI32::new(0));
        let before = DONE.load(Ordering::SeqCst);
        let fibers: Vec<_> = (0..4)
            .map(|_| {
                let once = Arc::clone(&once);
                kapok::spawn_local(move || {
                    // SAFETY: a `pthread_once_t`, zero at first.
                    assert_eq!(unsafe { pthread_once(once.as_ptr(), initialise) }, 0);
                    DONE.load(Ordering::SeqCst)
                })
            })
            .collect();
        for fiber in fibers {
            assert_eq!(fiber.join().unwrap(), before + 1);
        }
    });
}

#[test]
fn a_fiber_waits_for_a_thread_to_end() {
    on_fibers(1, || {
        /// Whether the thread may end.
        static MAY_END: AtomicBool = AtomicBool::new(false);
        MAY_END.store(false, Ordering::SeqCst);
        let joins = Rc::new(Cell::new(false));
        let seen = Rc::clone(&joins);
        // It tells the thread when it has ticked for long enough beside the join.
        let ticker = kapok::spawn_local(move || {
            let mut ticks = 0;
            while ticks < 10 {
                kapok::sleep(Duration::from_millis(1)).unwrap();
                ticks += usize::from(seen.get());
            }
            MAY_END.store(true, Ordering::SeqCst);
        });
        extern "C" fn wait(argument: *mut c_void) -> *mut c_void {
            let begin = Instant::now();
            // At some time it is over where the join blocks the ticker's thread.
            while !MAY_END.load(Ordering::SeqCst) && begin.elapsed() < PATIENCE {
                std::thread::sleep(Duration::from_millis(1));
            }
            argument
        }
        let before = suspended("pthread_join");
        let mut value = std::ptr::null_mut();
        // SAFETY: a thread of our own, which is joined once; writes to locals.
        unsafe {
            let mut thread: libc::pthread_t = std::mem::zeroed();
            let argument = std::ptr::without_provenance_mut(77);
            libc::pthread_create(&raw mut thread, std::ptr::null(), wait, argument);
            let at = soon(libc::CLOCK_REALTIME, 5);
            let timed = pthread_timedjoin_np(thread, &raw mut value, &raw const at);
            assert_eq!(timed, libc::ETIMEDOUT);
            joins.set(true);
            assert_eq!(libc::pthread_join(thread, &raw mut value), 0);
            assert_eq!(libc::pthread_join(libc::pthread_self(), &raw mut value), libc::EDEADLK);
        }
        assert_eq!(value.addr(), 77);
        // Other tests join too.
        assert!(suspended("pthread_join") > before);
        assert!(ticker.is_finished(), "the thread was blocked");
        ticker.join().unwrap();
    });
}

/// `struct futex_waitv`.
#[repr(C)]
struct Waiter {
    value: u64,
    address: u64,
    flags: u32,
    reserved: u32,
}

const WAKE_PRIVATE: i32 = libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG;

/// `FUTEX2_SIZE_U32 | FUTEX2_PRIVATE`.
const PRIVATE: u32 = 2 | 128;

#[test]
fn the_newer_waits_at_futexes_park_too() {
    on_fibers(1, || {
        let words = Arc::new([AtomicU32::new(5), AtomicU32::new(6)]);
        let there = Arc::clone(&words);
        let waiter = kapok::spawn_local(move || {
            let waiters = [&there[0], &there[1]].map(|word| Waiter {
                value: u64::from(word.load(Ordering::SeqCst)),
                address: word.as_ptr().addr() as u64,
                flags: PRIVATE,
                reserved: 0,
            });
            // SAFETY: locals, and words that outlive the call.
            let woken = unsafe {
                let null = std::ptr::null::<libc::timespec>();
                libc::syscall(libc::SYS_futex_waitv, waiters.as_ptr(), 2, 0, null, 0)
            };
            there[0].store(7, Ordering::SeqCst);
            // SAFETY: as above.
            let again = unsafe {
                let null = std::ptr::null::<libc::timespec>();
                libc::syscall(libc::SYS_futex_waitv, waiters.as_ptr(), 2, 0, null, 0)
            };
            let error = std::io::Error::last_os_error().raw_os_error();
            (woken, again, error)
        });
        // If it blocked the thread this would not run.
        kapok::sleep(Duration::from_millis(5)).unwrap();
        let wake = |word: &AtomicU32| {
            // SAFETY: a word; nothing is written.
            until(
                || unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), WAKE_PRIVATE, 1) } != 0,
            );
        };
        wake(&words[1]);
        assert_eq!(waiter.join().unwrap(), (1, -1, Some(libc::EAGAIN)));

        const FUTEX_WAIT: std::ffi::c_long = 455;
        // SAFETY: with no mask nothing is waited for.
        let refused = unsafe { libc::syscall(FUTEX_WAIT, 0, 0, 0, 0, 0, 0) };
        let error = std::io::Error::last_os_error().raw_os_error();
        if (refused, error) == (-1, Some(libc::ENOSYS)) {
            eprintln!("skipped in part: no futex_wait(2), which is of Linux 6.7");
            return;
        }
        let there = Arc::clone(&words);
        let (timed_out, woken) = (Rc::new(Cell::new(false)), Rc::new(Cell::new(false)));
        let seen = (Rc::clone(&timed_out), Rc::clone(&woken));
        let waiter = kapok::spawn_local(move || {
            let wait = |expected: u32, at: *const libc::timespec| {
                let (word, clock) = (there[0].as_ptr(), libc::CLOCK_MONOTONIC);
                // SAFETY: a word and a time that outlive the call.
                let result = unsafe {
                    libc::syscall(FUTEX_WAIT, word, expected, u32::MAX, PRIVATE, at, clock)
                };
                (result, std::io::Error::last_os_error().raw_os_error())
            };
            let soon = soon(libc::CLOCK_MONOTONIC, 5);
            assert_eq!(wait(7, &raw const soon), (-1, Some(libc::ETIMEDOUT)));
            timed_out.set(true);
            assert_eq!(wait(8, std::ptr::null()), (-1, Some(libc::EAGAIN)));
            let result = wait(7, std::ptr::null()).0;
            woken.set(true);
            result
        });
        // Before, it would wake that wait.
        until(|| seen.0.get());
        // The wait that is over may be woken until it has left the kernel's queue. It passes that on, but to
        // one that is there already: who changes no word, as here, may have to wake again.
        until(|| {
            // SAFETY: a word; nothing is written.
            unsafe { libc::syscall(libc::SYS_futex, words[0].as_ptr(), WAKE_PRIVATE, 1) };
            seen.1.get()
        });
        assert_eq!(waiter.join().unwrap(), 0);
    });
}
