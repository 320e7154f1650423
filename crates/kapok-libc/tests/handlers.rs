//! Where handlers of signals run and whom they interrupt, and what a fork finds, with fibers beside each
//! other.
//!
//! Each test runs in a process of its own, since signals are a process's.

#![cfg(target_os = "linux")]

mod isolated;

use std::cell::UnsafeCell;
use std::ffi::c_int;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use isolated::{
    HANDLED, SOON, VARIABLE, apart, change, errno, is_blocked, isolated, on_engines, register,
    send, send_anyway,
};
use kapok::Runtime;

/// Whether the kernel blocks it on the thread, whatever the hooks say.
fn is_blocked_by_the_kernel(signal: c_int) -> bool {
    let mut mask = 0_u64;
    let null = std::ptr::null::<u64>();
    // SAFETY: writes to a local of the size that is told.
    unsafe { libc::syscall(libc::SYS_rt_sigprocmask, 0, null, &raw mut mask, 8) };
    mask >> (signal - 1) & 1 == 1
}

#[test]
fn handlers_of_before_the_hooks_end_waits_too() {
    let name = "handlers_of_before_the_hooks_end_waits_too";
    if let Some(output) = apart(name) {
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        return;
    }
    register(libc::SIGUSR1, libc::SA_RESTART);
    kapok_libc::install();
    on_engines(|| {
        HANDLED.store(0, Ordering::SeqCst);
        let sender = send(libc::SIGUSR1, SOON);
        // SAFETY: no conditions.
        assert_eq!((unsafe { libc::pause() }, errno()), (-1, libc::EINTR));
        assert_eq!(HANDLED.load(Ordering::SeqCst), 1);
        sender.join().unwrap();
    });
}

#[test]
fn pause_ends_beside_a_fiber_that_reads() {
    isolated("pause_ends_beside_a_fiber_that_reads", || {
        register(libc::SIGUSR1, libc::SA_RESTART);
        let (mut near, mut far) = UnixStream::pair().unwrap();
        let reader = kapok::spawn_local(move || {
            let mut byte = [0];
            near.read_exact(&mut byte).map(|()| byte)
        });
        kapok::sleep(Duration::from_millis(5)).unwrap();
        for round in 1..=20 {
            let sender = send(libc::SIGUSR1, Duration::from_millis(2));
            // SAFETY: no conditions.
            assert_eq!((unsafe { libc::pause() }, errno()), (-1, libc::EINTR));
            assert_eq!(HANDLED.load(Ordering::SeqCst), round);
            sender.join().unwrap();
        }
        far.write_all(b"x").unwrap();
        assert_eq!(reader.join().unwrap().unwrap(), *b"x");
    });
}

#[test]
fn a_handler_on_another_fiber_ends_the_wait_of_the_main_one() {
    isolated("a_handler_on_another_fiber_ends_the_wait_of_the_main_one", || {
        for flags in [0, libc::SA_RESTART] {
            register(libc::SIGUSR1, flags);
            let other = kapok::spawn_local(|| {
                kapok::sleep(Duration::from_millis(5)).unwrap();
                // In its own code, so that the handler runs there and then.
                // SAFETY: the calling thread.
                unsafe {
                    libc::syscall(libc::SYS_tgkill, libc::getpid(), libc::gettid(), libc::SIGUSR1)
                };
                HANDLED.load(Ordering::SeqCst)
            });
            // SAFETY: no conditions.
            assert_eq!((unsafe { libc::pause() }, errno()), (-1, libc::EINTR));
            assert_eq!(other.join().unwrap(), 1);
        }
    });
}

#[test]
fn what_changes_all_threads_finds_them_all() {
    isolated("what_changes_all_threads_finds_them_all", || {
        register(libc::SIGUSR1, 0);
        // From here on a thread listens for handlers.
        kapok::sleep(Duration::from_millis(1)).unwrap();
        let time = libc::timespec { tv_sec: 0, tv_nsec: 1_000_000 };
        // SAFETY: a local; and the group that it is.
        unsafe {
            assert_eq!(libc::nanosleep(&raw const time, std::ptr::null_mut()), 0);
            assert_eq!(libc::setgid(libc::getgid()), 0);
        }
        let tasks = std::fs::read_dir("/proc/self/task").unwrap().flatten();
        let names: Vec<String> =
            tasks.map(|task| std::fs::read_to_string(task.path().join("comm")).unwrap()).collect();
        assert!(names.iter().any(|name| name.trim() == "kapok-signals"), "{names:?}");
    });
}

#[test]
fn who_lets_a_signal_gets_it_and_nobody_else() {
    isolated("who_lets_a_signal_gets_it_and_nobody_else", || {
        register(libc::SIGUSR1, 0);
        // Also of fibers that have never changed it.
        change(libc::SIG_BLOCK, &[libc::SIGUSR1]);
        let (mut near, far) = UnixStream::pair().unwrap();
        let reader = kapok::spawn_local(move || near.read(&mut [0]));
        let suspended = kapok::spawn_local(|| {
            // SAFETY: a local.
            unsafe {
                let none: libc::sigset_t = std::mem::zeroed();
                let res = libc::sigsuspend(&raw const none);
                (res, errno(), is_blocked(libc::SIGUSR1))
            }
        });
        kapok::sleep(Duration::from_millis(5)).unwrap();
        let sender = send(libc::SIGUSR1, SOON);
        // The main fiber waits too, and blocks it.
        let time = libc::timespec { tv_sec: 0, tv_nsec: 80_000_000 };
        // SAFETY: a local.
        assert_eq!(unsafe { libc::nanosleep(&raw const time, std::ptr::null_mut()) }, 0);
        assert_eq!(suspended.join().unwrap(), (-1, libc::EINTR, true));
        assert_eq!(HANDLED.load(Ordering::SeqCst), 1);
        assert!(!reader.is_finished());
        sender.join().unwrap();
        drop(far);
        assert_eq!(reader.join().unwrap().unwrap(), 0);
        assert!(is_blocked(libc::SIGUSR1) && is_blocked_by_the_kernel(libc::SIGUSR1));
        change(libc::SIG_UNBLOCK, &[libc::SIGUSR1]);
    });
}

/// Waits for a fiber by hooked calls: those of Kapok's own take the mask along.
fn ended<T: 'static>(fiber: kapok::JoinHandle<T>) -> T {
    let time = libc::timespec { tv_sec: 0, tv_nsec: 500_000 };
    while !fiber.is_finished() {
        // SAFETY: a local.
        unsafe { libc::nanosleep(&raw const time, std::ptr::null_mut()) };
    }
    fiber.join().unwrap()
}

#[test]
fn masks_stay_over_every_kind_of_suspension() {
    isolated("masks_stay_over_every_kind_of_suspension", || {
        let path = std::env::temp_dir().join(format!("kapok-masks-{}", std::process::id()));
        std::fs::write(&path, vec![7; 100_000]).unwrap();
        let others = [true, false].map(|blocks| {
            let path = path.clone();
            kapok::spawn_local(move || {
                if blocks {
                    change(libc::SIG_BLOCK, &[libc::SIGUSR1]);
                }
                let check = |what: &str| {
                    assert_eq!(is_blocked(libc::SIGUSR1), blocks, "{what}");
                    assert_eq!(is_blocked_by_the_kernel(libc::SIGUSR1), blocks, "{what}");
                };
                // SAFETY: plain data; initialised before it is used.
                let (robust, barrier) = unsafe {
                    let robust: &mut libc::pthread_mutex_t =
                        Box::leak(Box::new(std::mem::zeroed()));
                    let mut attributes: libc::pthread_mutexattr_t = std::mem::zeroed();
                    libc::pthread_mutexattr_init(&raw mut attributes);
                    libc::pthread_mutexattr_setrobust(&raw mut attributes, 1);
                    libc::pthread_mutex_init(robust, &raw const attributes);
                    let barrier: &mut libc::pthread_barrier_t =
                        Box::leak(Box::new(std::mem::zeroed()));
                    libc::pthread_barrier_init(barrier, std::ptr::null(), 2);
                    (
                        (&raw mut *robust).expose_provenance(),
                        (&raw mut *barrier).expose_provenance(),
                    )
                };
                for _ in 0..5 {
                    let mut file = std::fs::File::open(&path).unwrap();
                    check("open");
                    let mut bytes = [0; 5000];
                    file.read_exact(&mut bytes).unwrap();
                    check("read");
                    std::os::unix::fs::FileExt::read_exact_at(&file, &mut bytes, 50).unwrap();
                    check("pread");
                    file.sync_all().unwrap();
                    check("fsync");
                    // More than a fiber may do without giving way.
                    let mut one = libc::pollfd { fd: file.as_raw_fd(), events: 0, revents: 0 };
                    for _ in 0..300 {
                        // SAFETY: a local.
                        unsafe { libc::poll(&raw mut one, 1, 0) };
                    }
                    check("give way");
                    let lock = std::ptr::with_exposed_provenance_mut(robust);
                    // SAFETY: initialised, and never freed.
                    unsafe { assert_eq!(libc::pthread_mutex_lock(lock), 0) };
                    let waiter = kapok::spawn_local(move || {
                        change(libc::SIG_BLOCK, &[libc::SIGUSR2]);
                        let lock = std::ptr::with_exposed_provenance_mut(robust);
                        // SAFETY: as above.
                        unsafe {
                            assert_eq!(libc::pthread_mutex_lock(lock), 0);
                            assert_eq!(libc::pthread_mutex_unlock(lock), 0);
                        }
                        is_blocked(libc::SIGUSR2) && is_blocked_by_the_kernel(libc::SIGUSR2)
                    });
                    // SAFETY: a local; as above.
                    unsafe {
                        libc::poll(&raw mut one, 0, 2);
                        assert_eq!(libc::pthread_mutex_unlock(lock), 0);
                    }
                    assert!(ended(waiter), "robust");
                    let other = kapok::spawn_local(move || {
                        let barrier = std::ptr::with_exposed_provenance_mut(barrier);
                        // SAFETY: initialised, and never freed.
                        unsafe { libc::pthread_barrier_wait(barrier) };
                    });
                    // SAFETY: as above.
                    unsafe {
                        libc::pthread_barrier_wait(std::ptr::with_exposed_provenance_mut(barrier))
                    };
                    check("barrier");
                    ended(other);
                }
            })
        });
        for other in others {
            other.join().unwrap();
        }
        assert!(!is_blocked(libc::SIGUSR1) && !is_blocked_by_the_kernel(libc::SIGUSR1));
        std::fs::remove_file(&path).unwrap();
    });
}

#[test]
fn a_fiber_takes_what_another_waits_for_as_its_own_mask_says() {
    isolated("a_fiber_takes_what_another_waits_for_as_its_own_mask_says", || {
        register(libc::SIGUSR1, 0);
        // Suspended before the other blocks the signal for its wait, and resumed meanwhile.
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let other = kapok::spawn_local(move || {
            let time = libc::timespec { tv_sec: 0, tv_nsec: 1_000_000 };
            while !stopped.load(Ordering::Relaxed) {
                // SAFETY: a local.
                unsafe { libc::nanosleep(&raw const time, std::ptr::null_mut()) };
                // What it blocks itself is nothing; what the thread blocks is for the other.
                assert!(!is_blocked(libc::SIGUSR1));
                if !stopped.load(Ordering::Relaxed) {
                    assert!(is_blocked_by_the_kernel(libc::SIGUSR1));
                }
            }
        });
        kapok::yield_now();
        let sender = send(libc::SIGUSR1, SOON);
        let (mut taken, mut wanted) = (0, [0_u64; 16]);
        wanted[0] = 1 << (libc::SIGUSR1 - 1);
        // SAFETY: locals, of the size of a set.
        assert_eq!(unsafe { libc::sigwait(wanted.as_ptr().cast(), &raw mut taken) }, 0);
        stop.store(true, Ordering::Relaxed);
        assert_eq!((taken, HANDLED.load(Ordering::SeqCst)), (libc::SIGUSR1, 0));
        sender.join().unwrap();
        other.join().unwrap();
    });
}

unsafe extern "C" {
    fn longjmp(buffer: *mut usize, value: c_int) -> !;
}

/// A `jmp_buf` to which nobody gets: the stack pointer in it is none of the handler's.
static FAR: [AtomicUsize; 64] = [const { AtomicUsize::new(0) }; 64];

extern "C" fn jump(_: c_int) {
    // SAFETY: refused before anything is read of it but the stack pointer.
    unsafe { longjmp(FAR.as_ptr().cast_mut().cast(), 1) }
}

#[test]
fn a_jump_over_the_loop_is_refused_and_says_why() {
    let name = "a_jump_over_the_loop_is_refused_and_says_why";
    let Some(output) = apart(name) else {
        kapok_libc::install();
        Runtime::new().unwrap().run(|| {
            // SAFETY: plain data; a handler, which does not return.
            unsafe {
                let mut action: libc::sigaction = std::mem::zeroed();
                action.sa_sigaction = jump as *const () as usize;
                libc::sigaction(libc::SIGUSR1, &raw const action, std::ptr::null_mut());
            }
            // A busy engine never waits.
            let is_busy = std::env::var(kapok::ENGINE_VARIABLE).as_deref() == Ok("busy");
            let _sender = if is_busy { send_anyway } else { send }(libc::SIGUSR1, SOON);
            // By no hooked call: there is no fiber on which the handler could run. It ends this.
            kapok::sleep(Duration::from_secs(30)).unwrap();
        });
        return;
    };
    let said = String::from_utf8_lossy(&output.stderr);
    // By timeout(1), which dies as its child does, or says so.
    let aborted =
        output.status.signal() == Some(libc::SIGABRT) || output.status.code() == Some(128 + 6);
    assert!(aborted, "{}: {said}", output.status);
    assert!(said.contains("jumps (siglongjmp)"), "{said}");
}

/// A child with a loop of its own, which a timer interrupts. What it ends with.
fn child_with_a_loop() -> c_int {
    Runtime::new().unwrap().run(|| {
        register(libc::SIGALRM, 0);
        let set_timer = |usec: i64| {
            // Again and again: one that comes before the sleep ends nothing.
            let every = libc::timeval { tv_sec: 0, tv_usec: usec };
            let timer = libc::itimerval { it_interval: every, it_value: every };
            // SAFETY: a local.
            unsafe { libc::syscall(libc::SYS_setitimer, 0, &raw const timer, 0) };
        };
        let time = libc::timespec { tv_sec: 20, tv_nsec: 0 };
        set_timer(20_000);
        // SAFETY: a local.
        let slept = unsafe { libc::nanosleep(&raw const time, std::ptr::null_mut()) };
        let error = errno();
        set_timer(0);
        match (slept, error, HANDLED.load(Ordering::SeqCst)) {
            (-1, libc::EINTR, 1..) => 7,
            _ => 8,
        }
    })
}

#[test]
fn children_of_forks_have_tables_and_signals_of_their_own() {
    isolated("children_of_forks_have_tables_and_signals_of_their_own", || {
        register(libc::SIGALRM, 0);
        // Another thread's fibers, which wait all the time, in the table and in the queues.
        let stop = Arc::new(AtomicBool::new(false));
        let busy = std::thread::spawn({
            let stop = Arc::clone(&stop);
            move || {
                Runtime::new().unwrap().run(move || {
                    let fibers: Vec<_> = (0..20)
                        .map(|_| {
                            let stop = Arc::clone(&stop);
                            kapok::spawn_local(move || {
                                while !stop.load(Ordering::Relaxed) {
                                    wait_for_a_condition();
                                    // SAFETY: a wait for nothing.
                                    unsafe { libc::poll(std::ptr::null_mut(), 0, 0) };
                                    let time = libc::timespec { tv_sec: 0, tv_nsec: 1 };
                                    // SAFETY: a local.
                                    unsafe {
                                        libc::nanosleep(&raw const time, std::ptr::null_mut())
                                    };
                                }
                            })
                        })
                        .collect();
                    for fiber in fibers {
                        fiber.join().unwrap();
                    }
                });
            }
        });
        // And one that waits at a condition which children use too.
        let waits_here = kapok::spawn_local(|| wait_here(Duration::from_secs(600)));
        kapok::sleep(SOON).unwrap();
        let rounds = if std::env::var("KAPOK_SCALE").as_deref() == Ok("full") { 500 } else { 40 };
        for _ in 0..rounds {
            // SAFETY: the child runs its own loop and ends.
            let child = unsafe { libc::fork() };
            if child == 0 {
                wait_for_a_condition();
                let status = if is_woken_here() { child_with_a_loop() } else { 9 };
                // SAFETY: ends the child.
                unsafe { libc::_exit(status) };
            }
            let mut status = 0;
            let begin = Instant::now();
            // SAFETY: a child of ours; a local.
            while unsafe { libc::waitpid(child, &raw mut status, libc::WNOHANG) } == 0 {
                kapok::sleep(Duration::from_millis(1)).unwrap();
                assert!(begin.elapsed() < Duration::from_secs(20), "a child hangs");
            }
            assert_eq!((libc::WIFEXITED(status), libc::WEXITSTATUS(status)), (true, 7));
        }
        // What was the children's is not told here.
        assert_eq!(HANDLED.load(Ordering::SeqCst), 0);
        stop.store(true, Ordering::Relaxed);
        busy.join().unwrap();
        wake_here();
        assert_eq!(waits_here.join().unwrap(), 0);
    });
}

/// A condition and its mutex, which every process has at the same place.
struct Here(UnsafeCell<(libc::pthread_mutex_t, libc::pthread_cond_t)>);

// SAFETY: what they are for.
unsafe impl Sync for Here {}

static HERE: Here =
    Here(UnsafeCell::new((libc::PTHREAD_MUTEX_INITIALIZER, libc::PTHREAD_COND_INITIALIZER)));

/// Waits at it, once. The error.
fn wait_here(limit: Duration) -> c_int {
    let here = HERE.0.get();
    // SAFETY: initialised, and used by their own functions only; a local.
    unsafe {
        let mut at = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        libc::clock_gettime(libc::CLOCK_REALTIME, &raw mut at);
        at.tv_sec += limit.as_secs() as i64;
        libc::pthread_mutex_lock(&raw mut (*here).0);
        let error =
            libc::pthread_cond_timedwait(&raw mut (*here).1, &raw mut (*here).0, &raw const at);
        libc::pthread_mutex_unlock(&raw mut (*here).0);
        error
    }
}

fn wake_here() {
    // SAFETY: as above.
    unsafe { libc::pthread_cond_signal(&raw mut (*HERE.0.get()).1) };
}

/// In a child: whether one that waits there is woken, and not one of the parent's.
fn is_woken_here() -> bool {
    Runtime::new().unwrap().run(|| {
        let waiter = kapok::spawn_local(|| wait_here(Duration::from_secs(10)));
        kapok::sleep(Duration::from_millis(5)).unwrap();
        wake_here();
        waiter.join().unwrap() == 0
    })
}

/// Waits at a condition until its time is over, which is at once.
fn wait_for_a_condition() {
    // SAFETY: locals that are initialised before they are used, and that nobody else has.
    unsafe {
        let mut mutex: libc::pthread_mutex_t = std::mem::zeroed();
        let mut condition: libc::pthread_cond_t = std::mem::zeroed();
        let mut at = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        libc::clock_gettime(libc::CLOCK_REALTIME, &raw mut at);
        at.tv_nsec = (at.tv_nsec + 50_000).min(999_999_999);
        libc::pthread_mutex_lock(&raw mut mutex);
        libc::pthread_cond_timedwait(&raw mut condition, &raw mut mutex, &raw const at);
        libc::pthread_mutex_unlock(&raw mut mutex);
    }
}

/// Makes the first number that is free from there on, and closes it.
fn close_from(number: c_int) {
    // SAFETY: no memory; a number of its own.
    unsafe { libc::close(libc::fcntl(1, libc::F_DUPFD, number)) };
}

extern "C" fn close_one(_: c_int) {
    // It shares a table with the number that the thread closes.
    close_from(600 + 256);
    HANDLED.fetch_add(1, Ordering::SeqCst);
}

#[test]
fn a_handler_on_a_thread_may_close_what_it_interrupts_the_close_of() {
    isolated("a_handler_on_a_thread_may_close_what_it_interrupts_the_close_of", || {
        // SAFETY: plain data; a handler of functions that handlers may call.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = close_one as *const () as usize;
            action.sa_flags = libc::SA_RESTART;
            assert_eq!(libc::sigaction(libc::SIGUSR1, &raw const action, std::ptr::null_mut()), 0);
        }
        HANDLED.store(0, Ordering::SeqCst);
        // So many that some are where it is looked whom to tell, whichever number is closed.
        let (near, far): (Vec<_>, Vec<_>) = (0..200).map(|_| UnixStream::pair().unwrap()).unzip();
        let numbers: Vec<_> = near.iter().map(UnixStream::as_raw_fd).collect();
        let readers: Vec<_> = near
            .into_iter()
            .chain(far)
            .map(|mut stream| kapok::spawn_local(move || stream.read(&mut [0]).unwrap()))
            .collect();
        let (id, closer_id) = std::sync::mpsc::channel();
        let closer = std::thread::spawn(move || {
            // SAFETY: no conditions.
            id.send(unsafe { libc::gettid() }).unwrap();
            while HANDLED.load(Ordering::SeqCst) < 20_000 {
                close_from(600);
            }
        });
        let thread = closer_id.recv().unwrap();
        let sender = std::thread::spawn(move || {
            while HANDLED.load(Ordering::SeqCst) < 20_000 {
                // SAFETY: a thread of this process, or of nobody.
                unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), thread, libc::SIGUSR1) };
            }
        });
        closer.join().unwrap();
        sender.join().unwrap();
        for number in numbers {
            // SAFETY: no memory; a reader has it.
            unsafe { libc::shutdown(number, libc::SHUT_RDWR) };
        }
        for reader in readers {
            assert_eq!(reader.join().unwrap(), 0);
        }
    });
}

#[inline(never)]
fn deep(levels: u64) -> u64 {
    let room = std::hint::black_box([levels; 64]);
    if levels == 0 { room[3] } else { deep(levels - 1) + room[5] }
}

#[test]
fn an_overflow_is_reported_to_a_file() {
    const NAME: &str = "an_overflow_is_reported_to_a_file";
    if std::env::var(VARIABLE).as_deref() == Ok(NAME) {
        kapok_libc::install();
        Runtime::new().unwrap().run(|| {
            let fiber = kapok::Builder::new().name("deep").stack_size(64 << 10);
            println!("{}", fiber.spawn_local(|| deep(1 << 20)).join().unwrap());
        });
        return;
    }
    // Of a kind that is written on helper threads.
    let path = std::env::temp_dir().join(format!("kapok-overflow-{}", std::process::id()));
    let status = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", NAME, "--nocapture", "--test-threads=1"])
        .env(VARIABLE, NAME)
        .stderr(std::fs::File::create(&path).unwrap())
        .status();
    let said = std::fs::read_to_string(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    assert_eq!(status.unwrap().signal(), Some(libc::SIGABRT), "{said}");
    assert!(said.contains("\"deep\"") && said.contains("overflowed its stack"), "{said}");
}
