//! What `auto` means: the one place that says which engine is taken, and why.
//!
//! The rule looks at nothing but whether an engine can be made here. It measures nothing: a start must
//! not take long, and what a program will do is not known when it starts. `kapok advise` measures a
//! described workload and says whether this rule is right for it.

use crate::any::Kind;

/// An engine that `auto` takes if it can be had, and why it has this place.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Choice {
    /// The engine.
    pub kind: Kind,
    /// Why it comes here and not later, in words for a person.
    pub reason: &'static str,
}

/// The engines that `auto` tries, in this order; the first that can be made is taken.
///
/// poll, select and busy polling are not among them. Wherever there is poll(2) there is epoll or
/// kqueue, whose wake-ups do not cost more with every connection that is open; and who never waits uses
/// a whole core while there is nothing to do. They are for those who name them.
///
/// ```
/// use kapok_engine::{AUTO, Kind};
///
/// assert_eq!(AUTO[0].kind, Kind::Uring);
/// assert!(AUTO.iter().all(|choice| choice.kind != Kind::Select));
/// ```
pub const AUTO: &[Choice] = &[
    Choice {
        kind: Kind::Uring,
        reason: "one system call submits and reaps for many connections, and files wait in the kernel \
                 instead of on threads",
    },
    Choice {
        kind: Kind::Epoll,
        reason: "io_uring cannot be had here, and a wake-up costs no more with every connection that is \
                 open",
    },
];

impl Kind {
    /// How many descriptors a loop can wait for; `None` where only the system's limits count.
    ///
    /// select(2) has a set of fixed size, and every descriptor of the process must fit into it by its
    /// number: a server's listener, its connections, and what its handlers have open.
    #[must_use]
    pub const fn most_descriptors(self) -> Option<usize> {
        match self {
            Kind::Select => Some(libc::FD_SETSIZE),
            Kind::Uring | Kind::Epoll | Kind::Poll | Kind::Busy | Kind::Sim => None,
        }
    }
}
