//! Waiting for children.

use super::table::{Elsewhere, operations};
use super::{Entry, abi, address};

impl Entry {
    /// waitid(2). `info` may be null; `flags` is 0.
    pub fn waitid(
        kind: libc::idtype_t,
        id: libc::id_t,
        info: *mut libc::siginfo_t,
        options: i32,
        flags: u32,
    ) -> Entry {
        let entry = Entry::new(abi::WAITID, id as i32, 0, kind, address(info));
        Entry { op_flags: flags, file_index: options as u32, ..entry }
    }
}

operations! {
    waitid = waitid, WAITID, "6.7", "waitid::a_child", Elsewhere::Call("waitid(2)");
}
