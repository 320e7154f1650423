//! Groups of buffers that the kernel takes from. (A ring of buffers is cheaper:
//! [`Uring::add_buffers`](crate::uring::Uring::add_buffers).)

use super::table::{Elsewhere, operations};
use super::{Entry, abi, address};

impl Entry {
    /// Lends `count` buffers of `len` bytes each, one behind the other, under the numbers from
    /// `first` on. Lands with 0.
    ///
    /// The memory stays lent after that: each buffer until a landing names it, or it is
    /// [removed](Entry::remove_buffers), or the ring is gone.
    pub fn provide_buffers(addr: *mut u8, len: u32, count: u16, group: u16, first: u16) -> Entry {
        let (count, first) = (i32::from(count), u64::from(first));
        let entry = Entry::new(abi::PROVIDE_BUFFERS, count, address(addr), len, first);
        Entry { buf_group: group, ..entry }
    }

    /// Takes up to `count` buffers back. Lands with how many.
    pub fn remove_buffers(count: u16, group: u16) -> Entry {
        let entry = Entry::new(abi::REMOVE_BUFFERS, i32::from(count), 0, 0, 0);
        Entry { buf_group: group, ..entry }
    }
}

operations! {
    provide_buffers = provide_buffers, PROVIDE_BUFFERS, "5.7", "buffers::provided_and_removed",
        Elsewhere::Refused;
    remove_buffers = remove_buffers, REMOVE_BUFFERS, "5.7", "buffers::provided_and_removed",
        Elsewhere::Refused;
}
