//! Calls that wait for something to happen.

use super::*;

pub(super) fn readiness() {
    receiving("poll", |fd| {
        let mut one = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
        // SAFETY: locals, here and below.
        unsafe { libc::poll(&raw mut one, 1, -1) as isize }
    });
    receiving("poll of several", |fd| {
        let quiet = pipe()[0];
        let mut both = [fd, quiet].map(|fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 });
        // SAFETY: as above.
        unsafe { libc::poll(both.as_mut_ptr(), 2, -1) as isize }
    });
    receiving("ppoll", |fd| {
        let mut one = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
        // SAFETY: as above.
        unsafe { libc::ppoll(&raw mut one, 1, null(), null()) as isize }
    });
    receiving("select", |fd| {
        // SAFETY: as above.
        unsafe {
            let mut set: libc::fd_set = std::mem::zeroed();
            libc::FD_SET(fd, &raw mut set);
            libc::select(fd + 1, &raw mut set, null_mut(), null_mut(), null_mut()) as isize
        }
    });
    receiving("epoll_wait", |fd| {
        // SAFETY: as above.
        unsafe {
            let epoll = libc::epoll_create1(0);
            let mut event = libc::epoll_event { events: libc::EPOLLIN as u32, u64: 0 };
            libc::epoll_ctl(epoll, libc::EPOLL_CTL_ADD, fd, &raw mut event);
            libc::epoll_wait(epoll, &raw mut event, 1, -1) as isize
        }
    });
    receiving("pselect", |fd| {
        // SAFETY: as above.
        unsafe {
            let mut set: libc::fd_set = std::mem::zeroed();
            libc::FD_SET(fd, &raw mut set);
            libc::pselect(fd + 1, &raw mut set, null_mut(), null_mut(), null(), null()) as isize
        }
    });
    unsafe extern "C" {
        fn epoll_pwait2(
            epoll: c_int,
            events: *mut libc::epoll_event,
            most: c_int,
            timeout: *const libc::timespec,
            mask: *const libc::sigset_t,
        ) -> c_int;
    }
    let waits: [(&str, fn(RawFd, *mut libc::epoll_event) -> c_int); 2] = [
        // SAFETY: as above.
        ("epoll_pwait", |epoll, event| unsafe { libc::epoll_pwait(epoll, event, 1, -1, null()) }),
        // SAFETY: as above.
        ("epoll_pwait2", |epoll, event| unsafe { epoll_pwait2(epoll, event, 1, null(), null()) }),
    ];
    for (name, wait) in waits {
        receiving(name, move |fd| {
            let mut event = libc::epoll_event { events: libc::EPOLLIN as u32, u64: 0 };
            // SAFETY: as above.
            let epoll = unsafe { libc::epoll_create1(0) };
            // SAFETY: as above.
            unsafe { libc::epoll_ctl(epoll, libc::EPOLL_CTL_ADD, fd, &raw mut event) };
            wait(epoll, &raw mut event) as isize
        });
    }
    beside_a_ticker("poll of nothing", || {
        // SAFETY: no descriptors.
        assert_eq!(unsafe { libc::poll(null_mut(), 0, 70) }, 0);
    });
}

pub(super) fn sleeps() {
    // SAFETY: no memory.
    beside_a_ticker("usleep", || assert_eq!(unsafe { libc::usleep(70_000) }, 0));
    beside_a_ticker("nanosleep", || {
        let time = libc::timespec { tv_sec: 0, tv_nsec: 70_000_000 };
        // SAFETY: a local.
        assert_eq!(unsafe { libc::nanosleep(&raw const time, null_mut()) }, 0);
    });
    beside_a_ticker("clock_nanosleep", || {
        let time = libc::timespec { tv_sec: 0, tv_nsec: 70_000_000 };
        let clock = libc::CLOCK_MONOTONIC;
        // SAFETY: a local.
        assert_eq!(unsafe { libc::clock_nanosleep(clock, 0, &raw const time, null_mut()) }, 0);
    });
    beside_a_ticker("std::thread::sleep", || std::thread::sleep(Duration::from_millis(70)));
    // SAFETY: as above.
    beside_a_ticker("sleep", || assert_eq!(unsafe { libc::sleep(1) }, 0));
}

/// A child that ends after a while.
fn child() -> libc::pid_t {
    // SAFETY: the child makes system calls only.
    unsafe {
        let child = libc::fork();
        if child == 0 {
            let time = libc::timespec { tv_sec: 0, tv_nsec: 80_000_000 };
            libc::syscall(libc::SYS_nanosleep, &raw const time, 0);
            libc::_exit(0);
        }
        assert!(child > 0);
        child
    }
}

pub(super) fn children() {
    unsafe extern "C" {
        fn __wait(status: *mut c_int) -> libc::pid_t;
        fn __waitpid(pid: libc::pid_t, status: *mut c_int, options: c_int) -> libc::pid_t;
        fn wait3(status: *mut c_int, options: c_int, usage: *mut libc::rusage) -> libc::pid_t;
    }
    let waits: [(&str, fn(libc::pid_t) -> bool); 7] = [
        // SAFETY: no memory of ours, here and below.
        ("wait", |child| unsafe { libc::wait(null_mut()) == child }),
        // SAFETY: as above.
        ("waitpid", |child| unsafe { libc::waitpid(child, null_mut(), 0) == child }),
        // SAFETY: as above.
        ("__wait", |child| unsafe { __wait(null_mut()) == child }),
        // SAFETY: as above.
        ("__waitpid", |child| unsafe { __waitpid(child, null_mut(), 0) == child }),
        // SAFETY: as above.
        ("wait3", |child| unsafe { wait3(null_mut(), 0, null_mut()) == child }),
        // SAFETY: as above.
        ("wait4", |child| unsafe { libc::wait4(child, null_mut(), 0, null_mut()) == child }),
        // SAFETY: writes to a local.
        ("waitid", |child| unsafe {
            let mut info = std::mem::zeroed();
            libc::waitid(libc::P_PID, child as u32, &raw mut info, libc::WEXITED) == 0
        }),
    ];
    for (name, wait) in waits {
        beside_a_ticker(name, move || assert!(wait(child()), "{name}"));
    }
}

/// A lock of the C library's, all zeros of which is a new one.
pub(super) struct Zeroed<T>(UnsafeCell<T>);

// SAFETY: the C library's objects are made to be shared by threads.
unsafe impl<T> Sync for Zeroed<T> {}
// SAFETY: and to be used by others than who made them.
unsafe impl<T> Send for Zeroed<T> {}

impl<T> Zeroed<T> {
    pub(super) fn new() -> Arc<Zeroed<T>> {
        // SAFETY: plain words.
        Arc::new(Zeroed(UnsafeCell::new(unsafe { std::mem::zeroed() })))
    }

    pub(super) fn at(&self) -> *mut T {
        self.0.get()
    }
}

/// Runs `takes` while a thread holds what it takes for long enough.
pub(super) fn held<T: 'static>(
    name: &'static str,
    take: unsafe extern "C" fn(*mut T) -> c_int,
    give: unsafe extern "C" fn(*mut T) -> c_int,
    takes: impl FnOnce(*mut T) -> c_int + 'static,
) {
    let lock = Zeroed::<T>::new();
    let (there, (tells, told)) = (Arc::clone(&lock), std::sync::mpsc::channel());
    let has_blocked = next_has_blocked();
    std::thread::spawn(move || {
        // SAFETY: a lock that is there.
        assert_eq!(unsafe { take(there.at()) }, 0);
        tells.send(()).unwrap();
        has_blocked();
        // SAFETY: held by this thread.
        assert_eq!(unsafe { give(there.at()) }, 0);
    });
    told.recv().unwrap();
    beside_a_ticker(name, move || {
        assert_eq!(takes(lock.at()), 0, "{name}");
        // SAFETY: held by this fiber.
        assert_eq!(unsafe { give(lock.at()) }, 0);
    });
}

/// In a while by a clock, and later than anything here waits.
pub(super) fn far(clock: libc::clockid_t) -> libc::timespec {
    // SAFETY: writes to a local.
    unsafe {
        let mut now = std::mem::zeroed();
        libc::clock_gettime(clock, &raw mut now);
        libc::timespec { tv_sec: now.tv_sec + 60, ..now }
    }
}

unsafe extern "C" {
    fn mtx_lock(mutex: *mut libc::pthread_mutex_t) -> c_int;
    fn mtx_unlock(mutex: *mut libc::pthread_mutex_t) -> c_int;
    fn pthread_rwlock_timedwrlock(
        lock: *mut libc::pthread_rwlock_t,
        at: *const libc::timespec,
    ) -> c_int;
}

/// Waits at a condition.
type Wait = fn(*mut libc::pthread_cond_t, *mut libc::pthread_mutex_t) -> c_int;

/// Runs `wait` at a condition that a thread signals after a while.
pub(super) fn signalled(name: &'static str, wait: Wait) {
    type Both = (libc::pthread_cond_t, libc::pthread_mutex_t);
    let both = Zeroed::<Both>::new();
    let there = Arc::clone(&both);
    // SAFETY: a condition and a mutex that are there; places, of which nothing is read.
    let at = |both: &Zeroed<Both>| unsafe { (&raw mut (*both.at()).0, &raw mut (*both.at()).1) };
    let signal = move || {
        let (condition, mutex) = at(&there);
        // SAFETY: as above.
        unsafe {
            libc::pthread_mutex_lock(mutex);
            libc::pthread_cond_signal(condition);
            libc::pthread_mutex_unlock(mutex);
        }
    };
    until_over(name, signal, move || {
        let (condition, mutex) = at(&both);
        // SAFETY: as above.
        unsafe { libc::pthread_mutex_lock(mutex) };
        assert_eq!(wait(condition, mutex), 0, "{name}");
        // SAFETY: as above.
        unsafe { libc::pthread_mutex_unlock(mutex) };
    });
}

pub(super) fn locks() {
    use libc::{
        pthread_mutex_lock, pthread_mutex_t, pthread_mutex_timedlock, pthread_mutex_unlock,
        pthread_rwlock_rdlock, pthread_rwlock_t, pthread_rwlock_unlock, pthread_rwlock_wrlock,
    };
    let (lock, unlock) = (pthread_mutex_lock, pthread_mutex_unlock);
    let (write, done) = (pthread_rwlock_wrlock, pthread_rwlock_unlock);
    // SAFETY: locks that are there, and a local, for all of these.
    unsafe {
        held::<pthread_mutex_t>("pthread_mutex_lock", lock, unlock, move |at| lock(at));
        held::<pthread_mutex_t>("pthread_mutex_timedlock", lock, unlock, |at| {
            pthread_mutex_timedlock(at, &far(libc::CLOCK_REALTIME))
        });
        held::<pthread_mutex_t>("mtx_lock", mtx_lock, mtx_unlock, |at| mtx_lock(at));
        held::<pthread_rwlock_t>("pthread_rwlock_wrlock", write, done, move |at| write(at));
        held::<pthread_rwlock_t>("pthread_rwlock_rdlock", write, done, |at| {
            pthread_rwlock_rdlock(at)
        });
        held::<pthread_rwlock_t>("pthread_rwlock_timedwrlock", write, done, |at| {
            pthread_rwlock_timedwrlock(at, &far(libc::CLOCK_REALTIME))
        });
    }

    let waits: [(&str, fn(*mut libc::sem_t) -> c_int); 2] = [
        // SAFETY: a semaphore that is there, and a local.
        ("sem_wait", |at| unsafe { libc::sem_wait(at) }),
        // SAFETY: as above.
        ("sem_timedwait", |at| unsafe { libc::sem_timedwait(at, &far(libc::CLOCK_REALTIME)) }),
    ];
    for (name, wait) in waits {
        let semaphore = Zeroed::<libc::sem_t>::new();
        let there = Arc::clone(&semaphore);
        // SAFETY: a semaphore that is there; all zeros is an empty one.
        later(move || assert_eq!(unsafe { libc::sem_post(there.at()) }, 0));
        beside_a_ticker(name, move || assert_eq!(wait(semaphore.at()), 0));
    }

    let waits: [(&str, Wait); 2] = [
        // SAFETY: a condition and a mutex that are there, and a local.
        ("pthread_cond_wait", |at, mutex| unsafe { libc::pthread_cond_wait(at, mutex) }),
        // SAFETY: as above.
        ("pthread_cond_timedwait", |at, mutex| unsafe {
            libc::pthread_cond_timedwait(at, mutex, &far(libc::CLOCK_REALTIME))
        }),
    ];
    for (name, wait) in waits {
        signalled(name, wait);
    }

    let barrier = Zeroed::<libc::pthread_barrier_t>::new();
    // SAFETY: a barrier that is there, for two.
    assert_eq!(unsafe { libc::pthread_barrier_init(barrier.at(), null(), 2) }, 0);
    let there = Arc::clone(&barrier);
    // SAFETY: as above.
    later(move || unsafe {
        libc::pthread_barrier_wait(there.at());
    });
    // SAFETY: as above.
    beside_a_ticker("pthread_barrier_wait", move || unsafe {
        libc::pthread_barrier_wait(barrier.at());
    });

    let thread = std::thread::spawn(next_has_blocked());
    beside_a_ticker("pthread_join", move || thread.join().unwrap());

    let word = Arc::new(AtomicU32::new(0));
    let there = Arc::clone(&word);
    let futex = |word: &AtomicU32, operation: c_int, value: u32| {
        let operation = operation | libc::FUTEX_PRIVATE_FLAG;
        // SAFETY: a word that is there; no time limit.
        unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), operation, value, null::<c_void>()) }
    };
    later(move || {
        // It may not wait yet.
        while futex(&there, libc::FUTEX_WAKE, 1) == 0 {
            std::thread::sleep(Duration::from_millis(1));
        }
    });
    beside_a_ticker("futex", move || assert_eq!(futex(&word, libc::FUTEX_WAIT, 0), 0));
}

/// A name that a file answers.
pub(super) fn names() {
    again_beside_a_ticker("getaddrinfo", || {
        let mut found = null_mut();
        // SAFETY: a name that ends, and what was found, once.
        unsafe {
            let error = libc::getaddrinfo(c"localhost".as_ptr(), null(), null(), &raw mut found);
            if error == 0 {
                libc::freeaddrinfo(found);
            }
            error == 0
        }
    });
}

pub(super) fn signals() {
    extern "C" fn handle(_: c_int) {}
    const SIGNAL: c_int = libc::SIGUSR1;
    // SAFETY: no conditions.
    let thread = unsafe { libc::gettid() };
    let kill = move || {
        // SAFETY: a thread of this process.
        unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), thread, SIGNAL) };
    };
    // SAFETY: plain data, and a handler that may run anywhere.
    let set = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handle as *const () as usize;
        assert_eq!(libc::sigaction(SIGNAL, &raw const action, null_mut()), 0);
        let mut set = std::mem::zeroed();
        libc::sigaddset(&raw mut set, SIGNAL);
        set
    };
    // SAFETY: no memory.
    until_over("pause", kill, || assert_eq!(unsafe { libc::pause() }, -1));
    unsafe extern "C" {
        fn __sigsuspend(blocked: *const libc::sigset_t) -> c_int;
        fn sigpause(mask: c_int) -> c_int;
        fn __xpg_sigpause(signal: c_int) -> c_int;
        fn __sigpause(signal_or_mask: c_int, is_signal: c_int) -> c_int;
    }
    let suspends: [(&str, fn() -> c_int); 5] = [
        // SAFETY: sets of none, or no memory, for all of these.
        ("sigsuspend", || unsafe { libc::sigsuspend(&std::mem::zeroed()) }),
        // SAFETY: as above.
        ("__sigsuspend", || unsafe { __sigsuspend(&std::mem::zeroed()) }),
        // SAFETY: as above.
        ("sigpause", || unsafe { sigpause(0) }),
        // SAFETY: as above.
        ("__xpg_sigpause", || unsafe { __xpg_sigpause(SIGNAL) }),
        // SAFETY: as above.
        ("__sigpause", || unsafe { __sigpause(SIGNAL, 1) }),
    ];
    for (name, suspend) in suspends {
        until_over(name, kill, move || assert_eq!(suspend(), -1, "{name}"));
    }
    // Whoever is made from here on has it blocked too.
    let change = |how| {
        // SAFETY: a local.
        assert_eq!(unsafe { libc::pthread_sigmask(how, &raw const set, null_mut()) }, 0);
    };
    change(libc::SIG_BLOCK);
    let waits: [(&str, fn(&libc::sigset_t) -> bool); 3] = [
        // SAFETY: locals.
        ("sigwait", |set| unsafe {
            let mut taken = 0;
            libc::sigwait(set, &raw mut taken) == 0 && taken == SIGNAL
        }),
        // SAFETY: as above.
        ("sigwaitinfo", |set| unsafe { libc::sigwaitinfo(set, null_mut()) == SIGNAL }),
        // SAFETY: as above.
        ("sigtimedwait", |set| unsafe {
            let limit = libc::timespec { tv_sec: 60, tv_nsec: 0 };
            libc::sigtimedwait(set, null_mut(), &raw const limit) == SIGNAL
        }),
    ];
    for (name, wait) in waits {
        // Blocked, and so it stays pending.
        later(kill);
        beside_a_ticker(name, move || assert!(wait(&set), "{name}"));
    }
    change(libc::SIG_UNBLOCK);
}
