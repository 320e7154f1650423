//! Regular files, directories and devices.

use kapok_engine::{Engine as _, Kind, Op, RawMetadata};

use crate::driver::Driver;
use crate::sockets::{
    Descriptor, Directory, is_close_on_exec, landed_descriptor, pattern, read_file, write_file,
};
use crate::world::is_simulated;

conformance! {
    open_write_read_close,
    offsets,
    current_position,
    end_of_file,
    many_at_once,
    large,
    sync,
    metadata,
    open_errors,
    open_relative,
    read_and_write_errors,
    devices,
}

fn path(directory: &Directory, name: &str) -> String {
    directory.join(name).to_str().expect("a plain path").to_owned()
}

fn open(driver: &mut Driver, path: &str, flags: i32) -> Descriptor {
    let open = driver.open(libc::AT_FDCWD, path, flags, 0o640);
    landed_descriptor(driver.wait_for(open).ok())
}

/// Writes all of `bytes`, which a short write may take several times.
fn write_all(driver: &mut Driver, file: &Descriptor, bytes: &[u8], offset: u64) {
    let mut done = 0;
    while done < bytes.len() {
        let write = driver.write(file.fd(), &bytes[done..], offset + done as u64);
        let written = driver.wait_for(write).ok();
        assert!(written > 0, "a write of nothing");
        done += written;
    }
}

fn read_all(driver: &mut Driver, file: &Descriptor, offset: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    loop {
        let read = driver.read(file.fd(), 1 << 20, offset + bytes.len() as u64);
        let landed = driver.wait_for(read);
        if landed.ok() == 0 {
            return bytes;
        }
        bytes.extend_from_slice(landed.bytes());
    }
}

const NEW: i32 = libc::O_RDWR | libc::O_CREAT | libc::O_EXCL;

fn open_write_read_close(kind: Kind) {
    let directory = Directory::new();
    let mut driver = Driver::new(kind);
    let path = path(&directory, "file");
    let file = open(&mut driver, &path, NEW);
    assert!(is_close_on_exec(file.fd()), "an opened file is not close-on-exec");
    let write = driver.write(file.fd(), b"contents", 0);
    assert_eq!(driver.wait_for(write).ok(), 8);
    let read = driver.read(file.fd(), 100, 0);
    assert_eq!(driver.wait_for(read).bytes(), b"contents");
    let close = driver.close(file.into_number());
    assert_eq!(driver.wait_for(close).ok(), 0);
    assert_eq!(read_file(&path), b"contents");
    let file = open(&mut driver, &path, libc::O_RDONLY);
    let metadata = driver.metadata(file.fd());
    let landed = driver.wait_for(metadata);
    let (_, mode) = size_and_mode(landed.lent.metadata.as_ref().unwrap());
    assert_eq!(mode & 0o700, 0o600, "the mode is not the one that was asked for: {mode:o}");
}

fn offsets(kind: Kind) {
    let directory = Directory::new();
    let mut driver = Driver::new(kind);
    let file = open(&mut driver, &path(&directory, "file"), NEW);
    write_all(&mut driver, &file, &pattern(0, 100), 0);
    write_all(&mut driver, &file, b"hole behind", 5000);
    for (offset, len) in [(0, 10), (90, 10), (50, 1), (13, 29)] {
        let read = driver.read(file.fd(), len, offset);
        assert_eq!(driver.wait_for(read).bytes(), pattern(offset as usize, len));
    }
    let read = driver.read(file.fd(), 8, 2000);
    assert_eq!(driver.wait_for(read).bytes(), [0; 8]);
    // Beyond four gigabytes.
    let far = 5 << 30;
    write_all(&mut driver, &file, b"far", far);
    let read = driver.read(file.fd(), 8, far);
    assert_eq!(driver.wait_for(read).bytes(), b"far");
    // None of it moved the position.
    let read = driver.read(file.fd(), 4, Op::CURRENT_POSITION);
    assert_eq!(driver.wait_for(read).bytes(), pattern(0, 4));
}

fn current_position(kind: Kind) {
    let directory = Directory::new();
    let mut driver = Driver::new(kind);
    let file = open(&mut driver, &path(&directory, "file"), NEW);
    for piece in pattern(0, 100).chunks(17) {
        let write = driver.write(file.fd(), piece, Op::CURRENT_POSITION);
        assert_eq!(driver.wait_for(write).ok(), piece.len());
    }
    let read = driver.read(file.fd(), 10, Op::CURRENT_POSITION);
    assert_eq!(driver.wait_for(read).ok(), 0, "the position is not behind what was written");
    // SAFETY: lseek takes no memory.
    assert_eq!(unsafe { libc::lseek(file.fd(), 0, libc::SEEK_SET) }, 0);
    let mut got = Vec::new();
    loop {
        let read = driver.read(file.fd(), 13, Op::CURRENT_POSITION);
        let landed = driver.wait_for(read);
        if landed.ok() == 0 {
            break;
        }
        got.extend_from_slice(landed.bytes());
    }
    assert_eq!(got, pattern(0, 100));
}

fn end_of_file(kind: Kind) {
    let directory = Directory::new();
    let mut driver = Driver::new(kind);
    let file = open(&mut driver, &path(&directory, "file"), NEW);
    let read = driver.read(file.fd(), 10, 0);
    assert_eq!(driver.wait_for(read).ok(), 0);
    write_all(&mut driver, &file, b"seven b", 0);
    let read = driver.read(file.fd(), 100, 3);
    assert_eq!(driver.wait_for(read).bytes(), b"en b");
    for offset in [7, 8, 1 << 40] {
        let read = driver.read(file.fd(), 100, offset);
        assert_eq!(driver.wait_for(read).ok(), 0);
    }
    let read = driver.read(file.fd(), 0, 0);
    assert_eq!(driver.wait_for(read).ok(), 0);
    let write = driver.write(file.fd(), b"", 0);
    assert_eq!(driver.wait_for(write).ok(), 0);
    assert_eq!(read_all(&mut driver, &file, 0), b"seven b");
}

fn many_at_once(kind: Kind) {
    let directory = Directory::new();
    let mut driver = Driver::tiny(kind);
    let file = open(&mut driver, &path(&directory, "file"), NEW);
    let writes: Vec<_> = (0..100)
        .map(|at| at * 37 % 100)
        .map(|at| driver.write(file.fd(), &pattern(at * 100, 100), at as u64 * 100))
        .collect();
    for landed in driver.wait_for_all(&writes) {
        assert_eq!(landed.ok(), 100);
    }
    let reads: Vec<_> = (0..100).map(|at| driver.read(file.fd(), 100, at * 100)).collect();
    for (at, landed) in driver.wait_for_all(&reads).iter().enumerate() {
        assert_eq!(landed.bytes(), pattern(at * 100, 100));
    }
    // Cancelled, they come to what they come to.
    let reads: Vec<_> = (0..100).map(|at| driver.read(file.fd(), 100, at * 100)).collect();
    for &read in &reads {
        driver.cancel(read);
    }
    for (at, landed) in driver.wait_for_all(&reads).iter().enumerate() {
        assert!(landed.was_cancelled() || landed.bytes() == pattern(at * 100, 100));
    }
    // Of writes every second one, in the queue and behind it. What was cancelled left all as it was.
    let writes: Vec<_> =
        (0..100).map(|at| driver.write(file.fd(), &[at as u8; 100], at * 100)).collect();
    for &write in writes.iter().step_by(2) {
        driver.cancel(write);
    }
    let written = driver.wait_for_all(&writes);
    for (at, landed) in written.iter().enumerate() {
        let read = driver.read(file.fd(), 100, at as u64 * 100);
        let there = driver.wait_for(read);
        if landed.was_cancelled() {
            assert_eq!((at % 2, there.bytes()), (0, &pattern(at * 100, 100)[..]));
        } else {
            assert_eq!((landed.ok(), there.bytes()), (100, &[at as u8; 100][..]));
        }
    }
}

fn large(kind: Kind) {
    let directory = Directory::new();
    let mut driver = Driver::new(kind);
    let file = open(&mut driver, &path(&directory, "file"), NEW);
    let bytes = pattern(0, 3 << 20);
    write_all(&mut driver, &file, &bytes, 0);
    assert!(read_all(&mut driver, &file, 0) == bytes, "not what was written");
}

fn sync(kind: Kind) {
    let directory = Directory::new();
    let mut driver = Driver::new(kind);
    let file = open(&mut driver, &path(&directory, "file"), NEW);
    write_all(&mut driver, &file, b"to be kept", 0);
    for data_only in [false, true] {
        let sync = driver.sync(file.fd(), data_only);
        assert_eq!(driver.wait_for(sync).ok(), 0);
    }
    let (socket, _peer) = crate::sockets::unix_pair();
    let sync = driver.sync(socket.fd(), false);
    driver.wait_for(sync).failed_with(&[libc::EINVAL, libc::EROFS, libc::ENOTSUP]);
}

#[cfg(target_os = "linux")]
fn size_and_mode(metadata: &RawMetadata) -> (u64, u32) {
    (metadata.stx_size, metadata.stx_mode.into())
}
#[cfg(not(target_os = "linux"))]
fn size_and_mode(metadata: &RawMetadata) -> (u64, u32) {
    (metadata.st_size as u64, metadata.st_mode.into())
}

#[allow(clippy::useless_conversion, reason = "mode_t is not 32 bits wide everywhere")]
fn metadata(kind: Kind) {
    let directory = Directory::new();
    let mut driver = Driver::new(kind);
    let file = open(&mut driver, &path(&directory, "file"), NEW);
    write_all(&mut driver, &file, &pattern(0, 1234), 0);
    let (socket, peer) = crate::sockets::unix_pair();
    let itself = open(&mut driver, &path(&directory, ""), libc::O_RDONLY | libc::O_DIRECTORY);
    for (fd, size, sort) in [
        (file.fd(), Some(1234), libc::S_IFREG),
        (socket.fd(), None, libc::S_IFSOCK),
        (itself.fd(), None, libc::S_IFDIR),
    ] {
        let metadata = driver.metadata(fd);
        let landed = driver.wait_for(metadata);
        assert_eq!(landed.ok(), 0);
        let (len, mode) = size_and_mode(landed.lent.metadata.as_ref().unwrap());
        assert_eq!(mode & u32::from(libc::S_IFMT), u32::from(sort));
        assert!(size.is_none_or(|size| size == len), "{len} bytes");
    }
    drop(peer);
    if !is_simulated() {
        let (reader, _writer) = crate::sockets::pipe(crate::sockets::Ownership::Foreign);
        let metadata = driver.metadata(reader.fd());
        let landed = driver.wait_for(metadata);
        let (_, mode) = size_and_mode(landed.lent.metadata.as_ref().unwrap());
        assert_eq!(mode & u32::from(libc::S_IFMT), u32::from(libc::S_IFIFO));
    }
}

fn open_errors(kind: Kind) {
    let directory = Directory::new();
    let mut driver = Driver::new(kind);
    let file = path(&directory, "file");
    write_file(&file, b"there");
    let nowhere = path(&directory, "nowhere");
    let below_a_file = format!("{file}/below");
    let long = path(&directory, &"x".repeat(300));
    for (path, flags, errno) in [
        (&nowhere, libc::O_RDONLY, libc::ENOENT),
        (&file, NEW, libc::EEXIST),
        (&below_a_file, libc::O_RDONLY, libc::ENOTDIR),
        (&file, libc::O_RDONLY | libc::O_DIRECTORY, libc::ENOTDIR),
        (&long, libc::O_RDONLY, libc::ENAMETOOLONG),
        (&String::new(), libc::O_RDONLY, libc::ENOENT),
    ] {
        let open = driver.open(libc::AT_FDCWD, path, flags, 0o600);
        driver.wait_for(open).failed_with(&[errno]);
    }
    let itself = path(&directory, "");
    let open = driver.open(libc::AT_FDCWD, &itself, libc::O_WRONLY, 0);
    driver.wait_for(open).failed_with(&[libc::EISDIR]);
    assert_eq!(driver.engine().in_flight(), 0);
}

fn open_relative(kind: Kind) {
    let directory = Directory::new();
    write_file(directory.join("file"), b"relative");
    let mut driver = Driver::new(kind);
    let itself = open(&mut driver, &path(&directory, ""), libc::O_RDONLY | libc::O_DIRECTORY);
    let opened = driver.open(itself.fd(), "file", libc::O_RDONLY, 0);
    let file = landed_descriptor(driver.wait_for(opened).ok());
    assert_eq!(read_all(&mut driver, &file, 0), b"relative");
}

fn read_and_write_errors(kind: Kind) {
    let directory = Directory::new();
    let mut driver = Driver::new(kind);
    let name = path(&directory, "file");
    write_file(&name, b"there");
    let reading = open(&mut driver, &name, libc::O_RDONLY);
    let writing = open(&mut driver, &name, libc::O_WRONLY);
    let itself = open(&mut driver, &path(&directory, ""), libc::O_RDONLY);
    let write = driver.write(reading.fd(), b"x", 0);
    driver.wait_for(write).failed_with(&[libc::EBADF]);
    let read = driver.read(writing.fd(), 8, 0);
    driver.wait_for(read).failed_with(&[libc::EBADF]);
    let read = driver.read(itself.fd(), 8, 0);
    driver.wait_for(read).failed_with(&[libc::EISDIR]);
    // An offset that no file has.
    let read = driver.read(reading.fd(), 8, 1 << 63);
    driver.wait_for(read).failed_with(&[libc::EINVAL, libc::EOVERFLOW]);
    assert_eq!(read_file(&name), b"there");
}

fn devices(kind: Kind) {
    let mut driver = Driver::new(kind);
    let zero = open(&mut driver, "/dev/zero", libc::O_RDONLY);
    let read = driver.read(zero.fd(), 64, Op::CURRENT_POSITION);
    assert_eq!(driver.wait_for(read).bytes(), [0; 64]);
    let null = open(&mut driver, "/dev/null", libc::O_RDWR);
    let read = driver.read(null.fd(), 64, Op::CURRENT_POSITION);
    assert_eq!(driver.wait_for(read).ok(), 0);
    let write = driver.write(null.fd(), b"into the void", Op::CURRENT_POSITION);
    assert_eq!(driver.wait_for(write).ok(), 13);
    if cfg!(target_os = "linux") {
        let full = open(&mut driver, "/dev/full", libc::O_WRONLY);
        let write = driver.write(full.fd(), b"x", Op::CURRENT_POSITION);
        driver.wait_for(write).failed_with(&[libc::ENOSPC]);
    }
}
