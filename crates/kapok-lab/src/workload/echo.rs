//! Echo: every byte comes back.

use std::sync::Arc;

use super::buffer::Input;
use super::{Want, Workload};

/// One buffer is input and output: what was received is what is pending.
#[derive(Debug)]
pub struct Echo {
    workload: Arc<Workload>,
    buffer: Input,
    ended: bool,
    /// The backend has to be asked before what was received goes back.
    asking: bool,
    requests: u64,
}

impl Echo {
    pub(super) fn new(workload: Arc<Workload>) -> Echo {
        Echo { workload, buffer: Input::default(), ended: false, asking: false, requests: 0 }
    }

    #[inline]
    pub(super) fn want(&self) -> Want {
        if self.asking {
            Want::Ask
        } else if !self.buffer.bytes().is_empty() {
            Want::Write
        } else if self.ended {
            Want::Close
        } else {
            Want::Read
        }
    }

    #[inline]
    pub(super) fn space(&mut self) -> &mut [u8] {
        self.buffer.space(self.workload.buffer_bytes)
    }

    #[inline]
    pub(super) fn received(&mut self, n: usize) {
        self.buffer.filled(n);
        self.requests += 1;
        self.asking = self.workload.asks;
        self.workload.burn.burn();
    }

    #[inline]
    pub(super) fn pending(&self) -> &[u8] {
        self.buffer.bytes()
    }

    #[inline]
    pub(super) fn sent(&mut self, n: usize) {
        self.buffer.consume(n);
    }

    pub(super) fn answered(&mut self) {
        self.asking = false;
    }

    pub(super) fn ended(&mut self) {
        self.ended = true;
    }

    #[inline]
    pub(super) fn rest(&mut self) {
        self.buffer.rest();
    }

    pub(super) fn requests(&self) -> u64 {
        self.requests
    }
}
