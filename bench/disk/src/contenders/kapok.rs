//! Kapok's pool: from fibers, and from futures on one thread without a runtime.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Wake, Waker};
use std::thread::Thread;

use kapok::Runtime;
use kapok::pool::{OpenFile, Pool, Via};
use kapok_lab::disk::Workload;

use crate::job::{Job, Meter};

/// One fiber for each in flight.
pub(crate) fn fibers(job: &Job, meter: &Meter, via: Via) -> io::Result<()> {
    let (job, meter) = (job.clone(), meter.clone());
    Runtime::builder().threads(1).build()?.run(move || {
        let pool = super::pool(&job.tuning, via)?;
        let file = match job.workload() {
            Workload::Nop => None,
            _ => Some(OpenFile::from(job.open()?)),
        };
        let fibers: Vec<_> = (0..job.depth)
            .map(|worker| {
                let (job, meter) = (job.clone(), meter.clone());
                let (pool, file) = (pool.clone(), file.clone());
                kapok::spawn_local(move || work(&job, &meter, worker, &pool, file.as_ref()))
            })
            .collect();
        for fiber in fibers {
            fiber.join().map_err(|error| io::Error::other(error.to_string()))??;
        }
        Ok(())
    })
}

/// One after the other, from a fiber or a thread.
pub(super) fn work(
    job: &Job,
    meter: &Meter,
    worker: usize,
    pool: &Pool,
    file: Option<&OpenFile>,
) -> io::Result<()> {
    let (mut course, mut buffer) = (job.course(worker), vec![0; job.block]);
    let workload = job.workload();
    loop {
        let offset = course.draw();
        match file {
            None => drop(pool.nop().block()?),
            Some(file) if workload.writes() => {
                let (moved, back) = pool.write_at(file, buffer, offset).block();
                buffer = back;
                course.check_len(moved?);
                if workload == Workload::Fsync {
                    pool.sync(file, true).block()?;
                }
            }
            Some(file) => {
                let (moved, back) = pool.read_at(file, buffer, offset).block();
                buffer = back;
                course.check(&buffer, moved?, offset);
            }
        }
        if !meter.more(worker, 1) {
            return Ok(());
        }
    }
}

/// A future for each in flight, on a thread that does nothing else: the pool with the least beside it.
pub(crate) fn futures(job: &Job, meter: &Meter, via: Via) -> io::Result<()> {
    let pool = super::pool(&job.tuning, via)?;
    let file = match job.workload() {
        Workload::Nop => None,
        _ => Some(OpenFile::from(job.open()?)),
    };
    let executor = Arc::new(Executor::default());
    let mut tasks: Vec<Pin<Box<dyn Future<Output = io::Result<()>>>>> = Vec::new();
    let mut wakers = Vec::new();
    for worker in 0..job.depth {
        let (job, meter) = (job.clone(), meter.clone());
        let (pool, file) = (pool.clone(), file.clone());
        tasks.push(Box::pin(go(job, meter, worker, pool, file)));
        let task = Arc::new(Task { worker, executor: Arc::clone(&executor) });
        wakers.push(Waker::from(task));
    }
    let (mut running, mut woken) = (job.depth, (0..job.depth).collect::<Vec<_>>());
    while running > 0 {
        for worker in woken.drain(..) {
            let polled = tasks[worker].as_mut().poll(&mut Context::from_waker(&wakers[worker]));
            if let std::task::Poll::Ready(result) = polled {
                result?;
                running -= 1;
            }
        }
        if running > 0 {
            executor.wait(&mut woken);
        }
    }
    super::tell(&pool);
    Ok(())
}

/// One after the other, in a task.
pub(super) async fn go(
    job: Job,
    meter: Meter,
    worker: usize,
    pool: Pool,
    file: Option<OpenFile>,
) -> io::Result<()> {
    let (mut course, mut buffer) = (job.course(worker), vec![0; job.block]);
    let workload = job.workload();
    loop {
        let offset = course.draw();
        match &file {
            None => drop(pool.nop().await?),
            Some(file) if workload.writes() => {
                let (moved, back) = pool.write_at(file, buffer, offset).await;
                buffer = back;
                course.check_len(moved?);
                if workload == Workload::Fsync {
                    pool.sync(file, true).await?;
                }
            }
            Some(file) => {
                let (moved, back) = pool.read_at(file, buffer, offset).await;
                buffer = back;
                course.check(&buffer, moved?, offset);
            }
        }
        if !meter.more(worker, 1) {
            return Ok(());
        }
    }
}

/// Who was woken, a bit each.
#[derive(Default)]
struct Executor {
    woken: [AtomicU64; 4],
    sleeper: OnceLock<Thread>,
    asleep: AtomicBool,
}

impl Executor {
    fn take(&self, woken: &mut Vec<usize>) {
        for (at, word) in self.woken.iter().enumerate() {
            let mut bits = match word.load(Ordering::Relaxed) {
                0 => 0,
                _ => word.swap(0, Ordering::AcqRel),
            };
            while bits != 0 {
                woken.push(at * 64 + bits.trailing_zeros() as usize);
                bits &= bits - 1;
            }
        }
    }

    fn wait(&self, woken: &mut Vec<usize>) {
        self.sleeper.get_or_init(std::thread::current);
        loop {
            self.take(woken);
            if !woken.is_empty() {
                return;
            }
            self.asleep.store(true, Ordering::SeqCst);
            fence(Ordering::SeqCst);
            if self.woken.iter().all(|word| word.load(Ordering::Relaxed) == 0) {
                std::thread::park();
            }
            self.asleep.store(false, Ordering::SeqCst);
        }
    }
}

struct Task {
    worker: usize,
    executor: Arc<Executor>,
}

impl Wake for Task {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let Executor { woken, sleeper, asleep } = &*self.executor;
        woken[self.worker / 64].fetch_or(1 << (self.worker % 64), Ordering::AcqRel);
        fence(Ordering::SeqCst);
        if asleep.load(Ordering::Relaxed)
            && asleep.swap(false, Ordering::SeqCst)
            && let Some(sleeper) = sleeper.get()
        {
            sleeper.unpark();
        }
    }
}
