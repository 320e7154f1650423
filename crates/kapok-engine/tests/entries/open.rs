use std::fs::File;
use std::os::fd::{AsRawFd as _, IntoRawFd as _};

use kapok_engine::entry::Entry;

use crate::places::{Directory, Place, is_close_on_exec};

#[test]
fn opens_and_closes() {
    let directory = Directory::new("opens_and_closes");
    let opened = File::open(&directory.0).unwrap();
    let how = libc::O_CREAT | libc::O_RDWR | libc::O_CLOEXEC;
    for mut place in Place::all() {
        let path = directory.path(place.name);
        let file = place.descriptor(&Entry::open(path.as_ptr(), how, 0o600));
        let name = std::ffi::CString::new(place.name).unwrap();
        let entry = Entry::openat(opened.as_raw_fd(), name.as_ptr(), libc::O_RDONLY, 0);
        let again = place.descriptor(&entry);
        // What the flags say on io_uring, and always elsewhere.
        assert!(is_close_on_exec(file.as_raw_fd()));
        assert_eq!(is_close_on_exec(again.as_raw_fd()), !place.is_ring(), "{}", place.name);
        let refused = Entry::open(path.as_ptr(), how | libc::O_EXCL, 0o600);
        assert_eq!(place.run(&refused), -libc::EEXIST);
        for file in [file, again] {
            let fd = file.into_raw_fd();
            // SAFETY: asks for flags.
            let is_open = || unsafe { libc::fcntl(fd, libc::F_GETFD) >= 0 };
            assert!(is_open());
            assert_eq!(place.ok(&Entry::close(fd)), 0);
        }
        assert_eq!(place.run(&Entry::close(1_000_000_000)), -libc::EBADF);
        place.settled();
    }
}

#[test]
fn opens_beneath() {
    let directory = Directory::new("opens_beneath");
    std::fs::create_dir(directory.0.join("sub")).unwrap();
    std::fs::write(directory.0.join("sub/file"), b"x").unwrap();
    std::os::unix::fs::symlink("../outside", directory.0.join("sub/out")).unwrap();
    std::fs::write(directory.0.join("outside"), b"y").unwrap();
    let opened = File::open(directory.0.join("sub")).unwrap();
    // SAFETY: all zeros is a plain way to open.
    let mut how: libc::open_how = unsafe { std::mem::zeroed() };
    how.flags = libc::O_RDONLY as u64;
    how.resolve = libc::RESOLVE_BENEATH;
    for mut place in Place::all() {
        let open = |name: &'static std::ffi::CStr, how: &libc::open_how| {
            Entry::openat2(opened.as_raw_fd(), name.as_ptr(), how)
        };
        let file = place.descriptor(&open(c"file", &how));
        assert_eq!(File::from(file).metadata().unwrap().len(), 1);
        // Through a link that leads out of the directory.
        assert_eq!(place.run(&open(c"out", &how)), -libc::EXDEV);
        place.settled();
    }
}
