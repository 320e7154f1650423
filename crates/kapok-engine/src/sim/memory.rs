//! Memory that operations lend, as a list of regions: all reading and writing of it is here.

use std::mem::MaybeUninit;
use std::ptr;

use crate::op::{MAX_TRANSFER, Op};

/// One piece of lent memory.
#[derive(Clone, Copy, Debug)]
struct Region {
    start: *mut u8,
    len: usize,
}

/// The bytes that an operation moves from or to, in order.
#[derive(Clone, Debug, Default)]
pub(super) struct Regions(Vec<Region>);

impl Regions {
    /// The payload memory of `op`, cut to what one transfer moves.
    ///
    /// # Safety
    ///
    /// `op` is as [`Engine::submit`](crate::Engine::submit) wants it.
    pub(super) unsafe fn of(op: &Op) -> Regions {
        match *op {
            Op::Recv { buf, len, .. } | Op::Read { buf, len, .. } => Regions::one(buf, len),
            Op::Send { buf, len, .. } | Op::Write { buf, len, .. } => {
                Regions::one(buf.cast_mut(), len)
            }
            // SAFETY: the header is lent, and so is what it names.
            Op::RecvMsg { msg, .. } => unsafe { Regions::vectors(msg) },
            // SAFETY: as above.
            Op::SendMsg { msg, .. } => unsafe { Regions::vectors(msg) },
            _ => Regions::default(),
        }
    }

    fn one(start: *mut u8, len: usize) -> Regions {
        Regions(vec![Region { start, len: len.min(MAX_TRANSFER) }])
    }

    /// # Safety
    ///
    /// `msg` and its vectors are readable.
    unsafe fn vectors(msg: *const libc::msghdr) -> Regions {
        let mut left = MAX_TRANSFER;
        // SAFETY: the caller's promise: so many vectors are there.
        #[allow(clippy::unnecessary_cast, reason = "the field's type differs between platforms")]
        let regions = unsafe {
            (0..(*msg).msg_iovlen as usize).map(|at| {
                let vector = (*msg).msg_iov.add(at).read();
                let len = vector.iov_len.min(left);
                left -= len;
                Region { start: vector.iov_base.cast(), len }
            })
        };
        Regions(regions.collect())
    }

    pub(super) fn len(&self) -> usize {
        self.0.iter().map(|region| region.len).sum()
    }

    /// What is left after the first `count` bytes.
    pub(super) fn after(&self, count: usize) -> Regions {
        let mut skip = count;
        let rest = self.0.iter().map(|region| {
            let skipped = skip.min(region.len);
            skip -= skipped;
            // SAFETY: within the region.
            Region { start: unsafe { region.start.add(skipped) }, len: region.len - skipped }
        });
        Regions(rest.filter(|region| region.len > 0).collect())
    }

    /// Writes `bytes`, which fit.
    ///
    /// # Safety
    ///
    /// The memory is lent for writing.
    pub(super) unsafe fn put(&self, bytes: &[u8]) {
        let mut rest = bytes;
        for region in &self.0 {
            let (now, later) = rest.split_at(rest.len().min(region.len));
            // SAFETY: the caller's promise, and no more than the region holds.
            unsafe { ptr::copy_nonoverlapping(now.as_ptr(), region.start, now.len()) };
            rest = later;
        }
        debug_assert!(rest.is_empty(), "more bytes than room");
    }

    /// The first `count` bytes, or all if there are fewer.
    ///
    /// # Safety
    ///
    /// The memory is lent, and was written to: it is what a send reads, or what [`put`](Self::put)
    /// wrote.
    pub(super) unsafe fn get(&self, count: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(count.min(self.len()));
        for region in &self.0 {
            let part = region.len.min(count - bytes.len());
            if part > 0 {
                // SAFETY: the caller's promise.
                bytes.extend_from_slice(unsafe { std::slice::from_raw_parts(region.start, part) });
            }
        }
        bytes
    }

    /// Copies the memory aside, initialized or not.
    ///
    /// # Safety
    ///
    /// The memory is lent for writing.
    pub(super) unsafe fn save(&self) -> Vec<MaybeUninit<u8>> {
        let mut saved = vec![MaybeUninit::uninit(); self.len()];
        let mut at = 0;
        for region in &self.0 {
            // SAFETY: the region is readable as memory that need not be initialized, and the copy
            // has room for all regions.
            unsafe {
                ptr::copy_nonoverlapping(
                    region.start.cast::<MaybeUninit<u8>>(),
                    saved.as_mut_ptr().add(at),
                    region.len,
                );
            }
            at += region.len;
        }
        saved
    }

    /// Puts back what [`save`](Self::save) copied from these same regions.
    ///
    /// # Safety
    ///
    /// The memory is lent for writing.
    pub(super) unsafe fn restore(&self, saved: &[MaybeUninit<u8>]) {
        let mut rest = saved;
        for region in &self.0 {
            let (now, later) = rest.split_at(rest.len().min(region.len));
            // SAFETY: the caller's promise, and no more than the region holds.
            unsafe { ptr::copy_nonoverlapping(now.as_ptr(), region.start.cast(), now.len()) };
            rest = later;
        }
    }
}
