//! One operation that waits for events again and again.

use std::fmt;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use kapok_engine::entry::Entry;
use kapok_engine::{Op, Readiness};

use crate::cell::Landed;
use crate::descriptor::{Descriptor, Held};
use crate::operation::Operation;
use crate::pool::Pool;
use crate::request::Request;
use crate::via::Via;

/// What was seen and not told yet, and who wants to know.
#[derive(Default)]
struct Seen(Mutex<(i16, Option<Waker>)>);

impl Seen {
    fn lock(&self) -> MutexGuard<'_, (i16, Option<Waker>)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, bits: i32) {
        let mut seen = self.lock();
        seen.0 |= bits as i16;
        let waker = seen.1.take();
        drop(seen);
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

struct PollMany<D: Descriptor> {
    entry: Entry,
    held: Held<D>,
    events: Readiness,
    seen: Arc<Seen>,
}

// SAFETY: the entry is a part of the request and names no memory, and the clone keeps its descriptor open.
unsafe impl<D: Descriptor> Request for PollMany<D> {
    type Output = io::Result<()>;
    const QUIET: bool = true;

    fn op(&mut self) -> Op {
        self.entry = Entry::poll_multishot(self.held.raw(), u32::from(self.events.0 as u16));
        Op::Entry { entry: &raw const self.entry }
    }

    fn more(&self, landed: Landed, _bytes: &[u8]) -> bool {
        self.seen.add(landed.res.max(0));
        true
    }

    fn finish(self, landed: io::Result<Landed>) -> io::Result<()> {
        landed.map(|landed| self.seen.add(landed.res))
    }
}

/// Events of a descriptor as they come, by one operation of a ring (a multishot poll), which is begun again
/// when it ends; off io_uring by one poll after the other. Made by [`Pool::watch`].
///
/// It tells of news, and of what holds when it begins: take all there is before you ask again. It takes
/// nothing out of the descriptor, so there is nothing to be lost by dropping it.
pub struct Watch<D: Descriptor> {
    pool: Pool,
    descriptor: D,
    events: Readiness,
    seen: Arc<Seen>,
    operation: Option<Operation<'static, PollMany<D>>>,
}

impl<D: Descriptor> fmt::Debug for Watch<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fd = self.descriptor.raw();
        f.debug_struct("Watch").field("fd", &fd).field("events", &self.events).finish()
    }
}

impl<D: Descriptor> Watch<D> {
    pub(crate) fn new(pool: &Pool, descriptor: &D, events: Readiness) -> Watch<D> {
        let (pool, descriptor) = (pool.clone(), descriptor.clone());
        Watch { pool, descriptor, events, seen: Arc::default(), operation: None }
    }

    /// What has come since the last time. Dropped, the future loses nothing.
    ///
    /// # Errors
    ///
    /// What poll(2) says.
    pub async fn next(&mut self) -> io::Result<Readiness> {
        poll_fn(|context| self.poll_next(context)).await
    }

    /// [`next`](Watch::next), to be polled.
    ///
    /// # Errors
    ///
    /// As for `next`.
    pub fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<io::Result<Readiness>> {
        loop {
            {
                let mut seen = self.seen.lock();
                match std::mem::take(&mut seen.0) {
                    0 => seen.1 = Some(context.waker().clone()),
                    bits => return Poll::Ready(Ok(Readiness(bits))),
                }
            }
            let operation = self.operation.get_or_insert_with(|| {
                let request = PollMany {
                    entry: Entry::default(),
                    held: Held::new(self.descriptor.clone()),
                    events: self.events,
                    seen: Arc::clone(&self.seen),
                };
                self.pool.run(request).via(Via::Thread).owned()
            });
            let Poll::Ready(ended) = Pin::new(operation).poll(context) else {
                return Poll::Pending;
            };
            self.operation = None;
            ended?;
        }
    }
}
