use std::ffi::CString;
use std::fs::File;
use std::os::fd::AsRawFd as _;

use kapok_engine::entry::Entry;

use crate::places::{Directory, Place};

#[test]
fn makes_and_removes() {
    let directory = Directory::new("makes_and_removes");
    for mut place in Place::all() {
        let (sub, file) = (directory.path("sub"), directory.path("file"));
        assert_eq!(place.ok(&Entry::mkdir(sub.as_ptr(), 0o700)), 0);
        assert!(directory.0.join("sub").is_dir());
        assert_eq!(place.run(&Entry::mkdir(sub.as_ptr(), 0o700)), -libc::EEXIST);
        std::fs::write(directory.0.join("file"), b"").unwrap();
        assert_eq!(place.ok(&Entry::unlink(file.as_ptr(), 0)), 0);
        assert!(!directory.0.join("file").exists());
        assert_eq!(place.run(&Entry::unlink(sub.as_ptr(), 0)), -libc::EISDIR);
        assert_eq!(place.ok(&Entry::unlink(sub.as_ptr(), libc::AT_REMOVEDIR)), 0);
        assert!(!directory.0.join("sub").exists());
        place.settled();
    }
}

#[test]
fn makes_and_removes_in_a_directory() {
    let directory = Directory::new("makes_and_removes_in_a_directory");
    let opened = File::open(&directory.0).unwrap();
    let dir = opened.as_raw_fd();
    for mut place in Place::all() {
        assert_eq!(place.ok(&Entry::mkdirat(dir, c"sub".as_ptr(), 0o700)), 0);
        assert!(directory.0.join("sub").is_dir());
        assert_eq!(place.ok(&Entry::unlinkat(dir, c"sub".as_ptr(), libc::AT_REMOVEDIR)), 0);
        assert!(!directory.0.join("sub").exists());
        assert_eq!(place.run(&Entry::unlinkat(dir, c"sub".as_ptr(), 0)), -libc::ENOENT);
        place.settled();
    }
}

#[test]
fn renames_and_links() {
    let directory = Directory::new("renames_and_links");
    let read = |name: &str| std::fs::read(directory.0.join(name)).ok();
    for mut place in Place::all() {
        std::fs::write(directory.0.join("a"), place.name).unwrap();
        let path = |name: &str| directory.path(name);
        let (a, b, c, d) = (path("a"), path("b"), path("c"), path("d"));
        let bytes = || Some(place.name.as_bytes().to_vec());
        let expected = bytes();
        assert_eq!(place.ok(&Entry::rename(a.as_ptr(), b.as_ptr())), 0);
        assert_eq!((read("a"), read("b")), (None, expected.clone()));
        assert_eq!(place.ok(&Entry::link(b.as_ptr(), c.as_ptr(), 0)), 0);
        assert_eq!(read("c"), expected);
        assert_eq!(place.ok(&Entry::symlink(c"c".as_ptr(), d.as_ptr())), 0);
        assert_eq!(std::fs::read_link(directory.0.join("d")).unwrap().to_str(), Some("c"));
        assert_eq!(place.run(&Entry::rename(a.as_ptr(), b.as_ptr())), -libc::ENOENT);
        assert_eq!(place.run(&Entry::link(b.as_ptr(), c.as_ptr(), 0)), -libc::EEXIST);
        for name in ["b", "c", "d"] {
            std::fs::remove_file(directory.0.join(name)).unwrap();
        }
        place.settled();
    }
}

#[test]
fn renames_and_links_in_a_directory() {
    let directory = Directory::new("renames_and_links_in_a_directory");
    let other = directory.0.join("other");
    std::fs::create_dir(&other).unwrap();
    let (from, to) = (File::open(&directory.0).unwrap(), File::open(&other).unwrap());
    let (from, to) = (from.as_raw_fd(), to.as_raw_fd());
    for mut place in Place::all() {
        std::fs::write(directory.0.join("a"), b"a").unwrap();
        std::fs::write(other.join("b"), b"b").unwrap();
        let name = |name: &str| CString::new(name).unwrap();
        let (a, b, c) = (name("a"), name("b"), name("c"));
        let rename = |flags| Entry::renameat(from, a.as_ptr(), to, b.as_ptr(), flags);
        assert_eq!(place.run(&rename(libc::RENAME_NOREPLACE)), -libc::EEXIST);
        assert_eq!(place.ok(&rename(libc::RENAME_EXCHANGE)), 0);
        assert_eq!(std::fs::read(directory.0.join("a")).unwrap(), b"b");
        assert_eq!(std::fs::read(other.join("b")).unwrap(), b"a");
        assert_eq!(place.ok(&Entry::linkat(from, a.as_ptr(), to, c.as_ptr(), 0)), 0);
        assert_eq!(std::fs::read(other.join("c")).unwrap(), b"b");
        assert_eq!(place.ok(&Entry::symlinkat(b.as_ptr(), from, c.as_ptr())), 0);
        assert_eq!(std::fs::read_link(directory.0.join("c")).unwrap().to_str(), Some("b"));
        for path in [other.join("b"), other.join("c"), directory.0.join("c")] {
            std::fs::remove_file(path).unwrap();
        }
        place.settled();
    }
}
