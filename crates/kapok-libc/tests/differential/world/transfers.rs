//! The calls that move bytes.

use std::ffi::c_int;
use std::mem::zeroed;
use std::ptr::null_mut;

use super::{Outcome, World, outcome};
use crate::names;

impl World {
    pub(super) fn send(&mut self, slot: usize, len: usize, flags: c_int) -> Outcome {
        let (fd, way) = (self.fds[slot], self.ways);
        if !self.has_room(slot, len) {
            return Outcome::default();
        }
        let bytes = self.bytes(len);
        // SAFETY: bytes that are there.
        let sent = outcome(|| unsafe {
            names::send(way, fd, bytes.as_ptr().cast_mut().cast(), len, flags) as i64
        });
        self.settle(slot, sent.result);
        sent
    }

    pub(super) fn recv(&mut self, slot: usize, len: usize, flags: c_int) -> Outcome {
        let (fd, way) = (self.fds[slot], self.ways);
        let mut bytes = vec![0u8; len];
        // SAFETY: room of that length.
        let mut got = outcome(|| unsafe {
            names::recv(way, fd, bytes.as_mut_ptr().cast(), len, flags) as i64
        });
        self.received(slot, &got, flags);
        got.bytes = bytes;
        got
    }

    pub(super) fn recv_from(&mut self, slot: usize, len: usize, flags: c_int) -> Outcome {
        let fd = self.fds[slot];
        let mut bytes = vec![0u8; len];
        // SAFETY: integers.
        let mut from: libc::sockaddr_storage = unsafe { zeroed() };
        let mut from_len = size_of_val(&from) as libc::socklen_t;
        let from_at = (&raw mut from).cast();
        // SAFETY: room of that length.
        let mut got = outcome(|| unsafe {
            let bytes = bytes.as_mut_ptr().cast();
            libc::recvfrom(fd, bytes, len, flags, from_at, &raw mut from_len) as i64
        });
        self.received(slot, &got, flags);
        got.bytes = bytes;
        got.details = vec![i64::from(from_len), i64::from(from.ss_family)];
        got
    }

    pub(super) fn send_msg(&mut self, slot: usize, len: usize, flags: c_int) -> Outcome {
        let fd = self.fds[slot];
        if !self.has_room(slot, len) {
            return Outcome::default();
        }
        let mut bytes = self.bytes(len);
        let mut parts = split(&mut bytes);
        let message = header(&mut parts);
        // SAFETY: a header of what is there.
        let sent = outcome(|| unsafe { libc::sendmsg(fd, &raw const message, flags) as i64 });
        self.settle(slot, sent.result);
        sent
    }

    pub(super) fn recv_msg(&mut self, slot: usize, len: usize, flags: c_int) -> Outcome {
        let fd = self.fds[slot];
        let mut bytes = vec![0u8; len];
        let mut parts = split(&mut bytes);
        let mut message = header(&mut parts);
        // SAFETY: a header of what is there.
        let mut got = outcome(|| unsafe { libc::recvmsg(fd, &raw mut message, flags) as i64 });
        self.received(slot, &got, flags);
        got.bytes = bytes;
        got.details = vec![i64::from(message.msg_flags), message.msg_controllen as i64];
        got
    }

    pub(super) fn recv_mmsg(
        &mut self,
        slot: usize,
        count: u32,
        flags: c_int,
        limited: bool,
    ) -> Outcome {
        let fd = self.fds[slot];
        let mut bytes = vec![vec![0u8; 40]; count as usize];
        let mut parts: Vec<_> = bytes.iter_mut().map(|bytes| split(bytes)).collect();
        let mut messages: Vec<_> = parts
            .iter_mut()
            .map(|parts| libc::mmsghdr { msg_hdr: header(parts), msg_len: 7 })
            .collect();
        let mut limit = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        let limit = if limited { &raw mut limit } else { null_mut() };
        // Of a stream's reads how many there are depends on how it was sent.
        // SAFETY: headers of what is there.
        let mut got = outcome(|| unsafe {
            i64::from(libc::recvmmsg(fd, messages.as_mut_ptr(), count, flags, limit))
        });
        let lens: i64 = messages
            .iter()
            .take(got.result.max(0) as usize)
            .map(|message| i64::from(message.msg_len))
            .sum();
        let total = Outcome { result: lens, ..Outcome::default() };
        self.received(slot, &total, flags);
        got.bytes = bytes.concat();
        got.details = messages.iter().map(|message| i64::from(message.msg_len)).collect();
        got
    }

    pub(super) fn send_mmsg(&mut self, slot: usize, count: u32, flags: c_int) -> Outcome {
        let fd = self.fds[slot];
        if !self.has_room(slot, 40 * count as usize) {
            return Outcome::default();
        }
        let mut bytes: Vec<_> = (0..count).map(|_| self.bytes(40)).collect();
        let mut parts: Vec<_> = bytes.iter_mut().map(|bytes| split(bytes)).collect();
        let mut messages: Vec<_> = parts
            .iter_mut()
            .map(|parts| libc::mmsghdr { msg_hdr: header(parts), msg_len: 7 })
            .collect();
        // SAFETY: headers of what is there.
        let mut sent = outcome(|| unsafe {
            i64::from(libc::sendmmsg(fd, messages.as_mut_ptr(), count, flags))
        });
        sent.details = messages.iter().map(|message| i64::from(message.msg_len)).collect();
        let total: i64 = sent.details.iter().take(sent.result.max(0) as usize).sum();
        self.settle(slot, total);
        sent
    }

    pub(super) fn write(&mut self, slot: usize, len: usize) -> Outcome {
        let fd = self.fds[slot];
        if !self.has_room(slot, len) {
            return Outcome::default();
        }
        let bytes = self.bytes(len);
        // SAFETY: bytes that are there.
        let sent = outcome(|| unsafe { libc::write(fd, bytes.as_ptr().cast(), len) as i64 });
        self.settle(slot, sent.result);
        sent
    }

    pub(super) fn writev(&mut self, slot: usize, len: usize) -> Outcome {
        let (fd, way) = (self.fds[slot], self.ways);
        if !self.has_room(slot, len) {
            return Outcome::default();
        }
        let mut bytes = self.bytes(len);
        let parts = split(&mut bytes);
        // SAFETY: parts of what is there.
        let sent = outcome(|| unsafe { names::writev(way, fd, parts.as_ptr(), 3) as i64 });
        self.settle(slot, sent.result);
        sent
    }

    pub(super) fn read(&mut self, slot: usize, len: usize) -> Outcome {
        let (fd, way) = (self.fds[slot], self.ways);
        let mut bytes = vec![0u8; len];
        // SAFETY: room of that length.
        let mut got =
            outcome(|| unsafe { names::read(way, fd, bytes.as_mut_ptr().cast(), len) as i64 });
        self.received(slot, &got, 0);
        got.bytes = bytes;
        got
    }

    pub(super) fn readv(&mut self, slot: usize, len: usize) -> Outcome {
        let (fd, way) = (self.fds[slot], self.ways);
        let mut bytes = vec![0u8; len];
        let parts = split(&mut bytes);
        // SAFETY: parts of what is there.
        let mut got = outcome(|| unsafe { names::readv(way, fd, parts.as_ptr(), 3) as i64 });
        self.received(slot, &got, 0);
        got.bytes = bytes;
        got
    }

    pub(super) fn pread(&self, slot: usize, len: usize, offset: i64) -> Outcome {
        let (fd, way) = (self.fds[slot], self.ways);
        let mut bytes = vec![0u8; len];
        // SAFETY: room of that length.
        let mut got = outcome(|| unsafe {
            names::pread(way, fd, bytes.as_mut_ptr().cast(), len, offset) as i64
        });
        got.bytes = bytes;
        got
    }

    pub(super) fn pwrite(&mut self, slot: usize, len: usize, offset: i64) -> Outcome {
        let (fd, way) = (self.fds[slot], self.ways);
        if !self.has_room(slot, len) {
            return Outcome::default();
        }
        let bytes = self.bytes(len);
        // SAFETY: bytes that are there.
        outcome(|| unsafe {
            names::pwrite(way, fd, bytes.as_ptr().cast_mut().cast(), len, offset) as i64
        })
    }
}

/// Three parts of a buffer, one of them empty.
fn split(bytes: &mut [u8]) -> [libc::iovec; 3] {
    let (one, other) = bytes.split_at_mut(bytes.len() / 3);
    [one, &mut [], other]
        .map(|part| libc::iovec { iov_base: part.as_mut_ptr().cast(), iov_len: part.len() })
}

fn header(parts: &mut [libc::iovec; 3]) -> libc::msghdr {
    // SAFETY: integers and pointers.
    let mut header: libc::msghdr = unsafe { zeroed() };
    header.msg_iov = parts.as_mut_ptr();
    header.msg_iovlen = parts.len();
    header
}
