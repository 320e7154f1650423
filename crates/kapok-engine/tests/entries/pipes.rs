use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

use kapok_engine::entry::Entry;

use crate::places::{Directory, Place, is_close_on_exec};

#[test]
fn splices() {
    let directory = Directory::new("splices");
    for mut place in Place::all() {
        let path = directory.0.join(place.name);
        std::fs::write(&path, b"0123456789").unwrap();
        let from = File::open(&path).unwrap();
        let (mut reader, writer) = std::io::pipe().unwrap();
        let (file, pipe) = (from.as_raw_fd(), writer.as_raw_fd());
        assert_eq!(place.ok(&Entry::splice(file, 6, pipe, -1, 100, 0)), 4);
        assert_eq!(place.ok(&Entry::splice(file, -1, pipe, -1, 3, 0)), 3);
        assert_eq!(place.ok(&Entry::splice(file, -1, pipe, -1, 3, 0)), 3, "from where it stood");
        let mut bytes = [0; 10];
        reader.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"6789012345");
        // And out of a pipe, into a file.
        (&writer).write_all(b"back").unwrap();
        let to = File::options().write(true).open(&path).unwrap();
        let back = Entry::splice(reader.as_raw_fd(), -1, to.as_raw_fd(), 2, 100, 0);
        assert_eq!(place.ok(&back), 4);
        assert_eq!(std::fs::read(&path).unwrap(), b"01back6789");
        let neither = Entry::splice(file, 0, to.as_raw_fd(), 0, 4, 0);
        assert_eq!(place.run(&neither), -libc::EINVAL, "one of them is a pipe");
        place.settled();
    }
}

#[test]
fn tees() {
    for mut place in Place::all() {
        let mut fds = [[-1; 2]; 2];
        for fds in &mut fds {
            let pipe = Entry::pipe(fds, libc::O_CLOEXEC);
            if !place.has(&pipe) {
                // SAFETY: the kernel writes two descriptors.
                assert_eq!(unsafe { libc::pipe2(fds.as_mut_ptr(), libc::O_CLOEXEC) }, 0);
                continue;
            }
            assert_eq!(place.ok(&pipe), 0);
            assert!(fds.iter().all(|&fd| is_close_on_exec(fd)), "{fds:?}");
        }
        // SAFETY: just made, and nobody else knows them.
        let [[from, write], [other, to]] =
            fds.map(|pair| pair.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
        File::from(write).write_all(b"twice").unwrap();
        assert_eq!(place.ok(&Entry::tee(from.as_raw_fd(), to.as_raw_fd(), 100, 0)), 5);
        drop(to);
        for reader in [from, other] {
            let mut bytes = Vec::new();
            File::from(reader).read_to_end(&mut bytes).unwrap();
            assert_eq!(bytes, b"twice");
        }
        place.settled();
    }
}

#[test]
fn what_waits_for_a_pipe_that_does_not_block_goes_on_when_there_is_something() {
    let mut place = Place::thread();
    let mut fds = [-1; 2];
    assert_eq!(place.ok(&Entry::pipe(&raw mut fds, libc::O_NONBLOCK)), 0);
    // SAFETY: just made, and nobody else knows them.
    let [reader, writer] = fds.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) });
    let (_kept, to) = std::io::pipe().unwrap();
    let writing = std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_millis(30));
        File::from(writer).write_all(b"late").unwrap();
    });
    let splice = Entry::splice(reader.as_raw_fd(), -1, to.as_raw_fd(), -1, 100, 0);
    assert_eq!(place.ok(&splice), 4);
    writing.join().unwrap();
    let nothing =
        Entry::splice(reader.as_raw_fd(), -1, to.as_raw_fd(), -1, 1, libc::SPLICE_F_NONBLOCK);
    assert_eq!(place.run(&nothing), 0, "its writer is gone");
}
