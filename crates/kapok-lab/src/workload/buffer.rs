//! Buffers that idle connections do not hold.
//!
//! A session takes a buffer when it is about to receive and gives it back when it has nothing in
//! it. Each thread keeps a few spares, so that in steady state nothing is allocated, and ten
//! thousand idle connections on an event loop share one buffer. Models that must name the memory
//! before they wait (blocking reads, futures, fibers) hold one a connection: that is their cost.

use std::cell::RefCell;

/// Spare buffers kept by a thread, and the largest one worth keeping.
const SPARES: usize = 64;
const SPARE_BYTES: usize = 256 * 1024;

thread_local! {
    static INPUTS: RefCell<Vec<Box<[u8]>>> = const { RefCell::new(Vec::new()) };
    static OUTPUTS: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

/// Bytes received and not yet used up: `bytes[start..end]`. Without bytes, it may hold no memory.
#[derive(Debug, Default)]
pub(super) struct Input {
    memory: Option<Box<[u8]>>,
    start: usize,
    end: usize,
}

impl Input {
    /// Room to receive into: what is left of `capacity` bytes, everything that is kept moved to
    /// the front. Empty only if `capacity` bytes are kept.
    #[inline]
    pub(super) fn space(&mut self, capacity: usize) -> &mut [u8] {
        let memory = self.memory.get_or_insert_with(|| {
            let spare = INPUTS.with_borrow_mut(Vec::pop);
            spare
                .filter(|spare| spare.len() == capacity)
                .unwrap_or_else(|| vec![0; capacity].into_boxed_slice())
        });
        if self.start > 0 {
            memory.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        &mut memory[self.end..]
    }

    /// `n` bytes were put into [`space`](Input::space).
    #[inline]
    pub(super) fn filled(&mut self, n: usize) {
        self.end += n;
        debug_assert!(self.memory.as_ref().is_some_and(|memory| self.end <= memory.len()));
    }

    #[inline]
    pub(super) fn bytes(&self) -> &[u8] {
        match &self.memory {
            Some(memory) => &memory[self.start..self.end],
            None => &[],
        }
    }

    /// The first `n` bytes are used up.
    #[inline]
    pub(super) fn consume(&mut self, n: usize) {
        debug_assert!(n <= self.end - self.start);
        self.start += n;
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
    }

    /// Gives the memory back if there is nothing in it.
    #[inline]
    pub(super) fn rest(&mut self) {
        if self.end > self.start {
            return;
        }
        if let Some(memory) = self.memory.take() {
            INPUTS.with_borrow_mut(|spares| {
                if spares.len() < SPARES && memory.len() <= SPARE_BYTES {
                    spares.push(memory);
                }
            });
        }
    }
}

impl Drop for Input {
    fn drop(&mut self) {
        self.start = self.end;
        self.rest();
    }
}

/// Bytes to send: `bytes[sent..]`. Without bytes, it holds no memory.
#[derive(Debug, Default)]
pub(super) struct Output {
    bytes: Vec<u8>,
    sent: usize,
}

impl Output {
    #[inline]
    pub(super) fn push(&mut self, bytes: &[u8]) {
        if self.bytes.capacity() == 0 {
            self.bytes = OUTPUTS.with_borrow_mut(Vec::pop).unwrap_or_default();
        }
        self.bytes.extend_from_slice(bytes);
    }

    #[inline]
    pub(super) fn pending(&self) -> &[u8] {
        &self.bytes[self.sent..]
    }

    #[inline]
    pub(super) fn sent(&mut self, n: usize) {
        self.sent += n;
        debug_assert!(self.sent <= self.bytes.len());
        if self.sent == self.bytes.len() {
            self.rest();
        }
    }

    fn rest(&mut self) {
        self.sent = 0;
        let mut bytes = std::mem::take(&mut self.bytes);
        if bytes.capacity() > 0 && bytes.capacity() <= SPARE_BYTES {
            bytes.clear();
            OUTPUTS.with_borrow_mut(|spares| {
                if spares.len() < SPARES {
                    spares.push(bytes);
                }
            });
        }
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        self.rest();
    }
}
