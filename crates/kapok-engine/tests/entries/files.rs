use std::fs::File;
use std::io::Write as _;
use std::os::fd::AsRawFd as _;

use kapok_engine::entry::Entry;

use crate::places::{Directory, Place};

const DATASYNC: u32 = 1;

fn file(directory: &Directory, name: &str, bytes: &[u8]) -> File {
    let path = directory.0.join(name);
    let mut file =
        File::options().read(true).write(true).create(true).truncate(true).open(path).unwrap();
    file.write_all(bytes).unwrap();
    file
}

#[test]
fn syncs() {
    let directory = Directory::new("syncs");
    for mut place in Place::all() {
        let file = file(&directory, place.name, &[7; 8192]);
        let fd = file.as_raw_fd();
        assert_eq!(place.ok(&Entry::fsync(fd, 0)), 0);
        assert_eq!(place.ok(&Entry::fsync(fd, DATASYNC)), 0);
        let flags = libc::SYNC_FILE_RANGE_WRITE | libc::SYNC_FILE_RANGE_WAIT_AFTER;
        assert_eq!(place.ok(&Entry::sync_file_range(fd, 4096, 4096, flags)), 0);
        assert_eq!(place.run(&Entry::sync_file_range(fd, 1, 0, 1 << 20)), -libc::EINVAL);
        // Pipes cannot be synced.
        let (reader, _writer) = std::io::pipe().unwrap();
        assert_eq!(place.run(&Entry::fsync(reader.as_raw_fd(), 0)), -libc::EINVAL);
        place.settled();
    }
}

#[test]
fn allocates_and_truncates() {
    let directory = Directory::new("allocates_and_truncates");
    for mut place in Place::all() {
        let file = file(&directory, place.name, b"0123456789");
        let fd = file.as_raw_fd();
        let len = || file.metadata().unwrap().len();
        assert_eq!(place.ok(&Entry::fallocate(fd, 0, 0, 10_000)), 0);
        assert_eq!(len(), 10_000);
        assert_eq!(place.ok(&Entry::fallocate(fd, libc::FALLOC_FL_KEEP_SIZE, 10_000, 50_000)), 0);
        assert_eq!(len(), 10_000);
        assert_eq!(place.run(&Entry::fallocate(fd, 0, 0, 0)), -libc::EINVAL);
        let truncate = Entry::ftruncate(fd, 4);
        if place.has(&truncate) {
            assert_eq!(place.ok(&truncate), 0);
            assert_eq!(std::fs::read(directory.0.join(place.name)).unwrap(), b"0123");
            assert_eq!(place.ok(&Entry::ftruncate(fd, 1 << 33)), 0);
            assert_eq!(len(), 1 << 33);
        }
        place.settled();
    }
}

#[test]
fn advises() {
    let directory = Directory::new("advises");
    for mut place in Place::all() {
        let file = file(&directory, place.name, &[1; 4096]);
        let fd = file.as_raw_fd();
        assert_eq!(place.ok(&Entry::fadvise(fd, 0, 4096, libc::POSIX_FADV_WILLNEED)), 0);
        assert_eq!(place.ok(&Entry::fadvise64(fd, 0, 1 << 33, libc::POSIX_FADV_DONTNEED)), 0);
        assert_eq!(place.run(&Entry::fadvise(fd, 0, 4096, 99)), -libc::EINVAL);

        const BYTES: usize = 16 * 4096;
        // SAFETY: a new private mapping, at an address of the kernel's choice.
        let memory = unsafe {
            let access = libc::PROT_READ | libc::PROT_WRITE;
            let kind = libc::MAP_PRIVATE | libc::MAP_ANON;
            libc::mmap(std::ptr::null_mut(), BYTES, access, kind, -1, 0)
        };
        assert_ne!(memory, libc::MAP_FAILED);
        let memory = memory.cast::<u8>();
        let gone = |byte: usize| {
            // SAFETY: within the mapping; nobody else has it.
            unsafe { memory.add(byte).read_volatile() == 0 }
        };
        let write = || {
            // SAFETY: as above.
            unsafe { memory.write_bytes(5, BYTES) };
        };
        write();
        let half = (BYTES / 2) as u32;
        assert_eq!(place.ok(&Entry::madvise(memory, half, libc::MADV_DONTNEED)), 0);
        assert!(gone(0) && !gone(BYTES / 2), "the first half is thrown away");
        write();
        assert_eq!(place.ok(&Entry::madvise64(memory, BYTES as u64, libc::MADV_DONTNEED)), 0);
        assert!(gone(0) && gone(BYTES - 1), "all of it is");
        assert_eq!(place.run(&Entry::madvise(memory, half, 9999)), -libc::EINVAL);
        // SAFETY: mapped above.
        unsafe { libc::munmap(memory.cast(), BYTES) };
        place.settled();
    }
}

#[test]
fn metadata() {
    let directory = Directory::new("metadata");
    for mut place in Place::all() {
        let _file = file(&directory, place.name, &[1; 777]);
        // SAFETY: all zeros is an empty statx.
        let mut out: libc::statx = unsafe { std::mem::zeroed() };
        let path = directory.path(place.name);
        let mask = libc::STATX_BASIC_STATS;
        let statx =
            |out: *mut libc::statx| Entry::statx(libc::AT_FDCWD, path.as_ptr(), 0, mask, out);
        assert_eq!(place.ok(&statx(&raw mut out)), 0);
        assert_eq!(out.stx_size, 777);
        let opened = File::open(&directory.0).unwrap();
        let name = std::ffi::CString::new(place.name).unwrap();
        let relative = Entry::statx(opened.as_raw_fd(), name.as_ptr(), 0, mask, &raw mut out);
        out.stx_size = 0;
        assert_eq!(place.ok(&relative), 0);
        assert_eq!(out.stx_size, 777);
        let missing = c"/nowhere/at/all";
        let missing = Entry::statx(libc::AT_FDCWD, missing.as_ptr(), 0, mask, &raw mut out);
        assert_eq!(place.run(&missing), -libc::ENOENT);
        place.settled();
    }
}
