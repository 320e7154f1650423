//! What was counted of a process, and differences of it.

use std::collections::BTreeMap;

/// One kind of system call. All calls are counted; how long they take and how they end is seen of all
/// of a rare kind, and of one in sixteen of a frequent one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CallCount {
    /// How often it was made: entered, ended or not.
    pub made: u64,
    /// Calls whose end was seen.
    pub timed: u64,
    /// Nanoseconds that those took, waiting included.
    pub timed_ns: u64,
    /// How many of those ended with an error.
    pub timed_errors: u64,
    /// How many of those ended with `EAGAIN`: there was nothing to do yet.
    pub timed_would_block: u64,
}

impl CallCount {
    /// How often it ended with an error, [`would_block`](CallCount::would_block) included, by those
    /// whose end was seen; `None` if none was.
    #[must_use]
    pub fn errors(&self) -> Option<u64> {
        self.of_all(self.timed_errors)
    }

    /// How often it found nothing to do, likewise.
    #[must_use]
    pub fn would_block(&self) -> Option<u64> {
        self.of_all(self.timed_would_block)
    }

    /// Nanoseconds that it took in all, waiting included, likewise.
    #[must_use]
    pub fn nanoseconds(&self) -> Option<u64> {
        self.of_all(self.timed_ns)
    }

    fn of_all(&self, of_timed: u64) -> Option<u64> {
        let all = u128::from(of_timed) * u128::from(self.made);
        Some(all.checked_div(u128::from(self.timed))?.min(u64::MAX.into()) as u64)
    }
}

/// One kind of operation of io_uring.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RingCount {
    /// How often one was handed to the kernel.
    pub submitted: u64,
    /// Completions: of an operation that lands several times, each.
    pub landed: u64,
    /// Completions with an error. A timeout that has run out (`ETIME`) and a cancelled operation
    /// (`ECANCELED`) are among them.
    pub errors: u64,
}

/// What a process, or several, did since counting began.
#[derive(Clone, Debug, Default)]
pub struct Counts {
    /// System calls of all kinds.
    pub total: u64,
    /// System calls by number (for [`name`](crate::meters::call_name)); `None` if only their total is
    /// counted.
    pub calls: Option<BTreeMap<u32, CallCount>>,
    /// Operations of io_uring by number (for [`name`](crate::meters::operation_name)); `None` if they
    /// are not seen.
    pub ring: Option<BTreeMap<u8, RingCount>>,
    /// How often a thread was woken.
    pub wakes_taken: Option<u64>,
    /// How often any thread on this machine was woken while one of these ran: by it, or by what the
    /// kernel did meanwhile.
    pub wakes_given: Option<u64>,
}

impl Counts {
    /// What came since `earlier`.
    #[must_use]
    pub fn since(&self, earlier: &Counts) -> Counts {
        let minus = |now: Option<u64>, then: Option<u64>| {
            now.map(|now| now.saturating_sub(then.unwrap_or(0)))
        };
        Counts {
            total: self.total.saturating_sub(earlier.total),
            calls: self.calls.as_ref().map(|calls| {
                let before = |number| earlier.calls.as_ref()?.get(number).copied();
                let differences = calls.iter().map(|(number, now)| {
                    let then = before(number).unwrap_or_default();
                    let difference = CallCount {
                        made: now.made.saturating_sub(then.made),
                        timed: now.timed.saturating_sub(then.timed),
                        timed_ns: now.timed_ns.saturating_sub(then.timed_ns),
                        timed_errors: now.timed_errors.saturating_sub(then.timed_errors),
                        timed_would_block: now
                            .timed_would_block
                            .saturating_sub(then.timed_would_block),
                    };
                    (*number, difference)
                });
                differences.filter(|(_, call)| call.made + call.timed > 0).collect()
            }),
            ring: self.ring.as_ref().map(|ring| {
                let before = |number| earlier.ring.as_ref()?.get(number).copied();
                let differences = ring.iter().map(|(number, now)| {
                    let then = before(number).unwrap_or_default();
                    let difference = RingCount {
                        submitted: now.submitted.saturating_sub(then.submitted),
                        landed: now.landed.saturating_sub(then.landed),
                        errors: now.errors.saturating_sub(then.errors),
                    };
                    (*number, difference)
                });
                differences.filter(|(_, ring)| ring.submitted + ring.landed > 0).collect()
            }),
            wakes_taken: minus(self.wakes_taken, earlier.wakes_taken),
            wakes_given: minus(self.wakes_given, earlier.wakes_given),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_came_since_leaves_out_what_was_before() {
        let counts = |reads, waits| Counts {
            total: reads + waits,
            calls: Some(BTreeMap::from([
                (
                    0,
                    CallCount {
                        made: reads,
                        timed: reads / 2,
                        timed_ns: reads * 100,
                        ..CallCount::default()
                    },
                ),
                (232, CallCount { made: waits, ..CallCount::default() }),
            ])),
            ring: Some(BTreeMap::from([(
                27,
                RingCount { submitted: reads, landed: 2 * reads, errors: 0 },
            )])),
            wakes_taken: Some(reads),
            ..Counts::default()
        };
        let since = counts(10, 4).since(&counts(4, 4));
        assert_eq!(since.total, 6);
        let calls = since.calls.unwrap();
        assert_eq!(calls.len(), 1, "no wait has come: {calls:?}");
        assert_eq!((calls[&0].made, calls[&0].timed), (6, 3));
        // Three took 600 ns, of six that were made.
        assert_eq!((calls[&0].nanoseconds(), calls[&0].errors()), (Some(1200), Some(0)));
        assert_eq!(CallCount { made: 5, ..CallCount::default() }.nanoseconds(), None);
        assert_eq!(since.ring.unwrap()[&27], RingCount { submitted: 6, landed: 12, errors: 0 });
        assert_eq!((since.wakes_taken, since.wakes_given), (Some(6), None));
    }
}
