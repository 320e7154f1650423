//! Names are looked up off the loop.

#![cfg(target_os = "linux")]

use std::ffi::{CStr, CString, c_char, c_int, c_uchar};
use std::net::UdpSocket;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use kapok::Runtime;

unsafe extern "C" {
    fn __res_init() -> c_int;
    fn __res_state() -> *mut Resolver;
    fn __h_errno_location() -> *mut c_int;
    fn res_query(
        name: *const c_char,
        class: c_int,
        kind: c_int,
        answer: *mut c_uchar,
        room: c_int,
    ) -> c_int;
    fn gethostbyname_r(
        name: *const c_char,
        entry: *mut libc::hostent,
        buffer: *mut c_char,
        room: usize,
        found: *mut *mut libc::hostent,
        error: *mut c_int,
    ) -> c_int;
}

/// The beginning of `_res`.
#[repr(C)]
struct Resolver {
    retrans: c_int,
    retry: c_int,
    options: libc::c_ulong,
    count: c_int,
    servers: [libc::sockaddr_in; 3],
}

fn counts(name: &str) -> kapok_libc::Counts {
    kapok_libc::hooks().find(|hook| hook.name() == name).unwrap().counts()
}

/// What is counted of getaddrinfo is the process's.
static ALONE: Mutex<()> = Mutex::new(());

/// getaddrinfo: its result, and how many addresses.
fn look_up(node: &str, service: Option<&str>, flags: c_int) -> (c_int, usize) {
    let node = CString::new(node).unwrap();
    let service = service.map(|service| CString::new(service).unwrap());
    // SAFETY: plain data, for which zero is a value; strings that outlive the call; what was found is
    // freed once.
    unsafe {
        let mut hints: libc::addrinfo = std::mem::zeroed();
        hints.ai_flags = flags;
        hints.ai_socktype = libc::SOCK_STREAM;
        let mut found = std::ptr::null_mut();
        let service = service.as_ref().map_or(std::ptr::null(), |service| service.as_ptr());
        let error = libc::getaddrinfo(node.as_ptr(), service, &raw const hints, &raw mut found);
        let mut count = 0;
        let mut next = found;
        while error == 0 && !next.is_null() {
            count += 1;
            next = (*next).ai_next;
        }
        if error == 0 {
            libc::freeaddrinfo(found);
        }
        (error, count)
    }
}

#[test]
fn numbers_are_answered_on_the_spot_and_names_by_another_thread() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    kapok_libc::install();
    Runtime::new().unwrap().run(|| {
        let before = counts("getaddrinfo");
        assert_eq!(look_up("127.0.0.1", Some("80"), 0), (0, 1));
        assert_eq!(look_up("::1", None, 0), (0, 1));
        assert_eq!(look_up("nothing", None, libc::AI_NUMERICHOST).0, libc::EAI_NONAME);
        let numbers = counts("getaddrinfo");
        let (error, count) = look_up("localhost", Some("80"), 0);
        assert_eq!(error, 0);
        assert!(count >= 1);
        let names = counts("getaddrinfo");
        // Without AI_NUMERICSERV, `nothing` may have asked another thread about no service.
        assert!(numbers.direct >= before.direct + 2);
        assert_eq!(names.suspended, numbers.suspended + 1);
    });
}

#[test]
fn threads_and_fibers_find_the_same() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    kapok_libc::install();
    let questions = || {
        let mut all = Vec::new();
        for (node, service) in [
            ("localhost", None),
            ("localhost", Some("http")),
            ("127.0.0.1", Some("http")),
            ("127.1", None),
            ("localhost", Some("no such service")),
            ("fe80::1%lo", Some("1")),
            ("not a name", None),
        ] {
            all.push(look_up(node, service, 0));
            all.push(look_up(node, service, libc::AI_NUMERICHOST));
        }
        all
    };
    let on_thread = std::thread::spawn(questions).join().unwrap();
    Runtime::new().unwrap().run(move || assert_eq!(questions(), on_thread));
}

#[test]
fn the_reentrant_forms_work() {
    kapok_libc::install();
    Runtime::new().unwrap().run(|| {
        let mut buffer = [0 as c_char; 1024];
        // SAFETY: plain data; locals of the lengths that are told.
        unsafe {
            let mut entry: libc::hostent = std::mem::zeroed();
            let mut found = std::ptr::null_mut();
            let mut error = 0;
            let result = gethostbyname_r(
                c"localhost".as_ptr(),
                &raw mut entry,
                buffer.as_mut_ptr(),
                buffer.len(),
                &raw mut found,
                &raw mut error,
            );
            assert_eq!(result, 0);
            assert_eq!(found, &raw mut entry);
            assert_eq!(CStr::from_ptr(entry.h_name), c"localhost");
            // No room is an error of the caller's, which tries again.
            let result = gethostbyname_r(
                c"localhost".as_ptr(),
                &raw mut entry,
                buffer.as_mut_ptr(),
                1,
                &raw mut found,
                &raw mut error,
            );
            assert_eq!(result, libc::ERANGE);
        }
    });
}

/// A name server that counts, and answers nothing, or that there is no such name.
fn name_server(answers: bool) -> (u16, Arc<AtomicUsize>) {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let port = socket.local_addr().unwrap().port();
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&asked);
    std::thread::spawn(move || {
        let mut query = [0; 512];
        while let Ok((length, from)) = socket.recv_from(&mut query) {
            counted.fetch_add(1, Ordering::SeqCst);
            if answers {
                // A response, with NXDOMAIN.
                query[2] |= 0x80;
                query[3] = 0x83;
                socket.send_to(&query[..length], from).unwrap();
            }
        }
    });
    (port, asked)
}

/// Has this thread ask the server at `port`, with these options beside.
fn ask_at(port: u16, retrans: c_int, retry: c_int) {
    // SAFETY: this thread's own state, of which the beginning is as declared.
    unsafe {
        assert_eq!(__res_init(), 0);
        let resolver = __res_state();
        (*resolver).retrans = retrans;
        (*resolver).retry = retry;
        (*resolver).count = 1;
        (*resolver).servers[0] = libc::sockaddr_in {
            sin_family: libc::AF_INET as u16,
            sin_port: port.to_be(),
            sin_addr: libc::in_addr { s_addr: u32::from_be_bytes([127, 0, 0, 1]).to_be() },
            sin_zero: [0; 8],
        };
    }
}

fn query(name: &CStr) -> (c_int, c_int) {
    let mut answer = [0; 512];
    // SAFETY: a local of the length that is told; the address of this thread's own.
    unsafe {
        *__h_errno_location() = 0;
        let length = res_query(name.as_ptr(), 1, 1, answer.as_mut_ptr(), answer.len() as c_int);
        (length, *__h_errno_location())
    }
}

#[test]
fn what_a_thread_has_set_in_its_resolver_counts_and_the_error_comes_back() {
    kapok_libc::install();
    let (port, asked) = name_server(true);
    Runtime::new().unwrap().run(move || {
        ask_at(port, 1, 1);
        // `HOST_NOT_FOUND`.
        assert_eq!(query(c"nobody.invalid"), (-1, 1));
        assert!(asked.load(Ordering::SeqCst) >= 1);
        let by_fiber = asked.swap(0, Ordering::SeqCst);
        // Another server from now on, with nothing kept of the first.
        let (other, asked_other) = name_server(true);
        ask_at(other, 1, 1);
        assert_eq!(query(c"nobody.invalid"), (-1, 1));
        assert_eq!(asked.load(Ordering::SeqCst), 0);
        assert_eq!(asked_other.load(Ordering::SeqCst), by_fiber);
        assert!(counts("res_query").suspended >= 2);
    });
}

#[test]
fn a_hundred_fibers_wait_for_a_server_that_does_not_answer() {
    kapok_libc::install();
    let (port, asked) = name_server(false);
    Runtime::new().unwrap().run(move || {
        ask_at(port, 1, 1);
        let ticks = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&ticks);
        let ticker = kapok::spawn_local(move || {
            while kapok::sleep(Duration::from_millis(1)).is_ok() {
                counted.fetch_add(1, Ordering::Relaxed);
            }
        });
        let fibers: Vec<_> =
            (0..100).map(|_| kapok::spawn_local(|| query(c"nobody.invalid"))).collect();
        for fiber in fibers {
            // `TRY_AGAIN`.
            assert_eq!(fiber.join().unwrap(), (-1, 2));
        }
        assert!(asked.load(Ordering::SeqCst) >= 100);
        assert!(ticks.load(Ordering::Relaxed) >= 100, "the thread was blocked");
        ticker.cancel();
        ticker.join().unwrap();
    });
}
