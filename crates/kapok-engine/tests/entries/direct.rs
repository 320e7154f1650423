use std::ffi::CString;
use std::fs::File;
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsRawFd as _, RawFd};

use kapok_engine::entry::{Entry, Slot};

use crate::places::{Directory, Place, is_close_on_exec, refused_elsewhere};
use crate::sockets::{IPV4_BYTES, loopback};

/// A ring with a table of this many places.
fn ring(places: u32) -> Option<Place> {
    let mut place = Place::ring()?;
    place.uring().register_files_sparse(places).expect("a table can be made");
    Some(place)
}

/// Reads what is in the file at `index` of the table.
fn read(place: &mut Place, index: u32) -> Vec<u8> {
    let mut bytes = [0; 64];
    let entry = Entry::read(index as RawFd, bytes.as_mut_ptr(), 64, 0).on_direct_descriptor();
    let len = place.ok(&entry);
    bytes[..len].to_vec()
}

#[test]
fn opened() {
    let directory = Directory::new("direct_opened");
    for name in ["a", "b", "c"] {
        std::fs::write(directory.0.join(name), name).unwrap();
    }
    let dir = File::open(&directory.0).unwrap();
    let (a, b, c) = (directory.path("a"), CString::new("b").unwrap(), CString::new("c").unwrap());
    // SAFETY: all zeros is a plain way to open.
    let mut how: libc::open_how = unsafe { std::mem::zeroed() };
    how.flags = libc::O_RDONLY as u64;
    let fd = dir.as_raw_fd();
    let open_a = |slot| Entry::open_direct(a.as_ptr(), libc::O_RDONLY, 0, slot);
    let open_b = |slot| Entry::openat_direct(fd, b.as_ptr(), libc::O_RDONLY, 0, slot);
    let open_c = |slot| Entry::openat2_direct(fd, c.as_ptr(), &raw const how, slot);
    for slot in [Slot::At(1), Slot::Any] {
        refused_elsewhere(&open_a(slot));
        refused_elsewhere(&open_b(slot));
        refused_elsewhere(&open_c(slot));
    }
    refused_elsewhere(&Entry::close_direct(1));
    let Some(mut place) = ring(3) else { return };
    assert_eq!(place.ok(&open_a(Slot::At(1))), 0);
    let second = place.ok(&open_b(Slot::Any)) as u32;
    let third = place.ok(&open_c(Slot::Any)) as u32;
    assert_eq!(read(&mut place, 1), b"a");
    assert_eq!((read(&mut place, second), read(&mut place, third)), (b"b".to_vec(), b"c".to_vec()));
    assert_eq!(place.run(&open_a(Slot::Any)), -libc::ENFILE, "the table is full");
    assert_eq!(place.run(&open_a(Slot::At(3))), -libc::EINVAL, "there is no such place");
    // What is there is let go.
    assert_eq!(place.ok(&open_c(Slot::At(1))), 0);
    assert_eq!(read(&mut place, 1), b"c");
    let cloexec = Entry::open_direct(a.as_ptr(), libc::O_CLOEXEC, 0, Slot::At(0));
    assert_eq!(place.run(&cloexec), -libc::EINVAL);
    assert_eq!(place.ok(&Entry::close_direct(1)), 0);
    assert_eq!(place.run(&Entry::close_direct(1)), -libc::EBADF);
    assert_eq!(place.ok(&open_a(Slot::Any)), 1, "there is room again");
    place.settled();
    place.uring().unregister_files().unwrap();
    assert_eq!(place.run(&Entry::close_direct(1)), -libc::ENXIO, "there is no table");
}

#[test]
fn accepted() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (none, no_len) = (std::ptr::null_mut(), std::ptr::null_mut());
    let accept = Entry::accept_direct(listener.as_raw_fd(), none, no_len, 0, Slot::At(2));
    refused_elsewhere(&accept);
    let Some(mut place) = ring(4) else { return };
    let key = place.start(&accept);
    let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    assert_eq!(place.last(key), 0);
    let send = Entry::send(2, b"direct".as_ptr(), 6, 0).on_direct_descriptor();
    assert_eq!(place.ok(&send), 6);
    let mut bytes = [0; 6];
    std::io::Read::read_exact(&mut client, &mut bytes).unwrap();
    assert_eq!(&bytes, b"direct");
    place.settled();
}

#[test]
fn sockets() {
    let socket = Entry::socket_direct(libc::AF_INET, libc::SOCK_STREAM, 0, Slot::At(2), 0);
    let anywhere = Entry::socket_direct_alloc(libc::AF_INET, libc::SOCK_DGRAM, 0, 0);
    refused_elsewhere(&socket);
    refused_elsewhere(&anywhere);
    let Some(mut place) = ring(4) else { return };
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let there = loopback(listener.local_addr().unwrap().port());
    assert_eq!(place.ok(&socket), 0);
    let connect = Entry::connect(2, &raw const there, IPV4_BYTES).on_direct_descriptor();
    assert_eq!(place.ok(&connect), 0);
    drop(listener.accept().unwrap());
    let mut byte = 0;
    assert_eq!(place.ok(&Entry::recv(2, &raw mut byte, 1, 0).on_direct_descriptor()), 0);

    let receiver = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let there = loopback(receiver.local_addr().unwrap().port());
    let index = place.ok(&anywhere) as RawFd;
    let send = Entry::sendto(index, b"x".as_ptr(), 1, 0, &raw const there, IPV4_BYTES as u16);
    assert_eq!(place.ok(&send.on_direct_descriptor()), 1);
    assert_eq!(receiver.recv(&mut [0; 4]).unwrap(), 1);
    place.settled();
}

#[test]
fn pipes() {
    let mut fds = [-1; 2];
    let pipe = |fds: *mut [i32; 2], slot| Entry::pipe_direct(fds, 0, slot);
    refused_elsewhere(&pipe(&raw mut fds, Slot::Any));
    let Some(mut place) = ring(4) else { return };
    if !place.has(&pipe(&raw mut fds, Slot::Any)) {
        return;
    }
    for slot in [Slot::At(1), Slot::Any] {
        assert_eq!(place.ok(&pipe(&raw mut fds, slot)), 0);
        let [reader, writer] = if slot == Slot::Any { fds } else { [1, 2] };
        let write = Entry::write(writer, b"through".as_ptr(), 7, u64::MAX).on_direct_descriptor();
        assert_eq!(place.ok(&write), 7);
        let mut bytes = [0; 8];
        let read = Entry::read(reader, bytes.as_mut_ptr(), 8, u64::MAX).on_direct_descriptor();
        assert_eq!(place.ok(&read), 7);
        assert_eq!(&bytes[..7], b"through");
        // The flag says that the pipe to read from is in the table.
        place.ok(&write);
        let (mut outside, into) = std::io::pipe().unwrap();
        let splice = Entry::splice(reader, -1, into.as_raw_fd(), -1, 7, 1 << 31);
        assert_eq!(place.ok(&splice), 7);
        std::io::Read::read_exact(&mut outside, &mut bytes[..7]).unwrap();
    }
    place.settled();
}

#[test]
fn updated() {
    let directory = Directory::new("direct_updated");
    std::fs::write(directory.0.join("a"), "a").unwrap();
    let file = File::open(directory.0.join("a")).unwrap();
    let mut fds = [file.as_raw_fd(), -1, file.as_raw_fd()];
    refused_elsewhere(&Entry::files_update(fds.as_mut_ptr(), 3, 1));
    let Some(mut place) = ring(4) else { return };
    assert_eq!(place.ok(&Entry::files_update(fds.as_mut_ptr(), 3, 1)), 3);
    assert_eq!(read(&mut place, 1), b"a");
    assert_eq!(place.run(&Entry::close_direct(2)), -libc::EBADF, "nothing was put there");
    // Where there is room: the indices come back.
    let mut fds = [file.as_raw_fd(); 2];
    assert_eq!(place.ok(&Entry::files_update(fds.as_mut_ptr(), 2, -1)), 2);
    fds.sort_unstable();
    assert_eq!(fds, [0, 2]);
    assert_eq!(read(&mut place, 2), b"a");
    place.settled();
}

#[test]
fn installed() {
    const NO_CLOSE_ON_EXEC: u32 = 1;
    let directory = Directory::new("direct_installed");
    std::fs::write(directory.0.join("a"), "installed").unwrap();
    let path = directory.path("a");
    let install = |flags| Entry::fixed_fd_install(1, flags);
    refused_elsewhere(&install(0));
    let Some(mut place) = ring(4) else { return };
    if !place.has(&install(0)) {
        return;
    }
    assert_eq!(place.run(&install(0)), -libc::EBADF, "nothing is there");
    assert_eq!(place.ok(&Entry::open_direct(path.as_ptr(), libc::O_RDONLY, 0, Slot::At(1))), 0);
    let file = place.descriptor(&install(0));
    assert!(is_close_on_exec(file.as_raw_fd()));
    let inherited = place.descriptor(&install(NO_CLOSE_ON_EXEC));
    assert!(!is_close_on_exec(inherited.as_raw_fd()));
    assert_eq!(std::io::read_to_string(File::from(file)).unwrap(), "installed");
    place.settled();
}
