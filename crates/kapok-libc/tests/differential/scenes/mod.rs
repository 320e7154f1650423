//! Short scenes for calls that need things of their own: files by name, pipes, locks, children, signals,
//! names of hosts. Each makes what it needs, and leaves nothing behind.

mod files;

use std::ffi::{c_char, c_int, c_void};
use std::mem::{MaybeUninit, zeroed};
use std::os::fd::RawFd;
use std::ptr::{null, null_mut};

use libc::timespec;

use crate::world::{Outcome, outcome};

/// How many there are.
pub(crate) const SCENES: u8 = 17;

pub(crate) fn play(scene: u8, way: u8) -> Outcome {
    match scene % SCENES {
        0 | 1 => files::open(way),
        2 => files::tee(way),
        3 => files::copy_file_range(way),
        4 => files::splice(way),
        5 => files::close(way),
        6 => children(way),
        7 => masks(way),
        8 => signals(way),
        9 => hosts(way),
        10 => values(way),
        11 => mutex(way),
        12 => condition(way),
        13 => crate::resolver::ask(way),
        14 => files::refused(way),
        15 => who_runs(way),
        _ => others(way),
    }
}

/// Results one by one, each with errno.
#[derive(Default)]
struct Told(Outcome);

impl Told {
    fn call(&mut self, call: impl FnOnce() -> i64) -> i64 {
        let one = outcome(call);
        self.0.details.extend([one.result, i64::from(one.errno)]);
        one.result
    }
}

fn pipe() -> [RawFd; 2] {
    let mut fds = [0; 2];
    // SAFETY: writes to a local.
    assert_eq!(unsafe { libc::pipe(fds.as_mut_ptr()) }, 0);
    fds
}

fn close_all(fds: &[RawFd]) {
    for &fd in fds {
        // SAFETY: numbers of ours.
        assert_eq!(unsafe { libc::close(fd) }, 0);
    }
}

/// The process has none.
fn children(way: u8) -> Outcome {
    unsafe extern "C" {
        fn __wait(status: *mut c_int) -> libc::pid_t;
        fn __waitpid(pid: libc::pid_t, status: *mut c_int, options: c_int) -> libc::pid_t;
        fn wait3(status: *mut c_int, options: c_int, usage: *mut libc::rusage) -> libc::pid_t;
    }
    let mut told = Told::default();
    let mut status = 77;
    let at = &raw mut status;
    // SAFETY: writes to locals.
    unsafe {
        let mut info: libc::siginfo_t = zeroed();
        told.call(|| {
            i64::from(match way % 8 {
                0 => libc::wait(at),
                1 => __wait(at),
                2 => libc::waitpid(-1, at, 0),
                3 => __waitpid(0, at, 0),
                4 => wait3(at, libc::WNOHANG, null_mut()),
                5 => libc::wait4(-1, at, 0, null_mut()),
                6 => libc::waitid(libc::P_ALL, 0, &raw mut info, libc::WEXITED),
                _ => libc::waitid(libc::P_ALL, 0, &raw mut info, 0),
            })
        });
    }
    told.0.details.push(i64::from(status));
    told.0
}

fn set_of(signals: &[c_int]) -> libc::sigset_t {
    // SAFETY: writes to a local.
    unsafe {
        let mut set = zeroed();
        libc::sigemptyset(&raw mut set);
        for &signal in signals {
            libc::sigaddset(&raw mut set, signal);
        }
        set
    }
}

fn masks(way: u8) -> Outcome {
    let mut told = Told::default();
    let set = set_of(&[libc::SIGUSR2, libc::SIGPIPE]);
    let how = [libc::SIG_BLOCK, libc::SIG_UNBLOCK, libc::SIG_SETMASK, 99][way as usize % 4];
    // SAFETY: sets that are there.
    unsafe {
        let (mut before, mut after): (libc::sigset_t, libc::sigset_t) = (zeroed(), zeroed());
        let change = if way % 8 < 4 { libc::pthread_sigmask } else { libc::sigprocmask };
        told.call(|| i64::from(change(how, &raw const set, &raw mut before)));
        told.call(|| i64::from(change(libc::SIG_BLOCK, null(), &raw mut after)));
        for signal in [libc::SIGUSR2, libc::SIGPIPE, libc::SIGTERM] {
            told.0.details.push(i64::from(libc::sigismember(&raw const after, signal)));
        }
        if how != 99 {
            let back = libc::pthread_sigmask(libc::SIG_SETMASK, &raw const before, null_mut());
            assert_eq!(back, 0);
        }
    }
    told.0
}

/// A signal that is blocked and has been raised is taken.
fn signals(way: u8) -> Outcome {
    let mut told = Told::default();
    let set = set_of(&[libc::SIGUSR2]);
    let set = &raw const set;
    let now = timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: locals; the signal is taken before it is let through.
    unsafe {
        unsafe extern "C" {
            fn __sigaction(
                signal: c_int,
                new: *const libc::sigaction,
                old: *mut libc::sigaction,
            ) -> c_int;
        }
        let mut before = zeroed();
        libc::pthread_sigmask(libc::SIG_BLOCK, set, &raw mut before);
        told.call(|| i64::from(libc::sigtimedwait(set, null_mut(), &raw const now)));
        libc::pthread_kill(libc::pthread_self(), libc::SIGUSR2);
        let mut taken = 0;
        told.call(|| {
            i64::from(match way % 3 {
                0 => libc::sigwait(set, &raw mut taken),
                1 => libc::sigwaitinfo(set, null_mut()),
                _ => libc::sigtimedwait(set, null_mut(), &raw const now),
            })
        });
        told.0.details.push(i64::from(taken));
        told.call(|| i64::from(libc::sigtimedwait(set, null_mut(), &raw const now)));
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const before, null_mut());
        let mut action: libc::sigaction = zeroed();
        let ask = if way.is_multiple_of(2) { libc::sigaction } else { __sigaction };
        told.call(|| i64::from(ask(libc::SIGUSR2, null(), &raw mut action)));
        told.call(|| i64::from(ask(9999, null(), &raw mut action)));
        told.0.details.push(action.sa_sigaction as i64);
        told.call(|| libc::signal(libc::SIGUSR2, libc::SIG_IGN) as i64);
        told.call(|| libc::signal(libc::SIGUSR2, libc::SIG_DFL) as i64);
        told.call(|| libc::signal(9999, libc::SIG_DFL) as i64);
    }
    told.0
}

/// What a thread is, and that it gives way. What is set is what was there.
fn who_runs(way: u8) -> Outcome {
    unsafe extern "C" {
        fn __sched_yield() -> c_int;
        fn thrd_yield();
        fn thrd_current() -> libc::pthread_t;
    }
    let mut told = Told::default();
    // SAFETY: the thread that runs, and locals of the sizes that are told.
    unsafe {
        let me = libc::pthread_self();
        told.call(|| i64::from(me == libc::pthread_self()) + i64::from(me == thrd_current()));
        match way % 4 {
            0 => {
                told.call(|| i64::from(libc::sched_yield()));
                told.call(|| i64::from(__sched_yield()));
                thrd_yield();
            }
            1 => {
                let mut name: [c_char; 16] = [0; 16];
                let at = name.as_mut_ptr();
                told.call(|| i64::from(libc::pthread_getname_np(me, at, 3)));
                told.call(|| i64::from(libc::pthread_getname_np(me, at, 16)));
                told.call(|| i64::from(libc::pthread_setname_np(me, at)));
                let long = c"sixteen letters.".as_ptr();
                told.call(|| i64::from(libc::pthread_setname_np(me, long)));
            }
            2 => {
                let (mut policy, mut param): (c_int, libc::sched_param) = (77, zeroed());
                let (to, at) = (&raw mut policy, &raw mut param);
                told.call(|| i64::from(libc::pthread_getschedparam(me, to, at)));
                told.call(|| i64::from(libc::pthread_setschedparam(me, policy, at)));
                told.call(|| i64::from(libc::pthread_setschedparam(me, 99, at)));
                told.0.details.extend([policy, param.sched_priority].map(i64::from));
            }
            _ => {
                let mut set: libc::cpu_set_t = zeroed();
                let (len, at) = (size_of_val(&set), &raw mut set);
                told.call(|| i64::from(libc::pthread_getaffinity_np(me, len, at)));
                told.call(|| i64::from(libc::pthread_setaffinity_np(me, len, at)));
                told.call(|| i64::from(libc::pthread_getaffinity_np(me, 1, at)));
                told.0.details.push(i64::from(libc::CPU_COUNT(&set)));
            }
        }
    }
    told.0
}

/// Those for whom nobody has to be asked.
fn hosts(way: u8) -> Outcome {
    let mut told = Told::default();
    let names = [c"127.0.0.1", c"::1", c"300.0.0.1", c"10.1"];
    let name = names[way as usize % names.len()].as_ptr();
    // SAFETY: names that end, and room that is there.
    unsafe {
        let mut hints: libc::addrinfo = zeroed();
        hints.ai_flags = libc::AI_NUMERICHOST | libc::AI_NUMERICSERV;
        hints.ai_socktype = libc::SOCK_STREAM;
        let mut found: *mut libc::addrinfo = null_mut();
        let port = [c"80", c"http", c"70000"][way as usize / 4 % 3].as_ptr();
        let error = libc::getaddrinfo(name, port, &raw const hints, &raw mut found);
        told.0.details.push(i64::from(error));
        if error == 0 {
            told.0.details.push(i64::from((*found).ai_family));
            let (mut host, mut service): ([c_char; 64], [c_char; 32]) = ([0; 64], [0; 32]);
            let flags = libc::NI_NUMERICHOST | libc::NI_NUMERICSERV;
            let (host_at, service_at) = (host.as_mut_ptr(), service.as_mut_ptr());
            let (addr, len) = ((*found).ai_addr, (*found).ai_addrlen);
            // Sometimes there is too little room for the name.
            let room = if way.is_multiple_of(5) { 3 } else { 64 };
            told.call(|| {
                i64::from(libc::getnameinfo(addr, len, host_at, room, service_at, 32, flags))
            });
            told.0.bytes = host.iter().chain(&service).map(|&byte| byte as u8).collect();
            libc::freeaddrinfo(found);
        }
        if way % 8 < 2 {
            told.0.details.push(host(way));
        }
    }
    told.0
}

unsafe extern "C" {
    fn gethostbyname_r(
        name: *const c_char,
        entry: *mut libc::hostent,
        buffer: *mut c_char,
        room: usize,
        found: *mut *mut libc::hostent,
        error: *mut c_int,
    ) -> c_int;
    fn gethostbyname2_r(
        name: *const c_char,
        family: c_int,
        entry: *mut libc::hostent,
        buffer: *mut c_char,
        room: usize,
        found: *mut *mut libc::hostent,
        error: *mut c_int,
    ) -> c_int;
    fn gethostbyname(name: *const c_char) -> *mut libc::hostent;
    fn gethostbyname2(name: *const c_char, family: c_int) -> *mut libc::hostent;
}

/// Names of digits, for which no server is asked.
fn host(way: u8) -> i64 {
    let (name, inet) = (c"127.0.0.1".as_ptr(), libc::AF_INET);
    // SAFETY: a name that ends, and room that is there.
    unsafe {
        let (mut entry, mut buffer): (libc::hostent, [c_char; 512]) = (zeroed(), [0; 512]);
        let (mut found, mut error) = (null_mut(), 0);
        let (to, at, room) = (&raw mut entry, buffer.as_mut_ptr(), buffer.len());
        match way / 8 % 4 {
            0 => {
                let done = gethostbyname_r(name, to, at, room, &raw mut found, &raw mut error);
                i64::from(done)
            }
            1 => {
                let (found, error) = (&raw mut found, &raw mut error);
                i64::from(gethostbyname2_r(name, inet, to, at, room, found, error))
            }
            2 => i64::from((*gethostbyname(name)).h_length),
            _ => i64::from((*gethostbyname2(name, inet)).h_length),
        }
    }
}

fn values(way: u8) -> Outcome {
    unsafe extern "C" {
        fn tss_create(key: *mut libc::pthread_key_t, destructor: *const c_void) -> c_int;
        fn tss_set(key: libc::pthread_key_t, value: *mut c_void) -> c_int;
        fn tss_get(key: libc::pthread_key_t) -> *mut c_void;
        fn tss_delete(key: libc::pthread_key_t);
    }
    let mut told = Told::default();
    let mut key = 0;
    let value = std::ptr::without_provenance_mut::<c_void>(usize::from(way) + 1);
    // SAFETY: a key of ours, and values that nobody follows.
    unsafe {
        if way.is_multiple_of(2) {
            told.call(|| i64::from(libc::pthread_key_create(&raw mut key, None)));
            told.call(|| libc::pthread_getspecific(key).addr() as i64);
            told.call(|| i64::from(libc::pthread_setspecific(key, value)));
            told.call(|| libc::pthread_getspecific(key).addr() as i64);
        } else {
            told.call(|| i64::from(tss_create(&raw mut key, null())));
            told.call(|| i64::from(tss_set(key, value)));
            told.call(|| tss_get(key).addr() as i64);
            tss_delete(key);
            told.call(|| i64::from(tss_set(key, value)));
        }
        told.call(|| i64::from(libc::pthread_key_delete(key)));
        told.call(|| i64::from(libc::pthread_key_delete(key)));
        told.call(|| i64::from(libc::pthread_setspecific(9999, value)));
    }
    told.0
}

/// A time that has passed.
static PAST: timespec = timespec { tv_sec: 1, tv_nsec: 0 };

fn mutex(way: u8) -> Outcome {
    unsafe extern "C" {
        fn pthread_mutex_clocklock(
            mutex: *mut libc::pthread_mutex_t,
            clock: libc::clockid_t,
            at: *const timespec,
        ) -> c_int;
        fn mtx_init(mutex: *mut c_void, kind: c_int) -> c_int;
        fn mtx_lock(mutex: *mut c_void) -> c_int;
        fn mtx_trylock(mutex: *mut c_void) -> c_int;
        fn mtx_timedlock(mutex: *mut c_void, at: *const timespec) -> c_int;
        fn mtx_unlock(mutex: *mut c_void) -> c_int;
        fn mtx_destroy(mutex: *mut c_void);
    }
    let mut told = Told::default();
    let past = &raw const PAST;
    // SAFETY: a mutex that is made here and used by nobody else.
    unsafe {
        let mut mutex = MaybeUninit::<libc::pthread_mutex_t>::uninit();
        let at = mutex.as_mut_ptr();
        if way.is_multiple_of(3) {
            let c11 = at.cast();
            told.call(|| i64::from(mtx_init(c11, 2)));
            told.call(|| i64::from(mtx_lock(c11)));
            told.call(|| i64::from(mtx_trylock(c11)));
            told.call(|| i64::from(mtx_timedlock(c11, past)));
            told.call(|| i64::from(mtx_unlock(c11)));
            mtx_destroy(c11);
            return told.0;
        }
        let mut kind = MaybeUninit::uninit();
        libc::pthread_mutexattr_init(kind.as_mut_ptr());
        let kinds = [libc::PTHREAD_MUTEX_ERRORCHECK, libc::PTHREAD_MUTEX_RECURSIVE];
        libc::pthread_mutexattr_settype(kind.as_mut_ptr(), kinds[usize::from(way % 2)]);
        libc::pthread_mutex_init(at, kind.as_ptr());
        told.call(|| i64::from(libc::pthread_mutex_unlock(at)));
        told.call(|| i64::from(libc::pthread_mutex_lock(at)));
        told.call(|| i64::from(libc::pthread_mutex_lock(at)));
        told.call(|| i64::from(libc::pthread_mutex_trylock(at)));
        told.call(|| i64::from(libc::pthread_mutex_timedlock(at, past)));
        told.call(|| i64::from(pthread_mutex_clocklock(at, libc::CLOCK_MONOTONIC, past)));
        for _ in 0..6 {
            told.call(|| i64::from(libc::pthread_mutex_unlock(at)));
        }
        told.call(|| i64::from(libc::pthread_mutex_destroy(at)));
    }
    told.0
}

fn condition(way: u8) -> Outcome {
    unsafe extern "C" {
        fn pthread_cond_clockwait(
            condition: *mut libc::pthread_cond_t,
            mutex: *mut libc::pthread_mutex_t,
            clock: libc::clockid_t,
            at: *const timespec,
        ) -> c_int;
        fn cnd_timedwait(condition: *mut c_void, mutex: *mut c_void, at: *const timespec) -> c_int;
        fn cnd_signal(condition: *mut c_void) -> c_int;
        fn cnd_broadcast(condition: *mut c_void) -> c_int;
    }
    let mut told = Told::default();
    let past = &raw const PAST;
    let (mut mutex, mut condition) =
        (libc::PTHREAD_MUTEX_INITIALIZER, libc::PTHREAD_COND_INITIALIZER);
    let (mutex, at) = (&raw mut mutex, &raw mut condition);
    // SAFETY: a mutex and a condition that nobody else uses.
    unsafe {
        assert_eq!(libc::pthread_mutex_lock(mutex), 0);
        told.call(|| {
            i64::from(match way % 3 {
                0 => libc::pthread_cond_timedwait(at, mutex, past),
                1 => pthread_cond_clockwait(at, mutex, libc::CLOCK_MONOTONIC, past),
                _ => cnd_timedwait(at.cast(), mutex.cast(), past),
            })
        });
        told.call(|| i64::from(libc::pthread_mutex_trylock(mutex)));
        told.call(|| i64::from(libc::pthread_cond_signal(at)));
        told.call(|| i64::from(libc::pthread_cond_broadcast(at)));
        told.call(|| i64::from(cnd_signal(at.cast()) + cnd_broadcast(at.cast())));
        told.call(|| i64::from(libc::pthread_mutex_unlock(mutex)));
    }
    told.0
}

/// Read-write locks, semaphores, barriers, what is done once, and threads that are joined.
fn others(way: u8) -> Outcome {
    unsafe extern "C" {
        fn sem_clockwait(
            semaphore: *mut libc::sem_t,
            clock: libc::clockid_t,
            at: *const timespec,
        ) -> c_int;
        fn pthread_rwlock_timedrdlock(
            lock: *mut libc::pthread_rwlock_t,
            at: *const timespec,
        ) -> c_int;
        fn pthread_rwlock_timedwrlock(
            lock: *mut libc::pthread_rwlock_t,
            at: *const timespec,
        ) -> c_int;
        fn pthread_rwlock_clockrdlock(
            lock: *mut libc::pthread_rwlock_t,
            clock: libc::clockid_t,
            at: *const timespec,
        ) -> c_int;
        fn pthread_rwlock_clockwrlock(
            lock: *mut libc::pthread_rwlock_t,
            clock: libc::clockid_t,
            at: *const timespec,
        ) -> c_int;
        fn pthread_once(once: *mut c_int, run: extern "C" fn()) -> c_int;
        fn call_once(once: *mut c_int, run: extern "C" fn());
    }
    extern "C" fn nothing() {}
    let mut told = Told::default();
    let past = &raw const PAST;
    // SAFETY: objects that are made here and used by nobody else.
    unsafe {
        match way % 5 {
            0 => {
                let mut lock = libc::PTHREAD_RWLOCK_INITIALIZER;
                let at = &raw mut lock;
                told.call(|| i64::from(libc::pthread_rwlock_rdlock(at)));
                told.call(|| i64::from(libc::pthread_rwlock_tryrdlock(at)));
                told.call(|| i64::from(libc::pthread_rwlock_trywrlock(at)));
                told.call(|| i64::from(pthread_rwlock_timedwrlock(at, past)));
                told.call(|| i64::from(libc::pthread_rwlock_unlock(at)));
                told.call(|| i64::from(libc::pthread_rwlock_unlock(at)));
                told.call(|| i64::from(libc::pthread_rwlock_wrlock(at)));
                told.call(|| i64::from(libc::pthread_rwlock_wrlock(at)));
                let clock = libc::CLOCK_MONOTONIC;
                told.call(|| i64::from(pthread_rwlock_clockrdlock(at, clock, past)));
                told.call(|| i64::from(pthread_rwlock_clockwrlock(at, clock, past)));
                told.call(|| i64::from(pthread_rwlock_timedrdlock(at, past)));
                told.call(|| i64::from(libc::pthread_rwlock_unlock(at)));
            }
            1 => {
                let mut semaphore = zeroed();
                let at = &raw mut semaphore;
                assert_eq!(libc::sem_init(at, 0, 3), 0);
                told.call(|| i64::from(libc::sem_trywait(at)));
                told.call(|| i64::from(libc::sem_post(at)));
                told.call(|| i64::from(libc::sem_wait(at)));
                told.call(|| i64::from(libc::sem_timedwait(at, past)));
                told.call(|| i64::from(sem_clockwait(at, libc::CLOCK_MONOTONIC, past)));
                told.call(|| i64::from(libc::sem_timedwait(at, past)));
                told.call(|| i64::from(sem_clockwait(at, 99, past)));
                told.call(|| i64::from(libc::sem_trywait(at)));
                libc::sem_destroy(at);
            }
            2 => {
                let mut barrier = zeroed();
                let at = &raw mut barrier;
                assert_eq!(libc::pthread_barrier_init(at, null(), 1), 0);
                told.call(|| i64::from(libc::pthread_barrier_wait(at)));
                told.call(|| i64::from(libc::pthread_barrier_wait(at)));
                told.call(|| i64::from(libc::pthread_barrier_destroy(at)));
            }
            3 => {
                let (mut one, mut other) = (0, 0);
                told.call(|| i64::from(pthread_once(&raw mut one, nothing)));
                told.call(|| i64::from(pthread_once(&raw mut one, nothing)));
                call_once(&raw mut other, nothing);
                told.call(|| libc::syscall(-1));
            }
            _ => return join(way),
        }
    }
    told.0
}

fn join(way: u8) -> Outcome {
    unsafe extern "C" {
        fn pthread_timedjoin_np(
            thread: libc::pthread_t,
            value: *mut *mut c_void,
            at: *const timespec,
        ) -> c_int;
        fn pthread_clockjoin_np(
            thread: libc::pthread_t,
            value: *mut *mut c_void,
            clock: libc::clockid_t,
            at: *const timespec,
        ) -> c_int;
        fn thrd_join(thread: libc::pthread_t, value: *mut c_int) -> c_int;
    }
    extern "C" fn same(value: *mut c_void) -> *mut c_void {
        value
    }
    let mut told = Told::default();
    let far = timespec { tv_sec: 1 << 40, tv_nsec: 0 };
    let far = &raw const far;
    let (mut thread, mut value, mut status) = (0, null_mut(), 0);
    let given = std::ptr::without_provenance_mut(usize::from(way));
    // SAFETY: a thread of ours, which is joined once, and locals.
    unsafe {
        assert_eq!(libc::pthread_create(&raw mut thread, null(), same, given), 0);
        let (at, clock) = (&raw mut value, libc::CLOCK_MONOTONIC);
        told.call(|| {
            i64::from(match way / 5 % 4 {
                0 => libc::pthread_join(thread, at),
                1 => pthread_timedjoin_np(thread, at, far),
                2 => pthread_clockjoin_np(thread, at, clock, far),
                _ => thrd_join(thread, &raw mut status),
            })
        });
    }
    told.0.details.extend([value.addr() as i64, i64::from(status)]);
    told.0
}
