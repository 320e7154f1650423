//! Copies a tree of files, many at a time, like `cp -a`: `copy_tree [--jobs N] FROM TO`.
//!
//! Plain threads that block, each on operations of the pool. Holes stay holes; modes, times and, where
//! that is allowed, owners are kept; symbolic links are copied as such. A file that cannot be copied is
//! reported and the rest goes on; then the status is 1.

use std::collections::VecDeque;
use std::fs::FileTimes;
use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use kapok_pool::{File, Metadata, OpenOptions, Pool, block_on, fs};

const USAGE: &str = "usage: copy_tree [--jobs N] FROM TO";

/// What has been done so far.
#[derive(Default)]
struct Progress {
    files: AtomicU64,
    directories: AtomicU64,
    links: AtomicU64,
    bytes: AtomicU64,
    errors: AtomicU64,
}

impl Progress {
    fn say(&self) -> String {
        let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
        format!(
            "{} files, {} directories, {} links, {} bytes, {} errors",
            of(&self.files),
            of(&self.directories),
            of(&self.links),
            of(&self.bytes),
            of(&self.errors),
        )
    }

    /// Counts, or reports what went wrong.
    fn note(&self, what: io::Result<()>, count: &AtomicU64) {
        match what {
            Ok(()) => count.fetch_add(1, Ordering::Relaxed),
            Err(error) => {
                eprintln!("copy_tree: {error}");
                self.errors.fetch_add(1, Ordering::Relaxed)
            }
        };
    }
}

/// What goes from one path to another.
struct Job {
    from: PathBuf,
    to: PathBuf,
}

fn main() -> ExitCode {
    let (jobs, from, to) = match arguments(std::env::args().skip(1).collect()) {
        Ok(arguments) => arguments,
        Err(why) => {
            eprintln!("copy_tree: {why}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    let progress = Progress::default();
    if let Err(error) = copy(jobs, &from, &to, &progress) {
        eprintln!("copy_tree: {error}");
        return ExitCode::FAILURE;
    }
    println!("{}", progress.say());
    if progress.errors.load(Ordering::Relaxed) > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

fn arguments(mut given: VecDeque<String>) -> Result<(usize, PathBuf, PathBuf), String> {
    let mut jobs = 16;
    if given.front().is_some_and(|first| first == "--jobs") {
        given.pop_front();
        let number = given.pop_front().unwrap_or_default();
        jobs = match number.parse() {
            Ok(jobs @ 1..=1024) => jobs,
            _ => return Err(format!("--jobs {number:?}: a number from 1 to 1024 is wanted")),
        };
    }
    match <[String; 2]>::try_from(Vec::from(given)) {
        Ok([from, to]) => Ok((jobs, from.into(), to.into())),
        Err(given) => Err(format!("{} paths were given, not 2", given.len())),
    }
}

fn copy(jobs: usize, from: &Path, to: &Path, progress: &Progress) -> io::Result<()> {
    let pool = Pool::builder().build()?;
    refuse_the_inside(&pool, from, to)?;
    let over = AtomicBool::new(false);
    let (give, take) = sync_channel(4 * jobs);
    let take = Mutex::new(take);
    thread::scope(|scope| {
        if io::stderr().is_terminal() {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    eprint!("\r{}", progress.say());
                    thread::sleep(Duration::from_millis(200));
                }
                eprintln!();
            });
        }
        let workers: Vec<_> =
            (0..jobs).map(|_| scope.spawn(|| work(&pool, &take, progress))).collect();
        let made = walk(&pool, Job { from: from.into(), to: to.into() }, progress, &give);
        drop(give);
        for worker in workers {
            let _ = worker.join();
        }
        // Now that nothing is made in them any more, and the inner ones first: each file has set their
        // times, and a mode may forbid to make any.
        for (directory, metadata) in made.into_iter().rev() {
            let kept = block_on(async {
                let directory = File::open(&pool, &directory).await?;
                keep(&directory, &metadata).await
            });
            if kept.is_err() {
                progress.note(kept, &progress.directories);
            }
        }
        over.store(true, Ordering::Relaxed);
    });
    Ok(())
}

/// A copy into itself would never end.
fn refuse_the_inside(pool: &Pool, from: &Path, to: &Path) -> io::Result<()> {
    let root = block_on(fs::canonicalize(pool, from))?;
    let to = std::path::absolute(to)?;
    // What there is of the way to it. The root directory is there.
    let above = to.ancestors().find(|above| above.exists()).unwrap_or(Path::new("/"));
    if block_on(fs::canonicalize(pool, above))?.starts_with(&root) {
        let message = format!("{} is inside of {}", to.display(), from.display());
        return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
    }
    Ok(())
}

fn work(pool: &Pool, jobs: &Mutex<Receiver<Job>>, progress: &Progress) {
    loop {
        let job = jobs.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(job) = job else { return };
        progress.note(block_on(copy_file(pool, &job, progress)), &progress.files);
    }
}

/// Makes directories and links, and gives files on. Answers the directories, outer ones first.
fn walk(
    pool: &Pool,
    root: Job,
    progress: &Progress,
    give: &SyncSender<Job>,
) -> Vec<(PathBuf, Metadata)> {
    let (mut left, mut made) = (vec![root], Vec::new());
    while let Some(job) = left.pop() {
        let metadata = match block_on(fs::symlink_metadata(pool, &job.from)) {
            Ok(metadata) => metadata,
            Err(error) => {
                progress.note(Err(error), &progress.files);
                continue;
            }
        };
        if metadata.is_file() {
            // The other ends are there until this one is gone.
            let _ = give.send(job);
        } else if metadata.is_symlink() {
            progress.note(block_on(copy_link(pool, &job)), &progress.links);
        } else if metadata.is_dir() {
            progress.note(block_on(enter(pool, &job, &mut left)), &progress.directories);
            made.push((job.to, metadata));
        } else {
            let message = format!("{} is no file, directory or link", job.from.display());
            progress.note(Err(io::Error::other(message)), &progress.files);
        }
    }
    made
}

async fn enter(pool: &Pool, job: &Job, left: &mut Vec<Job>) -> io::Result<()> {
    fs::create_dir_all(pool, &job.to).await?;
    let mut entries = fs::read_dir(pool, &job.from).await?;
    while let Some(entry) = entries.next().await {
        let entry = entry?;
        left.push(Job { from: entry.path(), to: job.to.join(entry.file_name()) });
    }
    Ok(())
}

async fn copy_link(pool: &Pool, job: &Job) -> io::Result<()> {
    let target = fs::read_link(pool, &job.from).await?;
    fs::symlink(pool, target, &job.to).await
}

async fn copy_file(pool: &Pool, job: &Job, progress: &Progress) -> io::Result<()> {
    let from = File::open(pool, &job.from).await?;
    let metadata = from.metadata().await?;
    // Nobody else is to read it before it has its mode.
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    let to = options.open(pool, &job.to).await?;
    let copied = async {
        let bytes = from.copy_all(&to).await?;
        progress.bytes.fetch_add(bytes, Ordering::Relaxed);
        keep(&to, &metadata).await?;
        // What a network file system could not write it says now.
        to.close().await
    };
    copied.await.map_err(|error| {
        io::Error::new(error.kind(), format!("copy {}: {error}", job.from.display()))
    })
}

/// Gives what is open the owner, the mode and the times of what it is a copy of.
async fn keep(to: &File, metadata: &Metadata) -> io::Result<()> {
    match to.set_owner(Some(metadata.uid()), Some(metadata.gid())).await {
        // Only root may give files away.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {}
        outcome => outcome?,
    }
    to.set_mode(metadata.mode() & 0o7777).await?;
    let times =
        FileTimes::new().set_accessed(metadata.accessed()).set_modified(metadata.modified());
    to.set_times(times).await
}
