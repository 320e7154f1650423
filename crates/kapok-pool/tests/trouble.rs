//! What goes wrong outside: no space, no descriptors, devices that fail, files that change while they are
//! read. Errors are clear, and what was reported as written and synced is there.

mod harness;

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use harness::{Scratch, block_on, eventually, has_uring, poll_once, skip};
use kapok_engine::sim::{Chance, Config as World, Faults};
use kapok_engine::{Config, Kind};
use kapok_pool::{Buffers, File, OpenOptions, Pool, Thresholds, Via, fs, raw_os_error};

fn pools() -> Vec<Pool> {
    let mut pools = vec![Pool::builder().engine(Kind::Epoll).via(Via::Thread).build().unwrap()];
    if has_uring() {
        pools.push(Pool::builder().build().unwrap());
        pools.push(Pool::builder().engine(Kind::Uring).via(Via::Thread).build().unwrap());
    }
    pools
}

fn scratch_path(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("kapok-pool-trouble-{name}-{}", std::process::id()))
}

/// Runs a command of the system, or says why it cannot be had.
fn system(program: &str, arguments: &[&str]) -> Result<String, String> {
    match Command::new(program).args(arguments).output() {
        Ok(output) if output.status.success() => {
            Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
        }
        Ok(output) => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

/// A file system of 1 MiB.
struct Small(PathBuf);

impl Small {
    fn new() -> Option<Small> {
        let path = scratch_path("tmpfs");
        std::fs::create_dir(&path).unwrap();
        let name = path.to_str().unwrap();
        match system("mount", &["-t", "tmpfs", "-o", "size=1m", "kapok", name]) {
            Ok(_) => Some(Small(path)),
            Err(why) => {
                std::fs::remove_dir(&path).unwrap();
                skip(&format!("no small tmpfs can be mounted here: {why}"));
                None
            }
        }
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = system("umount", &["-l", self.0.to_str().unwrap()]);
        let _ = std::fs::remove_dir(&self.0);
    }
}

#[test]
fn a_full_disk_is_told_and_takes_nothing_back() {
    let _turn = harness::turn();
    for pool in pools() {
        let Some(small) = Small::new() else { return };
        block_on(async {
            let path = small.0.join("log");
            let file = File::create(&pool, &path).await.unwrap();
            let mut written = 0u64;
            let error = loop {
                let chunk: Vec<u8> = (0..50_000).map(|at| (at as u64 + written) as u8).collect();
                let (outcome, _) = file.write_all_at(chunk, written).await;
                match outcome {
                    Ok(()) => file.sync_all().await.map(drop).unwrap(),
                    Err(error) => break error,
                }
                written += 50_000;
                assert!(written < 2 << 20, "the disk has no end");
            };
            assert_eq!(error.kind(), ErrorKind::StorageFull, "{error}");
            assert_eq!(raw_os_error(&error), Some(libc::ENOSPC), "{error}");
            // A part of the last chunk may have found room.
            let text = error.to_string();
            assert!(text.starts_with(&format!("write {} at ", path.display())), "{text}");
            let at = text.split_whitespace().nth(3).unwrap().trim_end_matches(':');
            assert!((written..written + 50_000).contains(&at.parse().unwrap()), "{text}");
            assert!(written >= 900_000, "full after {written}");
            let content = std::fs::read(&path).unwrap();
            for (at, byte) in content[..written as usize].iter().enumerate() {
                let chunk = at as u64 / 50_000 * 50_000;
                assert_eq!(*byte, (at as u64 % 50_000 + chunk) as u8, "byte {at}");
            }
            // With the name of the file where it is one operation.
            let error = fs::write(&pool, small.0.join("more"), vec![1; 1 << 20]).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::StorageFull);
            assert!(error.to_string().contains("more"), "{error}");
            let error = fs::copy(&pool, &path, small.0.join("copy")).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::StorageFull, "{error}");
            let error = file.allocate(0, 4 << 20).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::StorageFull);
            let said = format!("allocate space in {}: No space left", path.display());
            assert!(error.to_string().starts_with(&said), "{error}");
            // And there is room again.
            fs::remove_file(&pool, small.0.join("more")).await.unwrap();
            fs::remove_file(&pool, small.0.join("copy")).await.unwrap();
            file.set_len(0).await.unwrap();
            file.write_all_at(vec![7; 50_000], 0).await.0.unwrap();
        });
    }
}

/// A block device over a file.
struct Loop(String);

impl Loop {
    fn new(over: &Path) -> Option<Loop> {
        match system("losetup", &["--find", "--show", over.to_str().unwrap()]) {
            Ok(device) => Some(Loop(device)),
            Err(why) => {
                skip(&format!("no loop device can be had here: {why}"));
                None
            }
        }
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = system("losetup", &["--detach", &self.0]);
    }
}

#[test]
fn an_error_of_the_device_is_the_read_s_and_no_other_s() {
    let _turn = harness::turn();
    const HALF: u64 = 1 << 20;
    for pool in pools() {
        let backing = Scratch::new("loop", &vec![0; 2 * HALF as usize]);
        let Some(device) = Loop::new(&backing.0) else { return };
        block_on(async {
            let mut options = OpenOptions::new();
            let options = options.read(true).write(true).direct(true);
            let file = match options.open(&pool, &device.0).await {
                Ok(file) => file,
                Err(error) => {
                    skip(&format!("{} cannot be opened: {error}", device.0));
                    return;
                }
            };
            let buffers = Buffers::new(2, 64 << 10).unwrap();
            let mut lease = buffers.lease().await;
            lease.set_len(64 << 10);
            lease.fill(0xa5);
            let (written, lease) = file.write_all_at(lease, HALF - (64 << 10)).await;
            written.unwrap();
            drop(lease);
            file.sync_all().await.unwrap();
            let cut = std::fs::File::options().write(true).open(&backing.0).unwrap();
            cut.set_len(HALF).unwrap();
            let (read, lease) = file.read_at(buffers.lease().await, HALF + (64 << 10)).await;
            let error = read.unwrap_err();
            assert_eq!(raw_os_error(&error), Some(libc::EIO));
            let said = format!("read {} at {}: Input/output", device.0, HALF + (64 << 10));
            assert!(error.to_string().starts_with(&said), "{error}");
            drop(lease);
            // What was synced is there, and the ring goes on.
            let (read, lease) = file.read_exact_at(buffers.lease().await, HALF - (64 << 10)).await;
            read.unwrap();
            assert!(lease.iter().all(|&byte| byte == 0xa5));
        });
    }
}

#[test]
fn a_simulated_device_that_fails_loses_nothing_that_was_synced() {
    let _turn = harness::turn();
    let mut failed = 0;
    for seed in 0..20 {
        let mut world = World::new(seed);
        world.faults = Faults::NONE;
        world.faults.io_error = Chance::percent(20);
        world.faults.short_write = Chance::percent(30);
        world.faults.short_read = Chance::percent(30);
        world.disk_bytes = Some(40_000);
        let mut config = Config::default();
        config.simulation = Some(world);
        let builder = Pool::builder().engine(Kind::Sim).engine_config(config).via(Via::Thread);
        let pool = builder.build().unwrap();
        block_on(async {
            let mut options = OpenOptions::new();
            let options = options.read(true).write(true).create(true);
            let file = loop {
                match options.open(&pool, "/log").await {
                    Ok(file) => break file,
                    Err(error) => {
                        assert_eq!(error.to_string(), "open /log: Input/output error (os error 5)");
                    }
                }
            };
            let (mut synced, mut full) = (0u64, false);
            while !full && synced < 100 {
                let chunk = vec![synced as u8; 1000];
                let (written, _) = file.write_all_at(chunk, synced * 1000).await;
                let done = match written {
                    Ok(()) => file.sync_data().await.map(drop),
                    Err(error) => Err(error),
                };
                match done {
                    Ok(()) => synced += 1,
                    Err(error) if error.kind() == ErrorKind::StorageFull => full = true,
                    Err(error) => {
                        assert_eq!(raw_os_error(&error), Some(libc::EIO), "{error}");
                        assert!(error.to_string().contains(" /log"), "{error}");
                        failed += 1;
                    }
                }
            }
            assert!(full && synced >= 39, "{synced} were synced");
            for chunk in 0..synced {
                let content = loop {
                    let (read, content) = file.read_exact_at(vec![0xff; 1000], chunk * 1000).await;
                    match read {
                        Ok(()) => break content,
                        Err(error) => assert_eq!(raw_os_error(&error), Some(libc::EIO), "{error}"),
                    }
                };
                assert!(content.iter().all(|&byte| byte == chunk as u8), "seed {seed}");
            }
        });
        pool.shutdown(Duration::from_secs(1));
    }
    assert!(failed > 20, "the device never failed");
}

#[test]
fn a_file_that_is_cut_while_it_is_read_has_an_end() {
    let _turn = harness::turn();
    const LEN: usize = 1 << 20;
    for pool in pools() {
        let scratch = Scratch::new("cut", &vec![9; LEN]);
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let file = std::fs::File::options().write(true).open(&scratch.0).unwrap();
                let mut len = LEN as u64;
                while !over.load(Ordering::Relaxed) {
                    len = (len * 7 + 4099) % LEN as u64;
                    file.set_len(len).unwrap();
                }
            });
            let (mut short, mut whole) = (0, 0);
            block_on(async {
                let file = File::open(&pool, &scratch.0).await.unwrap();
                let began = std::time::Instant::now();
                while short < 50 || whole < 50 {
                    assert!(began.elapsed() < Duration::from_secs(60), "{short}, {whole}");
                    let (read, content) = file.read_exact_at(vec![1; 4096], 512 << 10).await;
                    match read {
                        Ok(()) => whole += 1,
                        Err(error) => {
                            assert_eq!(error.kind(), ErrorKind::UnexpectedEof, "{error}");
                            short += 1;
                        }
                    }
                    assert_eq!(content.len(), 4096);
                    let (count, content) = file.read_to_end(vec![1; 3]).await;
                    assert_eq!(count.unwrap() + 3, content.len());
                    assert!(content[3..].iter().all(|&byte| byte == 9 || byte == 0));
                }
            });
            over.store(true, Ordering::Relaxed);
        });
    }
}

/// The limit of descriptors as it was, when this is dropped, and what takes the numbers that nobody had.
struct Limit {
    before: libc::rlimit,
    taken: Vec<std::fs::File>,
}

impl Limit {
    /// So many descriptors more than there are now.
    fn lower(by: usize) -> Limit {
        // SAFETY: plain numbers, for which zero is a value.
        let mut before: libc::rlimit = unsafe { std::mem::zeroed() };
        // SAFETY: writes to a local.
        assert_eq!(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut before) }, 0);
        let lowered = libc::rlimit { rlim_cur: 1024.min(before.rlim_max), ..before };
        // SAFETY: reads a local.
        assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const lowered) }, 0);
        let mut taken = Vec::new();
        while let Ok(file) = std::fs::File::open("/dev/null") {
            taken.push(file);
        }
        taken.truncate(taken.len() - by);
        Limit { before, taken }
    }
}

impl Drop for Limit {
    fn drop(&mut self) {
        self.taken.clear();
        // SAFETY: reads a field.
        unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const self.before) };
    }
}

#[test]
fn at_the_limit_of_descriptors_opens_say_so_and_all_else_goes_on() {
    let _turn = harness::turn();
    for pool in pools() {
        let scratch = Scratch::new("limit", b"content");
        // Whatever opens something on its own account has done so.
        block_on(fs::read(&pool, &scratch.0)).unwrap();
        let limit = Limit::lower(20);
        block_on(async {
            let mut open = Vec::new();
            let error = loop {
                match File::open(&pool, &scratch.0).await {
                    Ok(file) => open.push(file),
                    Err(error) => break error,
                }
                assert!(open.len() < 100, "there is no limit");
            };
            assert!(error.to_string().contains("Too many open files"), "{error}");
            assert!(error.to_string().contains(scratch.0.to_str().unwrap()), "{error}");
            assert!(open.len() >= 10, "{} were opened", open.len());
            for file in &open {
                let (count, content) = file.read_to_end(Vec::new()).await;
                assert_eq!((count.unwrap(), &content[..]), (7, &b"content"[..]));
            }
            let error = fs::read_dir(&pool, "/proc").await.unwrap_err();
            assert!(error.to_string().contains("Too many open files"), "{error}");
            assert!(Pool::builder().build().is_err(), "a pool without descriptors");
            open.pop().unwrap().close().await.unwrap();
            File::open(&pool, &scratch.0).await.unwrap();
        });
        drop(limit);
    }
}

#[test]
fn a_pool_that_cannot_grow_serves_with_what_it_has() {
    let _turn = harness::turn();
    has_uring();
    let mut thresholds = Thresholds::default();
    thresholds.interval = Duration::from_millis(1);
    (thresholds.grow_at, thresholds.grow_after) = (16, 2);
    let pool = Pool::builder().threads_between(1..=4).scale(thresholds).via(Via::Thread);
    let pool = pool.build().unwrap();
    pool.nop().block().unwrap();
    let limit = Limit::lower(1);
    let deadline = std::time::Instant::now() + Duration::from_millis(200);
    let mut sleeps: Vec<_> = (0..200).map(|_| pool.sleep_until(deadline)).collect();
    sleeps.iter_mut().for_each(|sleep| assert!(poll_once(sleep).is_pending()));
    for sleep in sleeps {
        block_on(sleep).unwrap();
    }
    assert_eq!(pool.stats().serving(), 1);
    drop(limit);
    // It has not given up.
    let far = std::time::Instant::now() + Duration::from_secs(3600);
    let mut sleeps: Vec<_> = (0..200).map(|_| pool.sleep_until(far)).collect();
    sleeps.iter_mut().for_each(|sleep| assert!(poll_once(sleep).is_pending()));
    eventually("it grows", || pool.stats().serving() > 1);
    drop(sleeps);
}
