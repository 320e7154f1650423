//! Numbers of descriptors: closing them under those who wait, and those that are Kapok's own.

mod one_loop;

use std::cell::Cell;
use std::ffi::c_int;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::rc::Rc;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use one_loop::{begin, errno};

/// Each test looks at numbers, which all of the process share.
static ALONE: Mutex<()> = Mutex::new(());

fn on_one_loop(main: impl FnOnce() + 'static) {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    one_loop::run(Duration::from_secs(60), main);
}

fn is_open(fd: RawFd) -> bool {
    // SAFETY: no memory.
    unsafe { libc::fcntl(fd, libc::F_GETFD) >= 0 }
}

/// What the process has open that is Kapok's own, by what the system calls it.
fn own_descriptors() -> Vec<(RawFd, String)> {
    let mut own = Vec::new();
    for entry in std::fs::read_dir("/proc/self/fd").unwrap() {
        let entry = entry.unwrap();
        let fd: RawFd = entry.file_name().to_str().unwrap().parse().unwrap();
        let Ok(target) = std::fs::read_link(entry.path()) else { continue };
        let target = target.to_string_lossy().into_owned();
        if target.starts_with("anon_inode:") {
            own.push((fd, target));
        }
    }
    own.sort();
    own
}

#[test]
fn who_wakes_to_a_number_that_is_another_files_leaves_its_bytes_alone() {
    on_one_loop(|| {
        let mut closed = 0;
        for turns in 0..8 {
            let (one, mut peer) = UnixStream::pair().unwrap();
            let (other, mut other_peer) = UnixStream::pair().unwrap();
            other_peer.write_all(b"new").unwrap();
            let fd = one.into_raw_fd();
            let reader = begin(move || {
                let mut bytes = [0_u8; 3];
                // SAFETY: room that is there.
                let res = unsafe { libc::recv(fd, bytes.as_mut_ptr().cast(), 3, 0) };
                (res, if res < 0 { errno() } else { 0 }, bytes)
            });
            // So that its readiness is on its way, or there, and the reader has not run.
            peer.write_all(b"old").unwrap();
            for _ in 0..turns {
                kapok::yield_now();
            }
            // SAFETY: numbers of ours.
            unsafe {
                assert_eq!(libc::close(fd), 0);
                assert_eq!(libc::dup(other.as_raw_fd()), fd, "the lowest number that is free");
            }
            let (res, error, bytes) = reader.join().unwrap();
            assert_ne!(&bytes, b"new", "after {turns} turns");
            closed += usize::from((res, error) == (-1, libc::EBADF));
            // SAFETY: a number of ours.
            unsafe { libc::close(fd) };
        }
        assert!(closed > 0, "the reader was always first");
    });
}

#[test]
fn a_child_of_vfork_closes_nothing_of_its_parents() {
    on_one_loop(|| {
        let (mut one, mut peer) = UnixStream::pair().unwrap();
        let fd = one.as_raw_fd();
        let reader = begin(move || {
            let mut bytes = [0; 4];
            one.read_exact(&mut bytes).map(|()| bytes).map_err(|error| error.raw_os_error())
        });
        // On a plain thread vfork(2) is what it is: the child has our memory.
        std::thread::spawn(move || {
            // SAFETY: the child shares all memory, so it calls nothing but what a child of vfork may,
            // and `child` is a function that does not return to here.
            let child = unsafe { clone_with_our_memory(fd) };
            let mut status = 0;
            // SAFETY: writes to a local.
            unsafe { assert_eq!(libc::waitpid(child, &raw mut status, 0), child) };
            assert_eq!(status, 0);
        })
        .join()
        .unwrap();
        assert!(is_open(fd));
        kapok::sleep(Duration::from_millis(5)).unwrap();
        peer.write_all(b"here").unwrap();
        assert_eq!(reader.join().unwrap(), Ok(*b"here"));
    });
}

/// A child as vfork(2) makes them, on a stack of its own, that closes everything.
unsafe fn clone_with_our_memory(fd: RawFd) -> libc::pid_t {
    extern "C" fn child(fd: *mut libc::c_void) -> c_int {
        // SAFETY: numbers, in a table of descriptors of the child's own.
        unsafe {
            let fd = fd.addr() as c_int;
            let done = libc::close(fd) == 0
                && libc::dup2(0, fd) == fd
                && libc::close_range(3, u32::MAX, 0) == 0;
            libc::_exit(c_int::from(!done))
        }
    }
    let mut stack = vec![0_u8; 64 << 10];
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
    let top = stack.as_mut_ptr().wrapping_add(stack.len() - 64);
    let top = top.wrapping_sub(top.addr() % 16);
    // SAFETY: a stack that is there until the child has ended, for which the parent waits.
    let child = unsafe {
        libc::clone(child, top.cast(), flags, std::ptr::without_provenance_mut(fd as usize))
    };
    assert!(child > 0);
    child
}

#[test]
fn kapoks_own_numbers_are_high() {
    on_one_loop(|| {
        let (_one, two) = UnixStream::pair().unwrap();
        let (_three, four) = UnixStream::pair().unwrap();
        // Beside the loop's, the set of a poll of two.
        let poller = begin(move || {
            let mut fds = [&two, &four].map(|one| libc::pollfd {
                fd: one.as_raw_fd(),
                events: libc::POLLIN,
                revents: 0,
            });
            // SAFETY: as many as are told.
            unsafe { libc::poll(fds.as_mut_ptr(), 2, 50) }
        });
        let own = own_descriptors();
        assert!(own.len() >= 2, "{own:?}");
        for (fd, what) in own {
            assert!(fd >= 900, "{what} is {fd}");
        }
        assert_eq!(poller.join().unwrap(), 0);
    });
}

#[test]
fn kapoks_own_numbers_are_not_the_programs_to_close() {
    on_one_loop(|| {
        let refused = |res: c_int| (res, errno()) == (-1, libc::EBADF);
        let file = std::fs::File::open("/dev/null").unwrap();
        let own: Vec<_> =
            own_descriptors().into_iter().map(|(fd, _)| fd).filter(|&fd| fd >= 900).collect();
        assert!(!own.is_empty());
        let file = file.as_raw_fd();
        for on_thread in [false, true] {
            let own = own.clone();
            let close = move || {
                for &fd in &own {
                    // SAFETY: numbers, of which none is closed.
                    unsafe {
                        assert!(refused(libc::close(fd)));
                        assert!(refused(libc::dup2(file, fd)));
                        assert!(refused(libc::dup3(file, fd, 0)));
                    }
                    assert!(is_open(fd));
                }
            };
            match on_thread {
                true => std::thread::spawn(close).join().unwrap(),
                false => close(),
            }
        }
        kapok::sleep(Duration::from_millis(5)).unwrap();
    });
}

const CHILD: &str = "KAPOK_TEST_CHILD";

/// Runs this test again as a process of its own, which may close what it likes.
fn in_a_process(test: &str) -> bool {
    if std::env::var_os(CHILD).is_some() {
        return true;
    }
    let mut again = Command::new(std::env::current_exe().unwrap());
    let output = again.args(["--exact", test, "--nocapture"]).env(CHILD, "1").output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned()
        + &String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("1 passed"), "{}: {said}", output.status);
    false
}

unsafe extern "C" {
    fn closefrom(first: c_int);
}

#[test]
fn a_program_that_closes_all_it_does_not_know_goes_on() {
    if !in_a_process("a_program_that_closes_all_it_does_not_know_goes_on") {
        return;
    }
    on_one_loop(|| {
        for way in 0..3 {
            let (one, _peer) = UnixStream::pair().unwrap();
            let (one, _peer) = (one.into_raw_fd(), _peer.into_raw_fd());
            // SAFETY: numbers; what Rust knows of is not used afterwards.
            let high = unsafe { libc::fcntl(one, libc::F_DUPFD, 1000) };
            assert!(high >= 1000);
            let begun = Instant::now();
            // The others of this process: its loop's, and nothing else.
            let own = own_descriptors();
            // SAFETY: as above.
            unsafe {
                match way {
                    0 => assert_eq!(libc::close_range(3, u32::MAX, 0), 0),
                    1 => closefrom(3),
                    _ => (3..1100).for_each(|fd| {
                        libc::close(fd);
                    }),
                }
            }
            for fd in [one, high] {
                assert!(!is_open(fd), "way {way}");
            }
            assert_eq!(own_descriptors(), own, "way {way}");
            // The loop and its bell are whole.
            let (mut one, mut peer) = UnixStream::pair().unwrap();
            assert!(one.as_raw_fd() < 10);
            let writer = std::thread::spawn(move || {
                std::thread::sleep(Duration::from_millis(5));
                peer.write_all(b"x").unwrap();
            });
            assert_eq!(one.read(&mut [0; 8]).unwrap(), 1);
            writer.join().unwrap();
            kapok::blocking(|| ()).unwrap();
            assert!(begun.elapsed() < Duration::from_secs(20));
        }
    });
}

#[test]
fn a_process_that_never_had_a_loop_counts_no_closes() {
    if !in_a_process("a_process_that_never_had_a_loop_counts_no_closes") {
        return;
    }
    kapok_libc::install();
    let epochs = || {
        let fd = std::fs::File::open("/dev/null").unwrap().into_raw_fd();
        let epoch = kapok_engine::sys::descriptors::epoch(fd);
        // SAFETY: a number of ours.
        assert_eq!(unsafe { libc::close(fd) }, 0);
        (epoch, kapok_engine::sys::descriptors::epoch(fd))
    };
    let (before, after) = epochs();
    assert_eq!(before, after);
    on_one_loop(move || {
        let (before, after) = epochs();
        assert_ne!(before, after);
    });
}

#[test]
fn closes_in_a_handler_of_a_signal_are_told_too() {
    if !in_a_process("closes_in_a_handler_of_a_signal_are_told_too") {
        return;
    }
    static LISTENER: std::sync::atomic::AtomicI32 = std::sync::atomic::AtomicI32::new(-1);
    extern "C" fn close_it(_: c_int) {
        // SAFETY: a number.
        unsafe { libc::close(LISTENER.load(std::sync::atomic::Ordering::Relaxed)) };
    }
    on_one_loop(|| {
        // SAFETY: plain data, and a handler that is safe to run at any time. Calls start again, so
        // that nothing but the close ends them.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = close_it as *const () as usize;
            action.sa_flags = libc::SA_RESTART;
            assert_eq!(libc::sigaction(libc::SIGUSR1, &raw const action, std::ptr::null_mut()), 0);
        }
        // One more fiber, which waits for the neighbouring number and is not to be told.
        let (mut kept, mut peer) = UnixStream::pair().unwrap();
        let neighbour = begin(move || kept.read(&mut [0; 8]).unwrap());
        let listener = TcpListener::bind("127.0.0.1:0").unwrap().into_raw_fd();
        LISTENER.store(listener, std::sync::atomic::Ordering::Relaxed);
        let accepting = begin(move || {
            // SAFETY: no address is asked for.
            let res = unsafe { libc::accept(listener, std::ptr::null_mut(), std::ptr::null_mut()) };
            (res, errno())
        });
        kapok::sleep(Duration::from_millis(5)).unwrap();
        // SAFETY: a signal that has a handler.
        unsafe { libc::raise(libc::SIGUSR1) };
        assert_eq!(accepting.join().unwrap(), (-1, libc::EBADF));
        peer.write_all(b"y").unwrap();
        assert_eq!(neighbour.join().unwrap(), 1);
    });
}

#[test]
fn a_duplicate_that_is_refused_closes_nothing() {
    on_one_loop(|| {
        let (mut one, mut peer) = UnixStream::pair().unwrap();
        let fd = one.as_raw_fd();
        let reader = begin(move || one.read(&mut [0; 8]).map_err(|error| error.raw_os_error()));
        // SAFETY: numbers of ours, and flags that there are not.
        let refused = unsafe { libc::dup3(peer.as_raw_fd(), fd, libc::O_APPEND) };
        assert_eq!((refused, errno()), (-1, libc::EINVAL));
        kapok::sleep(Duration::from_millis(5)).unwrap();
        peer.write_all(b"still").unwrap();
        assert_eq!(reader.join().unwrap(), Ok(5));
    });
}

/// A connection whose peer takes nothing, with bytes on their way that cannot go.
fn full_connection() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (server, _) = listener.accept().unwrap();
    client.set_nonblocking(true).unwrap();
    let bytes = vec![7; 1 << 20];
    // Until nothing has gone out for a while: the peer's window may grow, and on a busy machine late.
    let mut tries_in_vain = 0;
    while tries_in_vain < 5 {
        let gone = (&client).write(&bytes).is_ok();
        tries_in_vain = if gone { 0 } else { tries_in_vain + 1 };
        if !gone {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
    client.set_nonblocking(false).unwrap();
    (client, server)
}

#[test]
fn a_close_that_lingers_keeps_nobody_else_waiting() {
    on_one_loop(|| {
        for by_dup in [false, true] {
            let (client, server) = full_connection();
            let linger = libc::linger { l_onoff: 1, l_linger: 1 };
            // SAFETY: reads a local.
            unsafe {
                let (value, len) = ((&raw const linger).cast(), size_of_val(&linger) as u32);
                let fd = client.as_raw_fd();
                let set = libc::setsockopt(fd, libc::SOL_SOCKET, libc::SO_LINGER, value, len);
                assert_eq!(set, 0);
            }
            let ticks = Rc::new(Cell::new(0));
            let counted = Rc::clone(&ticks);
            let ticker = kapok::spawn_local(move || {
                while kapok::sleep(Duration::from_millis(1)).is_ok() {
                    counted.set(counted.get() + 1);
                }
            });
            let begun = Instant::now();
            let fd = client.into_raw_fd();
            if by_dup {
                // SAFETY: numbers of ours.
                unsafe {
                    assert_eq!(libc::dup2(server.as_raw_fd(), fd), fd);
                    drop(OwnedFd::from_raw_fd(fd));
                }
            } else {
                // SAFETY: a number of ours.
                assert_eq!(unsafe { libc::close(fd) }, 0);
            }
            let took = begun.elapsed();
            assert!(took >= Duration::from_millis(900), "it has not lingered: {took:?}");
            assert!(ticks.get() >= 50, "{} ticks in {took:?}", ticks.get());
            ticker.cancel();
            ticker.join().unwrap();
        }
    });
}

unsafe extern "C" {
    fn __open_2(path: *const libc::c_char, flags: c_int) -> c_int;
    fn __open64_2(path: *const libc::c_char, flags: c_int) -> c_int;
    fn __openat_2(dir: c_int, path: *const libc::c_char, flags: c_int) -> c_int;
    fn __openat64_2(dir: c_int, path: *const libc::c_char, flags: c_int) -> c_int;
}

#[test]
fn fortified_programs_open_on_fibers_too() {
    on_one_loop(|| {
        let path = c"/dev/null".as_ptr();
        // SAFETY: a name that ends.
        let opened = unsafe {
            [
                __open_2(path, libc::O_RDONLY),
                __open64_2(path, libc::O_WRONLY),
                __openat_2(libc::AT_FDCWD, path, libc::O_RDWR),
                __openat64_2(libc::AT_FDCWD, path, libc::O_RDONLY),
            ]
        };
        for (fd, mode) in opened.into_iter().zip([libc::O_RDONLY, libc::O_WRONLY, libc::O_RDWR]) {
            // SAFETY: a number of ours.
            assert_eq!(unsafe { libc::fcntl(fd, libc::F_GETFL) } & libc::O_ACCMODE, mode);
        }
        for fd in opened {
            // SAFETY: a number of ours.
            assert_eq!(unsafe { libc::close(fd) }, 0);
        }
        for name in ["__open_2", "__open64_2", "__openat_2", "__openat64_2"] {
            let hook = kapok_libc::hooks().find(|hook| hook.name() == name).unwrap();
            assert_eq!(hook.counts().suspended, 1, "{name}");
        }
    });
}

#[test]
fn a_fortified_open_that_makes_files_without_a_mode_ends_the_process() {
    if std::env::var_os(CHILD).is_some() {
        return on_one_loop(|| {
            // SAFETY: a name that ends.
            unsafe { __open_2(c"/dev/null".as_ptr(), libc::O_RDONLY | libc::O_CREAT) };
        });
    }
    let mut again = Command::new(std::env::current_exe().unwrap());
    again.args(["--exact", "a_fortified_open_that_makes_files_without_a_mode_ends_the_process"]);
    let output = again.env(CHILD, "1").output().unwrap();
    assert!(std::os::unix::process::ExitStatusExt::signal(&output.status) == Some(libc::SIGABRT));
}

#[test]
fn a_lock_that_is_refused_is_not_waited_for() {
    on_one_loop(|| {
        let file = tempfile_that_refuses_locks();
        // SAFETY: no memory.
        let locked = unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX) };
        assert_eq!((locked, errno()), (-1, libc::EACCES));
    });
}

/// Has every flock(2) of this thread fail with `EACCES`, as a security module may have it.
fn tempfile_that_refuses_locks() -> std::fs::File {
    let step =
        |code: u32, jt: u8, jf: u8, k: u32| libc::sock_filter { code: code as u16, jt, jf, k };
    let number = 0; // where `seccomp_data` has the number of the call
    let mut filter = [
        step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, number),
        step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, libc::SYS_flock as u32),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ERRNO | libc::EACCES as u32),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: a program that is there; it is this thread's, which is the test's own.
    unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        let mode = libc::SECCOMP_MODE_FILTER;
        assert_eq!(libc::prctl(libc::PR_SET_SECCOMP, mode, &raw const program), 0);
    }
    std::fs::File::open("/dev/null").unwrap()
}
