//! The examples, run as programs.

use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, SystemTime};

/// The example's program. `cargo test -p kapok-pool` builds the examples beside the tests.
fn program(example: &str) -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let program = test.ancestors().nth(2).unwrap().join("examples").join(example);
    let missing = format!("{}: `cargo build -p kapok-pool --examples` makes it", program.display());
    assert!(program.exists(), "{missing}");
    program
}

/// A directory of its own, gone with it.
struct Directory(PathBuf);

impl Directory {
    fn new(name: &str) -> Directory {
        let path = std::env::temp_dir().join(format!("kapok-pool-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir(&path).unwrap();
        Directory(path)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn copy_tree(arguments: &[&Path]) -> Output {
    Command::new(program("copy_tree")).args(arguments).output().unwrap()
}

fn set_modified(path: &Path, time: SystemTime) {
    std::fs::File::open(path).unwrap().set_modified(time).unwrap();
}

/// Everything below, with what is kept of it.
fn seen(root: &Path) -> Vec<(PathBuf, u32, i64, i64, Vec<u8>)> {
    let (mut all, mut left) = (Vec::new(), vec![root.to_path_buf()]);
    while let Some(path) = left.pop() {
        let metadata = std::fs::symlink_metadata(&path).unwrap();
        let content = if metadata.is_dir() {
            left.extend(std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            Vec::new()
        } else if metadata.is_symlink() {
            std::fs::read_link(&path).unwrap().into_os_string().into_encoded_bytes()
        } else {
            std::fs::read(&path).unwrap()
        };
        let times =
            if metadata.is_symlink() { (0, 0) } else { (metadata.mtime(), metadata.mtime_nsec()) };
        let name = path.strip_prefix(root).unwrap().to_path_buf();
        all.push((name, metadata.mode(), times.0, times.1, content));
    }
    all.sort();
    all
}

#[test]
fn a_tree_is_copied_with_holes_links_modes_and_times() {
    let directory = Directory::new("copy-tree");
    let (from, to) = (directory.0.join("from"), directory.0.join("to"));
    std::fs::create_dir_all(from.join("deep/deeper/deepest")).unwrap();
    let then = SystemTime::UNIX_EPOCH + Duration::new(1_500_000_000, 987_654_000);
    let mut bytes = 0;
    for number in 0..120usize {
        let below = ["", "deep", "deep/deeper"][number % 3];
        let path = from.join(below).join(format!("file {number}"));
        let content: Vec<u8> = (0..number * 997).map(|at| (at * number) as u8).collect();
        bytes += content.len();
        std::fs::write(&path, content).unwrap();
        let mode = 0o600 + number as u32 % 64;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        set_modified(&path, then + Duration::from_secs(number as u64));
    }
    let sparse = std::fs::File::create(from.join("sparse")).unwrap();
    sparse.set_len(64 << 20).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&sparse, b"island", 32 << 20).unwrap();
    sparse.sync_all().unwrap();
    symlink("nowhere", from.join("deep/dangling")).unwrap();
    symlink("../sparse", from.join("deep/link")).unwrap();
    let read_only = from.join("deep/deeper/deepest");
    std::fs::set_permissions(&read_only, std::fs::Permissions::from_mode(0o555)).unwrap();
    for path in ["deep/deeper/deepest", "deep/deeper", "deep", ""] {
        set_modified(&from.join(path), then);
    }
    let expected = seen(&from);

    let output = copy_tree(&[&from, &to]);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{output:?}");
    let bytes = bytes + (64 << 20);
    let summary = format!("121 files, 4 directories, 2 links, {bytes} bytes, 0 errors\n");
    assert_eq!(said, summary);
    assert_eq!(seen(&to), expected);
    let blocks = std::fs::metadata(to.join("sparse")).unwrap().blocks();
    assert!(blocks * 512 < 8 << 20, "the holes were filled: {blocks} blocks");

    // What cannot be copied is told, and the rest is there.
    let status = Command::new("mkfifo").arg(from.join("deep/pipe")).status().unwrap();
    assert!(status.success());
    let again = directory.0.join("again");
    let output = copy_tree(&[Path::new("--jobs"), Path::new("3"), &from, &again]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(complaint.contains("deep/pipe"), "{complaint}");
    assert_eq!(complaint.lines().count(), 1, "{complaint}");
    let files = |all: Vec<(PathBuf, u32, i64, i64, Vec<u8>)>| {
        all.into_iter().filter(|(_, mode, ..)| mode & libc::S_IFMT == libc::S_IFREG)
    };
    assert!(files(seen(&again)).eq(files(expected)));

    for (arguments, code, word) in [
        (vec![from.as_path()], 2, "1 paths"),
        (vec![Path::new("--jobs"), Path::new("0"), &from, &to], 2, "1024"),
        (vec![directory.0.as_path(), &from.join("deep/inside/new")], 1, "inside"),
        (vec![Path::new("/nowhere/at/all"), &to], 1, "/nowhere/at/all"),
    ] {
        let output = copy_tree(&arguments);
        let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{complaint}");
        assert!(complaint.contains(word), "{complaint}");
    }
}
