//! What has no non-blocking form goes through threads.

use super::*;

over_all! {
    files_go_through_threads,
    what_waits_for_a_device_does_not_block_the_loop,
    pipes_and_terminals_that_block_do_not_block_the_loop,
    dropping_waits_for_threads,
    the_opening_of_a_fifo_can_be_cancelled,
}

mod over_all {
    use super::*;

    pub(super) fn files_go_through_threads<S: Selector>() {
        let mut engine = Ready::<S>::new().unwrap();
        let dir = std::ffi::CString::new(std::env::temp_dir().to_str().unwrap()).unwrap();
        let flags = libc::O_TMPFILE | libc::O_RDWR;
        let open = Op::Open { dir: libc::AT_FDCWD, path: dir.as_ptr(), flags, mode: 0o600 };
        assert_eq!(submit(&mut engine, 5, open), Submitted::Pending);
        let fd = land(&mut engine, 1)[0].1;
        assert!(fd >= 0, "{fd}");
        let text = b"through a thread";
        let (buf, len) = (text.as_ptr(), text.len());
        let count = len as i32;
        assert_eq!(result(&mut engine, Op::Write { fd, buf, len, offset: 4 }), count);
        assert_eq!(result(&mut engine, Op::Sync { fd, data_only: false }), 0);
        assert_eq!(result(&mut engine, Op::Sync { fd, data_only: true }), 0);
        let mut back = [0u8; 32];
        let buf = back.as_mut_ptr();
        assert_eq!(result(&mut engine, Op::Read { fd, buf, len: 32, offset: 4 }), count);
        assert_eq!(&back[..text.len()], text);
        let offset = Op::CURRENT_POSITION;
        assert_eq!(result(&mut engine, Op::Read { fd, buf, len: 32, offset }), count + 4);
        assert_eq!(result(&mut engine, Op::Read { fd, buf, len: 32, offset }), 0);
        // SAFETY: all zeros is one.
        let mut metadata: RawMetadata = unsafe { std::mem::zeroed() };
        assert_eq!(result(&mut engine, Op::Metadata { fd, out: &raw mut metadata }), 0);
        assert_eq!(metadata.stx_size, u64::from(count as u32 + 4));
        assert_eq!(result(&mut engine, Op::Close { fd }), 0);
        assert_eq!(engine.in_flight(), 0);
    }

    /// A page of memory at the beginning of one.
    #[repr(align(4096))]
    struct Page([u8; 4096]);

    pub(super) fn what_waits_for_a_device_does_not_block_the_loop<S: Selector>() {
        let mut engine = Ready::<S>::new().unwrap();
        let dir = std::ffi::CString::new(std::env::temp_dir().to_str().unwrap()).unwrap();
        let mut page = Page([0; 4096]);
        for flags in [libc::O_DIRECT, libc::O_DSYNC, libc::O_SYNC] {
            let all = libc::O_TMPFILE | libc::O_RDWR | libc::O_CLOEXEC | flags;
            // SAFETY: a string that ends.
            let fd = unsafe { libc::open(dir.as_ptr(), all, 0o600) };
            if fd < 0 && flags == libc::O_DIRECT {
                println!("SKIPPED: no O_DIRECT in {dir:?}");
                continue;
            }
            assert!(fd >= 0, "{}", std::io::Error::last_os_error());
            // SAFETY: it was just made.
            let _file = unsafe { OwnedFd::from_raw_fd(fd) };
            page.0.fill(7);
            let (buf, len) = (page.0.as_mut_ptr(), page.0.len());
            let write = Op::Write { fd, buf, len, offset: 0 };
            assert_eq!(submit(&mut engine, 1, write), Submitted::Pending, "{flags:o}");
            assert_eq!(land(&mut engine, 1), [(1, 4096)]);
            page.0.fill(0);
            let buf = page.0.as_mut_ptr();
            let read = Op::Read { fd, buf, len, offset: 0 };
            if flags == libc::O_DIRECT {
                assert_eq!(submit(&mut engine, 2, read), Submitted::Pending);
                assert_eq!(land(&mut engine, 1), [(2, 4096)]);
            } else {
                assert_eq!(result(&mut engine, read), 4096);
            }
            assert!(page.0.iter().all(|&byte| byte == 7), "{flags:o}");
        }
    }

    pub(super) fn the_opening_of_a_fifo_can_be_cancelled<S: Selector>() {
        let mut engine = Ready::<S>::new().unwrap();
        let make = |number: i32| {
            let name = format!("kapok-engine-fifo-{}-{number}", std::process::id());
            let path = std::env::temp_dir().join(name);
            let _ = std::fs::remove_file(&path);
            let name = std::ffi::CString::new(path.to_str().unwrap()).unwrap();
            // SAFETY: the path ends.
            assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
            (path, name)
        };
        let open = |name: &std::ffi::CString, flags| {
            let path = name.as_ptr();
            Op::Open { dir: libc::AT_FDCWD, path, flags, mode: 0o600 }
        };
        // One that is left waiting is seen by who opens the other end, so each has its own.
        for flags in [libc::O_RDONLY, libc::O_WRONLY | libc::O_CREAT | libc::O_TRUNC] {
            let (path, name) = make(flags);
            assert_eq!(submit(&mut engine, 1, open(&name, flags)), Submitted::Pending);
            // A thread has it, and waits.
            std::thread::sleep(Duration::from_millis(30));
            assert_quiet(&mut engine);
            engine.cancel(key(1));
            assert_eq!(land(&mut engine, 1), [(1, -libc::ECANCELED)]);
            assert_eq!(engine.in_flight(), 0);
            // The path is nobody's from here on, and the thread goes on.
            drop(name);
            drop(File::options().read(true).write(true).open(&path).unwrap());
            std::fs::remove_file(path).unwrap();
        }
        // One that is not cancelled waits for its other end.
        let (path, name) = make(-1);
        assert_eq!(submit(&mut engine, 2, open(&name, libc::O_RDONLY)), Submitted::Pending);
        std::thread::sleep(Duration::from_millis(30));
        assert_quiet(&mut engine);
        assert_eq!(submit(&mut engine, 3, open(&name, libc::O_WRONLY)), Submitted::Pending);
        for (_, fd) in land(&mut engine, 2) {
            assert!(fd >= 0, "{fd}");
            // SAFETY: it was just made.
            drop(unsafe { OwnedFd::from_raw_fd(fd) });
        }
        std::fs::remove_file(path).unwrap();
    }

    pub(super) fn pipes_and_terminals_that_block_do_not_block_the_loop<S: Selector>() {
        let mut engine = Ready::<S>::new().unwrap();
        let read = |fd: &dyn Fn() -> RawFd, buf: &mut [u8]| Op::Read {
            fd: fd(),
            buf: buf.as_mut_ptr(),
            len: buf.len(),
            offset: Op::CURRENT_POSITION,
        };
        let mut buf = [0u8; 8];

        let (reader, mut writer) = std::io::pipe().unwrap();
        let op = read(&|| reader.as_raw_fd(), &mut buf);
        assert_eq!(submit(&mut engine, 1, op), Submitted::Pending);
        assert_quiet(&mut engine);
        writer.write_all(b"pipe").unwrap();
        assert_eq!(land(&mut engine, 1), [(1, 4)]);
        drop(writer);
        assert_eq!(result(&mut engine, op), 0);

        // A terminal has no non-blocking form at all.
        let (mut near, far) = (0, 0);
        let mut far = far;
        // SAFETY: openpty writes two descriptors; the rest may be null.
        let res = unsafe {
            libc::openpty(
                &raw mut near,
                &raw mut far,
                ptr::null_mut(),
                ptr::null_mut(),
                ptr::null_mut(),
            )
        };
        assert_eq!(res, 0);
        // SAFETY: they were just made.
        let (near, far) = unsafe { (File::from_raw_fd(near), OwnedFd::from_raw_fd(far)) };
        let op = read(&|| far.as_raw_fd(), &mut buf);
        assert_eq!(submit(&mut engine, 2, op), Submitted::Pending);
        assert_quiet(&mut engine);
        (&near).write_all(b"tty\n").unwrap();
        assert_eq!(land(&mut engine, 1), [(2, 4)]);

        let (near, far) = UnixStream::pair().unwrap();
        let op = read(&|| far.as_raw_fd(), &mut buf);
        assert_eq!(submit(&mut engine, 3, op), Submitted::Pending);
        (&near).write_all(b"sock").unwrap();
        assert_eq!(land(&mut engine, 1), [(3, 4)]);
        let write = Op::Write {
            fd: far.as_raw_fd(),
            buf: b"back".as_ptr(),
            len: 4,
            offset: Op::CURRENT_POSITION,
        };
        assert_eq!(result(&mut engine, write), 4);
        assert_eq!(result(&mut engine, Op::Shutdown { fd: far.as_raw_fd(), how: 2 }), 0);
        assert_eq!(result(&mut engine, write), -libc::EPIPE);
    }

    pub(super) fn dropping_waits_for_threads<S: Selector>() {
        let mut engine = Ready::<S>::new().unwrap();
        let file = File::open("/proc/self/exe").unwrap();
        // SAFETY: all zeros is one.
        let mut metadata: Vec<RawMetadata> =
            (0..64).map(|_| unsafe { std::mem::zeroed() }).collect();
        for (index, out) in (0..).zip(&mut metadata) {
            let op = Op::Metadata { fd: file.as_raw_fd(), out };
            assert_eq!(submit(&mut engine, index, op), Submitted::Pending);
        }
        drop(engine);
        // Each was either carried out or never will be.
        let sizes: Vec<u64> = metadata.iter().map(|one| one.stx_size).collect();
        std::thread::sleep(Duration::from_millis(20));
        assert!(metadata.iter().map(|one| one.stx_size).eq(sizes));
    }
}
