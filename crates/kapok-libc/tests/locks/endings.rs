//! What is left of fibers that never end, of threads that have, and of the parent in the child of a fork.

use std::ffi::c_int;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::time::Duration;

use kapok::{Kind, Runtime};

use crate::calls::{Condition, Mutex, condition, mutex, plain};
use crate::engines;
use crate::world::{PATIENCE, on_fibers, until};

/// The engines there are.
fn kinds() -> impl Iterator<Item = Kind> {
    engines::there().into_iter().map(|(kind, _)| kind)
}

/// Runs `stuck` as a fiber that does not end, on a loop that closes without it.
fn leave_behind(kind: Kind, waits: &Arc<AtomicBool>, stuck: impl FnOnce() + 'static) {
    let runtime = Runtime::builder().threads(1).engine(kind);
    let runtime = runtime.close_limit(Duration::from_millis(5)).build().unwrap();
    let waits = Arc::clone(waits);
    runtime.run(move || {
        kapok::spawn_local(stuck).detach();
        until(|| waits.load(Ordering::SeqCst));
        // It waits by then.
        kapok::sleep(Duration::from_millis(5)).unwrap();
    });
}

#[test]
fn a_fiber_that_was_left_behind_takes_no_signal() {
    kapok_libc::install();
    for kind in kinds() {
        let shared = Arc::new((
            plain(libc::PTHREAD_MUTEX_NORMAL),
            condition(libc::CLOCK_REALTIME),
            AtomicUsize::new(0),
        ));
        let waits = Arc::new(AtomicBool::new(false));
        let (there, waiting) = (Arc::clone(&shared), Arc::clone(&waits));
        leave_behind(kind, &waits, move || {
            assert_eq!(there.0.lock(), 0);
            waiting.store(true, Ordering::SeqCst);
            there.1.wait(&there.0);
            unreachable!("its loop is gone");
        });
        Runtime::builder().threads(1).engine(kind).build().unwrap().run(move || {
            let there = Arc::clone(&shared);
            let waiter = kapok::spawn_local(move || {
                assert_eq!(there.0.lock(), 0);
                there.2.store(1, Ordering::SeqCst);
                assert_eq!(there.1.wait(&there.0), 0);
                assert_eq!(there.0.unlock(), 0);
                there.2.store(2, Ordering::SeqCst);
            });
            until(|| shared.2.load(Ordering::SeqCst) == 1);
            assert_eq!(shared.0.lock(), 0);
            shared.1.signal();
            assert_eq!(shared.0.unlock(), 0);
            until(|| shared.2.load(Ordering::SeqCst) == 2);
            waiter.join().unwrap();
        });
    }
}

#[test]
fn a_fiber_that_was_left_behind_takes_no_mutex() {
    kapok_libc::install();
    for kind in kinds() {
        let shared = Arc::new(plain(libc::PTHREAD_MUTEX_NORMAL));
        let waits = Arc::new(AtomicBool::new(false));
        // Held by this thread, which is plain.
        assert_eq!(shared.lock(), 0);
        let (there, waiting) = (Arc::clone(&shared), Arc::clone(&waits));
        leave_behind(kind, &waits, move || {
            waiting.store(true, Ordering::SeqCst);
            there.lock();
            unreachable!("its loop is gone");
        });
        let (there, held) = (Arc::clone(&shared), Arc::new(AtomicBool::new(true)));
        let taken = Arc::new(AtomicBool::new(false));
        let (holds, takes) = (Arc::clone(&held), Arc::clone(&taken));
        let next = std::thread::spawn(move || {
            Runtime::builder().threads(1).engine(kind).build().unwrap().run(move || {
                holds.store(false, Ordering::SeqCst);
                assert_eq!(there.lock(), 0);
                takes.store(true, Ordering::SeqCst);
                assert_eq!(there.unlock(), 0);
            });
        });
        until(|| !held.load(Ordering::SeqCst));
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(shared.unlock(), 0);
        until(|| taken.load(Ordering::SeqCst));
        next.join().unwrap();
    }
}

#[test]
fn a_robust_mutex_of_a_fiber_is_told_of_when_its_thread_has_ended() {
    kapok_libc::install();
    for kind in kinds() {
        let shared = Arc::new(mutex(libc::PTHREAD_MUTEX_NORMAL, libc::PTHREAD_PRIO_NONE, true));
        let there = Arc::clone(&shared);
        std::thread::spawn(move || {
            let runtime = Runtime::builder().threads(1).engine(kind).build().unwrap();
            runtime.run(move || assert_eq!(there.lock(), 0));
        })
        .join()
        .unwrap();
        Runtime::builder().threads(1).engine(kind).build().unwrap().run(move || {
            assert_eq!(shared.try_lock(), libc::EOWNERDEAD);
            // SAFETY: held, by this thread.
            assert_eq!(unsafe { libc::pthread_mutex_consistent(shared.get()) }, 0);
            let there = Arc::clone(&shared);
            let other = kapok::spawn_local(move || assert_eq!(there.try_lock(), libc::EBUSY));
            other.join().unwrap();
            assert_eq!(shared.unlock(), 0);
        });
    }
}

/// `struct futex_waitv`.
#[repr(C)]
struct Waiter {
    value: u64,
    address: u64,
    flags: u32,
    reserved: u32,
}

/// Waits at all the words while they are 0. The number of the one that was woken.
fn wait_at(words: &[AtomicU32]) -> i64 {
    /// `FUTEX2_SIZE_U32 | FUTEX2_PRIVATE`.
    const PRIVATE: u32 = 2 | 128;
    let waiter = |word: &AtomicU32| Waiter {
        value: 0,
        address: word.as_ptr() as u64,
        flags: PRIVATE,
        reserved: 0,
    };
    let all: Vec<Waiter> = words.iter().map(waiter).collect();
    let (none, clock) = (std::ptr::null::<libc::timespec>(), libc::CLOCK_MONOTONIC);
    // SAFETY: words that are there, and as many as are told.
    unsafe { libc::syscall(libc::SYS_futex_waitv, all.as_ptr(), all.len(), 0, none, clock) }
}

fn wake(word: &AtomicU32) -> i64 {
    let operation = libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG;
    // SAFETY: a word that is there.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), operation, 1) }
}

#[test]
fn a_fiber_that_was_left_behind_takes_no_wake_up_of_one_of_several_words() {
    kapok_libc::install();
    // With the most words that a wait may be for there is no room for one of ours.
    for (kind, count) in kinds().flat_map(|kind| [(kind, 2), (kind, 128)]) {
        let words: Arc<Vec<AtomicU32>> = Arc::new((0..count).map(|_| AtomicU32::new(0)).collect());
        let waits = Arc::new(AtomicBool::new(false));
        let (there, waiting) = (Arc::clone(&words), Arc::clone(&waits));
        leave_behind(kind, &waits, move || {
            waiting.store(true, Ordering::SeqCst);
            wait_at(&there);
            unreachable!("its loop is gone");
        });
        // Who comes later is woken by the first that there is.
        let there = Arc::clone(&words);
        let (tells, told) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            // SAFETY: no conditions.
            tells.send(unsafe { libc::gettid() }).unwrap();
            wait_at(&there)
        });
        let thread_id = told.recv().unwrap();
        let path = format!("/proc/self/task/{thread_id}/syscall");
        let waiting = format!("{} ", libc::SYS_futex_waitv);
        until(|| std::fs::read_to_string(&path).is_ok_and(|now| now.starts_with(&waiting)));
        assert_eq!(wake(&words[1]), 1);
        until(|| thread.is_finished());
        assert_eq!(thread.join().unwrap(), 1);
        // And nobody is left.
        assert_eq!(wake(&words[0]), 0, "{kind}, {count} words");
    }
}

#[test]
fn a_fiber_waits_at_several_words() {
    on_fibers(1, || {
        for count in [1, 2, 127, 128] {
            let words: Arc<Vec<AtomicU32>> =
                Arc::new((0..count).map(|_| AtomicU32::new(0)).collect());
            for woken in [0, count - 1] {
                let there = Arc::clone(&words);
                let waiter = kapok::spawn_local(move || wait_at(&there));
                until(|| wake(&words[woken]) == 1);
                assert_eq!(waiter.join().unwrap(), woken as i64, "of {count}");
            }
        }
    });
}

/// Runs `child` in the child of a fork, which has so long, and gives its status.
fn fork(child: impl FnOnce() -> bool) -> Child {
    // SAFETY: the child runs what may run there: system calls, locks and runtimes of its own.
    match unsafe { libc::fork() } {
        0 => {
            // SAFETY: ends the process if it hangs, and when it is done.
            unsafe {
                libc::alarm(PATIENCE.as_secs() as u32 / 2);
                libc::_exit(if child() { 0 } else { 1 })
            }
        }
        pid => Child(pid),
    }
}

struct Child(c_int);

impl Child {
    #[track_caller]
    fn wait(self) {
        let mut status = 0;
        // SAFETY: a child of ours; writes to a local.
        assert_eq!(unsafe { libc::waitpid(self.0, &raw mut status, 0) }, self.0);
        assert_eq!(status, 0, "the child failed, or hung");
    }
}

/// Shared memory for something of the C library's, with flags beside it.
struct Common {
    mutex: libc::pthread_mutex_t,
    step: AtomicUsize,
}

fn in_shared_memory() -> &'static Common {
    // SAFETY: a new mapping, never unmapped, of zeros, which is a value of the flags and of what is
    // initialised below, by attributes that are initialised before they are used.
    unsafe {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS;
        let null = std::ptr::null_mut();
        let at = libc::mmap(null, size_of::<Common>(), protection, flags, -1, 0);
        assert_ne!(at, libc::MAP_FAILED);
        let common = at.cast::<Common>();
        let mut attributes: libc::pthread_mutexattr_t = std::mem::zeroed();
        libc::pthread_mutexattr_init(&raw mut attributes);
        libc::pthread_mutexattr_settype(&raw mut attributes, libc::PTHREAD_MUTEX_RECURSIVE);
        libc::pthread_mutexattr_setpshared(&raw mut attributes, libc::PTHREAD_PROCESS_SHARED);
        let mutex = &raw mut (*common).mutex;
        assert_eq!(libc::pthread_mutex_init(mutex, &raw const attributes), 0);
        &*common
    }
}

impl Common {
    fn mutex(&self) -> *mut libc::pthread_mutex_t {
        (&raw const self.mutex).cast_mut()
    }

    fn until(&self, step: usize) {
        while self.step.load(Ordering::SeqCst) < step {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

#[test]
fn a_fiber_and_the_child_that_it_forks_are_two_holders() {
    on_fibers(1, || {
        let common = in_shared_memory();
        // SAFETY: initialised, and never gone.
        assert_eq!(unsafe { libc::pthread_mutex_lock(common.mutex()) }, 0);
        fork(|| {
            // SAFETY: as above.
            let tried = unsafe { libc::pthread_mutex_trylock(common.mutex()) };
            tried == libc::EBUSY
        })
        .wait();
        // SAFETY: as above.
        assert_eq!(unsafe { libc::pthread_mutex_unlock(common.mutex()) }, 0);
    });
}

#[test]
fn fibers_of_two_children_are_two_holders() {
    kapok_libc::install();
    let common = in_shared_memory();
    // Their fibers have the same numbers, since both go on from ours.
    let in_runtime = |work: fn(&Common) -> bool| {
        fork(move || {
            let runtime = Runtime::builder().threads(1).engine(Kind::Epoll).build().unwrap();
            runtime.run(move || work(common))
        })
    };
    let first = in_runtime(|common| {
        // SAFETY: initialised, and never gone.
        let locked = unsafe { libc::pthread_mutex_lock(common.mutex()) };
        common.step.store(1, Ordering::SeqCst);
        common.until(2);
        locked == 0
    });
    let second = in_runtime(|common| {
        common.until(1);
        // SAFETY: as above.
        let tried = unsafe { libc::pthread_mutex_trylock(common.mutex()) };
        common.step.store(2, Ordering::SeqCst);
        tried == libc::EBUSY
    });
    second.wait();
    first.wait();
}

#[test]
fn fibers_of_the_parent_take_no_signal_in_the_child() {
    on_fibers(1, || {
        let shared: Arc<(Mutex, Condition, AtomicUsize)> = Arc::new((
            plain(libc::PTHREAD_MUTEX_NORMAL),
            condition(libc::CLOCK_REALTIME),
            AtomicUsize::new(0),
        ));
        let there = Arc::clone(&shared);
        let waiter = kapok::spawn_local(move || {
            assert_eq!(there.0.lock(), 0);
            there.2.store(1, Ordering::SeqCst);
            assert_eq!(there.1.wait(&there.0), 0);
            assert_eq!(there.0.unlock(), 0);
        });
        until(|| shared.2.load(Ordering::SeqCst) == 1);
        let there = Arc::clone(&shared);
        fork(move || {
            let locked = there.0.lock();
            let signaller = Arc::clone(&there);
            // It gets the mutex when this one waits.
            let thread = std::thread::spawn(move || {
                assert_eq!(signaller.0.lock(), 0);
                signaller.1.signal();
                assert_eq!(signaller.0.unlock(), 0);
            });
            let woken = there.1.wait(&there.0);
            thread.join().unwrap();
            locked == 0 && woken == 0
        })
        .wait();
        assert_eq!(shared.0.lock(), 0);
        shared.1.signal();
        assert_eq!(shared.0.unlock(), 0);
        waiter.join().unwrap();
    });
}
