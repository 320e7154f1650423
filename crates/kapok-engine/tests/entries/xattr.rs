use std::fs::File;
use std::os::fd::AsRawFd as _;

use kapok_engine::entry::Entry;

use crate::places::{Directory, Place, say};

const NAME: &std::ffi::CStr = c"user.kapok";

/// Whether there are attributes where the temporary files are. If not, the entries say so as the
/// system call does.
fn there_are(res: i32) -> bool {
    if res == -libc::EOPNOTSUPP {
        say("NOT ON THIS FILE SYSTEM: extended attributes");
    }
    res != -libc::EOPNOTSUPP
}

#[test]
fn by_path() {
    let directory = Directory::new("xattr_by_path");
    for mut place in Place::all() {
        std::fs::write(directory.0.join(place.name), b"").unwrap();
        let (path, value) = (directory.path(place.name), b"value");
        let set = |flags| Entry::setxattr(NAME.as_ptr(), value.as_ptr(), path.as_ptr(), flags, 5);
        let res = place.run(&set(libc::XATTR_CREATE));
        if !there_are(res) {
            continue;
        }
        assert_eq!(res, 0, "{}", place.name);
        assert_eq!(place.run(&set(libc::XATTR_CREATE)), -libc::EEXIST);
        assert_eq!(place.ok(&set(libc::XATTR_REPLACE)), 0);
        let mut room = [0; 16];
        let get = Entry::getxattr(NAME.as_ptr(), room.as_mut_ptr(), path.as_ptr(), 16);
        assert_eq!(place.ok(&get), 5);
        assert_eq!(&room[..5], value);
        let small = Entry::getxattr(NAME.as_ptr(), room.as_mut_ptr(), path.as_ptr(), 2);
        assert_eq!(place.run(&small), -libc::ERANGE);
        place.settled();
    }
}

#[test]
fn by_descriptor() {
    let directory = Directory::new("xattr_by_descriptor");
    for mut place in Place::all() {
        let file = File::create(directory.0.join(place.name)).unwrap();
        let (fd, value) = (file.as_raw_fd(), b"of a file");
        let set = |flags| Entry::fsetxattr(fd, NAME.as_ptr(), value.as_ptr(), flags, 9);
        let mut room = [0; 16];
        let get = Entry::fgetxattr(fd, NAME.as_ptr(), room.as_mut_ptr(), 16);
        let res = place.run(&set(libc::XATTR_REPLACE));
        if !there_are(res) {
            continue;
        }
        assert_eq!(res, -libc::ENODATA);
        assert_eq!(place.run(&get), -libc::ENODATA);
        assert_eq!(place.ok(&set(0)), 0);
        assert_eq!(place.ok(&get), 9);
        assert_eq!(&room[..9], value);
        place.settled();
    }
}
