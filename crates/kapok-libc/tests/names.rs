//! Names are looked up off the loop.

#![cfg(target_os = "linux")]

mod c_resolver;
mod skipped;

use std::ffi::{CStr, CString, c_char, c_int};
use std::net::{IpAddr, Ipv4Addr, ToSocketAddrs, UdpSocket};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use c_resolver::*;
use kapok::Runtime;

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
        ask_only(resolver, port);
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

/// A name server at an address of this machine's, by which every name has that address.
fn server_of_itself(address: Ipv4Addr) {
    let socket = UdpSocket::bind((address, 53)).unwrap();
    std::thread::spawn(move || {
        let mut query = [0; 512];
        while let Ok((length, from)) = socket.recv_from(&mut query) {
            // One question, and what comes behind it is left out: flags, then the numbers of the records.
            let end = 12 + query[12..length].iter().position(|&byte| byte == 0).unwrap() + 5;
            let asks_for_ipv4 = query[end - 4..end - 2] == [0, 1];
            let mut reply = query[..end].to_vec();
            reply[2..12].copy_from_slice(&[0x81, 0x80, 0, 1, 0, asks_for_ipv4.into(), 0, 0, 0, 0]);
            if asks_for_ipv4 {
                // The name of the question, type A, class IN, to be kept for no time, four bytes.
                reply.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4]);
                reply.extend(address.octets());
            }
            socket.send_to(&reply, from).unwrap();
        }
    });
}

/// In namespaces of its own the process has a loopback interface and a file that are nobody else's.
fn with_a_file_of_ones_own(file: &std::path::Path) {
    let path = CString::new(file.to_str().unwrap()).unwrap();
    // SAFETY: strings that end; a request of the interface by its name, in a local of that kind.
    unsafe {
        let (to, none) = (c"/etc/resolv.conf".as_ptr(), std::ptr::null());
        let mounted = libc::mount(path.as_ptr(), to, none, libc::MS_BIND, std::ptr::null());
        assert_eq!(mounted, 0, "{}", std::io::Error::last_os_error());
        let socket = libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0);
        let mut request: libc::ifreq = std::mem::zeroed();
        request.ifr_name[..2].copy_from_slice(&[b'l' as c_char, b'o' as c_char]);
        request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as i16;
        assert_eq!(libc::ioctl(socket, libc::SIOCSIFFLAGS, &raw const request), 0);
        libc::close(socket);
    }
}

#[test]
fn a_changed_file_is_read_again_with_res_init_and_without() {
    const NAME: &str = "a_changed_file_is_read_again_with_res_init_and_without";
    const FILE: &str = "KAPOK_TEST_RESOLV_CONF";
    let Ok(file) = std::env::var(FILE) else {
        // SAFETY: no memory.
        if unsafe { libc::geteuid() } != 0 {
            return skipped::skip("namespaces, with a resolv.conf of one's own, take root");
        }
        let may = Command::new("unshare").args(["--mount", "--net", "true"]).output();
        if !may.as_ref().is_ok_and(|done| done.status.success()) {
            return skipped::skip(&format!("no namespaces: {may:?}"));
        }
        // Somebody else is asked for names then, whatever the file says.
        let asked = std::fs::read_to_string("/etc/nsswitch.conf").unwrap_or_default();
        let hosts = asked.lines().find(|line| line.starts_with("hosts:")).unwrap_or("hosts: dns");
        if hosts.contains("resolve") || !std::path::Path::new("/etc/resolv.conf").exists() {
            return skipped::skip("names are not looked up by /etc/resolv.conf here");
        }
        let path = std::env::temp_dir().join(format!("kapok-resolv-{}", std::process::id()));
        std::fs::write(&path, "").unwrap();
        let done = Command::new("unshare")
            .args(["--mount", "--net"])
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", NAME, "--nocapture", "--test-threads=1"])
            .env(FILE, &path)
            .output();
        std::fs::remove_file(&path).unwrap();
        let done = done.unwrap();
        let said = String::from_utf8_lossy(&done.stdout);
        assert!(done.status.success(), "{said}{}", String::from_utf8_lossy(&done.stderr));
        assert!(said.contains("1 passed"), "{said}");
        return;
    };
    with_a_file_of_ones_own(file.as_ref());
    let [one, other] = [Ipv4Addr::new(127, 0, 0, 2), Ipv4Addr::new(127, 0, 0, 3)];
    server_of_itself(one);
    server_of_itself(other);
    // Of another length each time: the C library looks at that, and at times that may be coarse.
    let times = Arc::new(AtomicUsize::new(0));
    let says = move |address: Ipv4Addr| {
        let comment = "#".repeat(times.fetch_add(1, Ordering::Relaxed));
        let all = format!("nameserver {address}\noptions timeout:5\n{comment}\n");
        std::fs::write(&file, all).unwrap();
    };
    let found = || -> Vec<IpAddr> {
        let mut all: Vec<IpAddr> =
            ("name.test", 80).to_socket_addrs().unwrap().map(|address| address.ip()).collect();
        all.dedup();
        all
    };
    kapok_libc::install();
    let all = move || {
        says(one);
        assert_eq!(found(), [IpAddr::from(one)]);
        says(other);
        // SAFETY: this thread's own state.
        assert_eq!(unsafe { __res_init() }, 0);
        assert_eq!(found(), [IpAddr::from(other)]);
        // The C library finds out for itself too.
        says(one);
        assert_eq!(found(), [IpAddr::from(one)]);
    };
    // A thread is told the same as a fiber, and a fiber on a loop whose helpers have asked before as well.
    std::thread::spawn(all.clone()).join().unwrap();
    let before = counts("getaddrinfo").suspended;
    Runtime::new().unwrap().run(move || {
        kapok::spawn_local(all.clone()).join().unwrap();
        kapok::spawn_local(all).join().unwrap();
    });
    assert_eq!(counts("getaddrinfo").suspended, before + 6);
}
