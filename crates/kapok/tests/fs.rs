//! Files: what std's do, on fibers.

mod harness;

use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::PathBuf;
use std::time::SystemTime;

use harness::{Numbers, Watchdog, open_descriptors, run, run_on};
use kapok::fs::{self, File, OpenOptions};

/// A directory of its own, gone with the value.
struct Directory(PathBuf);

impl Directory {
    fn new(name: &str) -> Directory {
        let path = std::env::temp_dir().join(format!("kapok-fs-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Directory(path)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn files_are_opened_as_asked() {
    run(|| {
        let directory = Directory::new("open");
        let path = directory.path("file");
        let error = File::open(&path).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
        assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
        OpenOptions::new().write(true).create_new(true).open(&path).unwrap();
        let error = OpenOptions::new().write(true).create_new(true).open(&path).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::AlreadyExists);
        assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
        fs::write(&path, "some text").unwrap();
        let mut read_only = File::open(&path).unwrap();
        assert_eq!(read_only.write(b"x").unwrap_err().raw_os_error(), Some(libc::EBADF));
        let mut write_only = OpenOptions::new().write(true).open(&path).unwrap();
        assert_eq!(write_only.read(&mut [0; 1]).unwrap_err().raw_os_error(), Some(libc::EBADF));
        assert_eq!(fs::read(&path).unwrap(), b"some text", "opening to write cuts nothing off");
        OpenOptions::new().write(true).truncate(true).open(&path).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"");
        // As std: nothing asked for, and what does not go together.
        assert_eq!(OpenOptions::new().open(&path).unwrap_err().kind(), ErrorKind::InvalidInput);
        let error = OpenOptions::new().read(true).truncate(true).open(&path).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        let error = OpenOptions::new().read(true).create(true).open(&path).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        let error = File::open("a\0b").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        let error = File::create(&directory.0).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::IsADirectory, "{error}");
    });
}

#[test]
fn transfers_at_a_place_leave_the_cursor_alone() {
    run(|| {
        let directory = Directory::new("at");
        let path = directory.path("file");
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(&path)
            .unwrap();
        file.write_all(b"0123456789").unwrap();
        assert_eq!(file.write_at(b"ab", 2).unwrap(), 2);
        file.write_all_at(b"cd", 12).unwrap();
        let mut buf = [0; 4];
        file.read_exact_at(&mut buf, 1).unwrap();
        assert_eq!(&buf, b"1ab4");
        assert_eq!(file.read_at(&mut buf, 12).unwrap(), 2);
        assert_eq!(file.read_at(&mut buf, 100).unwrap(), 0);
        let error = file.read_exact_at(&mut buf, 12).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::UnexpectedEof);
        assert_eq!(file.read_at(&mut buf, u64::MAX).unwrap_err().kind(), ErrorKind::InvalidInput);
        // The cursor is where the first write left it.
        assert_eq!(file.stream_position().unwrap(), 10);
        let mut rest = Vec::new();
        file.read_to_end(&mut rest).unwrap();
        assert_eq!(rest, b"\0\0cd");
        assert_eq!(file.seek(SeekFrom::Start(3)).unwrap(), 3);
        assert_eq!(file.seek(SeekFrom::Current(-1)).unwrap(), 2);
        file.read_exact(&mut buf[..2]).unwrap();
        assert_eq!(&buf[..2], b"ab");
        assert_eq!(file.seek(SeekFrom::End(-2)).unwrap(), 12);
        assert_eq!(file.seek(SeekFrom::End(-100)).unwrap_err().kind(), ErrorKind::InvalidInput);
        // Clones share the cursor, and std's type has it too.
        let mut clone = file.try_clone().unwrap();
        clone.seek(SeekFrom::Start(1)).unwrap();
        let mut std = std::fs::File::from(file);
        std.read_exact(&mut buf[..1]).unwrap();
        assert_eq!(buf[0], b'1');
        let mut back = File::from(std);
        assert_eq!(back.stream_position().unwrap(), 2);
    });
}

#[test]
fn appending_goes_to_the_end() {
    run_on(2, || {
        let directory = Directory::new("append");
        let path = directory.path("log");
        fs::write(&path, "begin\n").unwrap();
        kapok::scope(|scope| {
            for number in 0..20 {
                let path = &path;
                scope.spawn(move || {
                    let mut log = OpenOptions::new().append(true).create(true).open(path).unwrap();
                    for _ in 0..10 {
                        log.write_all(format!("line of {number:02}\n").as_bytes()).unwrap();
                        kapok::yield_now();
                    }
                });
            }
        });
        let text = String::from_utf8(fs::read(&path).unwrap()).unwrap();
        let mut lines = text.lines();
        assert_eq!(lines.next(), Some("begin"));
        let mut counts = [0; 20];
        for line in lines {
            counts[line.strip_prefix("line of ").unwrap().parse::<usize>().unwrap()] += 1;
        }
        assert_eq!(counts, [10; 20]);
    });
}

#[test]
fn lengths_and_metadata_are_those_of_the_file() {
    run(|| {
        let directory = Directory::new("metadata");
        let path = directory.path("file");
        let file = File::create(&path).unwrap();
        file.set_len(10_000).unwrap();
        let metadata = file.metadata().unwrap();
        assert!(metadata.is_file() && !metadata.is_dir());
        assert_eq!((metadata.len(), metadata.mode() & 0o200), (10_000, 0o200));
        let age = SystemTime::now().duration_since(metadata.modified()).unwrap_or_default();
        assert!(age.as_secs() < 600, "{age:?}");
        file.set_len(3).unwrap();
        file.sync_data().unwrap();
        file.sync_all().unwrap();
        assert_eq!(fs::read(&path).unwrap(), [0; 3]);
        assert!(File::open(&directory.0).unwrap().metadata().unwrap().is_dir());
    });
}

#[test]
fn whole_files_are_read_and_written() {
    run(|| {
        let directory = Directory::new("whole");
        let before = open_descriptors_of_files();
        let mut numbers = Numbers(1);
        for size in [0, 1, 4095, 4096, 1 << 20, (3 << 20) + 17] {
            let mut bytes = vec![0; size];
            numbers.fill(&mut bytes);
            let path = directory.path("file");
            fs::write(&path, &bytes).unwrap();
            assert!(fs::read(&path).unwrap() == bytes, "{size} bytes");
            assert!(std::fs::read(&path).unwrap() == bytes, "{size} bytes");
        }
        assert_eq!(open_descriptors_of_files(), before);
        // A file that does not say how long it is.
        let status = String::from_utf8(fs::read("/proc/self/status").unwrap()).unwrap();
        assert!(status.contains("VmRSS"), "{status}");
        let missing = directory.path("no/such/directory");
        for error in [fs::read(&missing).unwrap_err(), fs::write(&missing, "x").unwrap_err()] {
            assert_eq!(error.kind(), ErrorKind::NotFound);
            assert!(error.to_string().contains("no/such/directory"), "{error}");
        }
    });
}

/// Descriptors of this test's own directory: others come and go beside it.
fn open_descriptors_of_files() -> usize {
    assert!(open_descriptors() > 0);
    let links = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
    let targets = links.filter_map(|link| std::fs::read_link(link.path()).ok());
    targets.filter(|target| target.to_string_lossy().contains("-whole")).count()
}

#[test]
fn a_full_device_is_an_error() {
    run(|| {
        let mut full = OpenOptions::new().write(true).open("/dev/full").unwrap();
        let error = full.write_all(b"no room").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::StorageFull, "{error}");
        let error = fs::write("/dev/full", "no room").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::StorageFull, "{error}");
    });
}

#[test]
fn many_fibers_read_one_file_at_once() {
    run_on(2, || {
        const BLOCK: usize = 4096;
        let directory = Directory::new("concurrent");
        let path = directory.path("file");
        let mut bytes = vec![0; 256 * BLOCK];
        Numbers(2).fill(&mut bytes);
        fs::write(&path, &bytes).unwrap();
        let file = File::open(&path).unwrap();
        kapok::scope(|scope| {
            for fiber in 0..64 {
                let (file, bytes) = (&file, &bytes);
                scope.spawn(move || {
                    let mut numbers = Numbers(fiber);
                    let mut buf = [0; BLOCK];
                    for _ in 0..50 {
                        let offset = numbers.below(255 * BLOCK);
                        file.read_exact_at(&mut buf, offset as u64).unwrap();
                        assert!(buf == bytes[offset..offset + BLOCK]);
                    }
                });
            }
        });
    });
}

#[test]
fn files_work_on_plain_threads() {
    let _watchdog = Watchdog::new();
    let directory = Directory::new("thread");
    let path = directory.path("file");
    fs::write(&path, "on a thread").unwrap();
    let mut text = String::new();
    File::open(&path).unwrap().read_to_string(&mut text).unwrap();
    assert_eq!(text, "on a thread");
}
