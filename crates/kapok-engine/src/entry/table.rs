//! The table of all operations, and its rendering.

use std::fmt::Write as _;

/// What becomes of an operation off io_uring.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Elsewhere {
    /// It is this system call.
    Call(&'static str),
    /// It is this system call, and lands once where io_uring may land it several times.
    Once(&'static str),
    /// Readiness engines do it by themselves; on a plain thread a timeout sleeps, a no-op does
    /// nothing, and the others land with `-EOPNOTSUPP`: there is nothing that they could end.
    Engine,
    /// It lands with `-EOPNOTSUPP`.
    Refused,
}

/// One row of the table: one `io_uring_prep_*` of liburing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Operation {
    /// What liburing calls it.
    pub prep: &'static str,
    /// The function that makes it. Several helpers that are one operation share one.
    pub function: &'static str,
    /// `IORING_OP_*`.
    pub opcode: u8,
    /// The first kernel that carries it out, as far as is known. (An operation may be older than a
    /// flag that this helper sets.)
    pub since: &'static str,
    /// The test that carries it out, in `tests/entries` of this crate.
    pub test: &'static str,
    /// What becomes of it off io_uring.
    pub elsewhere: Elsewhere,
}

/// The rows of one family. Names a function that does not exist, and it does not compile.
macro_rules! operations {
    ($($prep:ident = $function:ident, $opcode:ident, $since:literal, $test:literal, $elsewhere:expr;)+) => {
        pub(super) const ROWS: &[crate::entry::Operation] = &[$(
            crate::entry::Operation {
                prep: concat!("io_uring_prep_", stringify!($prep)),
                function: {
                    let _ = Entry::$function;
                    concat!("Entry::", stringify!($function))
                },
                opcode: crate::entry::abi::$opcode,
                since: $since,
                test: $test,
                elsewhere: $elsewhere,
            },
        )+];
    };
}
pub(super) use operations;

/// The families, in the order of the table.
const FAMILIES: [(&str, &[Operation]); 18] = [
    ("Transfers", super::transfers::ROWS),
    ("Files", super::files::ROWS),
    ("Opening and closing", super::open::ROWS),
    ("Names in directories", super::paths::ROWS),
    ("Extended attributes", super::xattr::ROWS),
    ("Sockets", super::sockets::ROWS),
    ("Zero copy", super::zero_copy::ROWS),
    ("Multishot", super::multishot::ROWS),
    ("Provided buffers", super::buffers::ROWS),
    ("Direct descriptors", super::direct::ROWS),
    ("Pipes", super::pipes::ROWS),
    ("Readiness", super::poll::ROWS),
    ("Time limits", super::timeout::ROWS),
    ("Cancelling, and nothing", super::cancel::ROWS),
    ("Futexes", super::futex::ROWS),
    ("Children", super::waitid::ROWS),
    ("Messages between rings", super::message::ROWS),
    ("Commands", super::command::ROWS),
];

const COUNT: usize = {
    let (mut family, mut count) = (0, 0);
    while family < FAMILIES.len() {
        count += FAMILIES[family].1.len();
        family += 1;
    }
    count
};

/// Every operation of io_uring that liburing has a helper for, family by family.
pub const OPERATIONS: &[Operation; COUNT] = &{
    let mut all = [FAMILIES[0].1[0]; COUNT];
    let (mut family, mut to) = (0, 0);
    while family < FAMILIES.len() {
        let mut row = 0;
        while row < FAMILIES[family].1.len() {
            all[to] = FAMILIES[family].1[row];
            row += 1;
            to += 1;
        }
        family += 1;
    }
    all
};

/// The oldest kernel that the engine runs on.
const OLDEST: (u32, u32) = (5, 19);

impl Operation {
    /// The first kernel as numbers, for comparing. Of a kernel that is to come only the first is
    /// known.
    pub fn version(&self) -> (u32, u32) {
        let (major, minor) = self.since.split_once('.').unwrap_or((self.since, "x"));
        (major.parse().unwrap_or(u32::MAX), minor.parse().unwrap_or(u32::MAX))
    }

    /// What it lands with on a kernel that the engine runs on and that does not have it, as an errno;
    /// `None` if there is no such kernel.
    pub fn refusal(&self) -> Option<i32> {
        let is_command = self.opcode == super::abi::URING_CMD;
        (self.version() > OLDEST).then_some(if is_command {
            libc::EOPNOTSUPP
        } else {
            libc::EINVAL
        })
    }
}

/// The name of an operation: that of the plainest helper that makes it.
pub(crate) fn name(opcode: u8) -> &'static str {
    let of_opcode = OPERATIONS.iter().filter(|operation| operation.opcode == opcode);
    let plainest = of_opcode.min_by_key(|operation| operation.prep.len());
    plainest
        .and_then(|operation| operation.prep.strip_prefix("io_uring_prep_"))
        .unwrap_or("an operation")
}

/// The table as `docs/operations.md` has it.
pub fn render() -> String {
    let mut text = String::from(INTRODUCTION);
    for (family, rows) in FAMILIES {
        let _ = write!(text, "\n## {family}\n\n{HEADING}");
        for row in rows {
            let older = match row.refusal() {
                None => "–".to_owned(),
                Some(libc::EINVAL) => "`-EINVAL`".to_owned(),
                Some(_) => "`-EOPNOTSUPP`".to_owned(),
            };
            let elsewhere = match row.elsewhere {
                Elsewhere::Call(call) => call.to_owned(),
                Elsewhere::Once(call) => format!("{call}, lands once"),
                Elsewhere::Engine => "the engine itself".to_owned(),
                Elsewhere::Refused => "`-EOPNOTSUPP`".to_owned(),
            };
            let _ = writeln!(
                text,
                "| `{}` | `{}` | `{}` | {} | {older} | {elsewhere} |",
                row.prep, row.function, row.test, row.since
            );
        }
    }
    text
}

const HEADING: &str = "| liburing | function | test | kernel | on an older one | off io_uring |\n\
                       |---|---|---|---|---|---|\n";

const INTRODUCTION: &str = "# Every operation of io_uring

Generated from the table beside the constructors in `crates/kapok-engine/src/entry`; do not edit.
`KAPOK_WRITE_OPERATIONS=1 cargo test -p kapok-engine --test entries table` writes it again.

One row for each `io_uring_prep_*` of liburing (August 2026; `io_uring_prep_rw` and
`io_uring_prep_send_set_addr` fill in fields and are no operations). Helpers that are one operation
under two names share a function.

* **test** is in `crates/kapok-engine/tests/entries`, and carries the operation out on a ring, and off
  io_uring too. The fields of the entry are held to liburing's in `encoding`.
* **kernel** is the first to have it. The engine runs on Linux 5.19 and later; a dash under *on an
  older one* says that every such kernel has it. Otherwise the operation lands with the error that
  stands there; `Uring::operations` asks the kernel for those it knows by number.
* **off io_uring** is what readiness engines (epoll, poll, select, busy) and plain threads make of it.
  What may block is left to an offload thread. `-EOPNOTSUPP` is the same number as `-ENOTSUP`. In a
  simulated world every entry lands with it.
* Rows from 6.19 on are tested by their encoding and their refusal: `missing` carries them out and
  expects the refusal on a kernel that is older.
";
