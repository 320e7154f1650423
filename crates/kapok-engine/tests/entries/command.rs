use std::io::Write as _;
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::AtomicI32;
use std::sync::atomic::Ordering::Relaxed;

use kapok_engine::entry::{
    Entry, SOCKET_GETSOCKOPT, SOCKET_SETSOCKOPT, SOCKET_SIOCINQ, SOCKET_SIOCOUTQ,
};

use crate::places::{Place, say};

#[test]
fn on_sockets() {
    for mut place in Place::all() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (server, _) = listener.accept().unwrap();
        let fd = server.as_raw_fd();
        let none = std::ptr::null_mut();
        let count = |command| Entry::cmd_sock(command, fd, 0, 0, none, 0);
        client.write_all(b"seven b").unwrap();
        server.peek(&mut [0]).unwrap();
        if place.run(&count(SOCKET_SIOCINQ)) == -libc::EOPNOTSUPP && place.is_ring() {
            say("NOT IN THIS KERNEL: commands to sockets");
            continue;
        }
        assert_eq!(place.ok(&count(SOCKET_SIOCINQ)), 7);
        assert_eq!(place.ok(&Entry::uring_cmd(SOCKET_SIOCINQ, fd)), 7, "it is the same");
        assert_eq!(place.ok(&count(SOCKET_SIOCOUTQ)), 0);

        let value = AtomicI32::new(1);
        let at = value.as_ptr().cast::<u8>();
        let option =
            |command, option| Entry::cmd_sock(command, fd, libc::SOL_SOCKET, option, at, 4);
        assert_eq!(place.ok(&option(SOCKET_GETSOCKOPT, libc::SO_KEEPALIVE)), 4);
        assert_eq!(value.load(Relaxed), 0);
        value.store(1, Relaxed);
        assert_eq!(place.ok(&option(SOCKET_SETSOCKOPT, libc::SO_KEEPALIVE)), 0);
        value.store(7, Relaxed);
        assert_eq!(place.ok(&option(SOCKET_GETSOCKOPT, libc::SO_KEEPALIVE)), 4);
        assert_eq!(value.load(Relaxed), 1);
        assert_eq!(place.run(&option(SOCKET_SETSOCKOPT, 9999)), -libc::ENOPROTOOPT);

        // What is no socket does not know them, nor do sockets know others.
        assert_eq!(place.run(&Entry::uring_cmd(9999, fd)), -libc::EOPNOTSUPP);
        let file = std::env::current_exe().and_then(std::fs::File::open).unwrap();
        let foreign = Entry::uring_cmd(SOCKET_SIOCINQ, file.as_raw_fd());
        assert_eq!(place.run(&foreign), -libc::EOPNOTSUPP);
        place.settled();
    }
}

/// A loop device over a file of a megabyte, if this machine has them and we may.
fn loop_device(directory: &std::path::Path) -> Option<(std::path::PathBuf, std::path::PathBuf)> {
    let image = directory.join("image");
    std::fs::write(&image, vec![0xff; 1 << 20]).ok()?;
    let output = std::process::Command::new("losetup")
        .args(["--find", "--show"])
        .arg(&image)
        .output()
        .ok()?;
    let name = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| (image, name.trim().into()))
}

#[test]
fn on_block_devices() {
    let directory = crate::places::Directory::new("discard");
    let file = std::fs::File::create(directory.0.join("file")).unwrap();
    for mut place in Place::all() {
        // A file is no block device.
        let discard = Entry::cmd_discard(file.as_raw_fd(), 0, 4096);
        assert_eq!(place.run(&discard), -libc::EOPNOTSUPP, "{}", place.name);
    }
    let Some((image, device)) = loop_device(&directory.0) else {
        say("NOT ON THIS MACHINE: a loop device to discard a range of");
        return;
    };
    let opened = std::fs::File::options().read(true).write(true).open(&device).unwrap();
    let places = Place::all().into_iter().enumerate();
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        for (at, mut place) in places {
            let start = at * 65536;
            let discard = Entry::cmd_discard(opened.as_raw_fd(), start as u64, 4096);
            let res = place.run(&discard);
            if place.is_ring() && res == -libc::EOPNOTSUPP {
                say("NOT IN THIS KERNEL: cmd_discard");
                continue;
            }
            assert_eq!(res, 0, "{}", place.name);
            opened.sync_all().unwrap();
            let bytes = std::fs::read(&image).unwrap();
            assert!(bytes[start..start + 4096].iter().all(|&byte| byte == 0), "{}", place.name);
            assert_eq!((bytes[start + 4096], bytes[start + 8191]), (0xff, 0xff));
            let odd = Entry::cmd_discard(opened.as_raw_fd(), 1, 4096);
            assert_eq!(place.run(&odd), -libc::EINVAL, "{}", place.name);
        }
    }));
    let _ = std::process::Command::new("losetup").arg("--detach").arg(&device).status();
    outcome.unwrap();
}
