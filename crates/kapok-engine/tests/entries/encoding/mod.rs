//! The fields of every entry, against those that liburing writes.
//!
//! What stands here was read off the source of liburing's `io_uring_prep_*`, with arguments of which
//! no two are alike. The numbers of operations are those of include/uapi/linux/io_uring.h.

mod files;
mod others;

use std::collections::BTreeSet;
use std::ptr::without_provenance_mut as at;

use kapok_engine::Key;
use kapok_engine::entry::{Entry, OPERATIONS, Slot};

/// An entry by the names that most helpers give its fields.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Fields {
    opcode: u8,
    flags: u8,
    ioprio: u16,
    fd: i32,
    off: u64,
    addr: u64,
    len: u32,
    op_flags: u32,
    buf_index: u16,
    file_index: u32,
    addr3: u64,
}

/// Nothing set.
const ZERO: Fields = Fields {
    opcode: 0,
    flags: 0,
    ioprio: 0,
    fd: 0,
    off: 0,
    addr: 0,
    len: 0,
    op_flags: 0,
    buf_index: 0,
    file_index: 0,
    addr3: 0,
};

/// The fields of an entry, from its bytes as the kernel reads them.
fn fields(entry: &Entry) -> Fields {
    let bytes = entry.to_bytes();
    let word = |from: usize| u64::from_ne_bytes(bytes[from..from + 8].try_into().unwrap());
    let half = |from: usize| u32::from_ne_bytes(bytes[from..from + 4].try_into().unwrap());
    let quarter = |from: usize| u16::from_ne_bytes(bytes[from..from + 2].try_into().unwrap());
    assert_eq!(word(32), 0, "an entry has no user_data");
    assert_eq!(quarter(42), 0, "nor a personality");
    assert_eq!(word(56), 0, "nor anything in its last word");
    Fields {
        opcode: bytes[0],
        flags: bytes[1],
        ioprio: quarter(2),
        fd: half(4) as i32,
        off: word(8),
        addr: word(16),
        len: half(24),
        op_flags: half(28),
        buf_index: quarter(40),
        file_index: half(44),
        addr3: word(48),
    }
}

/// Where there is memory in a real entry.
const A: usize = 0x1111_1122_2222;
const B: usize = 0x3333_3344_4444;
const C: usize = 0x5555_5566_6666;
const WIDE: u64 = 0x7_7788_9900;
const KEY: Key = Key::new(0x0102_0304, 0x0506_0708);
const OTHER_KEY: Key = Key::new(0x1112_1314, 0x1516_1718);

/// The name of a helper, the entry that ours makes, and the fields that liburing's writes.
pub(crate) type Sample = (&'static str, Entry, Fields);

/// Every helper, with the entry that ours makes and what liburing's writes.
pub(crate) fn samples() -> Vec<Sample> {
    let mut all = files::transfers();
    all.extend(files::files());
    all.extend(files::paths());
    all.extend(others::sockets());
    all.extend(others::direct());
    all.extend(others::waits());
    all.extend(others::others());
    all
}

#[test]
fn every_entry_has_the_fields_that_liburing_writes() {
    for (name, entry, expected) in samples() {
        assert_eq!(fields(&entry), expected, "io_uring_prep_{name}");
    }
}

#[test]
fn every_row_of_the_table_has_its_sample_and_the_right_number() {
    let samples = samples();
    let names: BTreeSet<_> = samples.iter().map(|sample| sample.0).collect();
    assert_eq!(names.len(), samples.len(), "a name twice");
    assert_eq!(names.len(), OPERATIONS.len());
    for row in OPERATIONS {
        let name = row.prep.strip_prefix("io_uring_prep_").expect("its prefix");
        let (_, entry, _) = samples
            .iter()
            .find(|sample| sample.0 == name)
            .unwrap_or_else(|| panic!("no sample of {name}"));
        assert_eq!(entry.opcode(), row.opcode, "{name}");
    }
}

#[test]
fn what_is_asked_of_all_entries_is_in_the_flags() {
    let bits = |entry: Entry| (entry.to_bytes()[1], fields(&entry).buf_index);
    assert_eq!(bits(Entry::nop().on_direct_descriptor()), (1 << 0, 0));
    assert_eq!(bits(Entry::nop().by_worker()), (1 << 4, 0));
    assert_eq!(bits(Entry::nop().with_buffer_group(9)), (1 << 5, 9));
}

#[test]
fn a_place_in_the_table_is_one_more_and_out_of_range_stays_so() {
    let field = |slot| fields(&Entry::socket_direct(1, 1, 0, slot, 0)).file_index;
    assert_eq!(field(Slot::At(0)), 1);
    assert_eq!(field(Slot::Any), u32::MAX);
    // Neither no place at all nor any.
    assert_eq!(field(Slot::At(u32::MAX)), u32::MAX - 1);
    assert_eq!(field(Slot::At(u32::MAX - 1)), u32::MAX - 1);
}

#[test]
fn lengths_are_clamped_to_what_a_transfer_moves() {
    let most = kapok_engine::MAX_TRANSFER as u32;
    assert_eq!(fields(&Entry::read(3, at(A), usize::MAX, 0)).len, most);
    assert_eq!(fields(&Entry::send(3, at(A), usize::MAX, 0)).len, most);
}
