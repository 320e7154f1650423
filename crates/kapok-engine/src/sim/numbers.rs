//! Descriptor numbers: each is a real descriptor of the process, so that `OwnedFd`, `close`,
//! `setsockopt` and the process's own limit are as they are, and stands for an object of the world.

use std::collections::BTreeMap;
use std::os::fd::RawFd;

use crate::op::Op;
use crate::sim::world::Id;
use crate::sys::descriptors::{self, Epoch};
use crate::sys::{landed, perform};

/// What a number stands for.
struct Number {
    object: Id,
    /// Device and inode of what backs it: nobody else's has them.
    backing: Option<(u64, u64)>,
    /// The epoch in which it was last seen to be open.
    epoch: Epoch,
    /// The how-manieth number of this world it is.
    serial: u64,
}

#[derive(Default)]
pub(super) struct Numbers {
    open: BTreeMap<RawFd, Number>,
    /// Numbers that were seen to be closed because they turned up anew. They are told of with the
    /// others that were closed: which number is reused first is up to the process, and must not
    /// make a difference.
    reused: Vec<(RawFd, Number)>,
    serial: u64,
}

impl Numbers {
    /// The object that `fd` stands for.
    pub(super) fn object(&self, fd: RawFd) -> Option<Id> {
        self.open.get(&fd).map(|number| number.object)
    }

    pub(super) fn len(&self) -> usize {
        self.open.len()
    }

    /// A new number whose descriptor was just made.
    pub(super) fn insert(&mut self, fd: RawFd, object: Id) {
        self.serial += 1;
        let number = Number {
            object,
            backing: backing(fd),
            epoch: descriptors::epoch(fd),
            serial: self.serial,
        };
        self.reused.extend(self.open.insert(fd, number).map(|before| (fd, before)));
    }

    /// Forgets a number and says what it stood for.
    pub(super) fn remove(&mut self, fd: RawFd) -> Option<Id> {
        self.open.remove(&fd).map(|number| number.object)
    }

    /// The numbers that were closed without the engine, and what they stood for, in the order in
    /// which they were made.
    ///
    /// What one Kapok object owns is closed after it was retired, so nobody has closed a number
    /// whose epoch stands still. Of all others the kernel is asked.
    pub(super) fn closed(&mut self) -> Vec<(RawFd, Id)> {
        let mut gone = std::mem::take(&mut self.reused);
        let mut closed = Vec::new();
        for (&fd, number) in &mut self.open {
            let epoch = descriptors::epoch(fd);
            if epoch.is_owned() && epoch == number.epoch {
                continue;
            }
            if number.backing.is_none() || backing(fd) != number.backing {
                closed.push(fd);
            }
            number.epoch = epoch;
        }
        gone.extend(closed.into_iter().filter_map(|fd| Some((fd, self.open.remove(&fd)?))));
        gone.sort_unstable_by_key(|(_, number)| number.serial);
        gone.into_iter().map(|(fd, number)| (fd, number.object)).collect()
    }
}

/// A descriptor that backs a socket of this sort: connected to nothing, close-on-exec.
pub(super) fn back_socket(domain: i32, kind: i32, protocol: i32) -> i32 {
    // SAFETY: the operation names no memory.
    unsafe { perform(&Op::Socket { domain, kind, protocol }, false) }
}

/// Another descriptor of the same backing.
pub(super) fn back_duplicate(fd: RawFd) -> i32 {
    // SAFETY: the operation names no memory.
    unsafe { perform(&Op::Duplicate { fd }, false) }
}

pub(super) fn close(fd: RawFd) -> i32 {
    // SAFETY: the operation names no memory; the number is this world's.
    unsafe { perform(&Op::Close { fd }, false) }
}

fn backing(fd: RawFd) -> Option<(u64, u64)> {
    let stat = stat(fd).ok()?;
    #[allow(clippy::unnecessary_cast, reason = "the fields' types differ between platforms")]
    Some((stat.st_dev as u64, stat.st_ino as u64))
}

/// fstat(2).
pub(super) fn stat(fd: RawFd) -> Result<libc::stat, i32> {
    // SAFETY: zero is a value of this structure of integers, and fstat only writes it.
    let mut stat: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: writes to a local.
    match unsafe { libc::fstat(fd, &raw mut stat) } {
        0 => Ok(stat),
        res => Err(landed(res as isize)),
    }
}

/// Whether the next close of this socket is to be a reset: `SO_LINGER` with a time of zero.
pub(super) fn resets_on_close(fd: RawFd) -> bool {
    let mut linger = libc::linger { l_onoff: 0, l_linger: 0 };
    let mut len = size_of::<libc::linger>() as libc::socklen_t;
    // SAFETY: writes at most `len` bytes to a local of that size.
    let res = unsafe {
        libc::getsockopt(
            fd,
            libc::SOL_SOCKET,
            libc::SO_LINGER,
            (&raw mut linger).cast(),
            &raw mut len,
        )
    };
    res == 0 && linger.l_onoff != 0 && linger.l_linger == 0
}
