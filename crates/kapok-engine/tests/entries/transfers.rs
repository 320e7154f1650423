use std::fs::File;
use std::os::fd::AsRawFd as _;

use kapok_engine::Op;
use kapok_engine::entry::Entry;

use crate::places::{Directory, Place, part, refused_elsewhere, room};

/// A new file that can be read and written.
fn file(directory: &Directory, name: &str) -> File {
    let path = directory.0.join(name);
    File::options().read(true).write(true).create(true).truncate(true).open(path).unwrap()
}

#[test]
fn read_and_write() {
    let directory = Directory::new("read_and_write");
    for mut place in Place::all() {
        let file = file(&directory, place.name);
        let fd = file.as_raw_fd();
        assert_eq!(place.ok(&Entry::write(fd, b"hello, ".as_ptr(), 7, Op::CURRENT_POSITION)), 7);
        assert_eq!(place.ok(&Entry::write(fd, b"world".as_ptr(), 5, Op::CURRENT_POSITION)), 5);
        assert_eq!(place.ok(&Entry::write(fd, b"J".as_ptr(), 1, 0).by_worker()), 1);
        let mut bytes = [0; 16];
        assert_eq!(place.ok(&Entry::read(fd, bytes.as_mut_ptr(), 16, 0)), 12);
        assert_eq!(&bytes[..12], b"Jello, world");
        assert_eq!(place.ok(&Entry::read(fd, bytes.as_mut_ptr(), 16, 7)), 5);
        assert_eq!(place.ok(&Entry::read(fd, bytes.as_mut_ptr(), 16, 12)), 0, "the end");
        assert_eq!(place.run(&Entry::read(1_000_000_000, bytes.as_mut_ptr(), 16, 0)), -libc::EBADF);
        place.settled();
    }
}

#[test]
fn vectored() {
    let directory = Directory::new("vectored");
    for mut place in Place::all() {
        let file = file(&directory, place.name);
        let fd = file.as_raw_fd();
        let parts = [part(b"one"), part(b"three")];
        assert_eq!(place.ok(&Entry::writev(fd, parts.as_ptr(), 2, 4)), 8);
        let (mut first, mut second) = ([0; 2], [0; 8]);
        let rooms = [room(&mut first), room(&mut second)];
        assert_eq!(place.ok(&Entry::readv(fd, rooms.as_ptr(), 2, 4)), 8);
        assert_eq!((&first, &second[..6]), (b"on", &b"ethree"[..]));
        assert_eq!(file.metadata().unwrap().len(), 12);
        place.settled();
    }
}

#[test]
fn vectored_with_flags() {
    let directory = Directory::new("vectored_with_flags");
    for mut place in Place::all() {
        let file = file(&directory, place.name);
        let fd = file.as_raw_fd();
        let parts = [part(b"end")];
        assert_eq!(place.ok(&Entry::writev2(fd, parts.as_ptr(), 1, 0, libc::RWF_DSYNC)), 3);
        // It goes to the end, wherever that is.
        assert_eq!(place.ok(&Entry::writev2(fd, parts.as_ptr(), 1, 0, libc::RWF_APPEND)), 3);
        let mut bytes = [0; 8];
        let rooms = [room(&mut bytes)];
        assert_eq!(place.ok(&Entry::readv2(fd, rooms.as_ptr(), 1, 0, libc::RWF_DSYNC)), 6);
        assert_eq!(&bytes[..6], b"endend");
        assert_eq!(
            place.run(&Entry::readv2(fd, rooms.as_ptr(), 1, 0, 1 << 30)),
            -libc::EOPNOTSUPP,
            "a flag that there is not"
        );
        place.settled();
    }
}

/// Memory that is registered as the only buffer of the ring, if this is one.
fn register(place: &mut Place, bytes: &mut [u8]) {
    if place.is_ring() {
        let buffers = [room(bytes)];
        // SAFETY: it is unregistered before the memory is freed.
        unsafe { place.uring().register_buffers(&buffers) }.expect("buffers can be registered");
    }
}

fn unregister(place: &mut Place) {
    if place.is_ring() {
        place.uring().unregister_buffers().expect("there are some");
    }
}

#[test]
fn read_and_write_fixed() {
    let directory = Directory::new("read_and_write_fixed");
    for mut place in Place::all() {
        let file = file(&directory, place.name);
        let fd = file.as_raw_fd();
        let mut memory = vec![b'-'; 4096];
        memory[..5].copy_from_slice(b"fixed");
        register(&mut place, &mut memory);
        let start = memory.as_mut_ptr();
        assert_eq!(place.ok(&Entry::write_fixed(fd, start, 5, 3, 0)), 5);
        // SAFETY: within the memory.
        let rest = unsafe { start.add(100) };
        assert_eq!(place.ok(&Entry::read_fixed(fd, rest, 4, 4, 0)), 4);
        assert_eq!(&memory[99..105], b"-ixed-");
        if place.is_ring() {
            // There is no second buffer, and other memory is not in the first.
            let mut other = [0; 8];
            let other = other.as_mut_ptr();
            assert_eq!(place.run(&Entry::read_fixed(fd, rest, 4, 4, 1)), -libc::EFAULT);
            assert_eq!(place.run(&Entry::read_fixed(fd, other, 4, 4, 0)), -libc::EFAULT);
        }
        unregister(&mut place);
        place.settled();
    }
}

#[test]
fn vectored_fixed() {
    let directory = Directory::new("vectored_fixed");
    for mut place in Place::all() {
        let file = file(&directory, place.name);
        let fd = file.as_raw_fd();
        let mut memory = vec![b'-'; 4096];
        memory[..6].copy_from_slice(b"abcdef");
        let parts = [part(&memory[..2]), part(&memory[3..6])];
        let rooms = {
            let (first, second) = memory[100..].split_at_mut(100);
            [room(&mut first[..4]), room(&mut second[..4])]
        };
        let write = Entry::writev_fixed(fd, parts.as_ptr(), 2, 0, 0, 0);
        if !place.has(&write) {
            continue;
        }
        register(&mut place, &mut memory);
        assert_eq!(place.ok(&write), 5);
        assert_eq!(place.ok(&Entry::readv_fixed(fd, rooms.as_ptr(), 2, 0, 0, 0)), 5);
        assert_eq!((&memory[100..105], &memory[200..202]), (&b"abde-"[..], &b"f-"[..]));
        unregister(&mut place);
        place.settled();
    }
}

#[test]
fn what_there_is_on_a_ring_only_is_refused_elsewhere() {
    let mut byte = 0;
    let read = Entry::read(0, &raw mut byte, 1, 0);
    refused_elsewhere(&read.on_direct_descriptor());
    refused_elsewhere(&read.with_buffer_group(3));
}
